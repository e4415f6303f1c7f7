"""Queues, exchanges and bindings as values, and which queues a message reaches: pure AMQP matching.

The classes take what users of Celery and kombu write (``Queue("web", Exchange("web", "topic"), "web.#")``);
kombu's own objects are read by their attributes, never imported.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast, get_args
from uuid import uuid4

from celeriac.errors import ImproperlyConfigured

__all__ = ["Binding", "Broadcast", "Exchange", "ExchangeType", "Queue", "matches", "queues_for"]

ExchangeType = Literal["direct", "topic", "fanout", "headers"]
_TYPES = frozenset(get_args(ExchangeType))


def _no_arguments() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Exchange:
    """Where messages are published to; its type says how bindings are matched."""

    name: str = ""
    type: ExchangeType = "direct"
    durable: bool = True
    auto_delete: bool = False
    delivery_mode: int | None = None
    arguments: dict[str, Any] = field(default_factory=_no_arguments)

    def __post_init__(self) -> None:
        if self.type not in _TYPES:
            raise ImproperlyConfigured(
                f"exchange {self.name!r}: type must be one of {', '.join(sorted(_TYPES))}, not {self.type!r}"
            )


@dataclass(frozen=True, slots=True)
class Binding:
    """One way from an exchange to a queue. `arguments` are matched by headers exchanges (``x-match``)."""

    exchange: Exchange
    routing_key: str = ""
    arguments: dict[str, Any] = field(default_factory=_no_arguments)


@dataclass(frozen=True, slots=True)
class Queue:
    """A named line of messages. Without an exchange it is bound to a direct exchange of its own name."""

    name: str
    exchange: Exchange | None = None
    routing_key: str = ""
    #: More ways into this queue, beside the one above.
    bindings: tuple[Binding, ...] = ()
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    #: Seconds the queue outlives its last consumer; None: for ever.
    expires: float | None = None
    #: Seconds a message may wait; None: for ever.
    message_ttl: float | None = None
    max_length: int | None = None
    max_length_bytes: int | None = None
    max_priority: int | None = None
    no_ack: bool = False
    #: The name it goes by in routes and on command lines, where that is not its own (`Broadcast`).
    alias: str | None = None
    queue_arguments: dict[str, Any] = field(default_factory=_no_arguments)
    binding_arguments: dict[str, Any] = field(default_factory=_no_arguments)
    consumer_arguments: dict[str, Any] = field(default_factory=_no_arguments)

    def __post_init__(self) -> None:
        if not self.name:
            raise ImproperlyConfigured("a queue needs a name")

    def all_bindings(self) -> tuple[Binding, ...]:
        """Every way into this queue through a named exchange (the default exchange needs no binding)."""
        exchange = self.exchange or Exchange(self.name)
        own: tuple[Binding, ...] = ()
        if exchange.name:
            key = self.routing_key or (self.name if exchange.type == "direct" else "")
            own = (Binding(exchange, key, self.binding_arguments),)
        return own + self.bindings

    @property
    def known_as(self) -> str:
        """What routes and command lines call it."""
        return self.alias or self.name

    @property
    def is_fanout(self) -> bool:
        """It gets what is published to its exchange, whatever the routing key."""
        return self.exchange is not None and self.exchange.type == "fanout"

    @property
    def dead(self) -> str:
        """Name of the queue that takes this one's dead letters."""
        return f"{self.name}.dead"

    @classmethod
    def of(cls, value: Any) -> Queue:
        """Read a queue from a name, a `Queue`, or anything with kombu's attributes.

        Raises `ImproperlyConfigured` where `value` is none of these.
        """
        if isinstance(value, Queue):
            return value
        if isinstance(value, str):
            return cls(value)
        name = getattr(value, "name", None)
        if not isinstance(name, str):
            raise ImproperlyConfigured(f"not a queue: {value!r} (expected a name, Queue or kombu.Queue)")
        plain: dict[str, Any] = {
            key: got for key in _PLAIN if (got := getattr(value, key, None)) is not None and not callable(got)
        }
        foreign = cast("Iterable[Any]", getattr(value, "bindings", None) or ())
        return cls(
            name,
            _exchange_of(getattr(value, "exchange", None)),
            getattr(value, "routing_key", None) or "",
            tuple(_binding_of(each) for each in foreign),
            **plain,
        )


def Broadcast(  # noqa: N802 kombu's name; what it makes is a queue
    name: str | None = None,
    queue: str | None = None,
    unique: bool = False,
    auto_delete: bool = True,
    exchange: Exchange | None = None,
    alias: str | None = None,
    **options: Any,
) -> Queue:
    """A queue of this worker's own (``bcast.<uuid>``) on a fanout exchange: every worker gets each message.

    `name` is that of the exchange, and what routes call the queue. `unique`: even where `queue` gives a name.
    """
    prefix = queue or "bcast"
    own = queue if queue and not unique else f"{prefix}.{uuid4()}"
    return Queue(
        own,
        exchange or Exchange(name or own, "fanout"),
        auto_delete=auto_delete,
        alias=alias or name,
        **options,
    )


_PLAIN = (
    "durable",
    "exclusive",
    "auto_delete",
    "expires",
    "message_ttl",
    "max_length",
    "max_length_bytes",
    "max_priority",
    "no_ack",
    "alias",
    "queue_arguments",
    "binding_arguments",
    "consumer_arguments",
)


def _exchange_of(value: Any) -> Exchange | None:
    if value is None or isinstance(value, Exchange):
        return value
    if isinstance(value, str):
        return Exchange(value)
    return Exchange(
        getattr(value, "name", "") or "",
        getattr(value, "type", "direct") or "direct",
        durable=bool(getattr(value, "durable", True)),
        auto_delete=bool(getattr(value, "auto_delete", False)),
        delivery_mode=getattr(value, "delivery_mode", None),
        arguments=dict(getattr(value, "arguments", None) or {}),
    )


def _binding_of(value: Any) -> Binding:
    if isinstance(value, Binding):
        return value
    return Binding(
        _exchange_of(getattr(value, "exchange", None)) or Exchange(),
        getattr(value, "routing_key", None) or "",
        dict(getattr(value, "arguments", None) or {}),
    )


def matches(
    type: ExchangeType,
    binding_key: str,
    routing_key: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    headers: Mapping[str, Any] | None = None,
) -> bool:
    """Whether a message reaches a queue through one binding, by the rules of AMQP 0-9-1 §3.1.3.

    `topic`: words between dots; ``*`` is one word, ``#`` any number of them. `headers`: all (or with
    ``x-match: any`` one) of `arguments` equal the message's `headers`; names that start with ``x-`` are ignored.
    """
    match type:
        case "fanout":
            return True
        case "direct":
            return binding_key == routing_key
        case "topic":
            return _topic(binding_key).fullmatch(f".{routing_key}" if routing_key else "") is not None
        case "headers":
            wanted = {k: v for k, v in (arguments or {}).items() if not k.startswith("x-")}
            found = (
                k in (headers or {}) and (v is None or (headers or {})[k] == v) for k, v in wanted.items()
            )
            return any(found) if (arguments or {}).get("x-match", "all") == "any" else all(found)


@lru_cache(maxsize=1024)
def _topic(pattern: str) -> re.Pattern[str]:
    """A regex over a routing key in which a dot leads every word; the empty key has no words."""
    regex = ""
    for word in pattern.split(".") if pattern else ():
        step = _WILDCARDS.get(word) or r"\." + re.escape(word)
        # "#.#" is "#", and would cost a regex quadratic time.
        if not (word == "#" and regex.endswith(step)):
            regex += step
    return re.compile(regex)


_WILDCARDS = {"*": r"\.[^.]*", "#": r"(?:\.[^.]*)*"}


def queues_for(
    exchange: str,
    routing_key: str,
    queues: Collection[Queue],
    *,
    headers: Mapping[str, Any] | None = None,
) -> list[str]:
    """Names of the queues that a message to `exchange` reaches, each once; the default exchange is ``""``."""
    if not exchange:
        return [routing_key]
    return [
        queue.name
        for queue in queues
        if any(
            binding.exchange.name == exchange
            and matches(
                binding.exchange.type,
                binding.routing_key,
                routing_key,
                arguments=binding.arguments,
                headers=headers,
            )
            for binding in queue.all_bindings()
        )
    ]
