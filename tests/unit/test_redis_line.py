"""A line to Redis: large things both ways, interruptions, and servers that say nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import redis

from celeriac.redis import RedisServer
from celeriac.redis.line import Line, Push
from celeriac.testing.conformance.harness import PATIENCE, InThread
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.servers import PrivateRedis
from redis_support import client_of

TIMEOUT = 0.3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    with skipped_without_server(), PrivateRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def line(server: PrivateRedis) -> Iterator[Line]:
    place = RedisServer.of(server.url, transport={}, timeout=TIMEOUT)
    with closing(Line(place, timeout=TIMEOUT)) as line:
        yield line


def test_what_is_larger_than_any_buffer_goes_both_ways(line: Line) -> None:
    large = bytes(range(256)) * 100_000
    assert line.ask(("ECHO", large), ("PING",)) == [large, b"PONG"]


def test_replies_are_told_from_pushes(server: PrivateRedis, line: Line) -> None:
    line.send(("SUBSCRIBE", "channel"))
    [subscribed] = line.receive(PATIENCE)
    assert isinstance(subscribed, Push)
    with client_of(server.url) as client:
        client.publish("channel", "dropped")
        assert line.ask(("ECHO", "x")) == [b"x"]
        client.publish("channel", "kept")
    assert line.receive(PATIENCE) == [[b"message", b"channel", b"kept"]]


def test_an_error_is_raised_after_all_replies_came(line: Line) -> None:
    with pytest.raises(redis.ResponseError, match="unknown command"):
        line.ask(("NONSENSE",), ("ECHO", "x"))
    assert line.ask(("ECHO", "y")) == [b"y"]


def test_silence_ends_with_the_timeout(line: Line) -> None:
    assert line.receive(0) == []
    began = time.monotonic()
    assert line.receive(0.05) == []
    assert 0.05 <= time.monotonic() - began < PATIENCE / 2


def test_a_wait_is_woken_and_a_wake_is_kept(line: Line) -> None:
    waiting = InThread(lambda: line.receive(PATIENCE))
    line.wake()
    assert waiting.result() == []
    for _ in range(100_000):  # more than a pipe holds
        line.wake()
    assert line.ask(("ECHO", "x")) == [b"x"]


def test_a_server_that_does_not_read_or_answer_is_given_up(server: PrivateRedis, line: Line) -> None:
    server.pause()
    try:
        with pytest.raises(redis.TimeoutError, match="no answer"):
            line.ask(("PING",))
        with pytest.raises(redis.TimeoutError, match="nothing could be written"):
            line.send(("ECHO", b"x" * 50_000_000))
    finally:
        server.resume()


def test_a_connection_that_the_server_closed_is_an_error(line: Line) -> None:
    line.send(("QUIT",))
    assert line.receive(PATIENCE) == [b"OK"]
    with pytest.raises(redis.ConnectionError, match="closed"):
        line.receive(PATIENCE)
