"""The server is killed or restarted under load: what it took is run, and workers and producers find it again."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celeriac
from celeriac.brokers.base import QueueSize
from celeriac.errors import OperationalError
from celeriac.result import AsyncResult
from celeriac.testing.servers import PrivateRabbitMQ, PrivateServer
from counting import Runs, counted
from support import WorkerProcess, dead_letters, eventually

pytestmark = pytest.mark.on("redis", "rabbitmq")

RESTARTS = 20
WORKERS = 2
EXECUTORS = 2
TASKS = counted(worker_lease=2.0, task_max_deliveries=1000)


class Producer(threading.Thread):
    """Sends tasks until it is stopped, and remembers which were taken."""

    def __init__(self, client: Celeriac, seed: int) -> None:
        super().__init__(daemon=True)
        self.client = client
        self.chance = random.Random(seed)
        self.results: dict[int, AsyncResult[Any]] = {}
        self.refused = 0
        self.ending = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.ending.is_set():
            number += 1
            try:
                seconds = self.chance.choice((0, 0, 0.005, 0.05))
                self.results[number] = self.client.send_task("tasks.run", (number, seconds))
            except OperationalError:
                self.refused += 1
            # Not more than two workers can do.
            self.ending.wait(0.01)

    def stop(self) -> None:
        self.ending.set()
        self.join(30)
        assert not self.is_alive()


def restart(server: PrivateServer, number: int) -> None:
    if isinstance(server, PrivateRabbitMQ) and number % 10 > 1:
        # A node takes four seconds to start, its application one.
        server.rabbitmqctl("stop_app")
        server.rabbitmqctl("start_app")
    elif number % 2:
        server.restart()
    else:
        server.kill()
        server.start()


@pytest.mark.timeout(600)
def test_a_server_that_is_restarted_twenty_times_under_load(
    alone: Path, own: PrivateServer, client: Celeriac
) -> None:
    producer = Producer(client, seed=RESTARTS)
    runs = Runs(alone)
    with (
        WorkerProcess(alone, "-n", "one", executors=EXECUTORS) as one,
        WorkerProcess(alone, "-n", "two", executors=EXECUTORS) as two,
    ):
        for each in (one, two):
            each.ready()
        producer.start()
        longest = 0.0
        for number in range(RESTARTS):
            done = len(runs.finished())
            eventually(lambda done=done: len(runs.finished()) > done + 20, what=f"work, restart {number}")
            restart(own, number)
            back = time.monotonic()
            done = len(runs.finished())
            eventually(lambda done=done: len(runs.finished()) > done, what=f"work after restart {number}")
            longest = max(longest, time.monotonic() - back)
        producer.stop()
        numbers = list(producer.results)
        runs.wait_until_finished(numbers)
        assert [producer.results[number].get(timeout=30) for number in numbers] == numbers
        eventually(lambda: client.broker.size("celery") == QueueSize(0, 0, 0))
        assert dead_letters(client) == []
        assert (one.stop(), two.stop()) == (0, 0)
    again = runs.again()
    print(
        f"{len(numbers)} tasks taken, {producer.refused} refused, {len(again)} ran again; "
        f"work went on {longest:.1f} s after a restart at most"
    )
    assert longest < 10
    if isinstance(own, PrivateRabbitMQ):
        # The server hands out again what was not acknowledged when the connection broke.
        assert sum(map(len, again.values())) <= RESTARTS * WORKERS * EXECUTORS
    else:
        assert again == {}
