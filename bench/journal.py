"""What ran, and when: a file that the processes of a worker share. Costs a task a fraction of a microsecond."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path


class Journal:
    """Executions of tasks that are numbered from 0. Each place is written by one process at a time."""

    @classmethod
    def new(cls, path: Path, count: int) -> Journal:
        """An empty one, for `count` tasks."""
        path.write_bytes(bytes(9 * count))
        return cls(path)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with self.path.open("r+b") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0))
        self.count = len(whole) // 9
        #: The instant at which each ran last, as `time.time` has it.
        self._times = whole[: 8 * self.count].cast("d")
        #: How often each ran.
        self._runs = whole[8 * self.count :]

    def mark(self, number: int) -> None:
        """Task `number` runs now."""
        self._runs[number] += 1
        self._times[number] = time.time()

    def ran(self) -> int:
        """How many tasks ran so far."""
        return self.count - bytes(self._runs).count(0)

    def runs(self) -> int:
        """Executions, which are more than tasks where one ran twice."""
        return sum(self._runs)

    def times(self) -> list[float]:
        """When the tasks ran, in the order of time."""
        return sorted(self._times)
