"""`ResultWatcher`: one thread watches for the ends of all tasks that coroutines await at one result backend."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from celeriac.aio.futures import settle, tell, twin
from celeriac.errors import ImproperlyConfigured, OperationalError, TimeoutError
from celeriac.states import PROPAGATE_STATES, READY_STATES

if TYPE_CHECKING:
    from celeriac.backends.base import ResultBackend, Watcher
    from celeriac.wire.record import Record

__all__ = ["ResultWatcher"]

#: Seconds without anyone waiting after which the thread ends; and the longest of its waits.
_IDLE = 5.0
#: Seconds that the last look may take, which is due when somebody's time is up.
_GRACE = 1.0
#: Seconds until a backend that failed is asked again: the first time, and at most.
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


class Sight(NamedTuple):
    """What an awaiter is told: a record, which is final unless its time is up; or a failure."""

    record: Record | None
    failure: BaseException | None = None


class Awaiter:
    """A coroutine that waits for the end of a task, or for the failure of one before it in the chain."""

    __slots__ = ("future", "id", "ids", "timeout")

    def __init__(self, id: str, ancestors: Iterable[str], timeout: float | None) -> None:
        self.id = id
        self.timeout = timeout
        #: Those that are waited for.
        self.ids = {id, *ancestors}
        self.future: asyncio.Future[Sight] = asyncio.get_running_loop().create_future()

    def ends_with(self, record: Record) -> bool:
        """Whether this final record is what it waits for."""
        return record.task_id == self.id or record.state in PROPAGATE_STATES

    def best_of(self, records: Mapping[str, Record | None]) -> Sight:
        """What it is told when its time is up and this is known."""
        known = [record for id in self.ids if (record := records.get(id)) is not None]
        ends = (each for each in known if each.state in READY_STATES and self.ends_with(each))
        return Sight(next(ends, records.get(self.id)))

    def blind(self, lost: OperationalError) -> Sight:
        """What it is told when its time is up and nothing can be known."""
        failure = TimeoutError(f"task {self.id} was not seen to end within {self.timeout} s: {lost}")
        failure.__cause__ = lost
        return Sight(None, failure)


class ResultWatcher:
    """Waits for the coroutines of whatever event loops and threads, with one `Watcher` of one result backend.

    1. `final` notes an id and who waits for it, and wakes the thread.
    2. The thread waits for records, and tells each event loop at once what came for its coroutines.
    3. Whose time is up gets one last look: a task that has ended by then is no timeout.
    4. A backend that cannot be reached is asked again, with growing pauses, as long as somebody waits.

    The thread starts with the first await and ends after some seconds without one, or with `close`; the object can be
    used again then. It belongs to the process that made it.
    """

    def __init__(self, backend: ResultBackend) -> None:
        self._backend = backend
        self._process = os.getpid()
        #: Guards what follows.
        self._changed = threading.Condition()
        #: Who waits, by id.
        self._awaiters: dict[str, set[Awaiter]] = {}
        #: Ids that the thread's watcher is to take in, and to leave; and whose time is up.
        self._new: set[str] = set()
        self._gone: set[str] = set()
        self._late: list[Awaiter] = []
        #: When (monotonic) somebody came last.
        self._used = 0.0
        #: Why the backend was not reached, if the last attempt failed.
        self._lost: OperationalError | None = None
        self._thread: threading.Thread | None = None
        #: What the thread waits on, and whether it was woken since it looked here.
        self._watcher: Watcher | None = None
        self._woken = False
        self._closing = False

    async def final(self, id: str, ancestors: Iterable[str] = (), *, timeout: float | None) -> Record | None:
        """The final record of a task, or of an ancestor that failed; after `timeout` seconds what is known by then.

        Raises `TimeoutError` where nothing can be known then, since the backend does not answer;
        `OperationalError` when it is closed meanwhile, and whatever says that it cannot be used at all.
        """
        awaiter = Awaiter(id, ancestors, timeout)
        timer: asyncio.TimerHandle | None = None
        try:
            self._add(awaiter)
            if timeout is not None:
                timer = awaiter.future.get_loop().call_later(timeout, self._out_of_time, awaiter)
            record, failure = await awaiter.future
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(awaiter)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback has this frame
        return record

    # -- in the event loop's thread ---------------------------------------------------------------------------

    def _add(self, awaiter: Awaiter) -> None:
        with self._changed:
            for id in awaiter.ids:
                self._awaiters.setdefault(id, set()).add(awaiter)
            self._new |= awaiter.ids
            self._gone -= awaiter.ids
            self._used = time.monotonic()
            if self._thread is None:
                self._start()
            else:
                self._wake()

    def _start(self) -> None:
        self._closing = False
        thread = threading.Thread(target=self._run, name="celeriac-results", daemon=True)
        thread.start()
        self._thread = thread

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._changed.notify()
            if self._watcher is not None:
                self._watcher.wake()

    def _leave(self, awaiter: Awaiter) -> None:
        if os.getpid() != self._process:
            return  # a forked child gives up its parent's coroutines: the lock is the parent's, too
        with self._changed:
            self._forget(awaiter)

    def _forget(self, awaiter: Awaiter) -> None:
        """Wait no longer for this one. Under the lock."""
        for id in awaiter.ids:
            others = self._awaiters.get(id, set())
            others.discard(awaiter)
            if not others and self._awaiters.pop(id, None) is not None:
                self._new.discard(id)
                self._gone.add(id)
                self._wake()

    def _out_of_time(self, awaiter: Awaiter) -> None:
        with self._changed:
            self._late.append(awaiter)
            self._wake()
        awaiter.future.get_loop().call_later(_GRACE, self._out_of_grace, awaiter)

    def _out_of_grace(self, awaiter: Awaiter) -> None:
        lost = self._lost or OperationalError(f"the result backend did not answer within {_GRACE:g} s")
        settle([(awaiter.future, awaiter.blind(lost))])

    def close(self, timeout: float | None = None) -> None:
        """End the thread, and wait for that up to `timeout` seconds; who waits gets an `OperationalError`."""
        if os.getpid() != self._process:
            return  # the thread is the parent's
        with self._changed:
            thread, self._closing = self._thread, True
            self._woken = False  # once more, whatever it was woken for
            self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    # -- in the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        failure: BaseException = OperationalError("the result backend was closed during a wait for a result")
        try:
            with closing(self._backend.watcher()) as watcher:
                self._watch(watcher)
        except BaseException as exc:  # noqa: BLE001 boundary: whatever it is, it must leave nobody waiting
            failure = exc
        self._end(failure)

    def _watch(self, watcher: Watcher) -> None:
        """Until `close`, or until nobody came for a while."""
        pause = _PAUSE
        self._watcher = watcher
        while self._is_needed():
            try:
                self._catch_up(watcher)
                self._sight(watcher.wait(_IDLE))
            except OperationalError as exc:
                if isinstance(exc, ImproperlyConfigured):
                    raise
                self._note_lost(exc)
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._lost, pause = None, _PAUSE

    def _is_needed(self) -> bool:
        with self._changed:
            idle = not self._awaiters and time.monotonic() - self._used >= _IDLE
            if not (self._closing or idle):
                return True
            self._watcher = None
            if idle:
                self._thread = None  # who comes now starts another one
            return False

    def _catch_up(self, watcher: Watcher) -> None:
        """Watch for what is new, and not for what is gone; have a look for those whose time is up."""
        with self._changed:
            new, self._new = self._new, set()
            gone, self._gone = self._gone, set()
            late = list(self._late)
            self._woken = False
        if gone:
            watcher.discard(gone)
        if new:
            watcher.add(new)
        if late:
            ids = list({id for awaiter in late for id in awaiter.ids})
            records = dict(zip(ids, self._backend.get(ids), strict=True))
            self._part_with(late, lambda awaiter: awaiter.best_of(records))

    def _sight(self, records: Sequence[Record]) -> None:
        """Tell those who wait for these final records."""
        told: list[tuple[Awaiter, Record]] = []
        with self._changed:
            for record in records:
                self._new.discard(record.task_id)
                for awaiter in self._awaiters.pop(record.task_id, ()):
                    awaiter.ids.discard(record.task_id)
                    if awaiter.ends_with(record):
                        self._forget(awaiter)
                        told.append((awaiter, record))
        tell((awaiter.future, Sight(record)) for awaiter, record in told)

    def _note_lost(self, exc: OperationalError) -> None:
        """The backend failed: ask for everything again; who has no more time is told."""
        with self._changed:
            self._lost = exc
            self._new |= self._awaiters.keys()
            late = list(self._late)
        self._part_with(late, lambda awaiter: awaiter.blind(exc))

    def _part_with(self, late: Sequence[Awaiter], sight: Callable[[Awaiter], Sight]) -> None:
        """Tell the first of those whose time is up."""
        with self._changed:
            del self._late[: len(late)]
            for awaiter in late:
                self._forget(awaiter)
        tell((awaiter.future, sight(awaiter)) for awaiter in late)

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._late, seconds)

    def _end(self, failure: BaseException) -> None:
        """Leave nobody waiting, unless there is another thread already."""
        with self._changed:
            if self._thread is not threading.current_thread():
                return
            self._thread = self._watcher = None
            left = {awaiter for each in self._awaiters.values() for awaiter in each}
            for each in (self._awaiters, self._new, self._gone, self._late):
                each.clear()
        tell((awaiter.future, Sight(None, twin(failure))) for awaiter in left)
