"""How a worker ends, and what becomes of its tasks: signals, suspension, the death of its parts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celeriac
from celeriac.brokers.base import QueueSize
from celeriac.result import AsyncResult
from support import JOURNAL, Journal, WorkerProcess, eventually, is_dead

pytestmark = pytest.mark.on("sqlite", "redis", "rabbitmq")

LEASE = 1.0
CLIENT = {"worker_lease": LEASE}

TASKS = (
    JOURNAL
    + """
from celeriac import Celeriac

app = Celeriac("tasks", worker_lease=1.0, broker_heartbeat=1.0)

@app.task
def add(x, y):
    return x + y

@app.task
def note_me(number):
    note("ran", number)
    return number

@app.task(acks_late=False)
def note_early(number):
    note("ran", number)
    return number

@app.task(acks_late=False)
def wait_early(gate):
    hold(gate)
    return gate

@app.task
def wait(gate):
    hold(gate)
    return gate

@app.task(bind=True)
def wait_there(self, gate):
    if not self.request.delivery_info["redelivered"]:
        hold(gate)
    note("on", self.request.hostname)
    return self.request.hostname
"""
)


@pytest.fixture
def journal(alone: Path) -> Journal:
    return Journal(alone)


def in_one_batch(client: Celeriac, short: str, long: str) -> tuple[AsyncResult[Any], list[AsyncResult[Any]]]:
    """Publish for a worker that is yet to start: short tasks, so that it takes many ahead, then one that runs
    until the file ``gate`` is there, and the twenty that are stuck behind it."""
    for _ in range(100):
        client.send_task(short, (-1,))
    running = client.send_task(long, ("gate",))
    return running, [client.send_task(short, (number,)) for number in range(20)]


def numbers(journal: Journal) -> list[int]:
    return sorted(number for (each,) in journal.of("ran") if (number := int(each)) >= 0)


def busy_with(client: Celeriac, journal: Journal, task: str = "tasks.wait") -> AsyncResult[Any]:
    """A task that runs until the file ``gate`` is there; it runs already."""
    result = client.send_task(task, ("gate",))
    journal.wait_for("hold", "gate")
    return result


# -- warm ----------------------------------------------------------------------------------------------------


def test_an_idle_worker_ends_at_once(alone: Path) -> None:
    with WorkerProcess(alone) as worker:
        family = worker.ready().family()
        started = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - started < 1
        eventually(lambda: all(map(is_dead, family)), within=1)


def test_sigterm_lets_running_tasks_end_and_returns_the_rest_at_once(
    alone: Path, client: Celeriac, journal: Journal
) -> None:
    running, waiting = in_one_batch(client, "tasks.note_me", "tasks.wait")
    with WorkerProcess(alone, executors=1) as worker:
        journal.wait_for("hold", "gate")
        worker.send(signal.SIGTERM)
        worker.wait_for("Warm shutdown")
        eventually(lambda: client.broker.size("celery").ready == 20, within=2)
        with WorkerProcess(alone) as other:
            assert [each.get(timeout=10) for each in waiting] == list(range(20))
            assert not running.ready()
            (alone / "gate").touch()
            assert worker.process.wait(10) == 0
            assert running.get(timeout=1) == "gate"
            assert other.stop() == 0
    assert numbers(journal) == list(range(20))
    assert client.broker.size("celery") == QueueSize(0, 0, 0)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_early_acknowledged_tasks_that_did_not_start_are_not_lost(
    alone: Path, client: Celeriac, journal: Journal, kill: bool
) -> None:
    _, waiting = in_one_batch(client, "tasks.note_early", "tasks.wait_early")
    with WorkerProcess(alone, executors=1) as worker:
        journal.wait_for("hold", "gate")
        if kill:
            worker.kill()
        else:
            worker.send(signal.SIGTERM)
            worker.wait_for("Warm shutdown")
            (alone / "gate").touch()
            assert worker.process.wait(10) == 0
    with WorkerProcess(alone) as other:
        assert [each.get(timeout=5, propagate=False) for each in waiting] == list(range(20))
        assert other.stop() == 0
    assert numbers(journal) == list(range(20))


def test_sigint_is_warm_too_and_exits_with_1(alone: Path, client: Celeriac, journal: Journal) -> None:
    with WorkerProcess(alone) as worker:
        running = busy_with(client, journal)
        worker.send(signal.SIGINT)
        worker.wait_for("Warm shutdown")
        (alone / "gate").touch()
        assert worker.process.wait(10) == 1
        assert running.get(timeout=1) == "gate"
        assert "Traceback" not in worker.text


def test_a_signal_to_the_whole_group_is_warm(alone: Path, client: Celeriac, journal: Journal) -> None:
    """As a terminal sends SIGINT on Ctrl-C, and systemd SIGTERM."""
    with WorkerProcess(alone) as worker:
        running = busy_with(client, journal)
        os.killpg(worker.process.pid, signal.SIGTERM)
        worker.wait_for("Warm shutdown")
        (alone / "gate").touch()
        assert worker.process.wait(10) == 0
        assert running.get(timeout=1) == "gate"
    assert len(journal.of("hold")) == 1


# -- cold ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 0),
        ([signal.SIGINT, signal.SIGINT], 1),
        ([signal.SIGQUIT], 0),
    ],
)
def test_a_cold_shutdown_hands_running_tasks_back_uncounted(
    alone: Path, client: Celeriac, journal: Journal, signals: list[signal.Signals], status: int
) -> None:
    # One delivery only: what is counted against the task fails it.
    (alone / "tasks.py").write_text(TASKS.replace("lease=1.0", "lease=1.0, task_max_deliveries=1"))
    with WorkerProcess(alone) as worker:
        running = busy_with(client, journal)
        family = worker.family()
        for number, each in enumerate(signals, 1):
            worker.send(each)
            worker.wait_for("shutdown (SIG", times=number)
        assert "Cold shutdown" in worker.text
        assert worker.process.wait(10) == status
        assert all(map(is_dead, family))
    assert client.broker.size("celery") == QueueSize(1, 0, 0)
    (alone / "gate").touch()
    with WorkerProcess(alone) as other:
        assert running.get(timeout=10) == "gate"
        assert other.stop() == 0
    assert len(journal.of("hold")) == 2


# -- suspended -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [False, True], ids=["parent", "group"])
def test_a_worker_that_slept_too_long_cannot_settle(
    alone: Path, client: Celeriac, journal: Journal, group: bool
) -> None:
    send = os.killpg if group else os.kill
    with WorkerProcess(alone, "-n", "sleeper@x", executors=1) as sleeper:
        result = client.send_task("tasks.wait_there", ("gate",))
        journal.wait_for("hold", "gate")
        send(sleeper.process.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        with WorkerProcess(alone, "-n", "other@x", executors=1) as other:
            other.ready()
            ready = time.monotonic()
            assert result.get(timeout=10) == "other@x"
            # RabbitMQ takes two to three heartbeats to miss it.
            assert time.monotonic() - ready < (3 if client.broker.traits.leases else 5) * LEASE
            eventually(lambda: time.monotonic() - stopped > 3 * LEASE)
            (alone / "gate").touch()
            send(sleeper.process.pid, signal.SIGCONT)
            journal.wait_for("on", "sleeper@x")
            dropped = "its lease was lost, the outcome is dropped"
            sleeper.wait_for(
                dropped if client.broker.traits.leases else "its message went with the connection"
            )
            assert client.send_task("tasks.add", (1, 2)).get(timeout=10) == 3
            assert client.AsyncResult(result.id).get(timeout=1) == "other@x"
            assert (sleeper.stop(), other.stop()) == (0, 0)
    assert client.broker.size("celery") == QueueSize(0, 0, 0)


def test_a_worker_that_slept_alone_keeps_its_tasks(alone: Path, client: Celeriac, journal: Journal) -> None:
    with WorkerProcess(alone, "broker_heartbeat=6", executors=1) as worker:
        running = busy_with(client, journal)
        worker.send(signal.SIGSTOP)
        begun = time.monotonic()
        eventually(lambda: time.monotonic() - begun > 3 * LEASE)
        worker.send(signal.SIGCONT)
        (alone / "gate").touch()
        assert running.get(timeout=10) == "gate"
        assert worker.stop() == 0
    assert len(journal.of("hold")) == 1


# -- the death of its parts ----------------------------------------------------------------------------------


def test_a_killed_nursery_is_replaced_with_its_executors(
    alone: Path, client: Celeriac, journal: Journal
) -> None:
    with WorkerProcess(alone) as worker:
        running = busy_with(client, journal)
        before = worker.executors()
        os.kill(worker.nursery, signal.SIGKILL)
        journal.wait_for("hold", "gate", times=2)
        (alone / "gate").touch()
        assert running.get(timeout=10) == "gate"
        assert client.send_task("tasks.add", (1, 2)).get(timeout=10) == 3
        assert not set(before) & set(worker.executors())
        assert worker.stop() == 0


@pytest.mark.on("sqlite")
def test_a_nursery_that_cannot_come_back_ends_the_worker(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone) as worker:
        worker.ready()
        assert client.send_task("tasks.add", (1, 2)).get(timeout=10) == 3
        (alone / "tasks.py").write_text("raise ValueError('half a deploy')\n")
        os.kill(worker.nursery, signal.SIGKILL)
        assert worker.process.wait(10) == 1
        worker.stop()
        assert "cannot load the app 'tasks': ValueError: half a deploy" in worker.text


def test_idle_executors_that_are_killed_come_back(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone) as worker:
        worker.ready()
        assert client.send_task("tasks.add", (1, 2)).get(timeout=10) == 3
        for _ in range(3):
            before = worker.executors()
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            assert client.send_task("tasks.add", (1, 2)).get(timeout=10) == 3
            eventually(lambda before=before: len(set(worker.executors()) - set(before)) == 2)
        assert worker.stop() == 0


@pytest.mark.on("sqlite")
def test_an_app_that_starts_threads_gets_fresh_executors(
    alone: Path, client: Celeriac, journal: Journal
) -> None:
    threaded = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    (alone / "tasks.py").write_text("from support_of_tasks import loaded\n" + threaded + TASKS)
    (alone / "support_of_tasks.py").write_text("import os\nloaded = os.getpid()\n")
    with (alone / "tasks.py").open("a") as file:
        file.write("\n@app.task\ndef where():\n    return [loaded, os.getpid()]\n")
    with WorkerProcess(alone, executors=1) as worker:
        worker.ready()
        loaded, pid = client.send_task("tasks.where").get(timeout=20)
        assert (loaded, worker.executors()) == (pid, [pid])
        assert worker.text.count("the app starts threads when it is imported") == 1
        os.kill(pid, signal.SIGKILL)
        assert client.send_task("tasks.add", (1, 2)).get(timeout=20) == 3
        busy_with(client, journal)
        worker.send(signal.SIGTERM)
        worker.wait_for("Warm shutdown")
        (alone / "gate").touch()
        assert worker.process.wait(10) == 0


# -- before it is ready --------------------------------------------------------------------------------------


@pytest.mark.on("sqlite")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_can_be_stopped_while_it_loads_the_app(
    alone: Path, journal: Journal, number: signal.Signals
) -> None:
    (alone / "tasks.py").write_text(TASKS + "\nhold('gate')\n")
    with WorkerProcess(alone) as worker:
        journal.wait_for("hold", "gate")
        family = worker.family()
        assert worker.stop(number, within=5) != 0
        eventually(lambda: all(map(is_dead, family)), within=2)
        assert "Traceback" not in worker.text
