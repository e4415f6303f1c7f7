"""The two that are compared: how a program and a worker of each are run, with the same work and settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from journal import Journal
from processes import HERE, Worker
from rounds import Failed

ROOT = HERE.parent
#: Seconds that a program may take.
PATIENCE = 120.0


@dataclass(frozen=True)
class Setup:
    """Where messages and results are; settings by the names that both sides have."""

    broker: str
    results: str = "disabled://"
    transport: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "broker_url": self.broker,
            "result_backend": self.results,
            "task_ignore_result": self.results == "disabled://",
            "broker_transport_options": dict(self.transport),
        }


@dataclass(frozen=True)
class Side:
    """celeriac or Celery: the name is that of its module."""

    name: str
    python: Path
    #: What is set for it beside where its servers are.
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: Of its worker's command line.
    options: tuple[str, ...] = ()

    def produce(self, setup: Setup, command: str, *numbers: int) -> Any:
        """Run a command of `producer` in a process of its own; what it printed."""
        arguments = [self.python, HERE / "producer.py", command, *map(str, numbers)]
        done = subprocess.run(
            arguments,
            env={**os.environ, **self._environment(setup)},
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            raise Failed(f"{self.name}: {command} failed: {done.stderr[-2_000:]}")
        return json.loads(done.stdout)

    def worker(self, setup: Setup, journal: Journal) -> Worker:
        environment = {**self._environment(setup), "BENCH_JOURNAL": str(journal.path)}
        command = [str(self.python), "-m", self.name]
        return Worker(command, self.options, folder=journal.path.parent, environment=environment)

    def _environment(self, setup: Setup) -> dict[str, str]:
        settings = json.dumps({**setup.settings, **self.settings})
        return {"BENCH_SIDE": self.name, "BENCH_SETTINGS": settings, "C_FORCE_ROOT": "1"}


def celeriac() -> Side:
    return Side("celeriac", Path(sys.executable))


def celery() -> Side:
    """Celery in its virtual environment, which is made if it is not there, as it is quickest in this work: early
    acknowledgement (its default), a deep prefetch, and none of the chatter between workers."""
    folder = ROOT / ".venv-celery"
    subprocess.run(["sh", ROOT / "tools" / "celery_venv.sh", folder], check=True, stdout=sys.stderr)
    return Side(
        "celery",
        folder / "bin" / "python",
        settings={"worker_prefetch_multiplier": 256},
        options=(
            *("-P", "prefork", "-O", "fair"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ),
    )
