"""A worker as a process of its own, and what it and its children use, read from ``/proc`` (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rounds import Failed

HERE = Path(__file__).parent
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Memory:
    """Bytes in RAM: `rss` counts shared pages whole, `pss` divides them by the processes that share them."""

    rss: int
    pss: int


class Worker:
    """A worker of two executors for ``bench/tasks.py``; shut down at the end of a ``with``.

    `command` begins it: ``[python, "-m", "celeriac"]``. `environment` comes on top of this process's. When the
    block fails or the worker does, what it printed is told with the error.
    """

    OPTIONS = ("-A", "tasks", "worker", "-c", "2", "-l", "error")

    def __init__(
        self,
        command: Sequence[str],
        options: Sequence[str] = (),
        *,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 closed in __exit__
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, *self.OPTIONS, *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(HERE), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            # After an error it may have much to give back, and nobody needs it.
            status = self._process.wait(timeout=30 if error is None else 5)
        except subprocess.TimeoutExpired as exc:
            for pid in self.all:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            error = error or Failed(f"the worker did not end: {exc}")
        else:
            if status != 0:
                error = error or Failed(f"the worker exited with status {status}")
        with self._output as output:
            output.seek(0)
            printed = output.read()[-2_000:].decode(errors="replace")
        if error is not None:
            error.add_note(
                f"the worker (exit status {self._process.returncode}) printed at the end:\n{printed}"
            )
            raise error

    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def parent(self) -> int:
        return self._process.pid

    @property
    def executors(self) -> list[int]:
        """The processes that run tasks: those that started no others."""
        return [pid for pid in self.all if not children(pid)]

    @property
    def all(self) -> list[int]:
        """The worker's process and all that come from it."""
        found = [self.parent]
        for pid in found:
            found += children(pid)
        return found

    def cpu(self) -> float:
        """Seconds of processor time that all its processes have used."""
        return sum(map(cpu, self.all))

    def rss(self) -> float:
        """MB of all its processes."""
        return sum(memory(pid).rss for pid in self.all) / 1e6


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that live."""
    return [int(each) for each in _read(f"/proc/{pid}/task/{pid}/children").split()]


def memory(pid: int) -> Memory:
    """What a process uses now."""
    sizes = {"Rss": 0, "Pss": 0}
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines()[1:]:
        name, size, *_ = line.split()
        sizes[name.rstrip(":")] = int(size) * 1024
    return Memory(sizes["Rss"], sizes["Pss"])


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used so far."""
    # The name, in parentheses, may hold spaces: count from its end.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _read(path: str) -> str:
    """What the kernel says of a process; nothing of one that has just ended."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
