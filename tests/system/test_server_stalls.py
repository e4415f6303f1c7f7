"""The server does not answer for a while: what runs is not started a second time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from celeriac import Celeriac
from celeriac.brokers.base import QueueSize
from celeriac.testing.servers import PrivateServer
from counting import counted
from support import Journal, WorkerProcess, eventually

pytestmark = pytest.mark.on("redis", "rabbitmq")

LEASE = 2.0
TASKS = counted(worker_lease=LEASE, broker_heartbeat=LEASE)


def test_nothing_is_started_twice_because_the_server_stalled(
    alone: Path, own: PrivateServer, client: Celeriac
) -> None:
    """Three workers that could run one more each, for three leases."""
    names = ("one", "two", "three")
    workers = [WorkerProcess(alone, "-n", name) for name in names]
    journal = Journal(alone)
    try:
        for each in workers:
            each.ready()
        results = [client.send_task("tasks.wait", (f"gate{number}",)) for number in range(3)]
        journal.wait_for("hold", times=3)
        own.pause()
        begun = time.monotonic()
        eventually(lambda: time.monotonic() - begun > 3 * LEASE)
        own.resume()
        # Somebody who believes the others dead would say so within two leases.
        begun = time.monotonic()
        eventually(lambda: time.monotonic() - begun > 2 * LEASE + 1)
        assert client.send_task("tasks.run", (1,)).get(timeout=30) == 1
        for number in range(3):
            (alone / f"gate{number}").touch()
        assert [each.get(timeout=30) for each in results] == ["gate0", "gate1", "gate2"]
        eventually(lambda: client.broker.size("celery") == QueueSize(0, 0, 0))
        assert [each.stop() for each in workers] == [0, 0, 0]
        assert len(journal.of("hold")) == 3
    finally:
        for each in workers:
            each.__exit__(None, None, None)
