"""A task may last longer than a lease, and longer than the server waits for an acknowledgement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from celeriac import Celeriac
from celeriac.brokers.base import QueueSize
from celeriac.testing.servers import PrivateRabbitMQ
from counting import Runs, counted
from support import WorkerProcess, eventually

#: RabbitMQ has no lease but heartbeats.
TASKS = counted(worker_lease=2.0, broker_heartbeat=1.0)


def runs_once(folder: Path, client: Celeriac, seconds: float) -> None:
    """A task of so many seconds, with another worker that has nothing to do."""
    with (
        WorkerProcess(folder, "-n", "one", executors=1) as one,
        WorkerProcess(folder, "-n", "two", executors=1) as two,
    ):
        for each in (one, two):
            each.ready()
        assert client.send_task("tasks.run", (1, seconds)).get(timeout=seconds + 30) == 1
        assert len(Runs(folder).all()[1]) == 1
        eventually(lambda: client.broker.size("celery") == QueueSize(0, 0, 0))
        assert (one.stop(), two.stop()) == (0, 0)
    assert "lost" not in one.text + two.text
    assert len(Runs(folder).all()[1]) == 1


@pytest.mark.on("redis")
def test_a_task_of_six_leases_runs_once(alone: Path, client: Celeriac) -> None:
    """`make soak` has one of a minute, on every server."""
    runs_once(alone, client, 12.0)


@pytest.mark.soak
@pytest.mark.on("sqlite", "redis", "rabbitmq")
def test_a_task_of_thirty_leases_runs_once(alone: Path, client: Celeriac) -> None:
    runs_once(alone, client, 60.0)


@contextmanager
def impatient(node: PrivateRabbitMQ, folder: Path, seconds: float) -> Iterator[None]:
    """Channels that are opened now have so long to acknowledge, and the app is told so."""
    with (folder / "tasks.py").open("a") as file:
        file.write(f"\napp.conf.broker_transport_options = {{'consumer_timeout': {seconds}}}\n")
    kept = {"consumer_timeout": 1_800_000, "channel_tick_interval": 60_000}
    for name, value in {"consumer_timeout": round(seconds * 1000), "channel_tick_interval": 1000}.items():
        node.rabbitmqctl("eval", f"application:set_env(rabbit, {name}, {value}).")
    yield
    for name, value in kept.items():
        node.rabbitmqctl("eval", f"application:set_env(rabbit, {name}, {value}).")


@pytest.mark.on("rabbitmq")
def test_a_task_outlasts_the_consumer_timeout(alone: Path, own: PrivateRabbitMQ, client: Celeriac) -> None:
    """Six seconds in place of the server's half hour; `make soak` has a minute."""
    with impatient(own, alone, 6.0):
        runs_once(alone, client, 15.0)
    assert "delivery acknowledgement" not in own.log


@pytest.mark.soak
@pytest.mark.on("rabbitmq")
def test_a_task_outlasts_a_consumer_timeout_of_a_minute(
    alone: Path, own: PrivateRabbitMQ, client: Celeriac
) -> None:
    with impatient(own, alone, 60.0):
        runs_once(alone, client, 180.0)
