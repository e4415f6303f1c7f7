"""The command as people run it: real processes, the embedded database, no worker."""

from __future__ import annotations

import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from celeriac import Celeriac, __version__
from celeriac.routing import queues_to_consume
from celeriac.wire import codecs
from celeriac.wire.errors import to_meta
from celeriac.wire.record import Record
from support import WorkerProcess

TASKS = """
from celeriac import Celeriac

app = Celeriac("tasks")

@app.task
def add(x, y):
    return x + y
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def app(folder: Path) -> Iterator[Celeriac]:
    app = Celeriac("tasks")
    yield app
    app.close()


def environment(**changes: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CELERIAC_", "CELERY_"))}
    return {**clean, **changes}


def celeriac(*argv: str, folder: Path, answer: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celeriac", *argv],
        cwd=folder,
        env=environment(**changes),
        input=answer,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_line(text: str) -> str:
    assert text.startswith("Error: ")
    assert text.count("\n") == 1, text
    return text


def record(task_id: str, state: str, value: object, traceback: str | None = None) -> Record:
    stored = to_meta(value, "json") if isinstance(value, BaseException) else value
    return Record(
        task_id=task_id,
        state=state,
        result=codecs.dumps(stored, "json"),
        traceback=traceback,
        date_done=datetime.now(UTC),
    )


def waiting(app: Celeriac, queue: str = "celery") -> int:
    return app.broker.size(queue).ready


# -- call ----------------------------------------------------------------------------------------------------


def test_call_prints_the_id_of_the_task_it_queued(folder: Path, app: Celeriac) -> None:
    done = celeriac("-A", "tasks", "call", "tasks.add", "-a", "[1, 2]", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    with closing(app.broker.consumer(queues_to_consume(app.conf), name="test")) as consumer:
        (delivery,) = consumer.fetch(1, 0.0)
    assert delivery.envelope.task_id == done.stdout.strip()
    assert json.loads(delivery.envelope.body)[:2] == [[1, 2], {}]


def test_call_needs_no_app(folder: Path, app: Celeriac) -> None:
    assert celeriac("call", "any.task", "-k", '{"x": 1}', folder=folder).returncode == 0
    assert waiting(app) == 1


def test_call_takes_route_and_time(folder: Path, app: Celeriac) -> None:
    options = ["--queue", "later", "--countdown", "3600", "--expires", "7200"]
    assert celeriac("call", "any.task", *options, folder=folder).returncode == 0
    assert app.broker.size("later").scheduled == 1


def test_general_options_may_follow_the_command(folder: Path, app: Celeriac) -> None:
    assert celeriac("call", "tasks.add", "-A", "tasks", "-a", "[1, 2]", folder=folder).returncode == 0
    assert waiting(app) == 1


def test_broker_option_wins_over_environment_and_settings(folder: Path, app: Celeriac) -> None:
    other = Celeriac(broker="sqlite:///other.db", set_as_current=False)
    done = celeriac(
        *("-A", "tasks", "-b", "sqlite:///other.db", "call", "tasks.add"),
        folder=folder,
        CELERIAC_BROKER_URL="sqlite:///celeriac.db",
    )
    assert done.returncode == 0
    with other:
        assert (waiting(other), waiting(app)) == (1, 0)


@pytest.mark.parametrize("variable", ["CELERIAC_BROKER_URL", "CELERY_BROKER_URL", "BROKER_URL"])
def test_the_broker_may_come_from_the_environment(folder: Path, variable: str) -> None:
    done = celeriac("call", "any.task", folder=folder, **{variable: "sqlite:///other.db"})
    assert done.returncode == 0
    with Celeriac(broker="sqlite:///other.db", set_as_current=False) as other:
        assert waiting(other) == 1


def test_workdir_is_where_the_app_is(folder: Path, app: Celeriac) -> None:
    done = celeriac("-A", "tasks", "--workdir", str(folder), "call", "tasks.add", folder=Path("/"))
    assert (done.returncode, done.stderr) == (0, "")
    assert waiting(app) == 1


# -- purge ---------------------------------------------------------------------------------------------------


def test_purge_counts_what_it_deletes(folder: Path, app: Celeriac) -> None:
    for _ in range(3):
        app.send_task("tasks.add", (1, 2))
    done = celeriac("-A", "tasks", "purge", "-f", folder=folder)
    assert (done.returncode, done.stdout) == (0, "Purged 3 messages from 1 known task queue.\n")
    assert waiting(app) == 0
    done = celeriac("-A", "tasks", "purge", "-f", folder=folder)
    assert (done.returncode, done.stdout) == (0, "No messages purged from 1 queue.\n")


def test_purge_can_be_told_which_queues(folder: Path, app: Celeriac) -> None:
    for queue in ("a", "b", "c"):
        app.send_task("tasks.add", (1, 2), queue=queue)
    done = celeriac("purge", "-f", "-Q", "a,b,c", "-X", "b", folder=folder)
    assert done.stdout == "Purged 2 messages from 2 known task queues.\n"
    assert waiting(app, "b") == 1


@pytest.mark.parametrize(("answer", "status", "left"), [("y\n", 0, 0), ("n\n", 1, 1), ("", 1, 1)])
def test_purge_asks(folder: Path, app: Celeriac, answer: str, status: int, left: int) -> None:
    app.send_task("tasks.add", (1, 2))
    done = celeriac("purge", folder=folder, answer=answer)
    assert "every message in 1 queue: celery" in done.stdout
    assert (done.returncode, waiting(app)) == (status, left)


# -- result --------------------------------------------------------------------------------------------------


def test_result_prints_the_value(folder: Path, app: Celeriac) -> None:
    app.backend.put([record("id-1", "SUCCESS", {"total": 3})])
    done = celeriac("-A", "tasks", "result", "id-1", folder=folder)
    assert (done.returncode, done.stdout) == (0, "{'total': 3}\n")
    done = celeriac("result", "id-1", "-A", "tasks", "-t", "tasks.add", "--json", folder=folder)
    assert json.loads(done.stdout) == {
        "task_id": "id-1",
        "status": "SUCCESS",
        "result": {"total": 3},
        "traceback": None,
    }


def test_result_of_a_failed_task_is_a_failure(folder: Path, app: Celeriac) -> None:
    app.backend.put([record("id-1", "FAILURE", ValueError("no"), "Traceback\n  in the worker\n")])
    done = celeriac("result", "id-1", folder=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert one_line(done.stderr) == "Error: task id-1 is FAILURE: ValueError('no')\n"
    done = celeriac("result", "id-1", "--traceback", folder=folder)
    assert (done.returncode, done.stdout) == (1, "Traceback\n  in the worker\n")
    done = celeriac("result", "id-1", "--json", folder=folder)
    assert done.returncode == 1
    assert json.loads(done.stdout)["result"]["exc_type"] == "ValueError"


def test_result_that_does_not_come_in_time(folder: Path) -> None:
    done = celeriac("result", "id-1", "--timeout", "0.1", folder=folder)
    assert (done.returncode, done.stdout) == (69, "")
    assert "id-1" in one_line(done.stderr)


def test_result_without_a_backend_says_what_to_configure(folder: Path) -> None:
    done = celeriac("-b", "sqlite:///other.db", "result", "id-1", folder=folder)
    assert done.returncode == 1
    assert "result_backend" in one_line(done.stderr)


def test_result_of_an_unknown_task(folder: Path) -> None:
    done = celeriac("-A", "tasks", "result", "id-1", "-t", "tasks.ad", folder=folder)
    assert done.returncode == 1
    assert "'tasks.ad'" in one_line(done.stderr)


def test_interrupted_wait_is_quiet(folder: Path) -> None:
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "celeriac", "result", "id-1"],
        cwd=folder,
        env=environment(TERM="xterm"),
        stdout=subprocess.PIPE,
        stderr=end,
    )
    os.close(end)
    shown = b""
    # the spinner says that the waiting has begun
    while b"waiting for id-1" not in shown:
        shown += os.read(terminal, 1024)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    os.close(terminal)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in shown


# -- report and shell ----------------------------------------------------------------------------------------


def test_report_shows_settings_without_secrets(folder: Path) -> None:
    (folder / "proj.py").write_text(
        "from celeriac import Celeriac\n"
        "app = Celeriac('proj', broker='sqlite://me:hunter2@/x.db', task_acks_late=False,"
        " redis_password='hunter2', my_extension='on', worker_send_task_events=True)\n"
    )
    done = celeriac("-A", "proj", "report", folder=folder)
    assert done.returncode == 0
    assert f"celeriac:{__version__}" in done.stdout
    assert "transport -> sqlite://me:**@/x.db" in done.stdout
    assert "task_acks_late: False" in done.stdout
    assert "my_extension: 'on'" in done.stdout
    assert "hunter2" not in done.stdout
    done = celeriac("-A", "proj", "report", "--json", folder=folder)
    report = json.loads(done.stdout)
    assert report["unknown_settings"] == {"my_extension": "on"}
    assert "worker_send_task_events" in report["not_supported_yet"]


def test_shell_knows_the_app_and_its_tasks(folder: Path) -> None:
    program = "print('it is', add.name, app.main, add(1, 2), Task.__name__, celery is app)\n"
    done = celeriac("-A", "tasks", "shell", "--python", folder=folder, answer=program)
    assert done.returncode == 0
    assert "it is tasks.add tasks 3 Task True" in done.stdout
    done = celeriac(
        "-A", "tasks", "shell", "--python", "-T", folder=folder, answer="print('add' in globals())\n"
    )
    assert "False" in done.stdout


# -- what goes wrong -----------------------------------------------------------------------------------------


def test_a_missing_app_is_named(folder: Path) -> None:
    done = celeriac("-A", "nowhere", "report", folder=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert "'nowhere'" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nonsuch", "ModuleNotFoundError: No module named 'nonsuch' ("),
        ("1/0", "broken.py, line 1)"),
        ("x = (", "SyntaxError"),
        ("from celeriac import Celeriac\nCeleriac(task_ack_late=True)", "task_acks_late"),
    ],
)
def test_an_app_that_fails_to_load_is_one_line(folder: Path, source: str, message: str) -> None:
    (folder / "broken.py").write_text(source)
    done = celeriac("-A", "broken", "call", "x", folder=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in one_line(done.stderr)


def test_debug_shows_the_traceback(folder: Path) -> None:
    (folder / "broken.py").write_text("1/0")
    done = celeriac("-A", "broken", "--debug", "call", "x", folder=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "broken.py" in done.stderr


def test_a_broker_that_does_not_answer_is_unavailable(folder: Path, app: Celeriac) -> None:
    app.send_task("tasks.add", (1, 2))
    (folder / "hasty.py").write_text(
        "from celeriac import Celeriac\napp = Celeriac(broker_publish_timeout=0.2)\n"
    )
    with closing(sqlite3.connect("celeriac.db", isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        done = celeriac("-A", "hasty", "call", "tasks.add", folder=folder)
    assert (done.returncode, done.stdout) == (69, "")
    assert "celeriac.db" in one_line(done.stderr)
    assert waiting(app) == 1


@pytest.mark.parametrize(
    ("url", "named"),
    [("sqlight:///x", "sqlite"), ("sqlite:///notadb", "notadb"), ("sqlite:///no/such/x.db", "no/such")],
)
def test_a_wrong_broker_is_named(folder: Path, url: str, named: str) -> None:
    (folder / "notadb").write_bytes(b"this is no database" * 100)
    done = celeriac("-b", url, "purge", "-f", folder=folder)
    assert done.returncode == 1
    assert named in one_line(done.stderr)


def test_a_message_that_no_queue_takes_is_a_failure(folder: Path) -> None:
    done = celeriac("call", "x", "--exchange", "nowhere", folder=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert "'nowhere'" in one_line(done.stderr)


def test_a_worker_with_a_taken_pidfile_does_not_start(folder: Path) -> None:
    (folder / "w.pid").write_text(f"{os.getpid()}\n")
    done = celeriac("-A", "tasks", "worker", "--pidfile", "w.pid", folder=folder)
    assert done.returncode == 73
    assert f"process {os.getpid()} runs already" in one_line(done.stderr)
    assert (folder / "w.pid").read_text() == f"{os.getpid()}\n"


def test_a_worker_holds_its_pidfile_while_it_runs(folder: Path) -> None:
    with WorkerProcess(folder, "--pidfile", "%n.pid", "-n", "w1") as worker:
        worker.ready()
        assert (folder / "w1.pid").read_text() == f"{worker.process.pid}\n"
        assert worker.stop() == 0
    assert not (folder / "w1.pid").exists()


def test_a_worker_takes_options_from_everywhere(folder: Path, app: Celeriac) -> None:
    result = app.send_task("tasks.add", (1, 2), queue="special")
    process = subprocess.Popen(
        [sys.executable, "-m", "celeriac", "-l", "info", "worker", "-c1", "--app=tasks", "worker.lease=5"],
        cwd=folder,
        env=environment(CELERY_WORKER_QUEUES="special"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert result.get(timeout=30) == 3
    finally:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out.decode()
    assert b"special" in out


def test_options_without_effect_are_named_once(folder: Path) -> None:
    # the pidfile cannot be written, so the worker ends there
    line = "-A tasks worker -B -E -S x.db --without-gossip --pidfile no/w.pid"
    done = celeriac(*line.split(), folder=folder)
    warning, error = done.stderr.splitlines()
    assert warning == "Warning: no effect in this version of celeriac: --task-events, --beat, --statedb"
    assert error.startswith("Error: pidfile ")
    assert celeriac(*line.split(), "-q", folder=folder).stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_worker_can_give_up_privileges(folder: Path) -> None:
    folder.chmod(0o755)
    line = "-A tasks worker --uid nobody --umask 027 --pidfile"
    done = celeriac(*line.split(), "/root-only.pid", folder=folder)
    assert done.returncode == 73
    assert "Permission denied" in one_line(done.stderr)


def test_help_imports_neither_rich_nor_sqlalchemy(folder: Path) -> None:
    program = (
        "import sys; from celeriac.cli.main import run; run(sys.argv[1:]);"
        "print(sorted({'rich', 'sqlalchemy', 'asyncio'} & sys.modules.keys()))"
    )
    for argv in (["--help"], ["worker", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *argv], cwd=folder, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"
