"""Which queues an exchange reaches, as it lies in Redis: Celery's sets of bindings, which both sides read and write.

A member is ``key SEP pattern SEP queue``; the pattern, a regular expression, is there for topic exchanges only. What is
bound to a fanout exchange is not written down: whoever listens is known to the server. Headers exchanges are unknown to
Celery on Redis, so their bindings have a set of their own.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec

from celeriac.redis.layout import Layout
from celeriac.redis.links import Argument, Links
from celeriac.redis.scripts import Script
from celeriac.topology import Binding, Queue, matches
from celeriac.wire.envelope import Outgoing

__all__ = ["Bindings"]

_BIND = Script("bind.lua")
_UNBIND = Script("unbind.lua")
#: Milliseconds that the binding of a queue that expires lives at least after it was renewed.
_SHORTEST = 3_600_000
#: Milliseconds that a queue lives at least after it was last put off.
_LEAST = 60_000


class _OfHeaders(msgspec.Struct, frozen=True):
    queue: str
    arguments: dict[str, Any]


_decode_headers = msgspec.json.Decoder(_OfHeaders).decode


class Bindings:
    """Declares queues, and finds out where messages go. Any thread."""

    def __init__(self, links: Links, layout: Layout) -> None:
        self._links = links
        self._layout = layout
        self._lock = threading.Lock()
        #: Queues whose bindings the server has, by name; forgotten when a connection broke, since it may be empty now.
        self._declared: dict[str, list[Queue]] = {}
        self._breaks = 0
        #: Types of the exchanges that were declared here.
        self._types: dict[str, str] = {}

    # -- declaring ---------------------------------------------------------------------------------------------

    @property
    def is_outdated(self) -> bool:
        """A connection broke: the server may have lost what was declared."""
        return self._breaks != self._links.breaks

    def knows(self, queue: Queue) -> bool:
        """Whether there is nothing to declare."""
        return not self.is_outdated and queue in self._declared.get(queue.name, ())

    def declare(self, queues: Iterable[Queue], timeout: float | None = None) -> None:
        """Write down the bindings of queues that are not known yet."""
        if self.is_outdated:
            with self._lock:
                self._breaks = self._links.breaks
                self._declared = {}
        new: list[Queue] = []
        for queue in queues:
            if not self.knows(queue) and queue not in new:
                new.append(queue)
        if new:
            self.write(new, timeout)
            with self._lock:
                for queue in new:
                    self._declared[queue.name] = [*self._declared.get(queue.name, ()), queue]

    def write(self, queues: Collection[Queue], timeout: float | None = None) -> None:
        """Write down their bindings; for queues that expire, put their end off."""
        commands: list[tuple[Argument, ...]] = []
        for queue in queues:
            for binding in queue.all_bindings():
                exchange = binding.exchange
                if not exchange.name:
                    continue
                self._types[exchange.name] = exchange.type
                if exchange.type == "headers":
                    member = msgspec.json.encode(_OfHeaders(queue.name, binding.arguments))
                    commands.append(("SADD", self._layout.headers_binding(exchange.name), member))
                elif exchange.type != "fanout":
                    self._bind(queue, binding, commands, timeout)
        if commands:
            self._links.ask(*commands, timeout=timeout)

    def _bind(
        self, queue: Queue, binding: Binding, commands: list[tuple[Argument, ...]], timeout: float | None
    ) -> None:
        exchange, member = binding.exchange.name, self._member(queue.name, binding)
        key = self._layout.binding(exchange)
        expires = expires_of(queue)
        if expires is None:
            commands += [("SADD", key, member), ("SADD", self._layout.permanent_binding(exchange), member)]
        else:
            keys = [key, self._layout.deadlines]
            self._links.run(_BIND, keys, [exchange, max(2 * expires, _SHORTEST), member], timeout)

    def _member(self, queue: str, binding: Binding) -> str:
        pattern = topic_pattern(binding.routing_key) if binding.exchange.type == "topic" else ""
        return self._layout.sep.join((binding.routing_key, pattern, queue))

    def sweep(self) -> int:
        """Delete bindings of queues that expired; returns of how many exchanges."""
        layout = self._layout
        return self._links.run(
            _UNBIND, [layout.deadlines], [layout.binding(""), layout.permanent_binding("")]
        )

    # -- routing -----------------------------------------------------------------------------------------------

    def learn(self, batch: Sequence[Outgoing]) -> None:
        """Take in the types of exchanges from the queues that messages bring along."""
        for each in batch:
            if each.exchange and each.queue is not None:
                for binding in each.queue.all_bindings():
                    self._types.setdefault(binding.exchange.name, binding.exchange.type)

    def type_of(self, exchange: str) -> str | None:
        """The type of an exchange, as far as it is known here: Redis does not know it."""
        return self._types.get(exchange)

    def routes(self, batch: Sequence[Outgoing], timeout: float | None = None) -> list[list[str]]:
        """The queues that each message reaches, by what is bound now; not for fanout exchanges."""
        exchanges = list(dict.fromkeys(each.exchange for each in batch if each.exchange))
        if not exchanges:
            return [[each.routing_key] for each in batch]
        layout = self._layout
        keys = [key for name in exchanges for key in (layout.binding(name), layout.headers_binding(name))]
        found = iter(self._links.ask(*(("SMEMBERS", key) for key in keys), timeout=timeout))
        tables = {name: (next(found), next(found)) for name in exchanges}
        return [self._route(each, *tables.get(each.exchange, ((), ()))) for each in batch]

    def _route(self, outgoing: Outgoing, bound: Iterable[bytes], by_headers: Iterable[bytes]) -> list[str]:
        if not outgoing.exchange:
            return [outgoing.routing_key]
        queues = {queue for member in bound if (queue := self._matched(member, outgoing.routing_key))}
        for each in map(_decode_headers, by_headers):
            if matches("headers", "", "", arguments=each.arguments, headers=outgoing.envelope.headers):
                queues.add(each.queue)
        return sorted(queues)

    def _matched(self, member: bytes, routing_key: str) -> str | None:
        """The queue of a member, where its binding takes messages of this key."""
        sep = self._layout.sep
        key, _, rest = member.decode("utf-8", "surrogateescape").partition(sep)
        pattern, is_whole, queue = rest.rpartition(sep)
        if not is_whole:
            return None
        return queue if matches("topic" if pattern else "direct", key, routing_key) else None


def expires_of(queue: Queue) -> int | None:
    """Milliseconds that a queue outlives its last consumer, a minute at least, since consumers put its end off only
    when they renew; None: for ever."""
    given = queue.queue_arguments.get("x-expires")
    if queue.expires is not None:
        given = round(queue.expires * 1000)
    return max(_LEAST, given) if isinstance(given, int) else None


def topic_pattern(key: str) -> str:
    """A topic's binding key as the regular expression that Celery matches routing keys with."""
    regex, dot = "", ""
    for word in key.split("."):
        if word == "#":
            any_words = rf"(?:{dot or _FIRST}[^.]+)*"
            # "#.#" is "#", and would cost a regex quadratic time.
            regex += "" if regex.endswith(any_words) else any_words
            dot = dot or _FIRST
        else:
            regex += dot + ("[^.]+" if word == "*" else re.escape(word))
            dot = r"\."
    return f"^{regex}$"


#: Before the first of the words that follow a leading "#", which may be none: nothing at the beginning, else a dot.
_FIRST = r"(?:^|\.)"
