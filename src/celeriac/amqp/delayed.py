"""Messages for later: Celery's delayed-delivery exchanges and queues, declared as Celery declares them.

Twenty-eight queues hold messages for 1, 2, 4 … 2²⁷ seconds. A delay is written in binary in front of the routing
key (``0.0. … 1.0.1.<key>``); each exchange looks at one bit, and either lets the message wait in its queue or passes
it to the next. What comes out at the end goes to ``celery_delayed_delivery``, to which each target queue is bound.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from celeriac.amqp import methods
from celeriac.amqp.channel import Channel, ChannelClosed
from celeriac.errors import OperationalError
from celeriac.topology import Exchange, Queue

__all__ = [
    "DELIVERY",
    "MAX_DELAY",
    "bind",
    "bind_exchange",
    "declare_delays",
    "delayed",
    "relay",
    "without_delay",
]

_LEVELS = 28
#: Where messages arrive after their delay.
DELIVERY = "celery_delayed_delivery"
#: Seconds.
MAX_DELAY = 2**_LEVELS - 1

_PREFIX = re.compile(r"(?:[01]\.){28}")


def _name(level: int) -> str:
    return f"celery_delayed_{level}"


def delayed(seconds: int, routing_key: str) -> tuple[str, str]:
    """Exchange and routing key that lead to `routing_key` after 1 … `MAX_DELAY` seconds."""
    bits = ".".join(f"{seconds:0{_LEVELS}b}")
    return _name(seconds.bit_length() - 1), f"{bits}.{routing_key}"


def without_delay(routing_key: str) -> str:
    """The routing key that a message had before it was delayed."""
    return _PREFIX.sub("", routing_key, count=1) if _PREFIX.match(routing_key) else routing_key


def declare_delays(channel: Channel, type: str, *, timeout: float) -> None:
    """Declare it all, in one round trip. `type`: of the queues, ``quorum`` or ``classic``.

    Raises `OperationalError`; the channel is closed then.
    """
    number = channel.number
    frames = [methods.exchange_declare(number, DELIVERY, "topic", durable=True, nowait=True)]
    for level in range(_LEVELS):
        name, before = _name(level), "*." * (_LEVELS - 1 - level)
        after = _name(level - 1) if level else DELIVERY
        frames += [
            methods.exchange_declare(number, name, "topic", durable=True, nowait=True),
            methods.queue_declare(
                number, name, durable=True, nowait=True, arguments=_arguments(level, after, type)
            ),
            methods.queue_bind(number, name, name, f"{before}1.#", nowait=True),
            methods.exchange_bind(number, after, name, f"{before}0.#", nowait=True),
        ]
    channel.send(b"".join(frames))
    last = methods.exchange_declare(number, DELIVERY, passive=True)
    try:
        channel.call(last, methods.EXCHANGE_DECLARE_OK, timeout=timeout)
    except ChannelClosed as exc:
        raise OperationalError(
            f"{channel.connection.where}: cannot declare the queues for delayed delivery: {exc.text} "
            f"(broker_native_delayed_delivery_queue_type)"
        ) from exc


def _arguments(level: int, after: str, type: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "x-queue-type": type,
        "x-overflow": "reject-publish",
        "x-message-ttl": 2**level * 1000,
        "x-dead-letter-exchange": after,
    }
    if type == "quorum":
        arguments["x-dead-letter-strategy"] = "at-least-once"
    return arguments


def bind(channel: Channel, queue: str, routing_key: str, *, timeout: float) -> None:
    """Let what was delayed under `routing_key` arrive in a queue; not what only ends in it (``#.b`` is ``a.b`` too)."""
    channel.call(
        methods.queue_bind(channel.number, queue, DELIVERY, f"{'*.' * _LEVELS}{routing_key}"),
        methods.QUEUE_BIND_OK,
        timeout=timeout,
    )


def bind_exchange(channel: Channel, queue: Queue, *, timeout: float) -> None:
    """Let what Celery delays for a queue's own exchange arrive: its keys carry the delay to the very end."""
    exchange = queue.exchange
    if exchange is None or not exchange.name or exchange.type == "direct":
        return
    for binding in queue.all_bindings():
        if binding.exchange.name == exchange.name:
            key = f"#.{binding.routing_key}"
            channel.call(
                methods.exchange_bind(channel.number, exchange.name, DELIVERY, key),
                methods.EXCHANGE_BIND_OK,
                timeout=timeout,
            )
            channel.call(
                methods.queue_bind(channel.number, queue.name, exchange.name, key),
                methods.QUEUE_BIND_OK,
                timeout=timeout,
            )


def relay(exchange: str, routing_key: str) -> Queue:
    """A queue for messages to a named exchange: they pass through it after their delay, and go on to where
    they were sent, whatever its type. One per exchange and routing key, and it stays."""
    # One word: Celery binds exchanges to ``#.<key>``, which the end of ours must not be.
    name = f"celeriac-delayed-{hashlib.sha256(f'{exchange} {routing_key}'.encode()).hexdigest()}"
    return Queue(
        name,
        Exchange(""),
        queue_arguments={
            "x-queue-type": "classic",
            "x-message-ttl": 0,
            "x-dead-letter-exchange": exchange,
            "x-dead-letter-routing-key": routing_key,
        },
    )
