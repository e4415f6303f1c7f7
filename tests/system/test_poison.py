"""A task that kills its whole worker, again and again, ends among the dead letters, and takes nobody with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from celeriac import Celeriac, Queue
from celeriac.brokers.base import QueueSize
from celeriac.brokers.dead import DEAD_ATTEMPTS, DEAD_REASON
from celeriac.errors import WorkerLostError
from support import JOURNAL, Journal, WorkerProcess, client_of, dead_letters, eventually

pytestmark = pytest.mark.on("sqlite", "redis", "rabbitmq")

TASKS = (
    JOURNAL
    + """
from celeriac import Celeriac, Queue

app = Celeriac("tasks", worker_lease=1.0)

@app.task
def run(number):
    note("ran", number)
    time.sleep(0.01)
    return number

@app.task
def poison():
    note("poison")
    nursery = os.getppid()
    with open(f"/proc/{nursery}/stat") as file:
        parent = int(file.read().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    time.sleep(60)
"""
)
QUORUM = {"x-queue-type": "quorum"}
CLIENT = {"worker_lease": 1.0}


@contextmanager
def supervised(folder: Path) -> Iterator[None]:
    """A worker that is started again whenever it dies, as systemd does."""
    ending = threading.Event()

    def supervise() -> None:
        while not ending.is_set():
            with WorkerProcess(folder) as worker:
                while worker.process.poll() is None and not ending.is_set():
                    ending.wait(0.02)
                if ending.is_set():
                    worker.stop()

    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def poisoned(folder: Path, client: Celeriac) -> None:
    with supervised(folder):
        before = [client.send_task("tasks.run", (number,)) for number in range(20)]
        poison = client.send_task("tasks.poison")
        behind = [client.send_task("tasks.run", (number,)) for number in range(20, 40)]
        with pytest.raises(WorkerLostError):
            poison.get(timeout=60)
        assert poison.state == "FAILURE"
        assert [each.get(timeout=60) for each in (*before, *behind)] == list(range(40))
        assert len(Journal(folder).of("poison")) == 5
        eventually(lambda: client.broker.size("celery") == QueueSize(0, 0, 0))
        [dead] = dead_letters(client)
        assert dead.task_id == poison.id
        assert dead.headers[DEAD_ATTEMPTS] in (5, 6)
        assert dead.headers[DEAD_REASON]


@pytest.mark.timeout(180)
def test_a_task_that_kills_its_worker_is_dead_lettered_after_five_attempts(
    alone: Path, client: Celeriac
) -> None:
    poisoned(alone, client)


@pytest.mark.timeout(180)
@pytest.mark.on("rabbitmq")
def test_the_same_on_a_quorum_queue(alone: Path) -> None:
    (alone / "tasks.py").write_text(
        TASKS + f"\napp.conf.task_queues = [Queue('celery', queue_arguments={QUORUM})]\n"
    )
    with client_of(alone, task_queues=[Queue("celery", queue_arguments=QUORUM)]) as client:
        poisoned(alone, client)
