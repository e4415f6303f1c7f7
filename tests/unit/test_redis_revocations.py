"""Revocations on Redis: known at once, without asking, for as long as they hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.errors import ConnectionLost
from celeriac.testing.clock import MovableClock
from celeriac.testing.conformance.harness import in_fork
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.servers import PrivateRedis
from redis_support import client_of, commands_of
from support import eventually

KEYS = {b"celeriac-revoked", b"celeriac-revoked-until", b"celeriac-revoked-position"}


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def opened(redis_url: str, clock: MovableClock) -> Iterator[Callable[[], ResultBackend]]:
    backends: list[ResultBackend] = []

    def opened() -> ResultBackend:
        backends.append(open_backend(redis_url, BackendOptions(clock=clock)))
        return backends[-1]

    yield opened
    for each in backends:
        each.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with client_of(redis_url) as client:
        yield client


def test_nothing_is_asked_while_nothing_was_revoked(
    opened: Callable[[], ResultBackend], clock: MovableClock, client: Any
) -> None:
    backend = opened()
    backend.revoke(["a"], until=clock.now() + timedelta(seconds=60))
    position, news = backend.revoked(0)
    assert news.keys() == {"a"}
    with commands_of(client) as commands:
        for _ in range(1000):
            assert backend.revoked(position) == (position, {})
        assert backend.revoked(0)[1].keys() == {"a"}
    assert commands == []


def test_what_was_revoked_elsewhere_is_known_at_once(
    opened: Callable[[], ResultBackend], clock: MovableClock
) -> None:
    backend, other = opened(), opened()
    until = clock.now() + timedelta(seconds=60)
    position, _ = backend.revoked(0)
    for n in range(500):
        other.revoke([f"{n}"], until=until)
        position, news = backend.revoked(position)
        assert news.keys() == {f"{n}"}


def test_what_was_revoked_in_another_process_is_known_at_once(
    opened: Callable[[], ResultBackend], clock: MovableClock
) -> None:
    backend = opened()
    position, _ = backend.revoked(0)

    def child() -> None:
        assert backend.revoked(0)[1] == {}
        backend.revoke(["a"], until=clock.now() + timedelta(seconds=60))
        assert backend.revoked(0)[1].keys() == {"a"}

    in_fork(child)
    assert backend.revoked(position)[1].keys() == {"a"}


def test_a_connection_that_was_killed_hides_nothing(
    opened: Callable[[], ResultBackend], clock: MovableClock, client: Any
) -> None:
    backend, other = opened(), opened()
    position, _ = backend.revoked(0)
    here = str(client.get_connection_kwargs()["db"])
    [tracking] = [each for each in client.client_list() if "t" in each["flags"] and each["db"] == here]
    client.client_kill_filter(_id=tracking["id"])
    other.revoke(["a"], until=clock.now() + timedelta(seconds=60))
    assert backend.revoked(position)[1].keys() == {"a"}


def test_all_keys_go_with_the_last_revocation(
    opened: Callable[[], ResultBackend], clock: MovableClock, client: Any
) -> None:
    backend = opened()
    backend.revoke(["long"], until=clock.now() + timedelta(seconds=600))
    backend.revoke(["short"], until=clock.now() + timedelta(seconds=60))
    assert set(client.keys()) == KEYS
    assert all(590 < client.ttl(key) <= 600 for key in KEYS)


def test_what_no_longer_holds_takes_no_room(
    opened: Callable[[], ResultBackend], clock: MovableClock, client: Any
) -> None:
    backend = opened()
    for _ in range(3):
        ids = [f"{clock.now()} {n}" for n in range(20_000)]
        backend.revoke(ids, until=clock.now() + timedelta(seconds=60))
        assert backend.revoked(0)[1].keys() == set(ids)
        clock.advance(61)
    backend.revoke(["a"], until=clock.now() + timedelta(seconds=60))
    assert backend.revoked(0)[1].keys() == {"a"}
    assert (client.zcard("celeriac-revoked"), client.zcard("celeriac-revoked-until")) == (1, 1)


def test_an_emptied_database_begins_anew(
    opened: Callable[[], ResultBackend], clock: MovableClock, client: Any
) -> None:
    backend, until = opened(), clock.now() + timedelta(seconds=60)
    backend.revoke(["a"], until=until)
    position, _ = backend.revoked(0)
    client.flushdb()
    assert backend.revoked(position) == (0, {})
    backend.revoke(["b"], until=until)
    assert backend.revoked(position)[1].keys() == {"b"}
    assert backend.revoked(0)[1].keys() == {"b"}


def test_revoked_for_ever(opened: Callable[[], ResultBackend]) -> None:
    backend = opened()
    backend.revoke(["a"], until=datetime(9999, 12, 31, tzinfo=UTC))
    [(id, until)] = backend.revoked(0)[1].items()
    assert (id, until.year) == ("a", 9999)


def test_a_server_that_is_away_is_not_asked_all_the_time(tmp_path: Path) -> None:
    with skipped_without_server(), PrivateRedis(tmp_path) as server:
        backend = open_backend(server.url, BackendOptions(timeout=0.3))
        position, _ = backend.revoked(0)
        server.pause()
        backend.close()
        with pytest.raises(ConnectionLost):
            backend.revoked(position)
        began = time.monotonic()
        with pytest.raises(ConnectionLost):
            backend.revoked(position)
        assert time.monotonic() - began < 0.1
        server.resume()
        eventually(lambda: is_there(backend))
        backend.close()


def is_there(backend: ResultBackend) -> bool:
    try:
        backend.revoked(0)
    except ConnectionLost:
        return False
    return True


@pytest.mark.parametrize("command", ["HELLO", "CLIENT"])
def test_where_the_server_does_not_tell_it_is_asked_now_and_then(tmp_path: Path, command: str) -> None:
    config = {"rename-command": f'{command} ""'}
    with (
        skipped_without_server(),
        PrivateRedis(tmp_path, config=config) as server,
        closing(open_backend(server.url, BackendOptions())) as backend,
        closing(open_backend(server.url, BackendOptions())) as other,
        client_of(server.url) as client,
    ):
        until = datetime.now(UTC) + timedelta(seconds=60)
        position, _ = backend.revoked(0)
        other.revoke(["a"], until=until)
        eventually(lambda: backend.revoked(position)[1].keys() == {"a"}, within=5.0)
        before = client.info("commandstats")["cmdstat_get"]["calls"]
        for _ in range(1000):
            backend.revoked(position)
        assert client.info("commandstats")["cmdstat_get"]["calls"] - before <= 2
