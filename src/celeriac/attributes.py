"""Where the attributes of a task get their values from, beside its own: settings and ``task_annotations``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

from celeriac.settings.sources import find_object

if TYPE_CHECKING:
    from celeriac.task import Task

__all__ = ["CALL_OPTIONS", "FromSetting", "annotate", "explicit", "from_setting"]

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
    """An attribute that settings decide where the task says nothing: the first of them that is not None."""

    def __init__(self, *settings: str) -> None:
        self._settings = settings

    def __get__(self, task: Task[..., Any] | None, owner: type) -> Any:
        if task is None:
            return None
        conf = task.app.conf
        return next((value for name in self._settings if (value := getattr(conf, name)) is not None), None)


def from_setting(*settings: str) -> Any:
    """A `FromSetting`, for an attribute that is annotated with the type of its value."""
    return FromSetting(*settings)


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
