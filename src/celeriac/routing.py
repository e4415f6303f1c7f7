"""Where a task's message goes: ``task_routes``, ``task_queues`` and the defaults, as pure functions of the settings.

What decides, from strong to weak: the options of the call, the options of the task, the first rule of
``task_routes`` that knows the task, ``task_default_queue``. A queue given by one of them hides exchange and
routing key of the weaker ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import translate
from typing import TYPE_CHECKING, Any, cast

from celeriac.errors import ImproperlyConfigured, QueueNotFound
from celeriac.settings.names import did_you_mean
from celeriac.settings.sources import find_object
from celeriac.topology import Exchange, Queue

if TYPE_CHECKING:
    from celeriac.settings import Settings

__all__ = ["Route", "Router", "queues_to_consume", "queues_of"]

#: Options that say where to, in any combination.
_TARGET = ("queue", "exchange", "routing_key")
#: Static routes kept; task names are few, but `send_task` takes any.
_CACHE_SIZE = 4096
_NOTHING: Mapping[str, Any] = {}


def _no_options() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a message goes. With an empty exchange, `routing_key` is the name of the queue."""

    exchange: str
    routing_key: str
    #: Declared before the first message that is published to it; None where it is not known or not ours.
    queue: Queue | None = None
    #: What a rule says beside the target (``priority``, ``serializer`` …): defaults for the call's options.
    options: Mapping[str, Any] = field(default_factory=_no_options)


#: What a rule is asked with (name, args, kwargs, options, task), and a route in any of the forms users write.
_Rule = Callable[..., Any]


class _Table:
    """Rules by name: exact names first, then patterns in order."""

    def __init__(self, rules: Iterable[tuple[Any, Any]]) -> None:
        self._exact: dict[str, Any] = {}
        self._patterns: list[tuple[re.Pattern[str], Any]] = []
        for pattern, route in rules:
            if isinstance(pattern, re.Pattern):
                self._patterns.append((cast("re.Pattern[str]", pattern), route))
            elif not isinstance(pattern, str):
                raise ImproperlyConfigured(f"task_routes: {pattern!r} is neither a name nor a pattern")
            elif any(c in pattern for c in "*?["):
                self._patterns.append((re.compile(translate(pattern)), route))
            else:
                self._exact[pattern] = route

    def __call__(self, name: str, *_: Any, **__: Any) -> Any:
        if name in self._exact:
            return self._exact[name]
        return next((route for pattern, route in self._patterns if pattern.match(name)), None)


class Router:
    """Routes of one set of settings. Thread-safe: what it learns is kept, and learning it twice is harmless."""

    def __init__(
        self,
        *,
        queues: Mapping[str, Queue],
        default: Queue,
        rules: Sequence[_Rule] = (),
        missing: Callable[[str], Queue] | None = None,
    ) -> None:
        #: By the name they are known as, those of ``task_queues`` and, as they come up, the ones created on the way.
        self.queues = dict(queues)
        self._default = default
        self._rules = rules
        self._missing = missing
        self._static = all(isinstance(rule, _Table) for rule in rules)
        self._by_task: dict[str, Route] = {}

    @classmethod
    def of(cls, settings: Settings) -> Router:
        """Read ``task_routes``, ``task_queues`` and the defaults. Raises `ImproperlyConfigured`."""
        queues = queues_of(settings)
        return cls(
            queues=queues,
            default=queues.get(settings.task_default_queue)
            or _completed(Queue(settings.task_default_queue), settings),
            rules=[*_rules(settings.task_routes)],
            missing=_creator(settings) if settings.task_create_missing_queues else None,
        )

    def route(
        self,
        task: str,
        options: Mapping[str, Any] = _NOTHING,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] = _NOTHING,
        *,
        type: Any = None,
    ) -> Route:
        """Where a call of `task` goes. `options` holds what the call and the task say, without Nones; `type` is
        the task object for rules that ask for it.

        Raises `QueueNotFound` for an unknown queue where ``task_create_missing_queues`` is off.
        """
        if "queue" in options or "exchange" in options or "routing_key" in options:
            return self._resolve(options, self._ask(task, args, kwargs, options, type))
        if not self._static:
            return self._resolve(_NOTHING, self._ask(task, args, kwargs, options, type))
        route = self._by_task.get(task)
        if route is None:
            route = self._resolve(_NOTHING, self._ask(task, args, kwargs, options, type))
            if len(self._by_task) < _CACHE_SIZE:
                self._by_task[task] = route
        return route

    def queue(self, name: str) -> Queue:
        """The queue of that name, created where that is allowed. Raises `QueueNotFound`."""
        known = self.queues.get(name)
        if known is None:
            if name == self._default.name:
                known = self._default
            elif self._missing is not None:
                known = self._missing(name)
            else:
                raise QueueNotFound(
                    f"queue {name!r} is not in task_queues ({', '.join(sorted(self.queues))})"
                    f"{did_you_mean(name, self.queues)}"
                )
            self.queues[name] = known
        return known

    def _ask(
        self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any], type: Any
    ) -> Mapping[str, Any]:
        for rule in self._rules:
            answer = rule(task, args, kwargs, options, task=type)
            if answer is not None:
                return _as_options(answer, task)
        return _NOTHING

    def _resolve(self, asked: Mapping[str, Any], rule: Mapping[str, Any]) -> Route:
        target = {key: rule[key] for key in _TARGET if rule.get(key) is not None and "queue" not in asked}
        target |= {key: asked[key] for key in _TARGET if key in asked}
        exchange, key = target.get("exchange"), target.get("routing_key")
        options = {key: value for key, value in rule.items() if key not in _TARGET and value is not None}
        if exchange == "" and "queue" not in target:
            target["queue"] = key
        queue = self._queue_of(target.get("queue"), needed=exchange is None)
        own = None if queue is None else queue.exchange or Exchange(queue.name)
        if own is not None and own.delivery_mode is not None:
            options.setdefault("delivery_mode", own.delivery_mode)
        if exchange is None and key is None and own is not None and own.type == "direct":
            exchange, key = "", cast("Queue", queue).name
        if exchange is None:
            exchange = cast("Exchange", own).name
        if key is None:
            key = (queue or self._default).routing_key or self._default.name
        if queue is not None and queue.alias and queue.is_fanout:
            queue = None  # each worker declares its own; ours would be one that nobody reads
        return Route(exchange=_name(exchange), routing_key=key, queue=queue, options=options)

    def _queue_of(self, value: Any, *, needed: bool) -> Queue | None:
        """The queue a target names; the default one where the target has neither queue nor exchange."""
        if value is None:
            return self._default if needed else None
        return self.queue(value) if isinstance(value, str) else Queue.of(value)


def queues_of(settings: Settings) -> dict[str, Queue]:
    """The queues of ``task_queues`` by the name they are known as; without it, the default queue."""
    queues = settings.task_queues or (Queue(settings.task_default_queue),)
    return {queue.known_as: _completed(queue, settings) for queue in queues}


def queues_to_consume(
    settings: Settings, names: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[Queue]:
    """The queues of a worker: those of ``task_queues``, or those named (``-Q``), less the excluded (``-X``).

    Raises `QueueNotFound` for unknown names where ``task_create_missing_queues`` is off.
    """
    router = Router.of(settings)
    chosen = [router.queue(name) for name in names] if names else list(router.queues.values())
    return [queue for queue in chosen if queue.known_as not in exclude]


def _completed(queue: Queue, settings: Settings) -> Queue:
    """A queue with the defaults for what it was declared without."""
    exchange = queue.exchange
    if exchange is None or not exchange.name:
        exchange = Exchange(settings.task_default_exchange or queue.name, settings.task_default_exchange_type)
    arguments = queue.queue_arguments
    if queue.name == settings.task_default_queue:
        arguments = {**_type_of(settings.task_default_queue_type), **arguments}
    return replace(
        queue,
        exchange=exchange,
        routing_key=queue.routing_key
        or settings.task_default_routing_key
        or _default_key(exchange, queue, settings),
        max_priority=settings.task_queue_max_priority if queue.max_priority is None else queue.max_priority,
        queue_arguments=arguments,
    )


def _default_key(exchange: Exchange, queue: Queue, settings: Settings) -> str:
    """On Redis a fanout message is published under its key, which Celery's workers must have subscribed to."""
    return settings.task_default_queue if exchange.type == "fanout" else queue.name


def _creator(settings: Settings) -> Callable[[str], Queue]:
    """Makes the queues that nothing declares: named like their exchange and routing key."""

    def create(name: str) -> Queue:
        return Queue(
            name,
            Exchange(name, settings.task_create_missing_queue_exchange_type or "direct"),
            name,
            max_priority=settings.task_queue_max_priority,
            queue_arguments=_type_of(settings.task_create_missing_queue_type),
        )

    return create


def _type_of(kind: str) -> dict[str, Any]:
    """A server's default needs no argument: a queue that exists without one must not be redeclared with it."""
    return {} if kind == "classic" else {"x-queue-type": kind}


def _rules(routes: Any) -> Iterable[_Rule]:
    if routes is None:
        return
    if isinstance(routes, Sequence) and not isinstance(routes, str):
        rules = cast("Sequence[Any]", routes)
        if all(_is_pair(rule) for rule in rules):
            yield _Table(rules)
        else:
            for rule in rules:
                yield from _rules(rule) if not _is_pair(rule) else [_Table([rule])]
        return
    yield _rule(routes)


def _is_pair(rule: Any) -> bool:
    """Whether this is ``(pattern, route)``, and not a list of two routers."""
    if not isinstance(rule, tuple | list) or len(cast("Sequence[Any]", rule)) != 2:
        return False
    pattern, route = cast("Sequence[Any]", rule)
    return isinstance(pattern, re.Pattern) or (
        isinstance(pattern, str) and (route is None or isinstance(route, str | Mapping | Queue))
    )


def _rule(value: Any) -> _Rule:
    if isinstance(value, str):
        value = find_object(value)
    if isinstance(value, type):
        value = value()
    if isinstance(value, Mapping):
        return _Table(cast("Mapping[Any, Any]", value).items())
    by_method = getattr(value, "route_for_task", None)
    if by_method is not None:

        def ask(name: str, args: Any, kwargs: Any, *_: Any, **__: Any) -> Any:
            return by_method(name, args, kwargs)

        return ask
    if callable(value):
        return value
    raise ImproperlyConfigured(
        f"task_routes: {value!r} is not a router (expected a dict, a callable, or the dotted name of one)"
    )


def _as_options(answer: Any, task: str) -> Mapping[str, Any]:
    if isinstance(answer, Mapping):
        return cast("Mapping[str, Any]", answer)
    if isinstance(answer, str) or isinstance(getattr(answer, "name", None), str):
        return {"queue": answer}
    raise ImproperlyConfigured(
        f"task_routes: the route of {task!r} is {answer!r} (expected a queue, its name, or a dict of options)"
    )


def _name(exchange: Any) -> str:
    return exchange if isinstance(exchange, str) else getattr(exchange, "name", None) or ""
