"""The attributes of a task, and where they get their values from beside it: settings and ``task_annotations``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from inspect import getattr_static
from types import MappingProxyType, MethodType
from typing import TYPE_CHECKING, Any, cast

from celeriac.settings.sources import find_object

if TYPE_CHECKING:
    from celeriac.task import Task

__all__ = ["CALL_OPTIONS", "FromSetting", "TaskOptions", "annotate", "explicit"]

#: Attributes that are options of a call, where the call does not give them.
CALL_OPTIONS = (
    "queue",
    "exchange",
    "exchange_type",
    "routing_key",
    "priority",
    "expires",
    "serializer",
    "compression",
    "delivery_mode",
    "time_limit",
    "soft_time_limit",
    "ignore_result",
)


class FromSetting:
    """An attribute that settings decide where the task says nothing: the first of them that is not None.

    `attribute` is an older one of the task's, that comes before the settings where the task has it.
    """

    def __init__(self, *settings: str, attribute: str | None = None) -> None:
        self._settings = settings
        self._attribute = attribute

    def __get__(self, task: Task[..., Any] | None, owner: type) -> Any:
        if task is None:
            return None
        if self._attribute is not None:
            own = getattr_static(task, self._attribute, None)
            if own is not None and not isinstance(own, FromSetting):
                return own
        conf = task.app.conf
        return next((value for name in self._settings if (value := getattr(conf, name)) is not None), None)


def _from_setting(*settings: str, attribute: str | None = None) -> Any:
    """A `FromSetting`, for an attribute that is annotated with the type of its value."""
    return FromSetting(*settings, attribute=attribute)


class TaskOptions:
    """The attributes of every task; each can be given to ``@app.task`` and set in a subclass."""

    #: Key in the registry: ``module.function`` unless given.
    name: str = ""
    #: Check arguments where they are sent; None: as the app's ``strict_typing``.
    typing: bool | None = None

    # Where and how its messages go; options of `apply_async` win.
    queue: Any = None
    exchange: Any = None
    exchange_type: str | None = None
    routing_key: str | None = None
    delivery_mode: int | None = None
    expires: float | datetime | None = None
    compression: str | None = None
    serializer: str | None = _from_setting("task_serializer")
    priority: int | None = _from_setting("task_default_priority")

    #: How often `retry` may run it again; None: without end.
    max_retries: int | None = 3
    #: Seconds until then, where `retry` is not told.
    default_retry_delay: float = 180
    #: Exceptions after which it is retried without being asked to, and exceptions among these that are final.
    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()
    #: Arguments of `retry` for these.
    retry_kwargs: Mapping[str, Any] = MappingProxyType({})
    #: Wait 1, 2, 4 … seconds (a number: times as much), at most `retry_backoff_max`; `retry_jitter` spreads them.
    retry_backoff: bool | float = False
    retry_backoff_max: float = 600
    retry_jitter: bool = True

    #: Seconds a call may run: at the soft limit `SoftTimeLimitExceeded` is raised in it, at the hard one it is killed.
    time_limit: float | None = None
    soft_time_limit: float | None = None
    #: Calls of this task a worker starts: ``"10/m"``, or a number for each second.
    rate_limit: str | float | None = _from_setting("task_default_rate_limit")

    ignore_result: bool | None = _from_setting("task_ignore_result")
    store_errors_even_if_ignored: bool | None = _from_setting("task_store_errors_even_if_ignored")
    store_eager_result: bool | None = _from_setting("task_store_eager_result")
    track_started: bool | None = _from_setting("task_track_started")
    acks_late: bool | None = _from_setting("task_acks_late")
    acks_on_failure_or_timeout: bool | None = _from_setting("task_acks_on_failure_or_timeout")
    acks_on_failure: bool | None = _from_setting(
        "task_acks_on_failure", "task_acks_on_failure_or_timeout", attribute="acks_on_failure_or_timeout"
    )
    acks_on_timeout: bool | None = _from_setting(
        "task_acks_on_timeout", "task_acks_on_failure_or_timeout", attribute="acks_on_failure_or_timeout"
    )
    reject_on_worker_lost: bool | None = _from_setting("task_reject_on_worker_lost")
    retry_on_worker_lost: bool | None = _from_setting("task_retry_on_worker_lost")
    #: Exceptions that are part of normal life: logged in one line.
    throws: tuple[type[BaseException], ...] = ()
    #: Remember the tasks it sends as its children.
    trail: bool = True
    send_events: bool = True
    #: Longest `repr` of a result in logs and events, characters.
    resultrepr_maxsize: int = 1024

    #: Make pydantic models of the arguments that are annotated so, and dump the one it returns.
    pydantic: bool = False
    pydantic_strict: bool = False
    pydantic_context: Mapping[str, Any] | None = None
    pydantic_dump_kwargs: Mapping[str, Any] | None = None


def explicit(task: Task[..., Any], name: str) -> Any:
    """What the task or its class says itself; None where settings would decide."""
    if name in vars(task):
        return vars(task)[name]
    static = inspect.getattr_static(type(task), name)
    return None if isinstance(static, FromSetting) else getattr(task, name)


def annotate(task: Task[..., Any], annotations: Any) -> None:
    """Change the attributes of a task as ``task_annotations`` says: by what holds for every task (``*``), then by
    what is for this one.

    ``@name`` decorates the method of that name: the value is called with the method and gives the new one.
    """
    for each in (
        cast("Iterable[Any]", annotations) if isinstance(annotations, list | tuple) else [annotations]
    ):
        for changes in _for_task(each, task):
            for name, value in (changes or {}).items():
                if name.startswith("@"):
                    _decorate(task, name[1:], value)
                else:
                    setattr(task, name, value)


def _for_task(annotation: Any, task: Task[..., Any]) -> Iterable[Mapping[str, Any] | None]:
    if annotation is None:
        return ()
    if isinstance(annotation, str):
        annotation = find_object(annotation)
    if isinstance(annotation, Mapping):
        by_name = cast("Mapping[str, Mapping[str, Any]]", annotation)
        return by_name.get("*"), by_name.get(task.name)
    if isinstance(annotation, type):
        annotation = annotation()
    return annotation.annotate_any(), annotation.annotate(task)


def _decorate(task: Task[..., Any], name: str, decorator: Callable[..., Any]) -> None:
    method: Any = getattr(task, name)
    method = getattr(method, "undecorated", method)  # once, however often annotations are applied
    bound = isinstance(method, MethodType) and method.__self__ is task
    outer: Any = decorator(method.__func__ if bound else method)
    outer.undecorated = method
    setattr(task, name, MethodType(outer, task) if bound else outer)
