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
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from tasks import app, clock, index_file, stumble

from celeriac.errors import TimeoutError
from celeriac.result import AsyncResult

HERE = Path(__file__).parent
#: Seconds after which this gives up on results that do not come: a whole demo takes half of that.
PATIENCE = 55.0

console = Console()


@dataclass
class Story:
    """What happened, for the table at the end."""

    started: float = field(default_factory=time.monotonic)
    results: list[dict[str, Any]] = field(default_factory=list)
    #: When each task that a killed process had in hand was seen finished, after a second start.
    again: list[float] = field(default_factory=list)
    executor_killed: float | None = None
    worker_killed: float | None = None


# -- the worker: a process of its own, as from a second terminal -------------------------------------------


class Worker:
    """``celeriac -A tasks worker -c 2``, in this folder. What it says goes to a file."""

    def __init__(self, log: Path, lease: float | None) -> None:
        command = [sys.executable, "-m", "celeriac", "-A", "tasks", "worker", "-c", "2", "-l", "warning"]
        if lease is not None:
            command.append(f"worker_lease={lease}")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": str(HERE)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.pid = self._process.pid

    def kill(self) -> None:
        """The power cord: no handler runs, nothing is tidied up. Its executors die with it."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """A warm shutdown: what runs may end. Returns the exit status."""
        self._process.terminate()
        return self._process.wait(timeout=30)


# -- the job -------------------------------------------------------------------------------------------------


def library(most: int | None) -> list[str]:
    """The files of the standard library, in order of their names; of `most`, the largest."""
    root = Path(sysconfig.get_path("stdlib"))
    foreign = {"site-packages", "dist-packages"}
    files = [path for path in root.rglob("*.py") if path.is_file() and not foreign.intersection(path.parts)]
    files.sort(key=lambda path: (-path.stat().st_size, path))
    return sorted(map(str, files[:most]))


def as_completed(
    results: Iterable[AsyncResult[dict[str, Any]]], give_up: float
) -> Iterator[dict[str, Any]]:
    """The values of `results` as they come, until the monotonic time `give_up`."""
    waiting = deque(results)
    while waiting and time.monotonic() < give_up:
        result = waiting.popleft()
        try:
            yield result.get(timeout=0.05)
        except TimeoutError:
            waiting.append(result)


def run(files: Sequence[str], lease: float | None, log: Path, progress: Progress) -> Story:
    """Hand over all files, collect what comes back, and do some damage on the way."""
    story = Story()
    worker = Worker(log, lease)
    bar = progress.add_task("handing over", total=len(files))
    pending = []
    for path in files:
        pending.append(index_file.delay(path))
        progress.advance(bar)

    progress.reset(bar, description="indexing")
    try:
        for value in as_completed(pending, story.started + PATIENCE):
            story.results.append(value)
            if value["again"]:
                story.again.append(time.monotonic())
            progress.update(bar, completed=len(story.results))
            if story.executor_killed is None and len(story.results) >= len(files) // 2:
                os.kill(value["pid"], signal.SIGKILL)
                story.executor_killed = time.monotonic()
                say(progress, f"killed executor {value['pid']}, which was indexing some other file")
            if story.worker_killed is None and len(story.results) >= len(files) * 3 // 4:
                worker.kill()
                story.worker_killed = time.monotonic()
                say(progress, f"killed the whole worker {worker.pid}")
                worker = Worker(log, lease)
                say(progress, f"started worker {worker.pid}; it gets what the dead one held in ≤ 15 s")
                progress.update(bar, description="taking over")
    finally:
        status = worker.stop()
    if status != 0:
        raise SystemExit(f"the worker exited with status {status}")
    return story


def say(progress: Progress, what: str) -> None:
    progress.console.print(f"  [dim]{what}[/dim]", highlight=False)
