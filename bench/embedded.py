"""Speed of the embedded default: SQLite as broker and result backend, a worker with two executors.

Where SQLite sets the limit, the same work by hand stands beside it, measured in the same round. Huey on its SQLite
storage, the one peer that has it, can be measured too.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import limits
import peers
from processes import Worker, memory
from rounds import Failed, Steps
from table import BY_HAND, OURS, Comparison, Figures, Row, less
from tasks import new_app
from watching import rate, reach

from celeriac import Celeriac

HUEY = "huey"
#: Completions that are not counted at the start of a drain: the executors warm up.
WARM_UP = 1_000
#: Calls that are published at once.
BULK = 1_000

ROWS = (
    Row("enqueue, one by one (`delay`)", "/s", "enqueue", by_hand="insert"),
    Row("enqueue, 1,000 at a time (`app.publish`)", "/s", "enqueue in bulk"),
    Row("drain, results stored", "/s", "drain", by_hand="take, store result", aim=20_000),
    Row("claim and delete, 64 at a time", "/s", "take", by_hand="take"),
    less("worker CPU per 1,000 tasks", "ms", "CPU per 1,000"),
    less("call → result, idle worker, p50", "ms", "latency p50", aim=2),
    less("call → result, idle worker, p99", "ms", "latency p99"),
    less("spawn → result of the first task", "s", "spawn", aim=0.4),
    less("CPU of an idle worker", "% of a core", "idle CPU", aim=1),
    less("memory of the parent, RSS, idle", "MB", "parent RSS idle", aim=45),
    less("memory of the parent, RSS, after the drain", "MB", "parent RSS after drain", aim=45),
    less("memory of an executor, RSS, after the drain", "MB", "executor RSS after drain"),
    less("memory of an executor, PSS, after the drain", "MB", "executor PSS after drain"),
    less("memory of all four processes, RSS, idle", "MB", "all RSS idle", aim=110),
    less("memory of all four processes, PSS, idle", "MB", "all PSS idle"),
)


@dataclass(frozen=True)
class Sizes:
    """How much is done in one round."""

    tasks: int
    calls: int
    #: Seconds of idleness.
    idle: float


FULL = Sizes(tasks=20_000, calls=500, idle=10.0)
QUICK = Sizes(tasks=5_000, calls=200, idle=2.0)


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """A new folder as the current one: the embedded default begins with an empty database."""
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder, contextlib.chdir(folder):
        yield Path(folder)


@contextlib.contextmanager
def new_database() -> Iterator[Celeriac]:
    with new_folder():
        app = new_app()
        try:
            yield app
        finally:
            app.close()


def new_worker() -> Worker:
    return Worker([sys.executable, "-m", "celeriac"], folder=Path.cwd())


def enqueue_one_by_one(figures: Figures, count: int) -> None:
    with new_database() as app:
        noop = app.tasks["bench.noop"]
        noop.delay()
        started = time.perf_counter()
        for _ in range(count):
            noop.delay()
        figures.add(OURS, "enqueue", count / (time.perf_counter() - started))


def enqueue_and_drain(figures: Figures, count: int) -> None:
    """Fill the queue in bulk, then start a worker and let it drain."""
    with new_database() as app:
        noop = app.tasks["bench.noop"]
        noop.delay().forget()  # creates the tables
        app.broker.purge("celery")
        ids: list[str] = []
        started = time.perf_counter()
        for _ in range(0, count, BULK):
            calls = [app.publisher.lay_out(noop.name, (), {}, task=noop) for _ in range(BULK)]
            app.publish([outgoing for _, outgoing in calls])
            ids += [message.id for message, _ in calls]
        figures.add(OURS, "enqueue in bulk", count / (time.perf_counter() - started))
        with new_worker() as worker, counter("celeriac.db", "SELECT count(*) FROM celery_taskmeta") as done:
            figures.add(OURS, "drain", drain_rate(done, count, worker.alive))
            figures.add(OURS, "CPU per 1,000", worker.cpu() / count * 1000 * 1000)
            weigh(figures, worker, "after drain")
        states = [record.state if record else "nothing" for record in app.backend.get(ids)]
        left = app.broker.size("celery")
        if states.count("SUCCESS") != count or left.ready + left.scheduled + left.unsettled:
            raise Failed(f"{states.count('SUCCESS')} of {count} results, left in the queue: {left}")


@contextlib.contextmanager
def counter(path: str, finished: str) -> Iterator[Callable[[], int]]:
    """Counts results in a database, by that query."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        yield lambda: database.execute(finished).fetchone()[0]


def drain_rate(done: Callable[[], int], count: int, alive: Callable[[], bool]) -> float:
    """Tasks a second between the look that sees the executors warmed up and the one that sees every result.

    Looking on leaves the start of the worker out and needs nothing from it.
    """
    first = reach(min(WARM_UP, count // 10), done, "results", alive=alive)
    return rate(first, reach(count, done, "results", alive=alive))


def weigh(figures: Figures, worker: Worker, when: str) -> None:
    groups = {"parent": [worker.parent], "executor": worker.executors[:1], "all": worker.all}
    for name, pids in groups.items():
        used = [memory(pid) for pid in pids]
        figures.add(OURS, f"{name} RSS {when}", sum(each.rss for each in used) / 1e6)
        figures.add(OURS, f"{name} PSS {when}", sum(each.pss for each in used) / 1e6)


def idle(figures: Figures, calls: int, seconds: float) -> None:
    """A worker with nothing to do: how soon it is there, how quickly it answers, what it costs."""
    with new_database() as app:
        noop = app.tasks["bench.noop"]
        first = noop.delay()
        started = time.perf_counter()
        with new_worker() as worker:
            first.get(timeout=30)
            figures.add(OURS, "spawn", time.perf_counter() - started)
            latencies = sorted(latency(noop) for _ in range(calls))
            figures.add(OURS, "latency p50", latencies[calls // 2] * 1000)
            figures.add(OURS, "latency p99", latencies[calls * 99 // 100] * 1000)
            weigh(figures, worker, "idle")
            time.sleep(1)  # the pace of waiting slows down after the last task
            before = worker.cpu()
            time.sleep(seconds)
            figures.add(OURS, "idle CPU", (worker.cpu() - before) / seconds * 100)


def latency(task: Callable) -> float:
    started = time.perf_counter()
    task.delay().get(timeout=30)
    return time.perf_counter() - started


def by_hand(figures: Figures, count: int) -> None:
    with new_folder() as folder:
        for what, reached in limits.measure(folder, count).items():
            figures.add(BY_HAND, what, reached)


def huey(figures: Figures, peer: peers.Huey, count: int) -> None:
    with new_folder():
        figures.add(HUEY, "enqueue", peer.enqueue(count))
        with peer.consumer() as alive, counter(peers.DATABASE, peers.FINISHED) as done:
            figures.add(HUEY, "drain", drain_rate(done, count, alive))


def comparison(sizes: Sizes, peer: peers.Huey | None) -> tuple[Comparison, Steps]:
    """The table, and the steps that fill it."""
    figures = Figures()
    steps: dict[str, Callable[[], None]] = {
        "SQLite by hand": partial(by_hand, figures, sizes.tasks),
        "SQLite: enqueue one by one": partial(enqueue_one_by_one, figures, sizes.tasks),
        "SQLite: enqueue in bulk and drain": partial(enqueue_and_drain, figures, sizes.tasks),
        "SQLite: an idle worker": partial(idle, figures, sizes.calls, sizes.idle),
    }
    if peer is not None:
        steps["SQLite: Huey"] = partial(huey, figures, peer, sizes.tasks)
    title = f"SQLite {sqlite3.sqlite_version} as broker and result backend: the embedded default"
    return Comparison(title, ROWS, figures, peer=HUEY if peer else "", peer_heading="Huey"), steps
