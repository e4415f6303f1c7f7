"""Index Python's standard library with a worker that is shot at, and show that nothing is lost.

Every ``.py`` file of the standard library becomes one task. Half-way an executor process is killed with
SIGKILL, later the whole worker; a new worker takes over. At the end the totals must equal those of a direct
computation in this process. Exit status 0 says that they do.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from tasks import clock, index_file, stumble

from celeriac import AsyncResult
from celeriac.errors import TimeoutError
from celeriac.states import STARTED

T = TypeVar("T")
Index = dict[str, Any]

HERE = Path(__file__).parent
#: Seconds after the last value that came, after which the rest counts as lost: recovery takes 15 at most.
PATIENCE = 30.0
COUNTDOWN = 3.0

console = Console(highlight=False)


def main() -> int:
    options = arguments()
    files = library(options.files)
    console.print(f"[bold]celeriac demo[/]: {len(files):,} files of {sysconfig.get_path('stdlib')}")
    with tempfile.TemporaryDirectory(prefix="celeriac-demo-") as folder, contextlib.chdir(folder):
        log = Path(folder, "worker.log")
        try:
            story = Demo(files, lease=options.lease, log=log).run()
        except BaseException:
            console.print("[red]The demo broke off. The workers said:[/]")
            console.print(log.read_text() if log.exists() else "nothing", markup=False, soft_wrap=True)
            raise
    direct = [index_file(path) for path in watched(files, "the same in one process, directly")]
    return 0 if report(story, files, Totals.of(story.values), Totals.of(direct)) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, metavar="N", help="only the N largest files")
    parser.add_argument(
        "--lease", type=float, metavar="SECONDS", help="worker_lease; celeriac's default is 10"
    )
    return parser.parse_args()


def library(most: int | None) -> list[str]:
    """The files of the standard library by name; with `most`, so many of the largest."""
    root = Path(sysconfig.get_path("stdlib"))
    foreign = {"site-packages", "dist-packages"}
    files = [path for path in root.rglob("*.py") if path.is_file() and foreign.isdisjoint(path.parts)]
    files.sort(key=lambda path: path.stat().st_size, reverse=True)
    return sorted(map(str, files[:most]))


# -- the job -------------------------------------------------------------------------------------------------


@dataclass
class Story:
    """What happened."""

    started: datetime
    handed_over: datetime | None = None
    executor_killed: datetime | None = None
    worker_killed: datetime | None = None
    finished: datetime | None = None
    values: list[Index] = field(default_factory=list)
    #: When each file that was in the hands of a killed process was done after all.
    recovered: list[datetime] = field(default_factory=list)
    #: Tries that `stumble` took, and seconds between the call of `clock` and its run.
    tries: int = 0
    waited: float = 0.0


class Demo:
    """Starts a worker, hands over one task per file, collects the values, and does some damage on the way."""

    def __init__(self, files: Sequence[str], *, lease: float | None, log: Path) -> None:
        self.story = Story(started=now())
        self._files = files
        self._lease = lease
        self._log = log
        self._worker = self._start_worker()

    def run(self) -> Story:
        story = self.story
        try:
            stumbling = stumble.delay()
            reminder, asked = clock.apply_async(countdown=COUNTDOWN), time.time()
            pending = {path: index_file.delay(path) for path in watched(self._files, "handing over")}
            story.handed_over = now()

            # Targets: files that take long enough to be hit in the middle.
            slow = [pending[path] for path in sorted(pending, key=os.path.getsize)[-100:]]
            for result in watched(as_completed(pending.values()), "indexing", total=len(pending)):
                value = result.get()
                story.values.append(value)
                if value["attempts"] > 1 and result.date_done is not None:
                    story.recovered.append(result.date_done)
                self._do_damage(slow)
            story.finished = now()

            story.tries = stumbling.get(timeout=PATIENCE)
            story.waited = reminder.get(timeout=PATIENCE) - asked
        finally:
            self._worker.terminate()  # a warm shutdown: what runs may end
            status = self._worker.wait(timeout=PATIENCE)
        if status != 0:
            raise SystemExit(f"the worker exited with status {status}")
        return story

    def _start_worker(self) -> subprocess.Popen[bytes]:
        """``celeriac -A tasks worker -c 2``, as from a second terminal in this folder."""
        command = [sys.executable, "-m", "celeriac", "-A", "tasks", "worker", "-c", "2", "-l", "warning"]
        if self._lease is not None:
            command.append(f"worker_lease={self._lease}")
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": str(HERE)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _do_damage(self, targets: Sequence[AsyncResult[Index]]) -> None:
        """Kill an executor when half of the files are done, its worker at three quarters, both while they work
        on a target."""
        done = len(self.story.values) / len(self._files)
        kill_executor = done >= 1 / 2 and not self.story.executor_killed
        kill_worker = done >= 3 / 4 and not self.story.worker_killed
        if not kill_executor and not kill_worker:
            return
        pid = next(running(targets), None)
        if pid is None:
            return
        if kill_executor:
            self._kill_executor(pid)
        else:
            self._kill_worker()

    def _kill_executor(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.story.executor_killed = now()
        say(f"killed executor {pid} in the middle of a file; its worker starts another")

    def _kill_worker(self) -> None:
        """As if the power had gone: no handler runs, nothing is tidied up, its executors die with it."""
        dead = self._worker
        dead.kill()
        dead.wait()
        self.story.worker_killed = now()
        self._worker = self._start_worker()
        say(f"killed worker {dead.pid}, started worker {self._worker.pid}, which goes on at once")
        say("and is handed what the dead one had in hand: soon on one host, by its lease in 15 s at most")


def running(results: Iterable[AsyncResult[Index]]) -> Iterator[int]:
    """The process ids of the executors that work on these calls now (``track_started`` tells)."""
    for result in results:
        if result.state == STARTED and (pid := result.info.get("pid")):  # it may have ended between the two
            yield pid


def as_completed(results: Iterable[AsyncResult[Index]]) -> Iterator[AsyncResult[Index]]:
    """Those of `results` that have ended, as they do. Ends early when none has for a long time."""
    waiting = deque(results)
    last = time.monotonic()
    while waiting and time.monotonic() - last < PATIENCE:
        result = waiting.popleft()
        try:
            result.get(timeout=0.05)
        except TimeoutError:
            waiting.append(result)
        else:
            yield result
            last = time.monotonic()


def now() -> datetime:
    return datetime.now(UTC)


# -- what people see -----------------------------------------------------------------------------------------


def watched(items: Iterable[T], what: str, *, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` behind a progress bar; where there is no terminal, with a line at the end."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield from progress.track(items, description=what, total=total)
    if not console.is_terminal:
        say(f"{what}: done")


def say(what: str) -> None:
    console.print(f"  {what}", style="dim")


@dataclass(frozen=True)
class Totals:
    """What the whole library comes to."""

    files: int
    bytes: int
    lines: int
    words: int
    functions: int
    classes: int
    broken: int
    digest: str

    @classmethod
    def of(cls, values: Sequence[Index]) -> Totals:
        sums = {
            name: sum(value[name] for value in values)
            for name in ("bytes", "lines", "words", "functions", "classes", "broken")
        }
        digests = sorted(f"{value['path']} {value['sha256']}" for value in values)
        return cls(
            files=len(values), digest=hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16], **sums
        )


def report(story: Story, files: Sequence[str], totals: Totals, direct: Totals) -> bool:
    """Print what happened; True if nothing was lost."""
    table = Table(title="the library", title_justify="left")
    table.add_column("")
    table.add_column("by tasks", justify="right")
    table.add_column("directly", justify="right")
    for name, ours in asdict(totals).items():
        theirs = getattr(direct, name)
        table.add_row(name, *(f"{each:,}" if isinstance(each, int) else each for each in (ours, theirs)))
    console.print(table)

    lost = len(files) - len(story.values)
    checks = {
        "tasks lost": (f"{lost} of {len(files):,}", lost == 0),
        "failed on purpose": (f"succeeded at try {story.tries}", story.tries == 2),
        "countdown of 3 s": (f"ran {story.waited:.2f} s after the call", story.waited >= COUNTDOWN),
        "totals": ("equal" if totals == direct else "differ", totals == direct),
    }
    table = Table(title="what happened", title_justify="left", show_header=False)
    for what, (outcome, good) in checks.items():
        table.add_row(what, outcome, "[green]✓[/]" if good else "[bold red]✗[/]")
    table.add_row("executor killed", recovery(story, story.executor_killed, until=story.worker_killed))
    table.add_row("worker killed", recovery(story, story.worker_killed, until=None))
    if story.handed_over and story.finished:
        handing_over = (story.handed_over - story.started).total_seconds()
        all_done = (story.finished - story.started).total_seconds()
        table.add_row("time", f"handed over in {handing_over:.1f} s, all done after {all_done:.1f} s")
    console.print(table)
    return all(good for _, good in checks.values())


def recovery(story: Story, killed: datetime | None, *, until: datetime | None) -> str:
    """What became of the files that a killed process had in hand."""
    if killed is None:
        return "not caught in the middle of a file"
    later = [at for at in story.recovered if at >= killed and (until is None or at < until)]
    if not later:
        return "nothing in hand"
    return f"{len(later)} in hand, all done {(max(later) - killed).total_seconds():.1f} s later"


if __name__ == "__main__":
    sys.exit(main())
