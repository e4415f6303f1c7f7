"""What is broken, foreign or hostile: an error that says so, a worker that goes on, and nothing lost."""

from __future__ import annotations

import os
import pickle
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from celeriac import Celeriac
from celeriac.brokers.base import QueueSize
from celeriac.brokers.dead import DEAD_QUEUE, DEAD_REASON
from celeriac.errors import EncodeError, OperationalError, WorkerLostError
from celeriac.wire.envelope import Envelope, Outgoing
from support import JOURNAL, Journal, WorkerProcess, dead_letters, eventually

#: Whoever hangs the one executor is found out.
EXECUTORS = 1
CLIENT = {"broker_publish_timeout": 0.5}

TASKS = (
    JOURNAL
    + r"""
import functools, multiprocessing, subprocess, sys
from celeriac import Celeriac

app = Celeriac("tasks", task_max_deliveries=2)

@app.task
def add(x, y):
    return x + y

@app.task
def pid():
    return os.getpid()

@app.task
def wait(gate):
    hold(gate)
    return gate

@app.task
def note_me(number):
    note("ran", number)
    return number

@app.task(bind=True)
def strange_state(self):
    self.update_state(state="ODD", meta=object())

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")
    __repr__ = __str__

class Rich(Exception):
    def __init__(self, code, detail):
        super().__init__(code, detail)

class Shy:
    def __repr__(self):
        raise RuntimeError("no words")

def recursive():
    return recursive()

def nested(depth):
    return functools.reduce(lambda inner, _: [inner], range(depth), 1)

def looped():
    one = []
    one.append(one)
    return one

def raises(exc):
    raise exc

WAYS = {
    "mute": lambda: raises(Mute()),
    "rich": lambda: raises(Rich(404, {"a": object()})),
    "exit": lambda: sys.exit(3),
    "interrupt": lambda: raises(KeyboardInterrupt()),
    "generator exit": lambda: raises(GeneratorExit()),
    "recursion": recursive,
    "memory": lambda: raises(MemoryError()),
    "surrogate": lambda: raises(ValueError("\ud800")),
    "nul": lambda: raises(ValueError("a\0b")),
    "long": lambda: raises(ValueError("x" * 1_000_000)),
    "object": object,
    "bytes key": lambda: {b"a": 1},
    "deep": lambda: nested(100_000),
    "loop": looped,
    "digits": lambda: 10 ** 5000,
    "shy": Shy,
    "group": lambda: raises(ExceptionGroup("several", [ValueError(1), Mute()])),
}

@app.task
def ends(way):
    return WAYS[way]()

VALUES = {
    "surrogate": "\ud800",
    "nul": "a\0b",
    "big": 2 ** 80,
    "float": 1e308,
    "none": None,
    "bytes": b"\xff",
    "tuple": (1, 2),
}

@app.task
def value(name):
    return VALUES[name]

@app.task
def leaves(status):
    os._exit(status)

@app.task
def closes_everything():
    os.closerange(3, 1024)

@app.task
def forks():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        squares = pool.map(abs, [-1, -2])
    started = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, text=True, check=True)
    return [*squares, int(started.stdout)]

@app.task
def terminates():
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join(5)
    status = process.exitcode
    process.kill()
    return status

@app.task
def waits_for_another():
    return add.delay(1, 2).get(timeout=10)

@app.task
def chatty():
    print("to stdout")
    print("to stderr", file=sys.stderr)
    sys.stdout.write("x" * 200_000 + "\n")
"""
)


def still_works(client: Celeriac) -> int:
    """The one executor answers; returns its process id."""
    pid: int = client.send_task("tasks.pid").get(timeout=10)
    return pid


# -- what cannot be sent -------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", [object(), 10**5000, {1: object()}, lambda: None], ids=lambda _: "")
def test_an_argument_that_cannot_be_sent_is_named_and_nothing_is_queued(
    running: Celeriac, argument: object
) -> None:
    with pytest.raises(EncodeError, match=r"argument 2 of tasks\.add"):
        running.send_task("tasks.add", (1, argument), queue="nowhere")
    assert running.broker.size("nowhere") == QueueSize(0, 0, 0)


# -- what cannot be stored -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [
        *("mute", "rich", "exit", "interrupt", "generator exit", "recursion", "memory", "surrogate", "nul"),
        *("long", "object", "deep", "loop", "digits", "shy", "group"),
    ],
)
def test_a_strange_end_is_a_failure_and_the_executor_lives(running: Celeriac, way: str) -> None:
    before = still_works(running)
    result = running.send_task("tasks.ends", (way,))
    assert isinstance(result.get(timeout=10, propagate=False), BaseException)
    assert result.state == "FAILURE"
    assert still_works(running) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("surrogate", "\ud800"), ("nul", "a\0b"), ("big", 2**80), ("float", 1e308), ("none", None)),
        *(("bytes", b"\xff"), ("tuple", [1, 2])),
    ],
)
def test_strange_values_arrive_as_they_are(running: Celeriac, name: str, value: object) -> None:
    assert running.send_task("tasks.value", (name,)).get(timeout=10) == value


def test_a_state_that_cannot_be_stored_fails_the_task(running: Celeriac) -> None:
    with pytest.raises(EncodeError):
        running.send_task("tasks.strange_state").get(timeout=10)
    still_works(running)


# -- what tasks do to their process --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1])
def test_a_task_that_leaves_its_process_is_lost_with_it(running: Celeriac, status: int) -> None:
    with pytest.raises(WorkerLostError, match=f"exited with status {status}"):
        running.send_task("tasks.leaves", (status,)).get(timeout=20)
    still_works(running)


def test_a_task_that_closes_the_executors_sockets_does_not_hang_the_worker(running: Celeriac) -> None:
    with pytest.raises(WorkerLostError):
        running.send_task("tasks.closes_everything").get(timeout=20)
    still_works(running)


def test_a_task_may_start_processes(running: Celeriac) -> None:
    assert running.send_task("tasks.forks", time_limit=10).get(timeout=20) == [1, 2, 7]
    still_works(running)


def test_a_task_may_terminate_the_processes_it_starts(running: Celeriac) -> None:
    assert running.send_task("tasks.terminates").get(timeout=20) == -15
    still_works(running)


def test_a_task_that_waits_for_another_is_told_not_to(running: Celeriac) -> None:
    with pytest.raises(RuntimeError):
        running.send_task("tasks.waits_for_another").get(timeout=10)
    still_works(running)


def test_what_a_task_prints_is_seen_and_blocks_nothing(running: Celeriac, worker: WorkerProcess) -> None:
    assert running.send_task("tasks.chatty").get(timeout=10) is None
    worker.wait_for("to stdout")
    worker.wait_for("to stderr")


# -- messages that are none ----------------------------------------------------------------------------------


def envelope(
    body: bytes = b"[[1, 2], {}, {}]", content_type: str = "application/json", **headers: Any
) -> Envelope:
    """A good message of ``tasks.add``, but for what is given."""
    headers = {"lang": "py", "task": "tasks.add", "id": str(uuid4()), **headers}
    return Envelope(body, content_type, "utf-8", headers, {"correlation_id": headers["id"]})


def put(client: Celeriac, envelope: Envelope) -> None:
    client.broker.publish([Outgoing(envelope, routing_key="celery")])


#: Whoever loads it, does it.
ATTACK = type("Attack", (), {"__reduce__": lambda _: (open, ("attacked", "w"))})

REFUSED: dict[str, tuple[Envelope, str]] = {
    "no json": (envelope(b"\xff\xfe"), "JSON|json|decode"),
    "cut off": (envelope(b'[[1, 2], {}, {"callba'), "json|JSON|decode"),
    "empty": (envelope(b""), "json|JSON|decode|empty"),
    "not a list": (envelope(b'"add"'), "."),
    "two elements": (envelope(b"[[1, 2], {}]"), "."),
    "arguments not a list": (envelope(b'["ab", {}, {}]'), "."),
    "keywords not a dict": (envelope(b"[[1, 2], [], {}]"), "."),
    "deep": (envelope(b"[" * 100_000 + b"]" * 100_000), "."),
    "pickle": (
        envelope(pickle.dumps(([ATTACK()], {}, {})), "application/x-python-serialize"),
        "accept_content",
    ),
    "yaml": (envelope(b"- [1, 2]\n- {}\n- {}\n", "application/x-yaml"), "accept_content"),
    "unknown type": (envelope(b"[[1, 2], {}, {}]", "application/x-unheard-of"), "x-unheard-of"),
    "no type": (envelope(b"[[1, 2], {}, {}]", ""), "."),
    "compressed with what": (envelope(compression="application/x-what"), "x-what"),
    "not compressed": (envelope(compression="application/x-gzip"), "."),
    "eta": (envelope(eta="yesterday"), "eta"),
    "expires": (envelope(expires={"a": 1}), "expires"),
    "expires beyond time": (envelope(expires="9999-12-31T23:59:59-12:00"), "expires"),
    "retries": (envelope(retries="many"), "retries"),
    "time limit": (envelope(timelimit="long"), "timelimit|time"),
    "id is a number": (envelope(id=5), "id"),
    "id is a list": (envelope(id=["x"]), "id"),
    "id is a dict": (envelope(id={"x": 1}), "id"),
    "task is a number": (envelope(task=5), "task"),
    "no task": (Envelope(b"hello", "text/plain", "utf-8", {}, {}), "."),
    "nothing": (Envelope(b"", "", "", {}, {}), "."),
    "protocol 1 without a task": (Envelope(b'{"id": "x"}', "application/json", "utf-8", {}, {}), "."),
    "protocol 1 of nobody": (
        Envelope(b'{"id": "x", "task": "no.body", "args": []}', "application/json", "utf-8", {}, {}),
        r"no\.body",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_message_that_is_no_call_is_dead_lettered_with_the_reason(
    running: Celeriac, folder: Path, kind: str
) -> None:
    broken, reason = REFUSED[kind]
    before = len(dead_letters(running))
    held = running.broker.size("celery").unsettled
    put(running, broken)
    eventually(lambda: len(dead_letters(running)) == before + 1, within=10)
    dead = dead_letters(running)[-1]
    assert (dead.body, dead.content_type) == (broken.body, broken.content_type)
    assert dead.headers.get("task") == broken.headers.get("task")
    assert dead.headers[DEAD_QUEUE] == "celery"
    assert re.search(reason, dead.headers[DEAD_REASON]), dead.headers[DEAD_REASON]
    assert still_works(running)
    eventually(lambda: running.broker.size("celery").unsettled == held)
    assert not (folder / "attacked").exists()


HARMLESS: dict[str, dict[str, Any]] = {
    "unknown headers": {"x-mine": [1, {"a": None}]},
    "no extras": {},
    "limit infinite": {"timelimit": [float("inf"), None]},
    "limit huge": {"timelimit": [1e300, 1e300]},
    "limit of zero": {"timelimit": [0, 0]},
    "limit of true": {"timelimit": [None, None]},
    "due long ago": {"eta": "0001-01-01T00:00:00+00:00"},
    "expires at the end of time": {"expires": "9999-12-31T23:59:59+00:00"},
    "unknown counter": {"x-celeriac-unknown": "many"},
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_strange_headers_that_harm_nobody_are_let_pass(running: Celeriac, kind: str) -> None:
    one = envelope(**HARMLESS[kind])
    put(running, one)
    assert running.AsyncResult(one.task_id).get(timeout=10) == 3
    still_works(running)


# -- a database that is not to be had ------------------------------------------------------------------------


def refusal(folder: Path, *options: str, app: str = "tasks", traceback: bool = False) -> str:
    """Start a worker that cannot start: it ends by itself, not with 0, and says why on one line, which is returned."""
    done = subprocess.run(
        [sys.executable, "-m", "celeriac", "-A", app, "worker", "-c", "1", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode not in (0, -9), done.stdout
    *before, line = done.stderr.splitlines()
    assert traceback or not before, done.stderr
    assert ("Traceback (most recent call last):" in before) == traceback, done.stderr
    return line


#: A server that is away when the worker starts ends it.
NO_PATIENCE = "broker_connection_retry_on_startup=false"


def on(url: str) -> list[str]:
    return ["-b", url, "--result-backend", url]


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Another program that holds the database of `folder`, as a backup or a person with sqlite3 may."""
    with closing(sqlite3.connect(folder / "celeriac.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "celeriac-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_is_no_database_is_left_alone(alone: Path) -> None:
    (alone / "celeriac.db").write_text("Dear diary, today I learnt about databases. " * 100)
    assert re.search("celeriac.db is not an SQLite database", refusal(alone))
    assert (alone / "celeriac.db").read_text().startswith("Dear diary")


def test_a_damaged_database_is_left_alone(alone: Path, client: Celeriac) -> None:
    client.send_task("tasks.add", (1, 2))
    client.close()
    file = alone / "celeriac.db"
    damaged = file.read_bytes()[:4096] + b"\xa5" * (file.stat().st_size - 4096)
    file.write_bytes(damaged)
    assert re.search("celeriac.db is damaged", refusal(alone))
    assert file.read_bytes() == damaged


def test_a_directory_that_is_not_there_is_named(alone: Path) -> None:
    assert f"there is no directory {alone}/no/such" in refusal(alone, *on("sqlite:///no/such/x.db"))
    assert not (alone / "no").exists()


def test_a_directory_is_no_database(alone: Path) -> None:
    (alone / "celeriac.db").mkdir()
    assert "it is a directory" in refusal(alone)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_database_that_may_only_be_read_is_named(alone: Path, client: Celeriac) -> None:
    result = client.send_task("tasks.add", (1, 2))
    client.close()
    (alone / "celeriac.db").chmod(0o444)
    alone.chmod(0o555)
    try:
        line = refusal(alone)
    finally:
        alone.chmod(0o755)
        (alone / "celeriac.db").chmod(0o644)
    assert re.search(r"celeriac\.db.*(read-only|let this user write)", line)
    with WorkerProcess(alone) as worker:
        assert result.get(timeout=10) == 3
        assert worker.stop() == 0


def test_a_locked_database_is_waited_for_and_then_named(alone: Path, client: Celeriac) -> None:
    result = client.send_task("tasks.add", (1, 2))
    with locked(alone):
        assert "celeriac.db is locked" in refusal(alone, "broker_publish_timeout=0.3", NO_PATIENCE)
        with pytest.raises(OperationalError, match="is locked"):
            client.send_task("tasks.add", (1, 2))
    with WorkerProcess(alone) as worker:
        assert result.get(timeout=10) == 3
        assert worker.stop() == 0


def test_a_worker_waits_for_a_database_that_is_locked_when_it_starts(alone: Path, client: Celeriac) -> None:
    result = client.send_task("tasks.add", (1, 2))
    with locked(alone):
        worker = WorkerProcess(alone, "broker_publish_timeout=0.3")
        worker.wait_for("celeriac.db is locked")
    with worker:
        assert result.get(timeout=10) == 3
        assert worker.stop() == 0


def test_a_lock_holds_a_worker_up_and_loses_nothing(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone, "broker_publish_timeout=0.2") as worker:
        worker.ready()
        results = [client.send_task("tasks.wait", ("gate",)), client.send_task("tasks.note_me", (1,))]
        Journal(alone).wait_for("hold", "gate")
        with locked(alone):
            (alone / "gate").touch()
            worker.wait_for("is locked")
        assert [each.get(timeout=10) for each in results] == ["gate", 1]
        assert client.send_task("tasks.add", (1, 2)).get(timeout=10) == 3
        assert worker.stop() == 0
    assert (len(Journal(alone).of("hold")), len(Journal(alone).of("ran"))) == (1, 1)


def test_a_worker_ends_although_the_database_is_locked(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone, "broker_publish_timeout=0.2", "worker_lease=0.5") as worker:
        worker.ready()
        result = client.send_task("tasks.wait", ("gate",))
        Journal(alone).wait_for("hold", "gate")
        with locked(alone):
            worker.send(signal.SIGTERM)
            worker.wait_for("Warm shutdown")
            (alone / "gate").touch()
            worker.process.wait(10)
        assert "Traceback" not in worker.text
        assert "run again" in worker.text
    with WorkerProcess(alone, "worker_lease=0.5") as other:
        assert result.get(timeout=10) == "gate"
        assert other.stop() == 0
    assert client.broker.size("celery") == QueueSize(0, 0, 0)


def test_a_database_that_is_deleted_is_made_anew(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone) as worker:
        worker.ready()
        assert client.send_task("tasks.add", (1, 2)).get(timeout=10) == 3
        for file in alone.glob("celeriac.db*"):
            if file.is_file():
                file.unlink()
        assert client.send_task("tasks.add", (3, 4)).get(timeout=10) == 7
        assert worker.stop() == 0


def fill(disk: Path) -> Path:
    """Leave no block free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    return filler


def test_a_full_disk_holds_everybody_up_and_loses_nothing(alone: Path, small_disk: Path) -> None:
    url = f"sqlite:///{small_disk}/x.db"
    client = Celeriac(broker=url, backend=url, broker_publish_timeout=0.5, set_as_current=False)
    with client, WorkerProcess(alone, *on(url), "broker_publish_timeout=0.2") as worker:
        worker.ready()
        result = client.send_task("tasks.wait", ("gate",))
        Journal(alone).wait_for("hold", "gate")
        filler = fill(small_disk)
        (alone / "gate").touch()
        with pytest.raises(OperationalError, match="no space left"):
            client.send_task("tasks.add", (1, "x" * 100_000), queue="other")
        worker.wait_for("no space left")
        filler.unlink()
        assert result.get(timeout=20) == "gate"
        assert client.send_task("tasks.add", (1, 2)).get(timeout=10) == 3
        assert worker.stop() == 0
    assert len(Journal(alone).of("hold")) == 1


def test_a_read_only_disk_is_named(alone: Path, small_disk: Path) -> None:
    url = f"sqlite:///{small_disk}/x.db"
    with Celeriac(broker=url, backend=url, set_as_current=False) as client:
        result = client.send_task("tasks.add", (1, 2))
        client.close()
        remount = ["mount", "-o", "remount,{}", str(small_disk)]
        subprocess.run([each.format("ro") for each in remount], check=True)
        assert re.search(r"x\.db.*(read-only|let this user write)", refusal(alone, *on(url)))
        with pytest.raises(OperationalError, match=r"read-only|let this user write"):
            client.send_task("tasks.add", (1, 2))
        subprocess.run([each.format("rw") for each in remount], check=True)
        with WorkerProcess(alone, *on(url)) as worker:
            assert result.get(timeout=10) == 3
            assert worker.stop() == 0


def test_a_worker_does_not_start_on_a_full_disk(alone: Path, small_disk: Path) -> None:
    fill(small_disk)
    assert "no space left" in refusal(
        alone, *on(f"sqlite:///{small_disk}/x.db"), "broker_publish_timeout=0.3", NO_PATIENCE
    )


# -- what cannot be opened or loaded -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqs://me:hunter2@localhost", "no broker for sqs:// yet"),
        ("sqlit:///x.db", "did you mean sqlite://"),
        ("gopher://localhost", "unknown broker scheme 'gopher'"),
        ("sqlite://x.db", "three slashes"),
        ("sqlite:///:memory:", "name a file"),
        ("hunter2", "no scheme"),
    ],
)
def test_a_url_that_leads_nowhere_is_told(alone: Path, url: str, reason: str) -> None:
    line = refusal(alone, "-b", url)
    assert reason in line
    assert "hunter2" not in line


def test_a_result_backend_that_leads_nowhere_is_told(alone: Path) -> None:
    assert "no result backend for mongodb:// yet" in refusal(alone, "--result-backend", "mongodb://localhost")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def app(:", "SyntaxError"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_an_app_that_cannot_be_imported_is_shown(alone: Path, source: str, reason: str) -> None:
    (alone / "broken.py").write_text(source + "\n")
    line = refusal(alone, app="broken", traceback=True)
    assert "cannot load the app 'broken'" in line
    assert reason in line


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import sys; sys.exit('no licence')", "no licence"),
        ("import os; os._exit(3)", "died while loading it"),
        ("import os; os.kill(os.getpid(), 9)", "died while loading it"),
        ("x = 1", "there is no app in the module 'broken'"),
        ("from celeriac import Celeriac; app = Celeriac(broker_ulr='x')", "broker_url"),
        (
            "from celeriac import Celeriac; app = Celeriac(include=['no_such'])",
            "there is no module 'no_such'",
        ),
    ],
)
def test_an_app_that_is_none_is_told(alone: Path, source: str, reason: str) -> None:
    (alone / "broken.py").write_text(source + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "celeriac", "-A", "broken", "worker"],
        cwd=alone,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "cannot load the app 'broken'" in done.stderr.splitlines()[-1]
    assert reason in done.stderr


def test_an_app_that_is_not_there_is_told(alone: Path) -> None:
    assert "there is no module 'nowhere'" in refusal(alone, app="nowhere")


def test_executors_that_die_at_birth_end_the_worker(alone: Path) -> None:
    with (alone / "tasks.py").open("a") as file:
        file.write(
            "\nfrom celeriac.signals import worker_process_init\n"
            "@worker_process_init.connect(weak=False)\n"
            "def die(**_):\n    os._exit(9)\n"
        )
    assert "executors died before they took a call" in refusal(alone)
