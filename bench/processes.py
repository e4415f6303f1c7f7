"""A worker as a process of its own, and what it and its children use, read from ``/proc`` (Linux)."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Bytes in RAM: `rss` counts shared pages whole, `pss` divides them by the processes that share them."""

    rss: int
    pss: int


class Worker:
    """A worker of two executors for ``bench/tasks.py`` in the current folder; shut down at the end of a ``with``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "celeriac", "-A", "tasks", "worker", "-c", "2", "-l", "error"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        status = self._process.wait(timeout=30)
        if status != 0 and error is None:
            raise RuntimeError(f"the worker exited with status {status}")

    @property
    def parent(self) -> int:
        return self._process.pid

    @property
    def nursery(self) -> int:
        return children(self.parent)[0]

    @property
    def executors(self) -> list[int]:
        return children(self.nursery)

    @property
    def all(self) -> list[int]:
        return [self.parent, self.nursery, *self.executors]


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that live."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory(pid: int) -> Memory:
    """What a process uses now."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size, *_ = line.split()
        sizes[name.rstrip(":")] = int(size) * 1024
    return Memory(sizes["Rss"], sizes["Pss"])


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used so far."""
    # The name, in parentheses, may hold spaces: count from its end.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
