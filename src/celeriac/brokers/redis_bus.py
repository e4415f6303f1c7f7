"""Broadcasting through Redis, in Celery's layout (wire-protocol §5, §11), so that both hear each other.

What goes to a fanout or topic exchange is published on a channel ``/{db}.<exchange>[/<routing key>]``, and reaches
those who subscribed. What goes to a direct exchange is put into the list of each queue that is bound with its routing
key; with the default exchange, into the list of that name.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any
from uuid import uuid4

from celeriac.brokers.bus import Bus
from celeriac.brokers.bus_exchanges import exchange_named
from celeriac.brokers.bus_listener import ConnectedListener, opened
from celeriac.errors import ConnectionLost, DecodeError, OperationalError
from celeriac.redis.layout import Layout
from celeriac.redis.links import Argument, Links
from celeriac.redis.scripts import Script
from celeriac.redis.server import RedisServer
from celeriac.topology import Queue, queues_for
from celeriac.wire.envelope import Envelope, Outgoing, from_virtual, to_virtual

__all__ = ["RedisBus", "RedisListener"]

logger = logging.getLogger(__name__)

_REPLY, _TAKE = Script("bus_reply.lua"), Script("bus_take.lua")
_BIND, _LEAVE = Script("bind.lua"), Script("bus_leave.lua")
#: Messages that `_TAKE` takes at most.
_TAKEN = 64
#: Seconds that the bindings of an exchange stay at least after the last of them was renewed; Celery sweeps them then.
_BOUND = 3600.0
#: Seconds that the list of a queue outlives the last message put there, where that does not say it (``expiration``).
_UNREAD = 10.0
#: Seconds of silence after which a connection has to show that there is somebody at its other end.
_QUIET = 5.0
#: Replies that are read from a connection before they are handed on.
_AT_ONCE = 1000


class RedisBus(Bus):
    """Sends by `links`; each listener has a connection of its own."""

    def __init__(self, links: Links, layout: Layout) -> None:
        self._links = links
        self._layout = layout

    def send(self, batch: Sequence[Outgoing]) -> None:
        if batch:
            self._links.ask(*(command for each in batch for command in self._commands(each)))

    def _commands(self, outgoing: Outgoing) -> Iterable[tuple[Argument, ...]]:
        exchange, key = outgoing.exchange, outgoing.routing_key
        data = to_virtual(outgoing.envelope, exchange=exchange, routing_key=key, delivery_tag=str(uuid4()))
        if exchange_named(exchange).type != "direct":
            return [("PUBLISH", self._layout.channel(exchange, key), data)]
        unread = _milliseconds(outgoing.envelope.properties.get("expiration"))
        if exchange:
            layout = self._layout
            arguments = (key + layout.sep, layout.sep, layout.prefix, data, unread)
            return [("EVAL", _REPLY.text, 1, layout.binding(exchange), *arguments)]
        queue = self._layout.ready(key)
        return [("LPUSH", queue, data), ("PEXPIRE", queue, unread)]

    def listen(self, queue: Queue) -> RedisListener:
        exchange = queue.exchange
        if exchange is None or exchange.type == "direct":
            return opened(_Pulling(self._links, self._layout, queue))
        if exchange.type == "headers":
            raise OperationalError(
                f"exchange {exchange.name!r}: a bus has fanout, topic and direct exchanges, not headers"
            )
        return opened(
            _Subscribed(self._links.server, self._layout.pattern(exchange.name, queue.routing_key), queue)
        )


class RedisListener(ConnectedListener, ABC):
    """A connection of its own."""

    def __init__(self, server: RedisServer, queue: Queue) -> None:
        super().__init__(queue)
        self._server = server
        self._connection: Any = None

    @property
    def _is_open(self) -> bool:
        return self._connection is not None

    def _open(self) -> None:
        self._connection = self._server.connect(timeout=self._server.timeout, protocol=2)
        self._begin()

    def _arrived(self) -> list[Envelope]:
        found: list[Envelope] = []
        for _ in range(_AT_ONCE):
            if not self._connection.can_read(timeout=0):
                break
            for data in self._messages_in(self._connection.read_response()):
                try:
                    found.append(from_virtual(data))
                except DecodeError as exc:
                    logger.warning("%s: dropped what came: %s", self.queue.name, exc)
        return found

    def _fileno(self) -> int:
        return self._connection._sock.fileno()

    def _send(self, *words: Any) -> None:
        self._connection.send_command(*words, check_health=False)

    def _errors(self) -> AbstractContextManager[None]:
        return self._server.errors()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    @abstractmethod
    def _begin(self) -> None:
        """Begin to listen, on a new connection."""

    @abstractmethod
    def _messages_in(self, reply: Any) -> Sequence[bytes]:
        """The messages that a reply of the server holds."""


class _Subscribed(RedisListener):
    """Hears what is published on channels."""

    def __init__(self, server: RedisServer, pattern: str, queue: Queue) -> None:
        super().__init__(server, queue)
        self._pattern = pattern
        #: When something has to be heard, or to be asked for; and whether we asked.
        self._due = 0.0
        self._asked = False

    def _begin(self) -> None:
        self._send("PSUBSCRIBE", self._pattern)
        self._connection.read_response()
        self._heard()

    def _heard(self) -> None:
        self._due, self._asked = time.monotonic() + _QUIET, False

    def _tend(self) -> float:
        now = time.monotonic()
        if now < self._due:
            return self._due - now
        if self._asked:
            raise ConnectionLost(f"Redis at {self._server.address} does not answer")
        self._send("PING")
        self._due, self._asked = now + self._server.timeout, True
        return self._server.timeout

    def _messages_in(self, reply: Any) -> Sequence[bytes]:
        self._heard()
        return [reply[3]] if reply[0] == b"pmessage" else []

    def _arrived(self) -> list[Envelope]:
        return [each for each in super()._arrived() if self._is_for_us(each)]

    def _is_for_us(self, envelope: Envelope) -> bool:
        """Redis' patterns are wider than those of a topic exchange, whose ``*`` is one word."""
        if self.queue.is_fanout:
            return True
        info: dict[str, Any] = envelope.properties.get("delivery_info") or {}
        key = str(info.get("routing_key") or "")
        return any(queues_for(each.exchange.name, key, [self.queue]) for each in self.queue.all_bindings())

    def _leave(self) -> None:
        """A subscription ends with its connection."""


class _Pulling(RedisListener):
    """Takes what is put into the list of a queue, and has the queue bound so long."""

    def __init__(self, links: Links, layout: Layout, queue: Queue) -> None:
        super().__init__(links.server, queue)
        self._links = links
        self._list = layout.ready(queue.name)
        self._exchange = queue.exchange.name if queue.exchange else queue.name
        self._member = layout.sep.join((queue.routing_key or queue.name, "", queue.name))
        self._keys = [layout.binding(self._exchange), layout.deadlines]
        self._stay = max(2 * (queue.expires or 0.0), _BOUND)
        self._bound_until = 0.0
        #: Replies that are due, and when the last of them must be here.
        self._due = 0
        self._deadline = 0.0

    def _begin(self) -> None:
        self._due = 0
        self._bind()
        self._tend()

    def _bind(self) -> None:
        if self._exchange:
            arguments = (self._exchange, round(self._stay * 1000), self._member)
            self._links.run(_BIND, self._keys, arguments)
        self._bound_until = time.monotonic() + self._stay / 3

    def _tend(self) -> float:
        now = time.monotonic()
        if now >= self._bound_until:
            self._bind()
        if self._due and now >= self._deadline:
            raise ConnectionLost(f"Redis at {self._server.address} does not answer")
        if not self._due:
            self._send("EVAL", _TAKE.text, 1, self._list, _TAKEN)
            self._send("BRPOP", self._list, int(_QUIET))
            self._due = 2
            self._deadline = now + _QUIET + self._server.timeout
        return min(self._deadline, self._bound_until) - now

    def _messages_in(self, reply: Any) -> Sequence[bytes]:
        self._due -= 1
        if self._due:
            return reply
        return [reply[1]] if reply else []

    def _leave(self) -> None:
        self._links.run(_LEAVE, [*self._keys, self._list], (self._exchange, self._member))


def _milliseconds(expiration: Any) -> int:
    """A message's ``expiration`` (text, milliseconds)."""
    text = str(expiration)
    return max(1, int(text)) if text.isdecimal() else round(_UNREAD * 1000)
