"""The seam between an executor and the way it overlaps calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ClassVar

from celeriac.executor.link import Link
from celeriac.wire.frames import Call, Interrupt, Outcome, Update

__all__ = ["Guard", "Invoke", "Runner"]

#: Entered around user code only: inside it the call may be interrupted, outside it never is.
Guard = Callable[[], AbstractContextManager[object]]
#: Runs one call to its outcome; never raises.
Invoke = Callable[[Call, Guard], Outcome]


class Runner(ABC):
    """Takes calls from a link, runs at most `slots` of them at once, sends each outcome as soon as it is there.

    One outcome is sent for every call taken, in any order. `run` is called once.
    """

    #: Value of ``-P`` that chooses this runner.
    name: ClassVar[str]

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many calls run at once at most."""

    @abstractmethod
    def run(self, link: Link, invoke: Invoke) -> None:
        """Work until the link has no more calls and the taken ones are done."""

    def emit(self, link: Link, update: Update) -> None:
        """Send a state on the way, from inside the guard, so that no interrupt can tear the frame."""
        link.send(update)

    @abstractmethod
    def interrupt(self, what: Interrupt) -> None:
        """Raise the limit's exception inside that call; nothing happens where it does not run (any more).

        Called from the link's listening thread, beside `run`.
        """
