"""What the server did, and nobody heard of: answers that are lost with their connection."""

from __future__ import annotations

import random
from pathlib import Path
from uuid import uuid4

import pytest

from celeriac.brokers.base import QueueSize
from celeriac.testing.proxy import Proxy
from counting import Runs, counted
from support import WorkerProcess, client_of, dead_letters, eventually

pytestmark = pytest.mark.on("redis", "rabbitmq")

TASKS = counted(worker_lease=2.0, task_max_deliveries=1000)


@pytest.mark.parametrize("passing", [0, 40], ids=["none of it arrives", "half of it arrives"])
def test_a_claim_whose_reply_is_cut_is_found_again(
    alone: Path, proxy: Proxy, own_url: str, server: str, passing: int
) -> None:
    direct = {"broker": own_url, "backend": own_url} if server == "redis" else {"broker": own_url}
    with client_of(alone, **direct) as client, WorkerProcess(alone) as worker:
        worker.ready()
        for number in range(5):
            task_id = str(uuid4())
            proxy.cut_reply(task_id.encode(), passing=passing)
            result = client.send_task("tasks.run", (number,), task_id=task_id)
            proxy.wait_for_cut(10)
            assert result.get(timeout=10) == number
        assert {number: len(runs) for number, runs in Runs(alone).all().items()} == dict.fromkeys(range(5), 1)
        eventually(lambda: client.broker.size("celery") == QueueSize(0, 0, 0))
        assert worker.stop() == 0


@pytest.mark.timeout(300)
def test_connections_that_are_reset_under_load_lose_nothing(
    alone: Path, proxy: Proxy, own_url: str, server: str
) -> None:
    """A hundred times; requests and answers of all kinds are among what is lost."""
    chance = random.Random(100)
    direct = {"broker": own_url, "backend": own_url} if server == "redis" else {"broker": own_url}
    runs = Runs(alone)
    results = {}
    with client_of(alone, **direct) as client, WorkerProcess(alone) as worker:
        worker.ready()
        for _ in range(100):
            begun = len(runs.finished())
            for number in range(len(results), len(results) + 20):
                seconds = chance.choice((0, 0, 0.001, 0.01))
                results[number] = client.send_task("tasks.run", (number, seconds))
            enough = begun + chance.randrange(20)
            eventually(lambda enough=enough: len(runs.finished()) >= enough)
            proxy.cut()
        runs.wait_until_finished(results)
        assert [each.get(timeout=30) for each in results.values()] == list(results)
        eventually(lambda: client.broker.size("celery") == QueueSize(0, 0, 0))
        assert dead_letters(client) == []
        assert worker.stop() == 0
    again = sum(map(len, runs.again().values()))
    print(f"{len(results)} tasks, 100 resets, {again} ran again")
    if server == "redis":
        assert again == 0
