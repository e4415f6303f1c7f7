"""Both sides of the interoperability tests as processes: clients and workers, of Celery and of celeriac.

A `Fleet` is one broker (and the result backend beside it) with what runs on it: clients and workers are started at
first use and stay until the end of the session. Every queue's name begins with the fleet's prefix.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Literal

import redis

from support import eventually

Kind = Literal["celery", "celeriac"]
KINDS: tuple[Kind, ...] = ("celery", "celeriac")

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
#: Which library plays which part. ``INTEROP_CELERY_ALONE=1 make test``: Celery plays both, to see whether the tests
#: ask for anything that Celery itself does not do.
LIBRARY: dict[Kind, str] = {
    "celery": "celery",
    "celeriac": "celery" if os.environ.get("INTEROP_CELERY_ALONE") else "celeriac",
}
CELERY_PYTHON = ROOT / ".venv-celery" / "bin" / "python"


class Died(Exception):
    """A client or worker ended, or never got ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What a process is told of the app."""

    prefix: str
    settings: dict[str, Any]
    #: Of the queues that are neither a worker's own nor have priorities.
    queue_arguments: dict[str, Any]
    folder: Path

    def but(self, **settings: Any) -> Configuration:
        """With some settings changed."""
        return replace(self, settings={**self.settings, **settings})


def environment(kind: Kind, app: Configuration) -> dict[str, str]:
    """What a process of that kind finds in its environment: nothing of ours but the app's configuration."""
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("CELERIAC_", "CELERY_", "COV_", "PYTHON"))
    }
    return {
        **clean,
        "PYTHONPATH": str(HERE),
        "PYTHONUNBUFFERED": "1",
        "C_FORCE_ROOT": "1",  # Celery refuses pickle where everything is run by root, as in containers
        "INTEROP_KIND": kind,
        "INTEROP_LIBRARY": LIBRARY[kind],
        "INTEROP_PREFIX": app.prefix,
        "INTEROP_SETTINGS": json.dumps(app.settings),
        "INTEROP_QUEUE_ARGUMENTS": json.dumps(app.queue_arguments),
        "INTEROP_NOTES": app.settings["result_backend"],
    }


def python(kind: Kind) -> str:
    return str(CELERY_PYTHON) if LIBRARY[kind] == "celery" else sys.executable


class Client:
    """A client of one side. Methods are those of `client`: ``client.call("add", (1, 2))``."""

    def __init__(self, kind: Kind, app: Configuration) -> None:
        self.kind = kind
        self._errors = (app.folder / f"client-{kind}-{uuid.uuid4().hex[:6]}.log").open("w+")
        self._process = subprocess.Popen(
            [python(kind), str(HERE / "client.py")],
            env=environment(kind, app),
            cwd=app.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __getattr__(self, command: str) -> Callable[..., Any]:
        if command.startswith("_"):
            raise AttributeError(command)

        def ask(*args: Any, **kwargs: Any) -> Any:
            return self._ask(command, args, kwargs)

        return ask

    def _ask(self, command: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        line = base64.b64encode(pickle.dumps((command, args, kwargs))).decode()
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait(10)
            self._errors.seek(0)
            raise Died(f"the {self.kind} client ended:\n{self._errors.read()}")
        fine, value = pickle.loads(base64.b64decode(answer))

        if not fine:
            what = f"{command}({shortened(args)}, {shortened(kwargs)})"
            raise AssertionError(f"{what} failed in the {self.kind} client:\n{value[-2000:]}")
        return value

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


class Worker:
    """A worker of one side, in a session of its own. Collects what it prints."""

    def __init__(
        self,
        kind: Kind,
        app: Configuration,
        *,
        queues: list[str],
        concurrency: int = 2,
    ) -> None:
        self.kind = kind
        self.name = f"{kind}-{uuid.uuid4().hex[:6]}@interop"
        self.output: list[str] = []
        self._expected = False
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [
                *(
                    python(kind),
                    "-m",
                    LIBRARY[kind],
                    "-A",
                    "interop_tasks",
                    "worker",
                    "-l",
                    "info",
                    "-n",
                    self.name,
                ),
                *("-c", str(concurrency), "-Q", ",".join(queues)),
                *(
                    ("--without-gossip", "--without-mingle", "--without-heartbeat")
                    if LIBRARY[kind] == "celery"
                    else ()
                ),
            ],
            env=environment(kind, app),
            cwd=app.folder,
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

    @property
    def text(self) -> str:
        return "".join(self.output)

    def ready(self, *, within: float = 30.0) -> Worker:
        """Wait until it takes tasks."""

        def seen() -> bool:
            return any("ready." in line for line in self.output)

        with self._changed:
            self._changed.wait_for(lambda: seen() or self.process.poll() is not None, within)
        if not seen():
            raise Died(f"the {self.kind} worker is not ready ({self.process.poll()}):\n{self.text[-3000:]}")
        return self

    def expected_to_end(self) -> None:
        """A test ended it: that it is gone is no failure."""
        self._expected = True

    def close(self) -> None:
        """Have it shut down, and see that celeriac's does as it should; Celery's is killed, which is faster."""
        ended = None if self._expected else self.process.poll()
        own = LIBRARY[self.kind] == "celeriac" and not self._expected
        try:
            if own:
                self.process.terminate()
                self.process.wait(30)
        finally:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it took its children along
            self.process.wait()
            self._reader.join(10)
            assert self.process.stdout is not None
            self.process.stdout.close()
        if ended is not None or (own and self.process.returncode):
            raise Died(
                f"the {self.kind} worker ended ({ended}, {self.process.returncode}):\n{self.text[-3000:]}"
            )


class Fleet:
    """Clients and workers on one broker, with results in Redis."""

    def __init__(
        self,
        url: str,
        results: str,
        folder: Path,
        *,
        extended: bool = False,
        queue_arguments: dict[str, Any] | None = None,
    ) -> None:
        self.url = url
        self.on_redis = url.startswith("redis:")
        self.redis = redis.Redis.from_url(results)
        self.notes = redis.Redis.from_url(results, decode_responses=True)
        prefix = f"iop-{uuid.uuid4().hex[:8]}"
        settings = {
            "broker_url": url,
            "result_backend": results,
            "result_expires": 900,
            "result_extended": extended,
            "accept_content": ["json", "pickle", "yaml", "msgpack"],
            "result_accept_content": ["json", "pickle", "yaml", "msgpack"],
            "task_default_queue": f"{prefix}.both",
            "broker_connection_retry_on_startup": True,
            "worker_enable_remote_control": False,
        }
        self.app = Configuration(
            prefix=prefix, settings=settings, queue_arguments=queue_arguments or {}, folder=folder
        )
        self._clients: dict[Kind, Client] = {}
        self._workers: dict[Kind, Worker] = {}
        self._stack = ExitStack()

    def queue(self, name: str) -> str:
        return f"{self.app.prefix}.{name}"

    def client(self, kind: Kind) -> Client:
        if kind not in self._clients:
            self._clients[kind] = Client(kind, self.app)
            self._stack.callback(self._clients[kind].close)
        return self._clients[kind]

    def worker(self, kind: Kind) -> Worker:
        """The worker of that kind, running: it reads the queue of its kind, and those that both read."""
        if kind not in self._workers:
            own = [kind, f"topic.{kind}", f"all.{kind}", f"fan.{kind}"]
            self._workers[kind] = self.start_worker(kind, ["both", "everyone", *own])
            self._stack.callback(self._workers[kind].close)
        return self._workers[kind].ready()

    def start_worker(self, kind: Kind, queues: list[str], *, concurrency: int = 2, **settings: Any) -> Worker:
        """One more worker, which the caller closes."""
        return Worker(
            kind,
            self.app.but(**settings),
            queues=[self.queue(each) for each in queues],
            concurrency=concurrency,
        )

    @contextmanager
    def extra_client(self, kind: Kind, **settings: Any) -> Iterator[Client]:
        """A client with other settings."""
        with closing(Client(kind, self.app.but(**settings))) as client:
            yield client

    @contextmanager
    def extra_worker(self, kind: Kind, queues: list[str], **options: Any) -> Iterator[Worker]:
        with closing(self.start_worker(kind, queues, **options)) as worker:
            yield worker.ready()

    def noted(self, key: str) -> list[list[str]]:
        """The lines that tasks noted under `key`, as words; the first is the kind of worker."""
        return [line.split(" ") for line in self.notes.lrange(self.queue(f"notes.{key}"), 0, -1)]

    def wait_for_notes(self, key: str, times: int = 1, *, within: float = 15.0) -> list[list[str]]:
        eventually(lambda: len(self.noted(key)) >= times, within=within, what=f"{times} notes of {key}")
        return self.noted(key)

    def complaints(self) -> str:
        """What the workers logged as warnings and errors, for messages of assertions."""
        return "".join(
            f"{worker.kind}: {line}"
            for worker in self._workers.values()
            for line in worker.output
            if ": WARNING/" in line or ": ERROR/" in line
        )

    def read(self, task_id: str, *, timeout: float = 15.0) -> Any:
        """What a result is to clients of both kinds, which must be the same: ``{"value": …}`` or ``{"raised": …}``."""
        one, other = (self.client(kind).get(task_id, timeout) for kind in KINDS)
        assert one == other, f"read by {KINDS[0]}: {one}, by {KINDS[1]}: {other}"
        return one

    def value(self, task_id: str, *, timeout: float = 15.0) -> Any:
        """The value of a task, read by clients of both kinds."""
        found = self.read(task_id, timeout=timeout)
        assert "value" in found, found
        return found["value"]

    def open_gate(self, gate: str) -> None:
        key = self.queue(f"gate.{gate}")
        self.notes.rpush(key, "go")
        self.notes.expire(key, 60)

    def close(self) -> None:
        with closing(self.notes), closing(self.redis), self._stack:
            pass
