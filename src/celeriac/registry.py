"""Which tasks an app has, and which app is the current one.

The only state of celeriac that belongs to the process lives here: the tasks of `shared_task`, and the current app.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from celeriac.errors import DuplicateTaskNameWarning, NotRegistered
from celeriac.settings.names import did_you_mean

if TYPE_CHECKING:
    from celeriac.app import Celeriac
    from celeriac.task import Task

__all__ = ["Registry", "add_shared", "current_app", "module_name", "set_current_app", "warn_of_duplicate"]

T = TypeVar("T")

_shared: dict[str, Task[..., Any]] = {}
_current: Celeriac | None = None


class Registry(Mapping[str, "Task[..., Any]"]):
    """The tasks of one app by name: its own, and those of `shared_task`, also the ones still to come."""

    def __init__(self) -> None:
        self._own: dict[str, Task[..., Any]] = {}

    def register(self, task: Task[..., Any]) -> None:
        """Add a task under its name; one of that name is replaced."""
        self._own[task.name] = task

    def unregister(self, name: str | Task[..., Any]) -> None:
        """Take a task of the app's own out. Raises `NotRegistered`."""
        key = name if isinstance(name, str) else name.name
        if self._own.pop(key, None) is None:
            raise _not_registered(key, self._own)

    def __getitem__(self, name: str) -> Task[..., Any]:
        task = self.get(name)
        if task is None:
            raise _not_registered(name, self)
        return task

    @overload
    def get(self, key: str, default: None = None, /) -> Task[..., Any] | None: ...
    @overload
    def get(self, key: str, default: Task[..., Any], /) -> Task[..., Any]: ...
    @overload
    def get(self, key: str, default: Task[..., Any] | T, /) -> Task[..., Any] | T: ...
    def get(self, key: str, default: Any = None, /) -> Any:
        return self._own.get(key) or _shared.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._own or key in _shared

    def __iter__(self) -> Iterator[str]:
        return iter({**_shared, **self._own})

    def __len__(self) -> int:
        return len(self._own.keys() | _shared.keys())

    def __repr__(self) -> str:
        return f"<Registry of {len(self)} tasks>"


def _not_registered(name: str, known: Mapping[str, Any]) -> NotRegistered:
    return NotRegistered(f"no task {name!r} is registered{did_you_mean(name, known)}")


def add_shared(task: Task[..., Any]) -> Task[..., Any]:
    """Put a task into the registry of every app. One whose name is taken is left out, with a warning: the first
    one keeps it, and is returned."""
    known = _shared.setdefault(task.name, task)
    if known is not task:
        warn_of_duplicate(task)
    return known


def warn_of_duplicate(task: Task[..., Any]) -> None:
    """Warn, at the first line outside of celeriac, that the name of this task is taken."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith("celeriac."):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"two tasks are named {task.name!r}", DuplicateTaskNameWarning, stacklevel=level)


def current_app() -> Celeriac:
    """The app made last with ``set_as_current``; where there is none, one on the embedded default."""
    if _current is None:
        from celeriac.app import Celeriac

        set_current_app(Celeriac("default"))
    return cast("Celeriac", _current)


def set_current_app(app: Celeriac | None) -> None:
    """Make `app` the current one of this process."""
    global _current  # noqa: PLW0603 see the head of this module
    _current = app


def module_name(module: str, main: str | None) -> str:
    """The module of a task's name. For a script that is `main`, the app's name, else the name under which a
    worker would import the script."""
    if module != "__main__":
        return module
    if main:
        return main
    script = sys.modules["__main__"]
    spec = getattr(script, "__spec__", None)
    if spec is not None:
        return spec.name.removesuffix(".__main__")
    return PurePath(getattr(script, "__file__", None) or "__main__").stem
