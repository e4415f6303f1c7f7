"""Waiting for results on Redis: through lost connections, in great numbers, at no more cost than it must have."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions
from celeriac.backends.redis import RedisBackend
from celeriac.errors import ConnectionLost, OperationalError
from celeriac.redis import watching
from celeriac.states import FAILURE, STARTED, SUCCESS
from celeriac.testing.conformance.harness import PATIENCE, InThread, in_fork
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.proxy import Proxy
from celeriac.testing.servers import PrivateRedis
from celeriac.wire.record import Record
from redis_support import client_of, commands_of, subscribers_of
from support import eventually

#: Seconds that an operation may take, where one is to fail.
SHORT = 0.3


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    config = {"client-output-buffer-limit": "pubsub 1mb 1mb 0"}
    users = {"deaf": "on >x ~* +@all resetchannels"}
    folder = tmp_path_factory.mktemp("redis")
    with skipped_without_server(), PrivateRedis(folder, config=config, users=users) as server:
        yield server


@pytest.fixture
def server(module_server: PrivateRedis) -> Iterator[PrivateRedis]:
    yield module_server
    with client_of(module_server.url) as client:
        client.flushall()


@pytest.fixture
def client(server: PrivateRedis) -> Iterator[Any]:
    with client_of(server.url) as client:
        yield client


@pytest.fixture
def backend(server: PrivateRedis) -> Iterator[RedisBackend]:
    with closing(opened(server.url)) as backend:
        yield backend


@pytest.fixture
def other(server: PrivateRedis) -> Iterator[RedisBackend]:
    with closing(opened(server.url)) as backend:
        yield backend


def opened(url: str, *, timeout: float = 5.0) -> RedisBackend:
    backend = open_backend(url, BackendOptions(timeout=timeout))
    assert isinstance(backend, RedisBackend)
    return backend


def record(id: str, state: str = SUCCESS, **fields: Any) -> Record:
    return Record(**{"task_id": id, "state": state, "result": b"5", **fields})


def wait_for_one(
    backend: RedisBackend, *ids: str, timeout: float | None = PATIENCE
) -> InThread[list[Record]]:
    """Somebody who is blocked in a watch of these."""
    with client_of(backend.url) as client:
        before = listeners(client, ids[-1])
        waiting = InThread(lambda: list(backend.watch(ids, timeout)))
        eventually(lambda: listeners(client, ids[-1]) > before, what="a subscriber")
    return waiting


def listeners(client: Any, id: str) -> int:
    [(_, number)] = client.pubsub_numsub(f"celery-task-meta-{id}")
    return number


# -- what it costs -------------------------------------------------------------------------------------------------


def test_a_wait_subscribes_before_it_asks(backend: RedisBackend, client: Any) -> None:
    with commands_of(client) as commands:
        assert list(backend.watch(["a"], 0)) == []
    asked = [command for command in commands if command[0] in {"SUBSCRIBE", "MGET", "GET", "PING"}]
    assert asked == [["SUBSCRIBE", "celery-task-meta-a"], ["MGET", "celery-task-meta-a"]]


def test_connections_are_kept_for_the_next_wait(
    backend: RedisBackend, other: RedisBackend, client: Any
) -> None:
    other.put([record(f"{n}") for n in range(20)])
    for n in range(20):
        assert list(backend.watch([f"{n}"], PATIENCE)) == [record(f"{n}")]
    waiting = [wait_for_one(backend, f"later {n}") for n in range(3)]
    assert len(subscribers_of(client)) == 3
    other.put([record(f"later {n}") for n in range(3)])
    assert [each.result() for each in waiting] == [[record(f"later {n}")] for n in range(3)]
    assert len(subscribers_of(client)) == 3
    backend.close()
    eventually(lambda: not subscribers_of(client))


def test_more_connections_than_are_needed_are_closed(
    backend: RedisBackend, other: RedisBackend, client: Any
) -> None:
    waiting = [wait_for_one(backend, f"{n}") for n in range(20)]
    other.put([record(f"{n}") for n in range(20)])
    for each in waiting:
        each.result()
    eventually(lambda: len(subscribers_of(client)) == 8)


def test_channels_are_given_up(backend: RedisBackend, other: RedisBackend, client: Any) -> None:
    with closing(backend.watcher()) as watcher:
        watcher.add(["never"])
        for n in range(1000):
            watcher.add([f"{n}"])
            other.put([record(f"{n}")])
            assert [each.task_id for each in watcher.wait(PATIENCE)] == [f"{n}"]
        assert len(client.pubsub_channels()) < 5
        watcher.add([f"left {n}" for n in range(200)])
        assert list(watcher.wait(0)) == []
        watcher.discard([f"left {n}" for n in range(200)])
        assert list(watcher.wait(0)) == []
        eventually(lambda: len(client.pubsub_channels()) < 5)


def test_nothing_is_left_open(backend: RedisBackend, other: RedisBackend) -> None:
    other.put([record("there")])
    list(backend.watch(["there"], PATIENCE))
    backend.close()
    before, threads = os.listdir("/proc/self/fd"), threading.active_count()
    for n in range(30):
        watch = backend.watch(["there", "never"], PATIENCE)
        assert next(watch) == record("there")
        if n % 2:
            del watch
        else:
            assert list(backend.watch(["never"], 0)) == []
    backend.close()
    assert len(os.listdir("/proc/self/fd")) <= len(before)
    assert threading.active_count() == threads


def test_tens_of_thousands_are_watched_at_once(backend: RedisBackend, other: RedisBackend) -> None:
    ids = [f"{n}" for n in range(30_000)]
    other.put([record(id) for id in ids[:10_000]])
    other.put([record(id, STARTED) for id in ids[10_000:20_000]])
    waiting = InThread(lambda: [each.task_id for each in backend.watch(ids, PATIENCE)])
    for at in range(10_000, 30_000, 100):
        other.put([record(id) for id in ids[at : at + 100]])
    found = waiting.result()
    assert (len(found), set(found)) == (len(ids), set(ids))


# -- nothing is missed ---------------------------------------------------------------------------------------------


def test_a_result_between_the_call_and_the_subscription_is_found(
    backend: RedisBackend, other: RedisBackend
) -> None:
    watch = backend.watch(["a"], PATIENCE)
    other.put([record("a")])
    assert list(watch) == [record("a")]


def test_a_result_at_the_moment_of_the_subscription_is_found(
    backend: RedisBackend, other: RedisBackend
) -> None:
    for n in range(300):
        ending = InThread(lambda n=n: other.put([record(f"{n}")]))
        assert list(backend.watch([f"{n}"], PATIENCE)) == [record(f"{n}")]
        ending.result()


def test_what_came_for_others_on_a_kept_connection_is_not_told(
    backend: RedisBackend, other: RedisBackend, client: Any
) -> None:
    assert list(backend.watch(["a", "b"], 0)) == []
    other.put([record("a", FAILURE), record("b", FAILURE)])
    with closing(backend.watcher()) as watcher:
        watcher.add(["c", "b"])
        [found] = watcher.wait(PATIENCE)
        assert (found.task_id, found.state) == ("b", FAILURE)
        assert list(watcher.wait(0)) == []


def test_results_that_are_larger_than_the_server_holds_for_a_subscriber(
    backend: RedisBackend, other: RedisBackend
) -> None:
    large = [record(f"{n}", result=b'"%s"' % (b"x" * 400_000)) for n in range(8)]
    other.put(large)
    ids = [each.task_id for each in large]
    assert sorted(each.task_id for each in backend.watch(ids, PATIENCE)) == ids


# -- lost connections ----------------------------------------------------------------------------------------------


def test_a_killed_connection_is_opened_anew(backend: RedisBackend, other: RedisBackend, client: Any) -> None:
    waiting = wait_for_one(backend, "a", "b")
    for id in ("a", "b"):
        eventually(lambda: listeners(client, "b"))
        assert client.client_kill_filter(_type="pubsub") == 1
        other.put([record(id)])
    assert sorted(each.task_id for each in waiting.result()) == ["a", "b"]


def test_a_kept_connection_that_was_killed_is_not_used(
    backend: RedisBackend, other: RedisBackend, client: Any
) -> None:
    assert list(backend.watch(["a"], 0)) == []
    assert client.client_kill_filter(_type="pubsub") == 1
    waiting = wait_for_one(backend, "a")
    other.put([record("a")])
    assert waiting.result() == [record("a")]


def test_a_wait_outlasts_a_restart_of_the_server(tmp_path: Path) -> None:
    with skipped_without_server(), PrivateRedis(tmp_path, appendonly="always") as server:
        backend, other = opened(server.url), opened(server.url)
        waiting = wait_for_one(backend, "a", "b", timeout=None)
        other.put([record("a")])
        server.kill()
        server.start()
        other.server.close()
        other.put([record("b")])
        assert {each.task_id for each in waiting.result()} == {"a", "b"}
        backend.close()
        other.close()


def test_a_server_that_stays_away_is_an_error_and_the_wait_can_go_on(tmp_path: Path) -> None:
    with skipped_without_server(), PrivateRedis(tmp_path) as server:
        backend = opened(server.url)
        watcher = backend.watcher()
        watcher.add(["a"])
        server.kill()
        with pytest.raises(ConnectionLost, match=f"127.0.0.1:{server.port}"):
            watcher.wait(0)
        began = time.monotonic()
        with pytest.raises(ConnectionLost):
            watcher.wait(SHORT)
        assert time.monotonic() - began < 5
        waiting = InThread(lambda: watcher.wait(None))
        server.start()
        backend.put([record("a")])
        assert waiting.result() == [record("a")]
        watcher.close()
        backend.close()


def test_a_wait_without_end_gives_a_lost_server_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PATIENCE", SHORT)
    with skipped_without_server(), PrivateRedis(tmp_path) as server, closing(opened(server.url)) as backend:
        waiting = wait_for_one(backend, "a", timeout=None)
        server.kill()
        with pytest.raises(ConnectionLost):
            waiting.result()


def test_a_wait_for_a_lost_server_is_woken(tmp_path: Path) -> None:
    with skipped_without_server(), PrivateRedis(tmp_path) as server, closing(opened(server.url)) as backend:
        watcher = backend.watcher()
        watcher.add(["a"])
        assert list(watcher.wait(0)) == []
        server.kill()
        waiting = InThread(lambda: watcher.wait(None))
        watcher.wake()
        assert list(waiting.result()) == []
        watcher.close()


def test_a_connection_that_fell_silent_is_opened_anew(
    server: PrivateRedis, other: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_SILENCE", 0.05)
    with Proxy(server.url) as proxy, closing(opened(proxy.url, timeout=SHORT)) as backend:
        watcher = backend.watcher()
        watcher.add(["a", "b"])
        other.put([record("a")])
        assert list(watcher.wait(PATIENCE)) == [record("a")]
        assert list(watcher.wait(2 * SHORT)) == []  # asks now and then, and is answered
        proxy.black_hole()
        waiting = InThread(lambda: watcher.wait(PATIENCE))
        other.put([record("b")])
        with pytest.raises(ConnectionLost):
            backend.get(["b"])
        proxy.resume()
        assert waiting.result() == [record("b")]
        watcher.close()


def test_an_answer_that_does_not_come_is_a_lost_server(server: PrivateRedis) -> None:
    with closing(opened(server.url, timeout=SHORT)) as backend:
        assert list(backend.watch(["a"], 0)) == []
        server.pause()
        try:
            with pytest.raises(ConnectionLost, match="no answer"):
                list(backend.watch(["a"], 0))
        finally:
            server.resume()


def test_a_user_without_channels_is_told_so(server: PrivateRedis) -> None:
    with closing(opened(server.url_of("deaf", "x"))) as backend:
        with pytest.raises(OperationalError, match="may not do"):
            list(backend.watch(["a"], None))
        assert backend.get(["a"]) == [None]


# -- forks ---------------------------------------------------------------------------------------------------------


def test_a_child_leaves_its_parents_connections_alone(backend: RedisBackend, other: RedisBackend) -> None:
    other.put([record("there")])
    assert list(backend.watch(["there"], PATIENCE)) == [record("there")]  # one is idle
    watch = backend.watch(["there", "a"], PATIENCE)  # and one is used
    assert next(watch) == record("there")

    def child() -> None:
        assert list(backend.watch(["there"], PATIENCE)) == [record("there")]
        watch.close()
        backend.close()

    in_fork(child)
    assert list(backend.watch(["there"], PATIENCE)) == [record("there")]
    other.put([record("a")])
    assert list(watch) == [record("a")]
