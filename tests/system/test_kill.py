"""SIGKILL at bad moments: nothing is lost, and only what was running runs twice."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celeriac
from celeriac.brokers.base import QueueSize
from celeriac.result import AsyncResult
from counting import Runs, counted
from support import Journal, WorkerProcess, dead_letters, eventually

pytestmark = pytest.mark.on("sqlite", "redis", "rabbitmq")

#: Random kills, each under load; `make soak` does more.
ROUNDS = {"sqlite": 100, "redis": 200, "rabbitmq": 200}
SOAK_ROUNDS = 2000
#: Seconds before a kill in which a task may have ended without its end being known to anybody.
UNSETTLED = 2.0

TASKS = counted(worker_lease=1.0, task_max_deliveries=1000)
CLIENT = {"worker_lease": 1.0}


@pytest.mark.timeout(600)
def test_nothing_is_lost_whatever_is_killed(alone: Path, client: Celeriac, server: str) -> None:
    Massacre(alone, client).rounds(ROUNDS[server])


@pytest.mark.soak
def test_nothing_is_lost_in_a_long_run(alone: Path, client: Celeriac) -> None:
    Massacre(alone, client).rounds(SOAK_ROUNDS)


class Massacre:
    """Two workers under load. In each round one of them, or parts of it, is killed."""

    def __init__(self, folder: Path, client: Celeriac) -> None:
        self.folder, self.client = folder, client
        self.runs = Runs(folder)
        self.seed = random.randrange(1 << 30)
        self.chance = random.Random(self.seed)
        self.workers: list[WorkerProcess] = []
        self.names = itertools.count(1)
        self.sent: dict[int, float] = {}
        self.results: dict[int, AsyncResult[Any]] = {}
        #: When each executor was killed, by itself or with its parent, and each parent; whose executors they were.
        self.executors_killed: dict[int, float] = {}
        self.parents_killed: dict[int, float] = {}
        self.parent_of: dict[int, int] = {}
        self.victims: Counter[str] = Counter()

    def rounds(self, number: int) -> None:
        print(f"seed {self.seed}")
        with ExitStack() as stack:
            try:
                self.workers = [self.start(stack) for _ in range(2)]
                for each in self.workers:
                    each.ready()
                for _ in range(number):
                    self.round(stack)
                self.check()
                assert [each.stop() for each in self.workers] == [0, 0]
            finally:
                print(f"seed {self.seed}: {self.victims}")

    def start(self, stack: ExitStack) -> WorkerProcess:
        return stack.enter_context(WorkerProcess(self.folder, "-n", f"w{next(self.names)}"))

    def round(self, stack: ExitStack) -> None:
        begun = len(self.runs.finished())
        batch = self.chance.randrange(5, 60)
        for number in range(len(self.sent), len(self.sent) + batch):
            seconds = self.chance.choice((0, 0, 0.001, 0.02))
            self.sent[number] = time.time()
            self.results[number] = self.client.send_task("tasks.run", (number, seconds))
        # At some moment on the way, but not so late that work piles up.
        enough = max(begun + self.chance.randrange(batch), len(self.sent) - 150)
        eventually(lambda: len(self.runs.finished()) >= enough, what=f"task {enough} (seed {self.seed})")
        self.kill(self.chance.choice(("executor", "executors", "nursery", "parent", "all")), stack)

    def kill(self, what: str, stack: ExitStack) -> None:
        victim = self.chance.choice(self.workers)
        if what in ("executor", "executors", "nursery"):
            # Whoever dies while the app is loaded ends the worker, as an app does that cannot be loaded.
            victim.ready()
            try:
                eventually(lambda: len(victim.executors()) == 2)
            except AssertionError:
                raise AssertionError(
                    f"seed {self.seed}: the worker {victim.process.pid} has the executors {victim.executors()}\n"
                    f"{victim.text}"
                ) from None
        self.victims[what] += 1
        executors, now = victim.executors(), time.time()
        self.parent_of |= dict.fromkeys(executors, victim.process.pid)
        if what in ("parent", "all"):
            # The replacement first: so that it works while the dead one's messages are still missed.
            self.workers.append(self.start(stack))
            self.workers.remove(victim)
            family, now = victim.family(), time.time()
            self.parent_of |= dict.fromkeys(victim.executors(), victim.process.pid)
            self.parents_killed[victim.process.pid] = now
            for pid in family if what == "all" else family[:1]:
                slay(pid)
            victim.process.wait()
            return
        dying = executors[:1] if what == "executor" else executors
        self.executors_killed |= dict.fromkeys(dying, now)
        for pid in [victim.nursery] if what == "nursery" else dying:
            slay(pid)

    def check(self) -> None:
        numbers = list(self.sent)
        self.runs.wait_until_finished(numbers)
        values = [self.results[number].get(timeout=30) for number in numbers]
        assert values == numbers, f"seed {self.seed}"
        in_vain = [(number, run) for number, runs in self.runs.all().items() for run in runs[:-1]]
        for number, run in in_vain:
            kills = [
                self.executors_killed.get(run.pid),
                self.parents_killed.get(self.parent_of.get(run.pid, 0)),
            ]
            what = f"seed {self.seed}: task {number} ran again after {run}"
            assert any(kills), f"{what}, whom nobody killed"
            # It ended, and was killed before anybody heard of it.
            heard = run.ended is not None and not any(k and k - run.ended < UNSETTLED for k in kills)
            assert not heard, f"{what}, which had ended long before the kill: {kills}"
        torn = Counter(run.pid for _, run in in_vain if run.ended is None)
        assert set(torn.values()) <= {1}, f"seed {self.seed}: an executor runs one task at a time: {torn}"
        late = max(runs[-1].started - self.sent[number] for number, runs in self.runs.all().items())
        print(
            f"{len(numbers)} tasks, {len(in_vain)} ran again ({len(torn)} were torn), "
            f"the last start at most {late:.1f} s after sending"
        )
        assert late < 15, f"seed {self.seed}"
        eventually(lambda: self.client.broker.size("celery") == QueueSize(0, 0, 0))
        assert dead_letters(self.client) == []


def slay(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def test_a_dead_worker_is_replaced_within_15_seconds(alone: Path, client: Celeriac) -> None:
    """With the default lease of ten seconds."""
    (alone / "tasks.py").write_text(counted())
    with WorkerProcess(alone, "-n", "first") as first, WorkerProcess(alone, "-n", "second") as second:
        for each in (first, second):
            each.ready()
        results = [client.send_task("tasks.run", (number, 3.0)) for number in range(4)]
        runs = Runs(alone)
        eventually(lambda: len(runs.all()) == 4)
        mine = [number for number, [run] in runs.all().items() if run.pid in first.executors()]
        assert len(mine) == 2
        first.kill()
        killed = time.time()
        assert [each.get(timeout=30) for each in results] == [0, 1, 2, 3]
        assert sorted(runs.again()) == sorted(mine)
        assert max(runs.all()[number][-1].started for number in mine) - killed < 15
        assert second.stop() == 0


@pytest.mark.on("sqlite")
def test_executors_end_with_their_worker(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone) as worker:
        worker.ready()
        client.send_task("tasks.wait", ("gate",))
        Journal(alone).wait_for("hold", "gate")
        family = worker.family()
        assert len(family) == 4
        worker.kill()
        eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family[1:]), within=2.0)
