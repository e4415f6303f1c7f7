"""Speed of the embedded default: SQLite as broker and result backend, a worker with two executors.

Prints a table, or JSON with ``--json``. Where SQLite sets the limit, the same work by hand stands beside it,
measured in the same round. ``--peers`` adds Huey on its SQLite storage, installed into a temporary environment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from operator import truediv
from pathlib import Path

import limits
import peers
from processes import Worker, cpu, memory
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tasks import new_app

from celeriac import Celeriac

#: Completions that are not counted at the start of a drain: the executors warm up.
WARM_UP = 1_000
#: Calls that are published at once.
BULK = 1_000
#: Seconds without any result after which a drain is given up.
PATIENCE = 30.0
#: Seconds between two looks at the number of results.
LOOK = 0.02


@dataclass(frozen=True)
class Row:
    """A line of the table, and the names of its figures."""

    what: str
    unit: str
    figure: str
    #: The figure of the same work by hand, in SQLite alone.
    limit: str = ""
    aim: str = ""


ROWS = (
    Row("enqueue, one by one (`delay`)", "/s", "enqueue", limit="insert"),
    Row("enqueue, 1,000 at a time (`app.publish`)", "/s", "enqueue in bulk"),
    Row("drain, results stored", "/s", "drain", limit="take, store result", aim="≥ 20,000"),
    Row("worker CPU per 1,000 tasks", "ms", "CPU per 1,000"),
    Row("call → result, idle worker, p50", "ms", "latency p50", aim="≤ 2"),
    Row("call → result, idle worker, p99", "ms", "latency p99"),
    Row("spawn → result of the first task", "s", "spawn", aim="≤ 0.4"),
    Row("CPU of an idle worker", "% of a core", "idle CPU", aim="< 1"),
    Row("memory of the parent, RSS, idle", "MB", "parent RSS idle", aim="< 45"),
    Row("memory of the parent, RSS, after the drain", "MB", "parent RSS after drain", aim="< 45"),
    Row("memory of an executor, RSS, after the drain", "MB", "executor RSS after drain"),
    Row("memory of an executor, PSS, after the drain", "MB", "executor PSS after drain"),
    Row("memory of all four processes, RSS, idle", "MB", "all RSS idle", aim="< 110"),
    Row("memory of all four processes, PSS, idle", "MB", "all PSS idle"),
    Row("SQLite by hand: insert", "/s", "insert"),
    Row("SQLite by hand: claim and delete, 64 at a time", "/s", "take"),
    Row("SQLite by hand: the same, results stored", "/s", "take, store result"),
    Row("Huey on SQLite: enqueue, one by one", "/s", "huey enqueue", limit="insert"),
    Row("Huey on SQLite: drain, results stored", "/s", "huey drain", limit="take, store result"),
)


class Figures:
    """What was measured, by name, a value for each round."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self._values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def of(self, name: str) -> list[float]:
        return self._values[name]

    def ratio(self, row: Row) -> float | None:
        """The part of SQLite's limit that was reached: the median over the rounds."""
        if not row.limit:
            return None
        return statistics.median(map(truediv, self.of(row.figure), self.of(row.limit)))


# -- measuring -----------------------------------------------------------------------------------------------


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


def enqueue_one_by_one(figures: Figures, count: int) -> None:
    with new_database() as app:
        noop = app.tasks["bench.noop"]
        noop.delay()
        started = time.perf_counter()
        for _ in range(count):
            noop.delay()
        figures.add("enqueue", count / (time.perf_counter() - started))


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
        figures.add("enqueue in bulk", count / (time.perf_counter() - started))
        with Worker() as worker:
            figures.add("drain", drain_rate("celeriac.db", "SELECT count(*) FROM celery_taskmeta", count))
            seconds = sum(map(cpu, worker.all))
            figures.add("CPU per 1,000", seconds / count * 1000 * 1000)
            weigh(figures, worker, "after drain")
        states = [record.state if record else "nothing" for record in app.backend.get(ids)]
        left = app.broker.size("celery")
        if states.count("SUCCESS") != count or left.ready + left.scheduled + left.unsettled:
            raise SystemExit(f"{states.count('SUCCESS')} of {count} results, left in the queue: {left}")


def drain_rate(path: str, finished: str, count: int) -> float:
    """Tasks a second between the look that sees the executors warmed up and the one that sees every result.

    Looking on leaves the start of the worker out and needs nothing from it.
    """
    first: tuple[float, int] | None = None
    done, moved = 0, time.perf_counter()
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        while done < count:
            time.sleep(LOOK)
            before, (done,) = done, database.execute(finished).fetchone()
            now = time.perf_counter()
            if done != before:
                moved = now
            elif now - moved > PATIENCE:
                raise SystemExit(f"nothing finished for {PATIENCE:.0f} s: {done} of {count} results")
            if first is None and done >= min(WARM_UP, count // 10):
                first = now, done
    assert first is not None
    return (count - first[1]) / (now - first[0])


def weigh(figures: Figures, worker: Worker, when: str) -> None:
    groups = {"parent": [worker.parent], "executor": worker.executors[:1], "all": worker.all}
    for name, pids in groups.items():
        used = [memory(pid) for pid in pids]
        figures.add(f"{name} RSS {when}", sum(each.rss for each in used) / 1e6)
        figures.add(f"{name} PSS {when}", sum(each.pss for each in used) / 1e6)


def idle(figures: Figures, calls: int, seconds: float) -> None:
    """A worker with nothing to do: how soon it is there, how quickly it answers, what it costs."""
    with new_database() as app:
        noop = app.tasks["bench.noop"]
        first = noop.delay()
        started = time.perf_counter()
        with Worker() as worker:
            first.get(timeout=30)
            figures.add("spawn", time.perf_counter() - started)
            latencies = sorted(latency(noop) for _ in range(calls))
            figures.add("latency p50", latencies[calls // 2] * 1000)
            figures.add("latency p99", latencies[calls * 99 // 100] * 1000)
            weigh(figures, worker, "idle")
            time.sleep(1)  # the pace of waiting slows down after the last task
            before = sum(map(cpu, worker.all))
            time.sleep(seconds)
            figures.add("idle CPU", (sum(map(cpu, worker.all)) - before) / seconds * 100)


def latency(task: Callable) -> float:
    started = time.perf_counter()
    task.delay().get(timeout=30)
    return time.perf_counter() - started


def by_hand(figures: Figures, count: int) -> None:
    with new_folder() as folder:
        for what, rate in limits.measure(folder, count).items():
            figures.add(what, rate)


def huey(figures: Figures, peer: peers.Huey, count: int) -> None:
    with new_folder():
        figures.add("huey enqueue", peer.enqueue(count))
        with peer.consumer():
            figures.add("huey drain", drain_rate(peers.DATABASE, peers.FINISHED, count))


# -- the table -----------------------------------------------------------------------------------------------


def run(steps: Mapping[str, Callable[[], None]], rounds: int) -> None:
    """Take every step once in each round, so that what disturbs the machine disturbs all alike."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=len(steps) * rounds)
        for _ in range(rounds):
            for what, step in steps.items():
                progress.update(bar, description=what)
                step()
                progress.advance(bar)


def show(figures: Figures) -> None:
    """A table that can be read in a terminal, and pasted into a Markdown file."""
    table = Table(box=box.MARKDOWN)
    table.add_column("what", no_wrap=True)
    for heading in ("median", "from … to", "of SQLite by hand", "aim"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in ROWS:
        if row.figure in figures:
            values, ratio = figures.of(row.figure), figures.ratio(row)
            table.add_row(
                row.what,
                f"{number(statistics.median(values))} {row.unit}",
                f"{number(min(values))} … {number(max(values))}",
                f"{ratio:.0%}" if ratio else "",
                row.aim,
            )
    Console(width=None if sys.stdout.isatty() else 140).print(table, markup=False)


def as_json(figures: Figures) -> str:
    rows = [
        asdict(row)
        | {"values": figures.of(row.figure), "median": statistics.median(figures.of(row.figure))}
        | {"ratio": figures.ratio(row)}
        for row in ROWS
        if row.figure in figures
    ]
    return json.dumps(rows, indent=2)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tasks", type=int, default=20_000, help="no-op tasks of a round (default: %(default)s)"
    )
    parser.add_argument("--calls", type=int, default=500, help="calls for the latency (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often each is measured (default: %(default)s)"
    )
    parser.add_argument("--idle", type=float, default=10.0, help="seconds of idleness (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--peers", action="store_true", help="measure Huey beside it (installs it)")
    options = parser.parse_args()

    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as environment:
        steps: dict[str, Callable[[], None]] = {
            "SQLite by hand": lambda: by_hand(figures, options.tasks),
            "enqueue one by one": lambda: enqueue_one_by_one(figures, options.tasks),
            "enqueue in bulk and drain": lambda: enqueue_and_drain(figures, options.tasks),
            "an idle worker": lambda: idle(figures, options.calls, options.idle),
        }
        if options.peers:
            with Console(stderr=True).status("installing Huey"):
                peer = peers.Huey(Path(environment))
            steps["Huey on SQLite"] = lambda: huey(figures, peer, options.tasks)
        run(steps, options.rounds)
    if options.json:
        print(as_json(figures))
    else:
        show(figures)


if __name__ == "__main__":
    main()
