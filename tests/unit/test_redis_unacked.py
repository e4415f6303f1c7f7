"""What Celery's workers took and did not settle, swept with Celery's keys and rules (wire-protocol §5.1-5.2)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celeriac.brokers import open_broker
from celeriac.brokers.base import BrokerOptions
from celeriac.brokers.redis import RedisBroker, RedisConsumer
from celeriac.redis import letters
from celeriac.testing.clock import MovableClock
from celeriac.testing.conformance.harness import envelope, take
from celeriac.testing.proxy import Proxy
from celeriac.topology import Exchange, Queue
from redis_support import client_of

Taken = Callable[..., str]


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with client_of(redis_url) as client:
        yield client


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


def opened(url: str, clock: MovableClock, **transport: Any) -> RedisBroker:
    broker = open_broker(url, BrokerOptions(clock=clock, transport=transport))
    assert isinstance(broker, RedisBroker)
    return broker


@pytest.fixture
def broker(redis_url: str, clock: MovableClock) -> Iterator[RedisBroker]:
    broker = opened(redis_url, clock)
    yield broker
    broker.close()


@pytest.fixture
def consumer(broker: RedisBroker) -> Iterator[RedisConsumer]:
    consumer = broker.consumer([Queue("q")], name="w")
    yield consumer
    consumer.close()


@pytest.fixture
def taken(client: Any, clock: MovableClock) -> Taken:
    """A message that a worker of Celery's has held for so many seconds."""

    def taken(
        id: str, *, seconds: float, exchange: str = "", key: str = "q", priority: int = 0, prefix: str = ""
    ) -> str:
        document = json.loads(letters.write(envelope(id, priority=priority), exchange, key))
        tag: str = document["properties"]["delivery_tag"]
        client.hset(f"{prefix}unacked", tag, json.dumps([document, exchange, key]))
        client.zadd(f"{prefix}unacked_index", {tag: clock.now().timestamp() - seconds})
        return tag

    return taken


class TestSweep:
    def test_what_is_overdue_is_put_back(self, consumer: RedisConsumer, taken: Taken, client: Any) -> None:
        taken("overdue", seconds=3601)
        young = taken("young", seconds=3599)
        assert consumer._unacked.sweep() == 1
        assert client.hkeys("unacked") == [young.encode()]
        assert client.zrange("unacked_index", 0, -1) == [young.encode()]
        assert not client.exists("unacked_mutex")
        [data] = client.lrange("q", 0, -1)
        document = json.loads(data)
        assert document["headers"]["redelivered"] is True
        assert document["properties"]["delivery_info"] == {
            "exchange": "",
            "routing_key": "q",
            "redelivered": True,
        }
        [delivery] = take(consumer, 1)
        assert (delivery.envelope.task_id, delivery.attempts, delivery.redelivered) == ("overdue", 1, True)

    def test_it_goes_to_the_front_of_its_priority(
        self, consumer: RedisConsumer, taken: Taken, client: Any
    ) -> None:
        client.lpush("q\x06\x166", "waiting")
        taken("urgent", seconds=4000, priority=7)
        assert consumer._unacked.sweep() == 1
        first, second = client.lrange("q\x06\x166", 0, -1)
        assert first == b"waiting"
        assert json.loads(second)["headers"]["id"] == "urgent"

    def test_it_goes_where_its_exchange_leads(
        self, broker: RedisBroker, consumer: RedisConsumer, taken: Taken, client: Any
    ) -> None:
        broker.declare(
            [Queue("one", Exchange("x", "topic"), "a.#"), Queue("two", Exchange("x", "topic"), "#.b")]
        )
        taken("both", seconds=4000, exchange="x", key="a.b")
        assert consumer._unacked.sweep() == 1
        assert (client.llen("one"), client.llen("two"), client.hlen("unacked")) == (1, 1, 0)

    def test_what_goes_nowhere_stays(
        self, consumer: RedisConsumer, taken: Taken, client: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        stays = taken("nowhere", seconds=4000, exchange="none", key="k")
        client.hset("unacked", "broken", "{")
        client.zadd("unacked_index", {"broken": 1})
        taken("good", seconds=4000)
        assert consumer._unacked.sweep() == 1
        assert set(client.hkeys("unacked")) == {stays.encode(), b"broken"}
        assert [each.levelno for each in caplog.records] == [logging.ERROR] * 2

    def test_what_is_settled_leaves_no_entry_in_the_index(self, consumer: RedisConsumer, client: Any) -> None:
        client.zadd("unacked_index", {"settled": 1})
        assert consumer._unacked.sweep() == 0
        assert not client.exists("unacked_index")

    def test_more_than_a_slice(self, consumer: RedisConsumer, taken: Taken, client: Any) -> None:
        for n in range(250):
            taken(str(n), seconds=4000 + n)
        assert consumer._unacked.sweep() == 250
        assert (client.llen("q"), client.hlen("unacked")) == (250, 0)

    def test_a_long_one_costs_no_leases(
        self, redis_url: str, clock: MovableClock, taken: Taken, client: Any
    ) -> None:
        for n in range(60):
            taken(str(n), seconds=4000)
        nowhere = taken("nowhere", seconds=5000, exchange="none", key="k")
        with Proxy(redis_url) as proxy:
            broker = open_broker(proxy.url, BrokerOptions(clock=clock, lease=3.0))
            consumer = broker.consumer([Queue("q")], name="w")
            proxy.delay(0.02)
            consumer._next_sweep = time.monotonic()
            renewals = 0
            while client.hlen("unacked") > 1:
                began = time.monotonic()
                assert list(consumer.renew()) == []
                assert time.monotonic() - began < 1.5
                renewals += 1
            assert renewals > 1
            assert client.hkeys("unacked") == [nowhere.encode()]
            proxy.resume()
            consumer.close()
            broker.close()

    def test_one_that_is_cut_short_goes_on(
        self, consumer: RedisConsumer, taken: Taken, client: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        taken("nowhere", seconds=5000, exchange="none", key="k")
        for id in "ab":
            taken(id, seconds=4000)
        assert [consumer._unacked.sweep(until=0.0) for _ in range(3)] == [0, 1, 1]
        assert consumer._unacked.is_unfinished
        assert consumer._unacked.sweep() == 0
        assert not consumer._unacked.is_unfinished
        # Complained of once.
        assert len(caplog.records) == 1

    def test_one_at_a_time(self, consumer: RedisConsumer, taken: Taken, client: Any) -> None:
        taken("a", seconds=4000)
        client.set("unacked_mutex", "somebody", px=300_000)
        assert consumer._unacked.sweep() == 0
        assert client.get("unacked_mutex") == b"somebody"
        assert client.hlen("unacked") == 1

    def test_by_the_options_of_celery(
        self, redis_url: str, clock: MovableClock, taken: Taken, client: Any
    ) -> None:
        broker = opened(redis_url, clock, visibility_timeout="60", global_keyprefix="mine:")
        consumer = broker.consumer([Queue("q")], name="w")
        taken("a", seconds=61, prefix="mine:")
        taken("not ours", seconds=4000)
        assert consumer._unacked.sweep() == 1
        assert (client.llen("mine:q"), client.llen("q")) == (1, 0)
        consumer.close()
        broker.close()

    def test_renewing_sweeps_now_and_then(
        self, consumer: RedisConsumer, taken: Taken, client: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        taken("a", seconds=4000)
        consumer.renew()
        assert client.llen("q") == 0
        consumer._next_sweep = time.monotonic()
        with caplog.at_level(logging.WARNING):
            consumer.renew()
        assert client.llen("q") == 1
        assert "put back 1 message" in caplog.text
        assert consumer._next_sweep > time.monotonic() + 50
