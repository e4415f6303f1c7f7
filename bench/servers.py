"""celeriac beside Celery on one server: the same work for both, in turn, with the raw limits in the same round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from journal import Journal
from processes import Worker, memory
from rooms import Load, RedisRoom, Room, Stored
from rounds import Failed
from sides import Setup, Side
from table import BY_HAND, Figures
from watching import Seen, rate, reach

#: A part of the tasks of a drain that is not counted at the start: the executors warm up.
WARM_UP = 0.1
#: Seconds before tasks are due at which what is held for them is weighed.
BEFORE_DUE = 0.3
#: Calls a second at which a side publishes, as long as nothing better is known.
SLOWEST = 1_000
#: A task may not run earlier than this, in seconds: clocks have a grain.
GRAIN = 0.001


@dataclass(frozen=True)
class Sizes:
    """How much is done in one round. Celery gets less of it: its rates do not depend on how long it takes."""

    delays: Mapping[str, int]
    #: Confirmed by RabbitMQ one by one.
    confirmed: int
    drain: Mapping[str, int]
    due: int
    calls: int
    chains: int
    #: Seconds of idleness.
    idle: float
    raw: int


FULL = Sizes(
    delays={"celeriac": 10_000, "celery": 4_000},
    confirmed=2_000,
    drain={"celeriac": 40_000, "celery": 6_000},
    due=10_000,
    calls=500,
    chains=5,
    idle=5.0,
    raw=20_000,
)
QUICK = Sizes(
    delays={"celeriac": 4_000, "celery": 1_500},
    confirmed=500,
    drain={"celeriac": 10_000, "celery": 2_000},
    due=2_000,
    calls=200,
    chains=3,
    idle=2.0,
    raw=8_000,
)

Steps = dict[str, Callable[[], None]]


class Bench:
    """Measurements on one broker, with results in Redis; each starts from empty servers."""

    def __init__(
        self, broker: Room, redis: RedisRoom, sides: tuple[Side, ...], sizes: Sizes, folder: Path
    ) -> None:
        self.figures = Figures()
        self.broker = broker
        self.redis = redis
        self.sides = sides
        self.sizes = sizes
        self.folder = folder
        self.silent = Setup(broker.url)
        self.stored = Setup(broker.url, redis.url)
        #: How many times longer than thought it takes a side to publish what is due at once.
        self._slowness: dict[str, int] = {}

    def alternate(self, what: str, step: Callable[[Side], None]) -> Steps:
        """The step for one side, then for the other."""
        return {f"{what}, {side.name}": partial(step, side) for side in self.sides}

    def _clean(self) -> None:
        self.broker.clean()
        self.redis.clean()

    # -- calling ---------------------------------------------------------------------------------------------

    def delay(
        self, figure: str, count: int | Mapping[str, int], transport: Mapping[str, bool], side: Side
    ) -> None:
        """`delay()` one by one; all must lie in the queue afterwards."""
        self._clean()
        calls = count if isinstance(count, int) else count[side.name]
        done = side.produce(Setup(self.broker.url, transport=transport), "one_by_one", calls)
        reach(calls, self.broker.waiting, "messages in the queue")
        self.figures.add(side.name, figure, done["rate"])

    # -- draining --------------------------------------------------------------------------------------------

    def drain(self, setup: Setup, figure: str, side: Side) -> None:
        """Fill the queue, start a worker and watch it from outside; all must have run once, and be settled."""
        self._clean()
        count = self.sizes.drain[side.name]
        journal = self._journal(count)
        filled = side.produce(setup, "fill", 0, count)
        progress = Stored(self.redis, filled["ids"]) if setup is self.stored else journal.ran
        found = Figures()  # kept only when all is proven
        with side.worker(setup, journal) as worker:
            first = reach(int(count * WARM_UP), progress, "tasks done", alive=worker.alive)
            cpu, load = worker.cpu(), self.redis.load()
            last = reach(count, progress, "tasks done", alive=worker.alive)
            cpu, loads = worker.cpu() - cpu, (load, self.redis.load())
            self._weigh(found, side, worker, "after the drain")
        self._prove(journal, filled["ids"] if setup is self.stored else ())
        self._note_drain(side, figure, first, last, cpu, loads)
        self.figures.take(found)
        if setup is self.silent:
            self.figures.add(side.name, "bulk", filled["rate"])

    def _note_drain(
        self, side: Side, figure: str, first: Seen, last: Seen, cpu: float, loads: tuple[Load, Load]
    ) -> None:
        thousands = (last.done - first.done) / 1000
        before, after = loads
        add = partial(self.figures.add, side.name)
        add(figure, rate(first, last))
        add(f"{figure}: CPU", cpu * 1000 / thousands)
        add(f"{figure}: reads", (after.reads - before.reads) / thousands)
        add(f"{figure}: commands", (after.commands - before.commands) / thousands)

    def _prove(self, journal: Journal, ids: Sequence[str]) -> None:
        """Every task ran once, has its result where it should, and nothing is left. To be called when the worker
        has ended: what it had not settled is in the queue again."""
        if (journal.ran(), journal.runs()) != (journal.count, journal.count):
            raise Failed(
                f"{journal.ran():,} of {journal.count:,} tasks ran, in {journal.runs():,} executions"
            )
        succeeded = self.redis.succeeded(ids)
        if succeeded != len(ids):
            raise Failed(f"{succeeded:,} of {len(ids):,} results")
        if left := self.broker.waiting():
            raise Failed(f"{left:,} messages were left in the queue")

    def _journal(self, count: int) -> Journal:
        return Journal.new(self.folder / "journal", count)

    def _weigh(self, figures: Figures, side: Side, worker: Worker, when: str) -> None:
        used = [memory(pid) for pid in worker.all]
        figures.add(side.name, f"parent RSS {when}", memory(worker.parent).rss / 1e6)
        figures.add(side.name, f"all RSS {when}", sum(each.rss for each in used) / 1e6)
        figures.add(side.name, f"all PSS {when}", sum(each.pss for each in used) / 1e6)

    # -- a worker with nothing else to do --------------------------------------------------------------------

    def idle(self, side: Side) -> None:
        """How soon it is there, how quickly it answers, what it costs when nobody calls."""
        self._clean()
        first = side.produce(self.stored, "fill", 0, 1)["ids"]
        add = partial(self.figures.add, side.name)
        with side.worker(self.stored, self._journal(self.sizes.calls)) as worker:
            seen = reach(1, Stored(self.redis, first), "results", every=0.002, alive=worker.alive)
            add("spawn", seen.instant - worker.started)
            taken = side.produce(self.stored, "latencies", self.sizes.calls)
            add("latency p50", taken["p50"])
            add("latency p99", taken["p99"])
            add("chain", side.produce(self.stored, "chains", 50, self.sizes.chains)["p50"])
            self._weigh(self.figures, side, worker, "idle")
            time.sleep(1)  # the pace of waiting slows down after the last task
            cpu, load = worker.cpu(), self.redis.load()
            time.sleep(self.sizes.idle)
            add("idle CPU", (worker.cpu() - cpu) / self.sizes.idle * 100)
            add("idle commands", (self.redis.load().commands - load.commands) / self.sizes.idle)

    # -- many at one instant ---------------------------------------------------------------------------------

    def due(self, side: Side) -> None:
        """Tasks that are all due at once: how late they are, and what the worker holds until then."""
        self._clean()
        count = self.sizes.due
        journal = self._journal(count + 1)
        side.produce(self.silent, "fill", count, 1)
        with side.worker(self.silent, journal) as worker:
            reach(1, journal.ran, "tasks done", alive=worker.alive)
            before = worker.rss()
            due = side.produce(self.silent, "due", 0, count, self._seconds_until_due(side))
            if due["spare"] < BEFORE_DUE:
                self._slowness[side.name] = 2 * self._slowness.get(side.name, 1)
                raise Failed(f"published only {due['spare']:.2f} s before they were due")
            time.sleep(max(0.0, due["instant"] - time.time() - BEFORE_DUE))
            held = worker.rss()
            reach(count + 1, journal.ran, "tasks done", alive=worker.alive)
        self._prove(journal, ())
        late = [instant - due["instant"] for instant in journal.times()[1:]]
        if late[0] < -GRAIN:
            raise Failed(f"a task ran {-late[0] * 1000:.0f} ms before it was due")
        self.figures.add(side.name, "late p99", late[count * 99 // 100] * 1000)
        self.figures.add(side.name, "late last", late[-1] * 1000)
        self.figures.add(side.name, "growth", held - before)

    def _seconds_until_due(self, side: Side) -> int:
        """Enough to publish all beside a worker that fetches them, as Celery's does; more where it was not."""
        known = self.figures.of(side.name, "bulk")
        alone = self.sizes.due / (known[-1] if known else SLOWEST)
        return (4 + round(2.5 * alone)) * self._slowness.get(side.name, 1)

    # -- raw limits ------------------------------------------------------------------------------------------

    def note_raw(self, rates: Callable[[str, int], dict[str, float]]) -> None:
        self._clean()
        for what, value in rates(self.broker.url, self.sizes.raw).items():
            self.figures.add(BY_HAND, what, value)
