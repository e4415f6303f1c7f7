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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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
LOOK = 0.005


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure, over the rounds."""

    what: str
    unit: str
    values: tuple[float, ...]
    #: The same work by hand, in each round.
    limits: tuple[float, ...] = ()
    aim: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def limit(self) -> float | None:
        return statistics.median(self.limits) if self.limits else None

    @property
    def ratio(self) -> float | None:
        """Part of the limit that is reached, the median over the rounds."""
        if not self.limits:
            return None
        return statistics.median(ours / most for ours, most in zip(self.values, self.limits, strict=True))


class Figures:
    """What was measured, by name, a value per round."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self._values.setdefault(name, []).append(value)

    def of(self, name: str) -> tuple[float, ...]:
        return tuple(self._values.get(name, ()))


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
    for name, pids in (
        ("parent", [worker.parent]),
        ("nursery", [worker.nursery]),
        ("executor", worker.executors[:1]),
        ("all four", worker.all),
    ):
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
            figures.add(f"limit {what}", rate)


def huey(figures: Figures, peer: peers.Huey, count: int) -> None:
    with new_folder():
        figures.add("huey enqueue", peer.enqueue(count))
        with peer.consumer():
            figures.add("huey drain", drain_rate(peers.DATABASE, peers.FINISHED, count))


# -- the table -----------------------------------------------------------------------------------------------


def rows(figures: Figures) -> list[Row]:
    insert, store = figures.of("limit insert"), figures.of("limit take, store result")
    of = figures.of
    candidates = [
        Row(what="enqueue, one by one (`delay`)", unit="/s", values=of("enqueue"), limits=insert),
        Row(what="enqueue, 1,000 at a time (`app.publish`)", unit="/s", values=of("enqueue in bulk")),
        Row(what="drain, results stored", unit="/s", values=of("drain"), limits=store, aim="≥ 20,000"),
        Row(what="worker CPU per 1,000 tasks", unit="ms", values=of("CPU per 1,000")),
        Row(what="call → result, idle worker, p50", unit="ms", values=of("latency p50"), aim="≤ 2"),
        Row(what="call → result, idle worker, p99", unit="ms", values=of("latency p99")),
        Row(what="spawn → result of the first task", unit="s", values=of("spawn"), aim="≤ 0.4"),
        Row(what="CPU of an idle worker", unit="% of a core", values=of("idle CPU"), aim="< 1"),
        *(
            Row(
                what=f"{process}, {kind}, {when}",
                unit="MB",
                values=of(f"{process} {kind} {when}"),
                aim={("parent", "RSS"): "< 45", ("all four", "RSS"): "< 110"}.get((process, kind), ""),
            )
            for process in ("parent", "nursery", "executor", "all four")
            for kind in ("RSS", "PSS")
            for when in ("idle", "after drain")
        ),
        Row(what="SQLite by hand: insert", unit="/s", values=insert),
        Row(what="SQLite by hand: claim and delete, 64 at a time", unit="/s", values=of("limit take")),
        Row(what="SQLite by hand: the same, results stored", unit="/s", values=store),
        Row(what="Huey on SQLite: enqueue, one by one", unit="/s", values=of("huey enqueue"), limits=insert),
        Row(what="Huey on SQLite: drain, results stored", unit="/s", values=of("huey drain"), limits=store),
    ]
    return [row for row in candidates if row.values]


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


def show(table_rows: Sequence[Row]) -> None:
    table = Table(box=box.MARKDOWN)
    table.add_column("what", no_wrap=True)
    for heading in ("median", "from … to", "of SQLite by hand", "aim"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in table_rows:
        spread = f"{number(min(row.values))} … {number(max(row.values))}" if len(row.values) > 1 else ""
        ratio = f"{row.ratio:.0%}" if row.ratio else ""
        table.add_row(row.what, f"{number(row.median)} {row.unit}", spread, ratio, row.aim)
    Console(width=None if sys.stdout.isatty() else 140).print(table, markup=False)


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
            peer = peers.Huey(Path(environment))
            steps["Huey on SQLite"] = lambda: huey(figures, peer, options.tasks)
        run(steps, options.rounds)
    measured = rows(figures)
    if options.json:
        print(
            json.dumps(
                [asdict(row) | {"median": row.median, "ratio": row.ratio} for row in measured], indent=2
            )
        )
    else:
        show(measured)


if __name__ == "__main__":
    main()
