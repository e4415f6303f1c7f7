"""A worker runs tasks: real processes on every server, one worker for most of the tests."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from celeriac import Celeriac
from celeriac.brokers.base import QueueSize
from celeriac.brokers.dead import DEAD_ATTEMPTS, DEAD_REASON
from celeriac.errors import (
    EncodeError,
    MaxRetriesExceededError,
    TaskError,
    TaskRevokedError,
    TimeoutError,
    WorkerLostError,
)
from celeriac.result import AsyncResult
from celeriac.routing import queues_to_consume
from support import JOURNAL, Journal, WorkerProcess, dead_letter_of, eventually

pytestmark = pytest.mark.on("sqlite", "redis", "rabbitmq")

TASKS = (
    JOURNAL
    + """
import asyncio
from celeriac import Celeriac

app = Celeriac("tasks", task_max_deliveries=3)

@app.task
def add(x, y):
    return x + y

@app.task
def pid():
    return os.getpid()

@app.task
def fail(text):
    raise ValueError(text)

@app.task
def stamp(key, seconds=0.0):
    note("ran", key, time.time())
    time.sleep(seconds)
    return key

@app.task
def wait(gate):
    hold(gate)
    return gate

@app.task(bind=True, max_retries=3)
def flaky(self, key, failures, countdown=0.0):
    note("ran", key, time.time())
    if self.request.retries < failures:
        raise self.retry(exc=ValueError("not yet"), countdown=countdown)
    return self.request.retries

@app.task(bind=True, max_retries=1)
def hopeless(self):
    raise self.retry(countdown=0)

@app.task(autoretry_for=(OSError,), retry_backoff=0.2, retry_jitter=False, max_retries=2)
def unreachable(key):
    note("ran", key, time.time())
    raise ConnectionResetError("by peer")

@app.task(bind=True)
def progress(self, gate):
    self.update_state(state="HALFWAY", meta={"done": 1, "of": 2})
    hold(gate)

@app.task(track_started=True)
def tracked(gate):
    hold(gate)

@app.task
def die(key, times):
    note("ran", key)
    if len(open("journal").read().split(f"ran {key}\\n")) - 1 <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"

@app.task(acks_late=False)
def die_early(key):
    note("ran", key)
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(bind=True)
def where(self):
    return self.request.hostname

@app.task(reject_on_worker_lost=False)
def die_once_for_all(key):
    note("ran", key)
    os.kill(os.getpid(), signal.SIGKILL)

@app.task(acks_on_failure=False)
def fail_and_stay():
    raise ValueError("kept")

@app.task
async def later(x):
    await asyncio.sleep(0.001)
    return x

@app.task(ignore_result=True)
def silent(key):
    note("ran", key)
    return key

@app.task
def unspeakable():
    return object()

@app.task
def size(data):
    return len(data)

@app.task
def large(size):
    return "x" * size

@app.task
def failed(task_id):
    note("failed", task_id)

@app.task
def failed_so(request, exc, traceback):
    note("failed", request.id, type(exc).__name__, "ValueError" in traceback)

@app.task
def parent(x):
    return add.delay(x, 1).id

@app.task
def moving(folder):
    os.chdir(folder)
    try:
        return add.delay(1, 1).id
    finally:
        os.chdir("/")
"""
)


def key() -> str:
    return uuid4().hex[:8]


def runs(journal: Journal, key: str) -> list[float]:
    """When the task with this key ran."""
    return [float(instant) for (instant,) in journal.of("ran", key)]


def ends(result: AsyncResult[Any]) -> str:
    """The state in which a task ends."""
    result.get(timeout=30, propagate=False)
    return result.state


# -- how a task ends -----------------------------------------------------------------------------------------


def test_a_value_comes_back(running: Celeriac) -> None:
    result = running.send_task("tasks.add", (1,), {"y": 2})
    assert result.get(timeout=10) == 3
    assert (result.state, result.successful(), result.traceback) == ("SUCCESS", True, None)
    assert result.date_done is not None
    assert abs((datetime.now(UTC) - result.date_done).total_seconds()) < 10


def test_an_exception_comes_back_with_its_traceback(running: Celeriac) -> None:
    result = running.send_task("tasks.fail", ("no such luck",))
    with pytest.raises(ValueError, match="no such luck"):
        result.get(timeout=10)
    assert (result.state, result.failed()) == ("FAILURE", True)
    assert result.traceback is not None
    assert "raise ValueError(text)" in result.traceback
    assert isinstance(result.get(propagate=False), ValueError)


def test_a_coroutine_is_run_to_its_end(running: Celeriac) -> None:
    assert running.send_task("tasks.later", (7,)).get(timeout=10) == 7


def test_a_failure_that_is_not_acknowledged_is_dead_lettered(running: Celeriac) -> None:
    result = running.send_task("tasks.fail_and_stay")
    assert ends(result) == "FAILURE"
    dead = dead_letter_of(running, result.id)
    assert "kept" in dead.headers[DEAD_REASON]


def test_a_retry_waits_for_its_countdown(running: Celeriac, journal: Journal) -> None:
    one = key()
    result = running.send_task("tasks.flaky", (one, 2, 0.5))
    journal.wait_for("ran", one)
    eventually(lambda: result.state == "RETRY")
    assert isinstance(result.info, ValueError)
    assert result.get(timeout=10) == 2
    first, second, third = runs(journal, one)
    assert 0.5 <= second - first < 1.5
    assert 0.5 <= third - second < 1.5


def test_a_task_is_not_retried_for_ever(running: Celeriac, journal: Journal) -> None:
    one = key()
    with pytest.raises(ValueError, match="not yet"):
        running.send_task("tasks.flaky", (one, 100)).get(timeout=10)
    assert len(runs(journal, one)) == 4
    with pytest.raises(MaxRetriesExceededError):
        running.send_task("tasks.hopeless").get(timeout=10)


def test_autoretry_backs_off(running: Celeriac, journal: Journal) -> None:
    one = key()
    with pytest.raises(ConnectionResetError):
        running.send_task("tasks.unreachable", (one,)).get(timeout=10)
    first, second, third = runs(journal, one)
    assert 0.2 <= second - first < 1.2
    assert 0.4 <= third - second < 1.4


def test_states_on_the_way_are_seen(running: Celeriac, folder: Path) -> None:
    gate = key()
    result = running.send_task("tasks.progress", (gate,))
    eventually(lambda: result.state == "HALFWAY")
    assert result.info == {"done": 1, "of": 2}
    (folder / gate).touch()
    assert ends(result) == "SUCCESS"


def test_a_tracked_start_is_seen(running: Celeriac, worker: WorkerProcess, folder: Path) -> None:
    gate = key()
    result = running.send_task("tasks.tracked", (gate,))
    eventually(lambda: result.state == "STARTED")
    assert result.info["pid"] in worker.executors()
    assert result.info["hostname"].startswith("celery@")
    (folder / gate).touch()
    assert ends(result) == "SUCCESS"


def test_ignored_results_are_not_kept(running: Celeriac, journal: Journal) -> None:
    silent = running.send_task("tasks.silent", (one := key(),))
    ignored = running.send_task("tasks.add", (1, 2), ignore_result=True)
    journal.wait_for("ran", one)
    assert running.send_task("tasks.add", (1, 2)).get(timeout=10) == 3
    with pytest.raises(TaskError, match="ignore_result"):
        ignored.get(timeout=10)
    with pytest.raises(TimeoutError, match="ignore_result"):
        silent.get(timeout=0.1)
    assert running.backend.get([silent.id, ignored.id]) == [None, None]


def test_a_result_that_cannot_be_stored_is_a_failure(running: Celeriac, worker: WorkerProcess) -> None:
    before = worker.executors()
    with pytest.raises(EncodeError, match=r"result of tasks\.unspeakable"):
        running.send_task("tasks.unspeakable").get(timeout=10)
    assert worker.executors() == before


def test_two_megabytes_go_in_and_come_out(running: Celeriac) -> None:
    there = running.send_task("tasks.size", ("x" * 2_000_000,))
    back = running.send_task("tasks.large", (2_000_000,))
    assert there.get(timeout=20) == 2_000_000
    assert len(back.get(timeout=20)) == 2_000_000


def test_the_log_says_what_happens(running: Celeriac, worker: WorkerProcess) -> None:
    result = running.send_task("tasks.add", (1, 2))
    worker.wait_for(f"INFO/MainProcess] Task tasks.add[{result.id}] received")
    worker.wait_for(f"] Task tasks.add[{result.id}] succeeded in ")
    (line,) = (line for line in worker.output if f"{result.id}] succeeded" in line)
    assert line.endswith("s: 3\n")
    assert "INFO/Executor-" in line
    result = running.send_task("tasks.fail", ("as told",))
    worker.wait_for(f"Task tasks.fail[{result.id}] raised unexpected: ValueError('as told')")


# -- when a task runs ----------------------------------------------------------------------------------------


def test_nothing_runs_early_nor_much_late(running: Celeriac, journal: Journal) -> None:
    now = datetime.now(UTC)
    due = {key(): 0.2 + number / 50 for number in range(20)}
    results = [
        running.send_task("tasks.stamp", (one,), **option)
        for number, (one, delay) in enumerate(due.items())
        for option in ([{"countdown": delay}, {"eta": now + timedelta(seconds=delay)}][number % 2],)
    ]
    for each in results:
        each.get(timeout=10)
    late = {one: runs(journal, one)[0] - (now.timestamp() + delay) for one, delay in due.items()}
    assert all(0 <= each < 1 for each in late.values()), late


def test_expired_tasks_do_not_run(running: Celeriac, journal: Journal, worker: WorkerProcess) -> None:
    result = running.send_task("tasks.stamp", (one := key(),), countdown=0.3, expires=0.1)
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=10)
    assert result.state == "REVOKED"
    assert runs(journal, one) == []
    worker.wait_for(f"Discarding revoked task: tasks.stamp[{result.id}] (expired)")


def test_revoked_tasks_do_not_run_on_workers_that_start_later(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone) as first:
        first.ready()
        assert client.send_task("tasks.add", (1, 2)).get(timeout=10) == 3
        result = client.send_task("tasks.stamp", ("x",), countdown=0.5)
        result.revoke()
        assert first.stop() == 0
    with WorkerProcess(alone) as second:
        second.wait_for(f"Discarding revoked task: tasks.stamp[{result.id}] (revoked)")
        assert second.stop() == 0
    assert Journal(alone).of("ran") == []
    assert client.broker.size("celery") == QueueSize(0, 0, 0)
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=1)


def test_priorities(alone: Path, client: Celeriac, server: str) -> None:
    (alone / "tasks.py").write_text(TASKS + "\napp.conf.task_queue_max_priority = 10\n")
    client.conf.task_queue_max_priority = 10
    with WorkerProcess(alone, executors=1) as worker:
        worker.ready()
        client.send_task("tasks.wait", ("gate",))
        Journal(alone).wait_for("hold")
        given = [(1, 0), (2, 9), (3, 5), (4, 9), (5, 0), (6, 3)]
        results = [client.send_task("tasks.stamp", (n,), priority=priority) for n, priority in given]
        (alone / "gate").touch()
        for each in results:
            each.get(timeout=10)
        # On Redis, as with Celery, 0 comes first, and there are four steps.
        expected = [1, 5, 3, 6, 2, 4] if server == "redis" else [2, 4, 3, 6, 1, 5]
        assert [int(number) for number, _ in Journal(alone).of("ran")] == expected
        assert worker.stop() == 0


def test_short_tasks_do_not_wait_behind_a_long_one(running: Celeriac, journal: Journal, folder: Path) -> None:
    gate = key()
    long = running.send_task("tasks.wait", (gate,))
    journal.wait_for("hold", gate)
    started = time.monotonic()
    for each in [running.send_task("tasks.add", (number, 0)) for number in range(50)]:
        each.get(timeout=10)
    assert time.monotonic() - started < 2
    assert not long.ready()
    (folder / gate).touch()
    assert long.get(timeout=10) == gate


def test_short_tasks_do_not_wait_behind_one_that_used_to_be_short(running: Celeriac) -> None:
    for each in [running.send_task("tasks.stamp", (number,)) for number in range(100)]:
        each.get(timeout=10)
    long = running.send_task("tasks.stamp", ("long", 5.0))
    started = time.monotonic()
    for each in [running.send_task("tasks.stamp", (number,)) for number in range(50)]:
        each.get(timeout=10)
    assert time.monotonic() - started < 2
    assert not long.ready()


def test_a_worker_that_is_held_up_does_not_hoard_tasks(alone: Path, client: Celeriac) -> None:
    """After many short tasks it takes many at once; those must not wait behind a long one while others idle."""
    with WorkerProcess(alone, "-n", "busy", executors=1) as busy:
        busy.ready()
        for each in [client.send_task("tasks.add", (number, 0)) for number in range(100)]:
            each.get(timeout=10)
        long = client.send_task("tasks.wait", ("gate",))
        Journal(alone).wait_for("hold")
        with WorkerProcess(alone, "-n", "idle", executors=1) as idle:
            idle.ready()
            started = time.monotonic()
            for each in [client.send_task("tasks.add", (number, 0)) for number in range(50)]:
                each.get(timeout=10)
            assert time.monotonic() - started < 2
            assert not long.ready()
            (alone / "gate").touch()
            assert long.get(timeout=10) == "gate"
            assert idle.stop() == 0
        assert busy.stop() == 0


# -- executors that die --------------------------------------------------------------------------------------


def test_a_task_whose_executor_was_killed_runs_again(running: Celeriac, journal: Journal) -> None:
    assert running.send_task("tasks.die", (one := key(), 1)).get(timeout=20) == "alive"
    assert len(journal.of("ran", one)) == 2


def test_a_task_that_kills_every_executor_is_dead_lettered(running: Celeriac, journal: Journal) -> None:
    result = running.send_task("tasks.die", (one := key(), 100))
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        result.get(timeout=20)
    assert result.state == "FAILURE"
    assert len(journal.of("ran", one)) == 3
    dead = dead_letter_of(running, result.id)
    assert "SIGKILL" in dead.headers[DEAD_REASON]
    assert dead.headers[DEAD_ATTEMPTS] == 3
    assert running.send_task("tasks.add", (1, 2)).get(timeout=10) == 3


def test_an_early_acknowledged_task_does_not_run_again(running: Celeriac, journal: Journal) -> None:
    result = running.send_task("tasks.die_early", (one := key(),))
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        result.get(timeout=20)
    assert len(journal.of("ran", one)) == 1
    assert running.send_task("tasks.add", (1, 2)).get(timeout=10) == 3


def test_a_task_may_ask_not_to_run_again(running: Celeriac, journal: Journal) -> None:
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        running.send_task("tasks.die_once_for_all", (one := key(),)).get(timeout=20)
    assert len(journal.of("ran", one)) == 1


# -- what follows a task -------------------------------------------------------------------------------------


def test_links_follow_success(running: Celeriac) -> None:
    follower = running.signature("tasks.add", (10,)).set(task_id=str(uuid4()))
    assert running.send_task("tasks.add", (1, 2), link=follower).get(timeout=10) == 3
    assert running.AsyncResult(follower.options["task_id"]).get(timeout=10) == 13


def test_error_links_follow_failure(running: Celeriac, journal: Journal) -> None:
    errbacks = [running.signature("tasks.failed"), running.signature("tasks.failed_so")]
    result = running.send_task("tasks.fail", ("x",), link_error=errbacks)
    assert ends(result) == "FAILURE"
    journal.wait_for("failed", result.id, times=2)
    assert sorted(journal.of("failed", result.id)) == [[], ["ValueError", "True"]]


def test_a_chain_hands_its_values_on(running: Celeriac) -> None:
    add = running.signature("tasks.add")
    result = (add.clone((1, 2)) | add.clone((3,)) | add.clone((4,))).apply_async()
    assert result.get(timeout=10) == 10
    assert result.parent.get(timeout=1) == 6
    assert result.parent.parent.get(timeout=1) == 3


def test_a_chain_goes_on_after_a_retry(running: Celeriac, journal: Journal) -> None:
    one = key()
    flaky, add = running.signature("tasks.flaky", (one, 2)), running.signature("tasks.add", (10,))
    link = running.signature("tasks.stamp", (two := key(),), immutable=True)
    assert (flaky | add).apply_async(link=link).get(timeout=10) == 12
    assert len(runs(journal, one)) == 3
    journal.wait_for("ran", two)
    assert len(runs(journal, two)) == 1


@pytest.mark.parametrize("how", ["lost", "expired", "revoked"])
def test_a_chain_breaks_where_a_task_ends_without_running(running: Celeriac, how: str) -> None:
    add = running.signature("tasks.add", (1,))
    first = {
        "lost": running.signature("tasks.die", (key(), 100), immutable=True),
        "expired": running.signature("tasks.add", (1, 2)).set(countdown=0.2, expires=0.1),
        "revoked": running.signature("tasks.add", (1, 2)).set(countdown=0.2),
    }[how]
    result = (first | add | add).apply_async()
    if how == "revoked":
        result.parent.parent.revoke()
    with pytest.raises(WorkerLostError if how == "lost" else TaskRevokedError):
        running.AsyncResult(result.id).get(timeout=20)


def test_a_broken_chain_fails_whoever_waits_for_its_end(running: Celeriac) -> None:
    add, fail = running.signature("tasks.add"), running.signature("tasks.fail", ("broken",), immutable=True)
    result = (add.clone((1, 2)) | fail | add.clone((3,)) | add.clone((4,))).apply_async()
    with pytest.raises(ValueError, match="broken"):
        result.get(timeout=10)
    eventually(lambda: result.state == "FAILURE")
    # by its id alone, without knowing the chain
    with pytest.raises(ValueError, match="broken"):
        running.AsyncResult(result.id).get(timeout=10)


def test_a_task_can_call_another(running: Celeriac) -> None:
    result = running.send_task("tasks.parent", (2,))
    child = running.AsyncResult(result.get(timeout=10))
    assert child.get(timeout=10) == 3
    assert result.children == [child]


@pytest.mark.on("sqlite")
def test_a_task_that_changes_its_directory_still_reaches_the_queue(running: Celeriac, folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    result = running.send_task("tasks.moving", (str(elsewhere),))
    assert running.AsyncResult(result.get(timeout=10)).get(timeout=10) == 2
    assert list(elsewhere.iterdir()) == []


# -- several workers -----------------------------------------------------------------------------------------


def test_two_thousand_tasks_run_exactly_once_on_two_workers(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone, "-n", "one") as one, WorkerProcess(alone, "-n", "two") as two:
        one.ready()
        two.ready()
        results = [client.send_task("tasks.stamp", (number,)) for number in range(2000)]
        assert [each.get(timeout=30) for each in results] == list(range(2000))
        assert sorted(int(number) for number, _ in Journal(alone).of("ran")) == list(range(2000))
        eventually(lambda: client.broker.size("celery").unsettled == 0)
        assert (one.stop(), two.stop()) == (0, 0)
    assert client.broker.size("celery").ready == 0


def test_workers_consume_the_queues_they_are_told(alone: Path, client: Celeriac) -> None:
    source = TASKS.replace("task_max_deliveries=3", "task_queues=[Queue('a'), Queue('b'), Queue('c')]")
    (alone / "tasks.py").write_text("from celeriac import Queue\n" + source)
    with (
        WorkerProcess(alone, "-n", "one@x", "-Q", "a", executors=1) as one,
        WorkerProcess(alone, "-n", "two@x", "-X", "a", executors=1) as two,
    ):
        one.ready()
        two.ready()
        results = {queue: client.send_task("tasks.where", queue=queue) for queue in "abcabc"}
        assert {queue: each.get(timeout=10) for queue, each in results.items()} == {
            "a": "one@x",
            "b": "two@x",
            "c": "two@x",
        }
        assert (one.stop(), two.stop()) == (0, 0)


def test_a_task_unknown_here_waits_for_a_worker_that_knows_it(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone) as old:
        old.ready()
        result = client.send_task("tasks.novel", ("x",))
        old.wait_for(f"Task tasks.novel[{result.id}] received")
        assert result.state == "PENDING"
        assert old.stop() == 0
    with (alone / "tasks.py").open("a") as file:
        file.write("\n@app.task\ndef novel(x):\n    return x\n")
    with WorkerProcess(alone) as new:
        assert result.get(timeout=20) == "x"
        assert new.stop() == 0
    assert client.broker.size("celery.dead").ready == 0


@pytest.mark.on("sqlite")
def test_results_may_be_kept_elsewhere(alone: Path) -> None:
    """Not in one transaction with the messages, then."""
    results = f"sqlite:///{alone}/results.db"
    broker = f"sqlite:///{alone}/celeriac.db"
    with (
        Celeriac(broker=broker, backend=results, set_as_current=False) as client,
        WorkerProcess(alone, "--result-backend", results) as worker,
    ):
        add = client.signature("tasks.add")
        assert (add.clone((1, 2)) | add.clone((3,))).apply_async().get(timeout=20) == 6
        assert client.send_task("tasks.die", ("x", 1)).get(timeout=20) == "alive"
        assert client.send_task("tasks.flaky", ("y", 2)).get(timeout=20) == 2
        assert worker.stop() == 0
        assert client.broker.size("celery") == QueueSize(0, 0, 0)


# -- transactions --------------------------------------------------------------------------------------------


@pytest.mark.on("sqlite")
def test_what_a_transaction_enqueues_runs_when_it_commits(
    running: Celeriac, folder: Path, journal: Journal
) -> None:
    engine = create_engine(f"sqlite:///{folder}/celeriac.db")
    try:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS orders (id INTEGER)"))
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO orders VALUES (1)"))
            by_connection = running.send_task("tasks.add", (1, 2), connection=connection)
        with Session(engine) as session, session.begin():
            session.execute(text("INSERT INTO orders VALUES (2)"))
            by_session = running.send_task("tasks.add", (3, 4), session=session)
        assert (by_connection.get(timeout=10), by_session.get(timeout=10)) == (3, 7)
    finally:
        engine.dispose()


@pytest.mark.on("sqlite")
def test_what_a_transaction_enqueues_is_gone_when_it_rolls_back(
    running: Celeriac, folder: Path, journal: Journal
) -> None:
    one, two = key(), key()
    engine = create_engine(f"sqlite:///{folder}/celeriac.db")
    try:
        with engine.connect() as connection:
            running.send_task("tasks.stamp", (one,), connection=connection)
            connection.rollback()
        with Session(engine) as session:
            running.send_task("tasks.stamp", (two,), session=session)
            session.rollback()
    finally:
        engine.dispose()
    assert running.send_task("tasks.stamp", ("after",)).get(timeout=10) == "after"
    assert runs(journal, one) + runs(journal, two) == []
    assert running.broker.size("celery").ready == 0


# -- its command line ----------------------------------------------------------------------------------------


@pytest.mark.on("sqlite")
def test_the_banner_says_what_was_started(worker: WorkerProcess) -> None:
    banner = worker.text[: worker.text.index("ready.")]
    for line in (
        ".> app:         tasks",
        ".> transport:   sqlite:///celeriac.db",
        ".> results:     sqlite:///celeriac.db",
        ".> concurrency: 2 (prefork)",
        ".> acks:        late",
        ".> celery ",
        "  . tasks.add\n",
    ):
        assert line in banner


@pytest.mark.on("sqlite")
def test_the_banner_hides_passwords(alone: Path) -> None:
    source = TASKS.replace('"tasks"', '"tasks", broker="memory://me:hunter2@there", backend="memory://"')
    (alone / "tasks.py").write_text(source)
    with WorkerProcess(alone) as worker:
        worker.ready()
        assert "transport:   memory://me:**@there" in worker.text
        assert "hunter2" not in worker.text
        assert worker.stop() == 0


@pytest.mark.on("sqlite")
def test_a_pidfile_names_the_worker_while_it_runs(alone: Path) -> None:
    with WorkerProcess(alone, "--pidfile", "w.pid") as worker:
        worker.ready()
        assert int((alone / "w.pid").read_text()) == worker.process.pid
        with WorkerProcess(alone, "--pidfile", "w.pid") as second:
            assert second.process.wait(30) == 73
        assert "runs already" in second.text
        assert worker.stop() == 0
    assert not (alone / "w.pid").exists()


@pytest.mark.on("sqlite")
def test_a_log_file_gets_what_parent_and_executors_say(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone, "-f", "%n.log", "-n", "w1") as worker:
        result = client.send_task("tasks.add", (1, 2))
        assert result.get(timeout=20) == 3
        assert worker.stop() == 0
    log = (alone / "w1.log").read_text()
    assert "w1@" in log
    assert f"Task tasks.add[{result.id}] received" in log
    assert f"Task tasks.add[{result.id}] succeeded" in log
    assert "succeeded" not in worker.text


def test_purge_deletes_what_waits_before_the_start(alone: Path, client: Celeriac) -> None:
    client.broker.declare(queues_to_consume(client.conf))
    for number in range(3):
        client.send_task("tasks.stamp", (number,))
    client.send_task("tasks.stamp", ("later",), countdown=60)
    with WorkerProcess(alone, "--purge") as worker:
        # RabbitMQ has no way to look for what waits for later.
        purged = 4 if client.broker.traits.counts_scheduled else 3
        worker.wait_for(f"purged {purged} messages from 1 queue")
        assert client.send_task("tasks.add", (1, 2)).get(timeout=10) == 3
        assert worker.stop() == 0
    assert Journal(alone).of("ran") == []


@pytest.mark.on("sqlite")
def test_an_executor_is_replaced_after_so_many_tasks(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone, "--max-tasks-per-child", "3", executors=1) as worker:
        pids = [client.send_task("tasks.pid").get(timeout=10) for _ in range(7)]
        assert len(set(pids)) == 3, pids
        assert worker.stop() == 0


def test_the_solo_pool_runs_tasks_in_the_worker_itself(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone, "-P", "solo") as worker:
        worker.ready()
        assert client.send_task("tasks.pid").get(timeout=10) == worker.process.pid
        assert client.send_task("tasks.flaky", ("x", 1)).get(timeout=10) == 1
        client.send_task("tasks.wait", ("gate",))
        Journal(alone).wait_for("hold")
        waiting = client.send_task("tasks.add", (1, 2))
        worker.send(signal.SIGTERM)
        worker.wait_for("Warm shutdown")
        (alone / "gate").touch()
        assert worker.process.wait(10) == 0
    # What had not started is still there, unless the worker got hold of it just before the signal.
    assert client.broker.size("celery") == QueueSize(0 if waiting.ready() else 1, 0, 0)
