"""``@app.task`` and ``@shared_task``: from a function to its `Task`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from celeriac import registry
from celeriac.task import Task

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["BoundDecorator", "Decorator", "made_of", "shared_task"]

P = ParamSpec("P")
R = TypeVar("R")
TaskT = TypeVar("TaskT", bound="Task[..., Any]")
TaskT_co = TypeVar("TaskT_co", bound="Task[..., Any]", covariant=True)

#: Options of Celery's decorator that are about what it does lazily; nothing is lazy here.
_IGNORED = frozenset({"lazy", "shared", "filter", "base", "bind", "name"})


class Decorator(Protocol):
    """``@app.task(...)``."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class BoundDecorator(Protocol[TaskT_co]):
    """``@app.task(bind=True, ...)``: the function's first argument is the task."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[TaskT_co, P], Coroutine[Any, Any, R]], /
    ) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[TaskT_co, P], R], /) -> Task[P, R]: ...


def made_of(function: Callable[..., Any], app: Celeriac | None, options: Mapping[str, Any]) -> Task[..., Any]:
    """The task of a function, with these options of the decorator; of every app where `app` is None."""
    if isinstance(function, Task):
        raise TypeError(f"{function!r} is a task already: decorate the function only once")
    if not callable(function):
        raise TypeError(f"a task is made of a function, not of {function!r}; options go by keyword")
    base: type[Task[..., Any]] = options.get("base") or (Task if app is None else app.Task)
    task = base()
    module = registry.module_name(function.__module__, None if app is None else app.main)
    task.name = options.get("name") or f"{module}.{function.__name__}"
    task.wrap(function, bind=bool(options.get("bind")))
    task.configure({name: value for name, value in options.items() if name not in _IGNORED})
    task.bind(app)
    return task


@overload
def shared_task(function: Callable[P, Coroutine[Any, Any, R]], /, **options: Any) -> Task[P, R]: ...
@overload
def shared_task(function: Callable[P, R], /, **options: Any) -> Task[P, R]: ...
@overload
def shared_task(*, bind: Literal[True], base: type[TaskT], **options: Any) -> BoundDecorator[TaskT]: ...
@overload
def shared_task(*, bind: Literal[True], **options: Any) -> BoundDecorator[Task[..., Any]]: ...
@overload
def shared_task(*, bind: Literal[False] = False, **options: Any) -> Decorator: ...
def shared_task(function: Any = None, **options: Any) -> Any:
    """A task for libraries, that needs no app: it is in the registry of every app, those to come included, and
    works with the current one. Options are those of `Celeriac.task`."""

    def decorate(function: Callable[..., Any]) -> Task[..., Any]:
        return registry.add_shared(made_of(function, None, options))

    return decorate if function is None else decorate(function)
