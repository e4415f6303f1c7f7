"""Tasks that are counted: which ran, how often, where and when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import JOURNAL, Journal, eventually

__all__ = ["Run", "Runs", "counted"]


def counted(**settings: Any) -> str:
    """The source of an app with these settings and a task ``run(number, seconds)`` for `Runs` to count."""
    return f"""{JOURNAL}
from celeriac import Celeriac

app = Celeriac("tasks", **{settings!r})

@app.task(bind=True)
def run(self, number, seconds=0.0):
    note("start", number, os.getpid(), time.time(), int(self.request.delivery_info["redelivered"]))
    if seconds:
        time.sleep(seconds)
    note("end", number, os.getpid(), time.time())
    return number

@app.task
def wait(gate):
    hold(gate)
    return gate
"""


@dataclass(slots=True)
class Run:
    """One execution of one task."""

    pid: int
    started: float
    #: Somebody had had the message before; False in a second run: there were two messages.
    redelivered: bool
    #: None: it was killed, or runs still.
    ended: float | None = None


class Runs:
    """All executions of ``run`` in a folder."""

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(folder)
        self._seen = 0
        self._runs: defaultdict[int, list[Run]] = defaultdict(list)
        self._finished: set[int] = set()

    def all(self) -> dict[int, list[Run]]:
        """Every execution by its task's number, in the order they were started."""
        lines = self._journal.lines()
        for what, *words in lines[self._seen :]:
            if what not in ("start", "end"):
                continue
            number, pid, instant = int(words[0]), int(words[1]), float(words[2])
            if what == "start":
                self._runs[number].append(Run(pid, instant, words[3] == "1"))
            else:
                next(each for each in reversed(self._runs[number]) if each.pid == pid).ended = instant
                self._finished.add(number)
        self._seen = len(lines)
        return self._runs

    def finished(self) -> Collection[int]:
        """Numbers of the tasks that ran to their end at least once."""
        self.all()
        return self._finished

    def wait_until_finished(self, numbers: Collection[int], *, within: float = 60.0) -> None:
        """Wait until each of these ran to its end."""
        wanted = set(numbers)
        try:
            eventually(lambda: wanted <= set(self.finished()), within=within)
        except AssertionError:
            missing = sorted(wanted - set(self.finished()))
            raise AssertionError(
                f"{len(missing)} of {len(wanted)} did not run to their end within {within} s: {missing[:20]}"
            ) from None

    def again(self) -> dict[int, Sequence[Run]]:
        """Tasks that were started more than once, with the executions but the first."""
        return {number: runs[1:] for number, runs in self.all().items() if len(runs) > 1}
