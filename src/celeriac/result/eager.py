"""`EagerResult`: the result of a task that has run already, here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from celeriac.errors import TaskError
from celeriac.request import assert_may_wait
from celeriac.result.base import AsyncResult
from celeriac.states import PROPAGATE_STATES, REVOKED

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    from celeriac.app import Celeriac

    R_co = TypeVarWithDefault("R_co", covariant=True, default=Any)
else:
    R_co = TypeVar("R_co", covariant=True)

__all__ = ["EagerResult"]


class EagerResult(AsyncResult[R_co]):
    """The result of a task that ran in this process (`Task.apply`); no backend is asked."""

    def __init__(
        self,
        id: str,
        ret_value: Any,
        state: str,
        traceback: str | None = None,
        name: str | None = None,
        app: Celeriac | None = None,
    ) -> None:
        super().__init__(id, task_name=name, app=app)
        self._value = ret_value
        self._state = state
        self._traceback = traceback

    def record(self) -> None:
        return None

    @property
    def state(self) -> str:
        return self._state

    @property
    def result(self) -> R_co | Any:
        return self._value

    @property
    def traceback(self) -> str | None:
        return self._traceback

    def ready(self) -> bool:
        return True

    def exists(self) -> bool:
        return True

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R_co:
        """The value, or raise the exception; there is nothing to wait for."""
        if disable_sync_subtasks:
            assert_may_wait()
        if propagate and self._state in PROPAGATE_STATES:
            raise self._value if isinstance(self._value, BaseException) else TaskError(str(self._value))
        if callback is not None:
            callback(self.id, self._value)
        return self._value

    wait = get

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R_co:
        return self.get(propagate=propagate, callback=callback, disable_sync_subtasks=disable_sync_subtasks)

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> Any:
        return self.get(propagate=propagate, callback=callback, disable_sync_subtasks=False)

    def forget(self) -> None:
        """Nothing is stored."""

    def revoke(
        self,
        terminate: bool = False,
        signal: str | int | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """The task has ended; only its state changes, as in Celery."""
        self._state = REVOKED
