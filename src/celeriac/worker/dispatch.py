"""Which executor gets which call, and how far ahead.

A slot is handed as many calls as keep it busy for about 10 ms by the running average of those tasks' run
times: one if that is unknown or long. A slot that stalls on a call which takes longer than thought is
relieved of the rest at once, so that a short task never waits behind a long one while any slot is idle.
When all slots are held up, what waits here goes back to the broker: another worker may be idle.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count, islice

from celeriac.worker.executor import Executor
from celeriac.worker.limits import Limits
from celeriac.worker.work import Work

__all__ = ["AHEAD", "Dispatcher", "RunTimes"]

#: Seconds of work that a slot is handed ahead.
AHEAD = 0.010
#: Seconds for which all slots must be held up before work that waits here goes back to the broker.
PATIENCE = 0.100
#: Calls that a slot is handed ahead at most, whatever their run time.
_AHEAD_CALLS = 256
#: Bytes that wait in one executor's inbox at most.
_AHEAD_BYTES = 512 * 1024
#: Executor time a call costs beside the task's own run time.
_OVERHEAD = 30e-6


class RunTimes:
    """Running average of each task's run time, in seconds. Unknown tasks count as long."""

    def __init__(self, weight: float = 0.1) -> None:
        self._weight = weight
        self._average: dict[str, float] = {}

    def add(self, task: str, seconds: float) -> None:
        """Take one run into account."""
        before = self._average.get(task)
        self._average[task] = seconds if before is None else before + self._weight * (seconds - before)

    def of(self, task: str) -> float:
        """How long a call of this task will take, with what a call costs by itself."""
        return self._average.get(task, AHEAD) + _OVERHEAD


class Dispatcher:
    """1. `add` queues admitted work; `pump` hands it out, idle slots first, then ahead.
    2. `answered` takes a call off its executor when its outcome is there.
    3. While work waits behind other work, it looks every 10 ms for slots that stall, and takes their calls back.
    4. `give_back` gets the work that would wait here for long.
    5. ``acks_late=False``: a slot is kept, `settle_first` settles the work and says whether it was still held,
       then it is sent; such calls are never handed ahead.

    Lives on the loop.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        give_back: Callable[[list[Work]], None],
        settle_first: Callable[[Work, Callable[[bool], None]], None],
    ) -> None:
        self.executors: list[Executor] = []
        self.backlog: deque[Work] = deque()
        self.run_times = RunTimes()
        self._limits = limits
        self._give_back = give_back
        self._settle_first = settle_first
        self._numbers = count(1)
        #: What the last answered call cost: the guess for what comes next.
        self._typical = 2 * AHEAD
        self._watching: asyncio.TimerHandle | None = None

    def add(self, works: Iterable[Work]) -> None:
        """Queue work behind what waits already."""
        self.backlog.extend(works)
        self.pump()

    def put_first(self, works: Iterable[Work]) -> None:
        """Queue work that was handed out before, in its old order, ahead of what waits."""
        self.backlog.extendleft(reversed(list(works)))

    def join(self, executor: Executor) -> None:
        """An executor is ready to take calls."""
        self.executors.append(executor)
        self.pump()

    def leave(self, executor: Executor) -> None:
        """An executor gets no more calls; what it was handed stays in its `handed`."""
        if executor in self.executors:
            self.executors.remove(executor)

    def free(self) -> int:
        """Slots with nothing to do and nothing waiting for them."""
        return sum(each.slots for each in self.executors) - self.held()

    def held(self) -> int:
        """Deliveries that run here or wait for it."""
        return sum(len(each.handed) + each.reserved for each in self.executors) + len(self.backlog)

    def room(self) -> int:
        """How many deliveries the executors could use beyond those that are here."""
        now = time.monotonic()
        ahead = min(_AHEAD_CALLS, int(AHEAD / self._typical))
        wanted = here = 0
        for executor in self.executors:
            # Twice what is handed ahead: one batch is on its way from the broker while the other is worked on.
            held_up = executor.stalled or _held_up_for(executor, now) > AHEAD
            wanted += executor.slots if held_up else executor.slots * (1 + 2 * ahead)
            here += len(executor.handed)
        return wanted - here - len(self.backlog)

    def pump(self) -> None:
        """Hand out what can be handed out."""
        backlog = self.backlog
        if not backlog:
            return
        for executor in self.executors:
            while backlog and executor.idle:
                if not self._hand(executor, backlog.popleft()):
                    break
        if not backlog or not self.executors:
            return
        # In turns of a few calls each, so that a short backlog is spread and a long one fills all.
        turn = max(1, min(16, len(backlog) // len(self.executors)))
        willing = [each for each in self.executors if not each.stalled]
        while backlog and willing:
            for executor in list(willing):
                for _ in range(turn):
                    if not backlog:
                        break
                    if not self._has_room(executor, backlog[0]) or not self._hand(
                        executor, backlog.popleft()
                    ):
                        willing.remove(executor)
                        break
        self._keep_watching()

    def _has_room(self, executor: Executor, work: Work) -> bool:
        return (
            not work.settles_first
            and executor.ahead + self.run_times.of(work.task) <= AHEAD
            and executor.ahead_bytes < _AHEAD_BYTES
            and len(executor.handed) < _AHEAD_CALLS
        )

    def _hand(self, executor: Executor, work: Work) -> bool:
        if work.settles_first:
            self._reserve(executor, work)
            return True
        if not executor.send(next(self._numbers), work):
            self.backlog.appendleft(work)
            executor.stalled = True
            return False
        if len(executor.handed) <= executor.slots:
            self._start(executor, work)
        else:
            executor.ahead += self.run_times.of(work.task)
            executor.ahead_bytes += work.size
        return True

    def _reserve(self, executor: Executor, work: Work) -> None:
        """Keep a slot for work that is settled before it is sent, so that no crash can run it twice."""
        executor.reserved += 1

        def settled(held: bool) -> None:
            executor.reserved -= 1
            if held:
                work.settled = True
                self.backlog.appendleft(work)
            self.pump()

        self._settle_first(work, settled)

    def _start(self, executor: Executor, work: Work) -> None:
        """From now on, as far as can be seen from here, this call runs."""
        work.started = time.monotonic()
        self._limits.arm(executor, work)

    def answered(self, executor: Executor, number: int, runtime: float) -> Work | None:
        """The outcome of a call is there; None where the call is not known (its lease was lost)."""
        work = executor.handed.pop(number, None)
        if work is None:
            return None
        if work.timers:
            self._limits.disarm(work)
        if work.verdict is None:
            self.run_times.add(work.task, runtime)
            self._typical = self.run_times.of(work.task)
        executor.stalled = False
        self._advance(executor)
        return work

    def _advance(self, executor: Executor) -> None:
        """Calls that moved into a slot were handed ahead until now."""
        for work in islice(executor.handed.values(), executor.slots):
            if not work.started:
                executor.ahead -= self.run_times.of(work.task)
                executor.ahead_bytes -= work.size
                self._start(executor, work)
        if len(executor.handed) <= executor.slots:
            # Averages move between adding and subtracting: start from nothing when nothing is ahead.
            executor.ahead = 0.0
            executor.ahead_bytes = 0

    def forget(self, work: Work) -> None:
        """A call that was handed out will not be answered: its executor died."""
        self._limits.disarm(work)
        work.number = 0
        work.started = 0.0

    def take_back(self, executor: Executor) -> list[Work]:
        """Read an executor's unstarted calls out of its inbox."""
        returned = executor.take_back()
        for work in returned:
            self.forget(work)
        # The executor may have come to another call between two reads.
        self._advance(executor)
        executor.ahead = 0.0
        executor.ahead_bytes = 0
        return returned

    def _keep_watching(self) -> None:
        if self._watching is None:
            self._watching = asyncio.get_running_loop().call_later(AHEAD, self._watch)

    def _watch(self) -> None:
        """Relieve slots that stall, and this worker when all do."""
        self._watching = None
        now = time.monotonic()
        waiting = False
        for executor in self.executors:
            if len(executor.handed) <= executor.slots:
                continue
            if _held_up_for(executor, now) > AHEAD:
                executor.stalled = True
                self.put_first(self.take_back(executor))
            else:
                waiting = True
        self.pump()
        if self.backlog and self._is_held_up(now):
            # What has its verdict or is settled already stays: only this worker knows that of it.
            leaving = [work for work in self.backlog if work.verdict is None and not work.settled]
            self.backlog = deque(work for work in self.backlog if work.verdict is not None or work.settled)
            self._give_back(leaving)
        if self.backlog or waiting:
            self._keep_watching()

    def _is_held_up(self, now: float) -> bool:
        """Every slot has been busy with one call for long."""
        executors = self.executors
        return bool(executors) and all(_held_up_for(each, now) > PATIENCE for each in executors)

    def close(self) -> None:
        """Stop looking."""
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None


def _held_up_for(executor: Executor, now: float) -> float:
    """For how many seconds the oldest call of an executor has been running; 0 while a slot is free."""
    if executor.idle or not executor.handed:
        return 0.0
    oldest = next(iter(executor.handed.values()))
    return now - oldest.started if oldest.started else 0.0
