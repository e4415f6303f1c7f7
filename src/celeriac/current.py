"""`current_app` and `current_task`: for programs that import them before there is an app."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from celeriac import registry

if TYPE_CHECKING:
    from celeriac.app import Celeriac
    from celeriac.task import Task

__all__ = ["current_app", "current_task"]


class _Current:
    """Attributes of whatever is current when they are used. False while that is None."""

    def __init__(self, find: Callable[[], Any]) -> None:
        object.__setattr__(self, "_find", find)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._find(), name, value)

    def __bool__(self) -> bool:
        return self._find() is not None

    def __repr__(self) -> str:
        return repr(self._find())


current_app = cast("Celeriac", _Current(registry.current_app))
current_task = cast("Task[..., Any]", _Current(lambda: registry.current_app().current_task))
