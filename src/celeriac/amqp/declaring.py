"""Queues, exchanges and bindings at the server: what is declared, and why the server refuses it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from celeriac.amqp import methods
from celeriac.amqp.channel import Call, Channel, ChannelClosed
from celeriac.errors import OperationalError
from celeriac.topology import Exchange, Queue

__all__ = ["declare", "exchange_exists", "is_fanout", "queue_arguments"]

_NOT_FOUND, _DIFFERS = 404, 406
#: The names that every virtual host has, and nobody may declare.
_BUILT_IN = re.compile(r"amq\.")
_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<kind>\w+) '(?P<name>.*)' in vhost '(?P<vhost>.*)': "
    r"received (?P<ours>.+) but current is (?P<theirs>.+)$",
    re.DOTALL,
)
_VALUE = re.compile(r"the value '(?P<value>.*)' of type '[^']*'$", re.DOTALL)


def queue_arguments(queue: Queue) -> dict[str, Any]:
    """What a queue is declared with, by RabbitMQ's names; times in milliseconds."""
    named = {
        "x-expires": _milliseconds(queue.expires),
        "x-message-ttl": _milliseconds(queue.message_ttl),
        "x-max-length": queue.max_length,
        "x-max-length-bytes": queue.max_length_bytes,
        "x-max-priority": queue.max_priority,
    }
    return queue.queue_arguments | {name: value for name, value in named.items() if value is not None}


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


def declare(channel: Channel, queues: Iterable[Queue], *, own: bool = False, timeout: float = 10.0) -> None:
    """Declare queues, their exchanges and bindings, in one round trip.

    An exclusive queue belongs to the connection that declares it: it is left out, unless this is its `own`.
    Raises `OperationalError` that names what the server refuses and why; the channel is closed then.
    """
    calls: list[tuple[str, Call]] = []

    def ask(what: str, method: bytes, answer: bytes) -> None:
        calls.append((what, channel.start(method, answer)))

    known: set[str] = set()
    for queue in queues:
        for binding in queue.all_bindings():
            exchange = binding.exchange
            if exchange.name and exchange.name not in known and not _BUILT_IN.match(exchange.name):
                known.add(exchange.name)
                _declare_exchange(channel.number, exchange, ask)
        if queue.exclusive and not own:
            continue
        ask(
            f"queue {queue.name!r}",
            methods.queue_declare(
                channel.number,
                queue.name,
                durable=queue.durable,
                exclusive=queue.exclusive,
                auto_delete=queue.auto_delete,
                arguments=queue_arguments(queue),
            ),
            methods.QUEUE_DECLARE_OK,
        )
        for binding in queue.all_bindings():
            if binding.exchange.name:
                ask(
                    f"the binding of queue {queue.name!r} to exchange {binding.exchange.name!r}",
                    methods.queue_bind(
                        channel.number,
                        queue.name,
                        binding.exchange.name,
                        binding.routing_key,
                        arguments=binding.arguments,
                    ),
                    methods.QUEUE_BIND_OK,
                )
    for what, call in calls:
        try:
            channel.connection.wait(call, timeout)
        except ChannelClosed as exc:
            raise OperationalError(f"{channel.connection.where}: {_explain(what, exc)}") from exc


def _declare_exchange(channel: int, exchange: Exchange, ask: Callable[[str, bytes, bytes], None]) -> None:
    ask(
        f"exchange {exchange.name!r}",
        methods.exchange_declare(
            channel,
            exchange.name,
            exchange.type,
            durable=exchange.durable,
            auto_delete=exchange.auto_delete,
            arguments=exchange.arguments,
        ),
        methods.EXCHANGE_DECLARE_OK,
    )


def _explain(what: str, exc: ChannelClosed) -> str:
    """Why `what` could not be declared, and what would help."""
    found = _INEQUIVALENT.search(exc.text)
    if exc.code == _DIFFERS and found is not None:
        return (
            f"{found['kind']} {found['name']!r} exists with {found['argument']} = {_value(found['theirs'])}, "
            f"and is declared here with {_value(found['ours'])}: give it the same arguments, or delete it"
        )
    match exc.code:
        case 403:
            return f"the user may not declare {what}: {exc.text}"
        case 405:
            return f"{what} is another connection's own (exclusive): {exc.text}"
        case 404:
            return f"{what} needs something that does not exist: {exc.text}"
        case _:
            return f"cannot declare {what}: {exc.text}"


def _value(text: str) -> str:
    """A value as the server prints it (``the value '10' of type 'signedint'``, ``none``) for people."""
    found = _VALUE.fullmatch(text.strip())
    if found is not None:
        return found["value"]
    return "no value" if text.strip() == "none" else text.strip().strip("'")


def exchange_exists(channel: Channel, name: str, *, timeout: float = 10.0) -> bool:
    """Ask the server. If it does not, the channel is closed."""
    try:
        channel.call(
            methods.exchange_declare(channel.number, name, passive=True),
            methods.EXCHANGE_DECLARE_OK,
            timeout=timeout,
        )
    except ChannelClosed as exc:
        if exc.code == _NOT_FOUND:
            return False
        raise
    return True


def is_fanout(channel: Channel, name: str, *, timeout: float = 10.0) -> bool:
    """Whether an exchange that exists is a fanout. The server tells only by refusing to declare it otherwise:
    the channel may be closed then."""
    try:
        channel.call(
            methods.exchange_declare(channel.number, name, "fanout", durable=True),
            methods.EXCHANGE_DECLARE_OK,
            timeout=timeout,
        )
    except ChannelClosed as exc:
        found = _INEQUIVALENT.search(exc.text)
        # It compares the type first: whatever else differs, the type is the same.
        return exc.code == _DIFFERS and found is not None and found["argument"] != "type"
    return True
