"""Real workers as real processes, for the system tests.

A test's app lives in a folder. It uses the embedded database there, or the servers that `move_to` names.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

from celeriac import Celeriac
from celeriac.topology import Queue
from celeriac.wire.envelope import Envelope

__all__ = [
    "JOURNAL",
    "Journal",
    "WorkerProcess",
    "children",
    "client_of",
    "dead_letter_of",
    "dead_letters",
    "eventually",
    "is_dead",
    "move_to",
    "servers_of",
]

#: How a tasks module begins: `note` writes a line that a `Journal` reads; `hold` waits for a file, whose name it notes.
JOURNAL = """
import os, signal, time

def note(*words, journal=os.path.abspath("journal")):
    fd = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)

def hold(gate, folder=os.getcwd()):
    note("hold", gate)
    while not os.path.exists(os.path.join(folder, gate)):
        time.sleep(0.002)
"""


def move_to(folder: Path, *, broker: str, backend: str) -> None:
    """From now on clients and workers of this folder use these servers."""
    (folder / "servers.json").write_text(json.dumps({"broker": broker, "backend": backend}))


def servers_of(folder: Path) -> dict[str, str]:
    """The URLs of ``broker`` and ``backend``, wherever this process works."""
    named = folder / "servers.json"
    if named.exists():
        urls: dict[str, str] = json.loads(named.read_text())
        return urls
    return dict.fromkeys(("broker", "backend"), f"sqlite:///{folder}/celeriac.db")


def client_of(folder: Path, **settings: Any) -> Celeriac:
    """An app on the servers of `folder`."""
    return Celeriac("tasks", **{**servers_of(folder), "set_as_current": False, **settings})


def dead_letters(app: Celeriac, queue: str = "celery") -> list[Envelope]:
    """The messages among a queue's dead letters, which stay there."""
    with closing(app.broker.consumer([Queue(f"{queue}.dead")], name="reader")) as consumer:
        return [each.envelope for each in consumer.fetch(1000, 0.0)]


def dead_letter_of(app: Celeriac, task_id: str) -> Envelope:
    """The dead letter of a task, as soon as it is there: where results are elsewhere, they come first."""
    found: list[Envelope] = []

    def look() -> bool:
        found[:] = [each for each in dead_letters(app) if each.task_id == task_id]
        return bool(found)

    eventually(look)
    (dead,) = found
    return dead


def eventually(condition: Callable[[], object], *, within: float = 30.0, what: str = "") -> None:
    """Poll until `condition` holds; fail after `within` seconds. For conditions that nothing announces."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {within}s: {what or condition}"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Process ids of the living children of a process."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(each) for each in listed if not is_dead(int(each))]


def is_dead(pid: int) -> bool:
    """Gone, or a zombie that only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class Journal:
    """What the tasks of a folder noted, in order."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal"
        self._read = 0
        self._lines: list[list[str]] = []

    def of(self, *words: object) -> list[list[str]]:
        """What follows `words`, of every line that begins with them."""
        begin = [str(each) for each in words]
        return [line[len(begin) :] for line in self.lines() if line[: len(begin)] == begin]

    def lines(self) -> list[list[str]]:
        """The words of every line."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            complete = new[: new.rfind(b"\n") + 1]
            self._read += len(complete)
            self._lines += [line.split() for line in complete.decode().splitlines()]
        return self._lines

    def wait_for(self, *words: object, times: int = 1, within: float = 30.0) -> None:
        """Wait until so many lines that begin with `words` were written."""
        eventually(lambda: len(self.of(*words)) >= times, within=within, what=f"{words} in the journal")


class WorkerProcess:
    """``celeriac -A tasks worker`` in `folder`. Collects what it prints; knows its processes."""

    def __init__(self, folder: Path, *options: str, app: str = "tasks", executors: int = 2) -> None:
        self.folder = folder
        self.output: list[str] = []
        self._changed = threading.Condition()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if (folder / "servers.json").exists():
            urls = servers_of(folder)
            environment |= {
                "CELERIAC_BROKER_URL": urls["broker"],
                "CELERIAC_RESULT_BACKEND": urls["backend"],
            }
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celeriac", "-A", app, "worker", "-l", "info"),
                *("-c", str(executors), *options),
            ],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.output.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, text: str, *, within: float = 30.0, times: int = 1) -> None:
        """Wait until a line with `text` was printed, so many times."""

        def seen() -> bool:
            return sum(text in line for line in self.output) >= times

        with self._changed:
            assert self._changed.wait_for(lambda: seen() or self.process.poll() is not None, within), (
                f"not printed within {within}s: {text!r}\n{self.text}"
            )
        assert seen(), f"the worker ended ({self.process.poll()}) before it printed {text!r}\n{self.text}"

    def ready(self) -> WorkerProcess:
        """Wait until it takes tasks."""
        self.wait_for("ready.")
        return self

    @property
    def text(self) -> str:
        return "".join(self.output)

    @property
    def nursery(self) -> int:
        """Process id of the nursery, as soon as there is one."""
        eventually(lambda: len(children(self.process.pid)) == 1, what="a nursery")
        return children(self.process.pid)[0]

    def executors(self) -> list[int]:
        """Process ids of the living executors."""
        return [each for nursery in children(self.process.pid) for each in children(nursery)]

    def family(self) -> list[int]:
        """Every process of this worker."""
        return [self.process.pid, *children(self.process.pid), *self.executors()]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL the parent, wait for its death."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: signal.Signals = signal.SIGTERM, *, within: float = 30.0) -> int:
        """Shut down and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(within)
        self._reader.join(within)
        return status

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        family: Iterable[int] = self.family() if self.process.poll() is None else ()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if kind is not None:
            sys.stderr.write(f"--- output of the worker ---\n{self.text}")
