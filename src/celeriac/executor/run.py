"""One call that an executor runs, with everything its steps need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celeriac.executor.runners.base import Guard
from celeriac.request import Request
from celeriac.wire.frames import Call, Update
from celeriac.wire.message import Message

if TYPE_CHECKING:
    from celeriac.app import Celeriac
    from celeriac.task import Task

__all__ = ["Abandoned", "Emit", "Run"]

#: Where a call reports states on the way; the worker stores them in order.
Emit = Callable[[Update], None]


class Abandoned(BaseException):
    """Raised inside a task to give its call up without an outcome: the worker that runs it is going down."""


@dataclass(frozen=True, slots=True)
class Run:
    """The call, the message it carries, the task that is called and the request the task sees."""

    app: Celeriac
    task: Task[..., Any]
    call: Call
    message: Message
    request: Request
    guard: Guard
    emit: Emit

    @property
    def log_name(self) -> str:
        """How log lines name the call: ``task[id]``."""
        return f"{self.message.shadow or self.message.task}[{self.message.id}]"
