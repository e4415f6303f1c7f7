"""One call after the other on one thread: the runner of the prefork and solo pools."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from celeriac.errors import SoftTimeLimitExceeded, TimeLimitExceeded
from celeriac.executor.link import Link
from celeriac.executor.runners.base import Invoke, Runner
from celeriac.wire.frames import Call, Interrupt, Update

__all__ = ["SequentialRunner"]


class SequentialRunner(Runner):
    """Runs calls on the thread that calls `run`.

    On the main thread an interrupt is a signal (SIGUSR1, as in Celery), which also ends ``time.sleep`` and
    other blocking system calls at once. On another thread it is an asynchronous exception, which Python
    raises at the next bytecode only.
    """

    name = "prefork"

    def __init__(self) -> None:
        self._thread = 0
        self._on_main = False
        #: Number of the call whose user code runs now; 0 for none. Guards against late interrupts.
        self._open = 0
        self._sending = False
        self._lock = threading.Lock()
        self._pending: Interrupt | None = None

    @property
    def slots(self) -> int:
        return 1

    def run(self, link: Link, invoke: Invoke) -> None:
        self._thread = threading.get_ident()
        self._on_main = threading.current_thread() is threading.main_thread()
        if self._on_main:
            signal.signal(signal.SIGUSR1, self._on_signal)
        while call := link.take():
            link.send(invoke(call, lambda call=call: self._guard(call)))

    def emit(self, link: Link, update: Update) -> None:
        self._sending = True
        try:
            link.send(update)
        finally:
            self._sending = False
        if self._pending is not None:
            self._on_signal(signal.SIGUSR1, None)  # one that came meanwhile

    def interrupt(self, what: Interrupt) -> None:
        with self._lock:
            if self._open != what.number:
                return
            self._pending = what
            if self._on_main:
                signal.pthread_kill(self._thread, signal.SIGUSR1)
            else:
                _raise_in(self._thread, type(_exception(what)))

    @contextmanager
    def _guard(self, call: Call) -> Generator[None, None, None]:
        self._open = call.number
        try:
            yield
        finally:
            # An interrupt that arrives before the call is closed is raised here, still inside the guard:
            # the call did run into its limit. After it, none can be raised.
            if self._on_main:
                self._open = 0
            else:
                with self._lock:
                    self._open = 0
                    if self._pending is not None:
                        self._pending = None
                        _let_late_interrupt_come()

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        what = self._pending
        if what is not None and what.number == self._open and not self._sending:
            self._pending = None
            raise _exception(what)


def _exception(what: Interrupt) -> Exception:
    if what.hard:
        return TimeLimitExceeded(what.seconds)
    return SoftTimeLimitExceeded(what.seconds)


def _raise_in(thread: int, exception: type[BaseException]) -> None:
    """Have `thread` raise `exception` at its next bytecode that looks for such things."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(exception))


def _let_late_interrupt_come() -> None:
    """Give an asynchronous exception that is still pending for this thread the chance to be raised here.

    CPython can also take one back, but 3.11 then leaves its "something is pending" mark set for good, which slows
    every loop down, and under a trace function (coverage, a debugger) never ends.
    """
    for _ in range(10):
        pass  # each turn looks for one
