"""The same drain on Huey, the one peer that also keeps queue and results in SQLite."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent

DATABASE = "huey.db"
FINISHED = "SELECT count(*) FROM kv"


class Huey:
    """Huey in a virtual environment of its own; constructing it installs it there."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self._bin = folder / "bin"
        install = [
            self._bin / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "huey",
        ]
        subprocess.run(install, check=True)
        self._environment = {**os.environ, "PYTHONPATH": str(HERE)}

    def enqueue(self, count: int) -> float:
        """Hand over `count` calls, one by one, to the database in the current folder; calls a second."""
        command = [self._bin / "python", "-c", f"import huey_app; huey_app.enqueue({count})"]
        output = subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True)
        return float(output.stdout)

    @contextmanager
    def consumer(self) -> Iterator[Callable[[], bool]]:
        """A consumer of two processes, for as long as the ``with`` lasts; says whether it lives."""
        command = [self._bin / "huey_consumer", "huey_app.huey", "-k", "process", "-w", "2", "-q"]
        process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield lambda: process.poll() is None
        finally:
            process.terminate()
            process.wait(timeout=30)
