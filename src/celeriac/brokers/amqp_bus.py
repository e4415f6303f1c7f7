"""Broadcasting through RabbitMQ, by Celery's exchanges and queues (wire-protocol §3, §10, §11)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from celeriac.amqp import methods
from celeriac.amqp.channel import Channel, ChannelClosed
from celeriac.amqp.connection import Connection
from celeriac.amqp.declaring import declare
from celeriac.amqp.properties import decode_envelope, encode_properties
from celeriac.amqp.publisher import Line, Post, Publisher
from celeriac.amqp.tables import Unencodable
from celeriac.brokers.bus import Bus
from celeriac.brokers.bus_exchanges import exchange_named
from celeriac.brokers.bus_listener import ConnectedListener, opened
from celeriac.errors import ConnectionLost, OperationalError
from celeriac.topology import Queue
from celeriac.wire.envelope import Envelope, Outgoing

__all__ = ["AMQPBus", "AMQPListener"]

logger = logging.getLogger(__name__)

#: Seconds between a listener's heartbeats at least: so that nobody is missed who is not at `receive` for a while.
_HEARTBEAT = 20.0
#: Seconds that the goodbye may take.
_GOODBYE = 2.0
#: The server's word for a queue that is another connection's own.
_LOCKED = 405


class AMQPBus(Bus):
    """Sends by the broker's `publisher`; each listener has a connection of its own.

    `heartbeat`: seconds, None: none. `timeout`: seconds that sending, or a question to the server, may take.
    A listener that is not at `receive` for more than two heartbeats (40 s, or more) has to begin anew.
    """

    def __init__(self, publisher: Publisher, *, heartbeat: float | None, timeout: float) -> None:
        self._publisher = publisher
        self._heartbeat = max(heartbeat, _HEARTBEAT) if heartbeat else 0.0
        self._timeout = timeout

    def send(self, batch: Sequence[Outgoing]) -> None:
        if not batch:
            return
        posts = [_post(each) for each in batch]
        deadline = time.monotonic() + self._timeout
        with self._publisher.line(deadline) as line:
            self._declare({each.exchange for each in posts}, line)
            failures = line.publish(posts, deadline)
        if failures.unconfirmed:
            raise ConnectionLost(failures.reason)

    def _declare(self, exchanges: Iterable[str], line: Line) -> None:
        """There is nobody where an exchange is missing, but sending to it would end the channel."""
        for name in exchanges:
            if not line.has_exchange(name, timeout=self._timeout):
                exchange = exchange_named(name)
                with line.channel(self._timeout) as channel:
                    method = methods.exchange_declare(
                        channel.number, name, exchange.type, durable=exchange.durable
                    )
                    channel.call(method, methods.EXCHANGE_DECLARE_OK, timeout=self._timeout)

    def listen(self, queue: Queue) -> AMQPListener:
        return opened(AMQPListener(self._publisher, queue, heartbeat=self._heartbeat, timeout=self._timeout))


class AMQPListener(ConnectedListener):
    """A connection of its own, with one channel that consumes the queue."""

    def __init__(self, publisher: Publisher, queue: Queue, *, heartbeat: float, timeout: float) -> None:
        super().__init__(queue)
        self._server = publisher.server
        self._heartbeat = heartbeat
        self._timeout = timeout
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        #: We have had the queue.
        self._began = False

    @property
    def _is_open(self) -> bool:
        return self._channel is not None

    def _open(self) -> None:
        self._connection = connection = self._server.connect(
            name=f"celeriac listening to {self.queue.name}",
            heartbeat=self._heartbeat,
            patience=1.25 * self._heartbeat,
            timeout=self._timeout,
        )
        channel = connection.channel(timeout=self._timeout)
        self._declare(channel)
        consume = methods.basic_consume(channel.number, self.queue.name, "bus", no_ack=True)
        channel.call(consume, methods.BASIC_CONSUME_OK, timeout=self._timeout)
        self._channel = channel
        self._began = True

    def _declare(self, channel: Channel) -> None:
        try:
            declare(channel, [self.queue], own=True, timeout=self._timeout)
        except OperationalError as exc:
            refusal = exc.__cause__
            if self._began and isinstance(refusal, ChannelClosed) and refusal.code == _LOCKED:
                raise ConnectionLost(f"{exc} (the server has not missed the lost connection yet)") from exc
            raise

    def _arrived(self) -> list[Envelope]:
        connection, channel = self._in_use()
        connection.read()
        found: list[Envelope] = []
        while channel.arrivals:
            arrival = channel.arrivals.popleft()
            try:
                found.append(decode_envelope(arrival.properties, arrival.body))
            except ValueError as exc:
                logger.warning("%s: dropped what came: %s", self.queue.name, exc)
        if not found and (channel.closed or channel.cancelled):
            raise ConnectionLost(f"{connection.where}: queue {self.queue.name!r} was deleted")
        return found

    def _tend(self) -> float:
        connection, _ = self._in_use()
        connection.tick()
        return connection.until_tick()

    def _fileno(self) -> int:
        return self._in_use()[0].fileno()

    def _leave(self) -> None:
        connection, channel = self._in_use()
        delete = methods.queue_delete(channel.number, self.queue.name)
        channel.call(delete, methods.QUEUE_DELETE_OK, timeout=_GOODBYE)
        connection.close(timeout=_GOODBYE)

    def _hang_up(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            connection.drop()

    def _in_use(self) -> tuple[Connection, Channel]:
        assert self._connection is not None and self._channel is not None
        return self._connection, self._channel


def _post(outgoing: Outgoing) -> Post:
    envelope = outgoing.envelope
    priority: int = envelope.properties.get("priority") or 0
    try:
        properties = encode_properties(
            envelope.content_type,
            envelope.content_encoding,
            envelope.headers,
            envelope.properties,
            priority,
        )
    except Unencodable as exc:
        raise OperationalError(f"RabbitMQ cannot carry this message: {exc}") from exc
    return Post(outgoing.exchange, outgoing.routing_key, properties, envelope.body, mandatory=False)
