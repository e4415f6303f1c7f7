"""The names that queues and exchanges have in Redis: Celery's for what both sides use (wire-protocol §5), and ours."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from celeriac.errors import ImproperlyConfigured
from celeriac.redis.server import RedisServer

__all__ = ["Layout", "Order"]

Order = Literal["round_robin", "sorted", "priority"]
_ORDERS = ("round_robin", "sorted", "priority")


class Layout:
    """What transport options make of names. Immutable, no I/O. Raises `ImproperlyConfigured` for wrong options.

    The keys of one queue that scripts take are a *block* (``queues.lua``): heartbeats of its consumers, its schedule
    (a sorted set and a hash), the earliest due instant, the list of ready messages, what one holder holds, who waits,
    and whether somebody looks after it. All but the list are ours; their names have one hash tag.
    """

    def __init__(self, server: RedisServer, options: Mapping[str, Any]) -> None:
        self._key = server.key
        self.prefix = server.prefix
        self.sep = str(options.get("sep", "\x06\x16"))
        self.steps = _steps(options.get("priority_steps", (0, 3, 6, 9)))
        self.order = _order(options.get("queue_order_strategy", "round_robin"))
        self.unacked = server.key(str(options.get("unacked_key", "unacked")))
        self.unacked_index = server.key(str(options.get("unacked_index_key", "unacked_index")))
        self.unacked_mutex = server.key(str(options.get("unacked_mutex_key", "unacked_mutex")))
        prefix = options.get("fanout_prefix", True)
        template = "/{db}." if prefix is True else str(prefix or "")
        self._fanout = server.key(template.replace("{db}", str(server.db)))
        self._has_patterns = bool(options.get("fanout_patterns", True))

    # -- queues ------------------------------------------------------------------------------------------------

    def step(self, priority: int) -> int:
        """Where a message of this priority waits: at the largest step that is not above it."""
        return self.steps[max(0, bisect_right(self.steps, priority) - 1)]

    def ready(self, queue: str, step: int = 0) -> str:
        """The list of ready messages: new ones to the left, the oldest at the right end."""
        key = self._key(queue)
        return f"{key}{self.sep}{step}" if step else key

    def all_ready(self, queue: str) -> list[str]:
        """The lists of all steps."""
        return [self.ready(queue, step) for step in self.steps]

    def held(self, queue: str, holder: str) -> str:
        """The hash of what a holder has borrowed from a queue: claim → message."""
        return f"{self._own(queue)}held:{holder}"

    def block(self, queue: str, holder: str = "") -> list[str]:
        """The keys of a queue, in the order that scripts expect."""
        own = self._own(queue)
        return [
            f"{own}beats",
            f"{own}schedule",
            f"{own}scheduled",
            f"{own}next",
            self._key(queue),
            f"{own}held:{holder}",
            f"{own}sentries",
            f"{own}sleepers",
            f"{own}alive",
        ]

    def next_due(self, queue: str) -> str:
        """The key of the earliest due instant."""
        return f"{self._own(queue)}next"

    def wake(self, holder: str) -> str:
        """The key whose appearance wakes a sleeping consumer."""
        return self._key(f"celeriac:wake:{holder}")

    def _own(self, queue: str) -> str:
        return self._key(f"{{{queue}}}:celeriac:")

    # -- exchanges ---------------------------------------------------------------------------------------------

    def binding(self, exchange: str) -> str:
        """The set of an exchange's bindings, as Celery has it."""
        return self._key(f"_kombu.binding.{exchange}")

    def permanent_binding(self, exchange: str) -> str:
        """The same, of queues that do not expire."""
        return self._key(f"_kombu.binding_permanent.{exchange}")

    @property
    def deadlines(self) -> str:
        """When the bindings of queues that expire are to be deleted, by exchange."""
        return self._key("_kombu.binding_deadlines")

    def headers_binding(self, exchange: str) -> str:
        """The set of a headers exchange's bindings; Celery has none on Redis."""
        return self._key(f"celeriac:headers:{exchange}")

    def channel(self, exchange: str, routing_key: str) -> str:
        """Where messages to a fanout exchange are broadcast."""
        if self._has_patterns and routing_key:
            return f"{self._fanout}{exchange}/{routing_key}"
        return f"{self._fanout}{exchange}"

    def pattern(self, exchange: str, binding_key: str) -> str:
        """What a queue bound with this key listens to."""
        return self.channel(exchange, binding_key.replace("#", "*"))


def _steps(value: Any) -> Sequence[int]:
    steps: list[Any] = list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else []
    if not steps or not all(isinstance(each, int) and 0 <= each <= 255 for each in steps):
        raise ImproperlyConfigured(
            f"transport option 'priority_steps' must be numbers like [0, 3, 6, 9], not {value!r}"
        )
    return tuple(sorted(set(steps)))


def _order(value: Any) -> Order:
    if value not in _ORDERS:
        raise ImproperlyConfigured(
            f"transport option 'queue_order_strategy' must be one of {', '.join(_ORDERS)}, not {value!r}"
        )
    return value
