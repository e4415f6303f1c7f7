"""Messages in RabbitMQ: native exchanges, queues, priorities; every message confirmed, none dropped unnoticed.

A message is in its queue, or held by the connection that it was delivered on: when that ends, the server hands it
out again. There are no leases to renew, and none to reap (`traits.leases`).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from celeriac.amqp import methods
from celeriac.amqp.channel import ChannelClosed
from celeriac.amqp.publisher import Publisher
from celeriac.amqp.server import AMQPServer
from celeriac.brokers.amqp_bus import AMQPBus
from celeriac.brokers.amqp_consumer import AMQPConsumer
from celeriac.brokers.amqp_message import Sending
from celeriac.brokers.amqp_publishing import Mail
from celeriac.brokers.base import Broker, BrokerOptions, BrokerTraits, QueueSize
from celeriac.errors import ImproperlyConfigured
from celeriac.topology import Queue
from celeriac.wire.envelope import Outgoing

__all__ = ["AMQPBroker"]

_NOT_FOUND = 404
#: Seconds that the server lets a consumer hold a message, by default.
_CONSUMER_TIMEOUT = 1800.0


class AMQPBroker(Broker):
    """Queues of a RabbitMQ server, or of the first of several that answers.

    Transport options: ``confirm_publish`` (default true: `publish` returns when the server has the messages;
    without, it is fast, and what is lost is lost unnoticed), ``consumer_timeout`` (seconds; must not be more
    than the server's).
    """

    schemes: ClassVar[tuple[str, ...]] = ("amqp", "amqps", "pyamqp", "librabbitmq")
    traits: ClassVar[BrokerTraits] = BrokerTraits(persistent=True, leases=False, counts_scheduled=False)

    def __init__(self, url: str, options: BrokerOptions) -> None:
        super().__init__(url, options)
        transport = options.transport
        self.server = AMQPServer.of(
            url,
            ssl=options.ssl,
            connect_timeout=options.connect_timeout,
            heartbeat=options.heartbeat,
            login_method=options.login_method,
            failover=options.failover,
        )
        #: Seconds that the server lets a consumer hold a message.
        self.consumer_timeout = _seconds(transport, "consumer_timeout", _CONSUMER_TIMEOUT)
        #: For results by message: publishing connections that are there anyway.
        self.publisher = Publisher(
            self.server,
            name="celeriac publisher",
            limit=options.pool_limit,
            confirm=bool(transport.get("confirm_publish", True)),
        )
        mail = Publisher(self.server, name="celeriac worker", limit=options.pool_limit)
        self._mail = self._mail_by(self.publisher)
        #: What moves messages that somebody else entrusted to us is always confirmed.
        self.own_mail = self._mail if self.publisher.confirm else self._mail_by(mail)
        self._own_publisher = self.publisher if self.publisher.confirm else mail
        self._consumers = weakref.WeakSet[AMQPConsumer]()

    def _mail_by(self, publisher: Publisher) -> Mail:
        options = self.options
        return Mail(
            publisher,
            clock=options.clock,
            timeout=options.publish_timeout,
            delayed_type=options.delayed_queue_type,
        )

    def declare(self, queues: Collection[Queue]) -> None:
        deadline = time.monotonic() + self.options.publish_timeout
        with self._own_publisher.line(deadline) as line:
            line.declare(queues, timeout=self.options.publish_timeout)

    def publish(self, batch: Sequence[Outgoing]) -> None:
        if batch:
            self._mail.send([Sending(each) for each in batch])

    def consumer(self, queues: Collection[Queue], *, name: str) -> AMQPConsumer:
        consumer = AMQPConsumer(self, queues, name)
        self._consumers.add(consumer)
        return consumer

    def size(self, queue: str) -> QueueSize:
        """What is ready is the server's count. Of what is unsettled it tells nothing: that is what consumers of
        this object hold. Messages for later are not in the queue yet, and not counted."""
        ready = self._count(queue, methods.queue_declare, passive=True)
        held = sum(each.holds(queue) for each in list(self._consumers))
        return QueueSize(ready, 0, held)

    def purge(self, queue: str) -> int:
        """Messages for later are not in the queue yet, and stay."""
        return self._count(queue, methods.queue_purge)

    def _count(self, queue: str, ask: Any, **arguments: Any) -> int:
        """The number of messages in the answer to a method about a queue; 0 if there is no such queue."""
        answer = methods.QUEUE_DECLARE_OK if arguments else methods.QUEUE_PURGE_OK
        timeout = self.options.publish_timeout
        with self._own_publisher.line(time.monotonic() + timeout) as line, line.channel(timeout) as channel:
            try:
                payload = channel.call(ask(channel.number, queue, **arguments), answer, timeout=timeout)
            except ChannelClosed as exc:
                if exc.code == _NOT_FOUND:
                    return 0
                raise
        return methods.read_message_count(payload)

    def bus(self) -> AMQPBus:
        return AMQPBus(self.publisher, heartbeat=self.server.heartbeat, timeout=self.options.publish_timeout)

    def close(self) -> None:
        self.publisher.close()
        self._own_publisher.close()


def _seconds(transport: Any, name: str, default: float) -> float:
    value = transport.get(name, default)
    if isinstance(value, int | float) and value > 0:
        return float(value)
    raise ImproperlyConfigured(f"broker_transport_options: {name} must be a number of seconds, not {value!r}")
