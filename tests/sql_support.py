"""Other processes on the database of a test."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType

__all__ = ["Program"]

_PRELUDE = """
import os, signal, sys
from datetime import UTC, datetime, timedelta
from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions
from celeriac.brokers import open_broker
from celeriac.brokers.base import BrokerOptions, Completion, Settlement
from celeriac.testing.conformance.harness import envelope, outgoing
from celeriac.topology import Queue
from celeriac.wire.disposition import ACK
from celeriac.wire.envelope import Outgoing
from celeriac.wire.record import Record

url = sys.argv[1]
queue = Queue("q")
broker = open_broker(url, BrokerOptions())
backend = open_backend(url, BackendOptions())

def say(word):
    print(word, flush=True)

def listen():
    return sys.stdin.readline().strip()
"""


class Program:
    """Python code in a process of its own, with a broker and a backend on `url`, that says words and listens."""

    def __init__(self, url: str, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _PRELUDE + code, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next word it says; "" when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is not None:
            self.process.kill()
        self.process.communicate()
        assert exc is not None or self.process.returncode in (0, -9), self.process.returncode
