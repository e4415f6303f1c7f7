"""A server that goes away and comes back: errors in time that say so, and work that goes on by itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis

from celeriac import Celeriac
from celeriac.errors import OperationalError
from celeriac.testing.proxy import Proxy
from celeriac.testing.servers import PrivateRedis, PrivateServer
from counting import Runs, counted
from support import WorkerProcess, client_of, eventually

pytestmark = pytest.mark.on("redis", "rabbitmq")

#: Seconds that `delay` may take when there is no server.
PATIENCE = 0.5
CLIENT = {"broker_publish_timeout": PATIENCE}
TASKS = counted(worker_lease=2.0, broker_heartbeat=2.0)
#: What a worker says when the server is away.
FETCHING = "ERROR/MainProcess] broker: "
SETTLING = "ERROR/MainProcess] cannot settle"
#: How a network breaks, as methods of `Proxy`.
WAYS = ["refuse", "stall", "black_hole", "drop_replies"]


def fails_in_time(client: Celeriac) -> None:
    begun = time.monotonic()
    with pytest.raises(OperationalError) as caught:
        client.send_task("tasks.run", (0,))
    took = time.monotonic() - begun
    assert took < PATIENCE + 0.5, f"{took:.2f} s: {caught.value}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", [False, True], ids=["first call", "open connection"])
def test_a_call_fails_in_time_with_a_typed_error(
    client: Celeriac, proxy: Proxy, way: str, before: bool
) -> None:
    if before:
        client.send_task("tasks.run", (0,))
    getattr(proxy, way)()
    fails_in_time(client)
    fails_in_time(client)
    proxy.resume()
    # Nothing keeps it from the server now: at most the wait for a connection that was tried before.
    eventually(lambda: sent(client), within=5)


def sent(client: Celeriac) -> bool:
    try:
        client.send_task("tasks.run", (0,))
    except OperationalError:
        return False
    return True


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_goes_on_when_the_server_is_back(
    alone: Path, proxy: Proxy, server: str, own_url: str, way: str
) -> None:
    direct = {"broker": own_url, "backend": own_url} if server == "redis" else {"broker": own_url}
    with client_of(alone, **direct) as client, WorkerProcess(alone) as worker:
        worker.ready()
        assert client.send_task("tasks.run", (1,)).get(timeout=10) == 1
        running = client.send_task("tasks.run", (2, 3.0))
        eventually(lambda: 2 in Runs(alone).all())
        getattr(proxy, way)()
        # With RabbitMQ a silence is no end of the connection: what it holds would be handed out again.
        eventually(lambda: FETCHING in worker.text or SETTLING in worker.text, within=15)
        proxy.resume()
        back = time.monotonic()
        assert client.send_task("tasks.run", (3,)).get(timeout=30) == 3
        assert time.monotonic() - back < 10
        assert running.get(timeout=30) == 2
        assert worker.stop() == 0
    assert worker.text.count("connection to the broker is back") == (FETCHING in worker.text)
    assert "Traceback" not in worker.text
    if server == "redis":
        assert {number: len(runs) for number, runs in Runs(alone).all().items()} == {1: 1, 2: 1, 3: 1}


def test_a_worker_can_be_stopped_while_the_server_is_away(alone: Path, proxy: Proxy) -> None:
    with WorkerProcess(alone) as worker:
        worker.ready()
        proxy.stall()
        begun = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - begun < 10


def test_a_worker_that_starts_before_its_server_waits_for_it(
    alone: Path, own: PrivateServer, client: Celeriac
) -> None:
    own.stop()
    with WorkerProcess(alone) as worker:
        worker.wait_for(FETCHING, times=2)
        own.start()
        back = time.monotonic()
        worker.ready()
        assert client.send_task("tasks.run", (1,)).get(timeout=30) == 1
        assert time.monotonic() - back < 10
        assert worker.stop() == 0
    assert "Traceback" not in worker.text


@pytest.mark.on("redis")
def test_a_server_that_became_a_replica(alone: Path, own: PrivateRedis, client: Celeriac) -> None:
    """After a fail-over the old primary answers reads and refuses to write."""
    with redis.Redis.from_url(own.url) as admin, WorkerProcess(alone) as worker:
        worker.ready()
        assert client.send_task("tasks.run", (1,)).get(timeout=10) == 1
        admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        fails_in_time(client)
        worker.wait_for(FETCHING)
        admin.execute_command("REPLICAOF", "NO", "ONE")
        back = time.monotonic()
        assert client.send_task("tasks.run", (2,)).get(timeout=30) == 2
        assert time.monotonic() - back < 10
        assert worker.stop() == 0
    assert {number: len(runs) for number, runs in Runs(alone).all().items()} == {1: 1, 2: 1}
