"""How consumers on Redis wait: who is woken by what, and what becomes of those who are not told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from celeriac.brokers import open_broker
from celeriac.brokers.base import Broker, BrokerOptions, Consumer, Delivery, QueueSize, Settlement
from celeriac.brokers.redis import RedisBroker
from celeriac.errors import ConnectionLost
from celeriac.redis import claiming
from celeriac.testing.conformance.harness import InThread, ids, outgoing, take
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.servers import PrivateRedis
from celeriac.topology import Exchange, Queue
from celeriac.wire.disposition import ACK
from celeriac.wire.envelope import Outgoing
from redis_support import client_of
from support import eventually

#: Seconds within which everybody has to be woken; without a wake it would take longer.
PROMPTLY = 10.0


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with client_of(redis_url) as client:
        yield client


@pytest.fixture
def broker(redis_url: str) -> Iterator[Broker]:
    broker = open_broker(redis_url, BrokerOptions())
    yield broker
    broker.close()


@pytest.fixture
def queue() -> Queue:
    return Queue(f"q-{uuid4().hex[:12]}")


@pytest.fixture
def only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself."""
    monkeypatch.setattr(claiming, "_PATIENCE", (60.0, 60.0))


class Fleet:
    """Consumers that wait, each on a thread of its own, for one message and then one more."""

    def __init__(self, broker: Broker, queue: Queue, client: Any, number: int) -> None:
        self._client = client
        self._block = broker.layout.block(queue.name)
        self._changed = threading.Condition()
        self._stopping = False
        self.fetched: list[tuple[Consumer, Delivery]] = []
        self.consumers = [broker.consumer([queue], name=str(n)) for n in range(number)]
        self._threads = [InThread(lambda each=each: self._work(each)) for each in self.consumers]

    def _work(self, consumer: Consumer) -> None:
        while not (self._stopping or consumer._closed):
            for delivery in consumer.fetch(1, 60.0):
                assert list(consumer.settle([Settlement(delivery, ACK)])) == []
                with self._changed:
                    self.fetched.append((consumer, delivery))
                    self._changed.notify_all()
                    # Busy: it takes no second one until the test says so.
                    self._changed.wait_for(lambda: self._stopping)

    def all_wait(self) -> None:
        def waiting() -> int:
            sentries, sleepers = self._client.zcard(self._block[6]), self._client.zcard(self._block[7])
            return sentries + sleepers

        eventually(lambda: waiting() == len(self.consumers), what="all to wait")

    def wait_for(self, number: int) -> None:
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.fetched) >= number, PROMPTLY)
        assert arrived, f"{len(self.fetched)} of {number} got theirs"

    def close(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for each in self.consumers:
            each.close()
        for each in self._threads:
            each.result()


@pytest.fixture
def fleet(broker: Broker, queue: Queue, client: Any, only_told: None) -> Iterator[Callable[[int], Fleet]]:
    with ExitStack() as stack:

        def assembled(number: int) -> Fleet:
            fleet = Fleet(broker, queue, client, number)
            stack.callback(fleet.close)
            fleet.all_wait()
            return fleet

        yield assembled


def quiet_commands(client: Any, action: Callable[[], None]) -> list[str]:
    """What clients send during an action, and after it until nothing comes any more; without the scripts' commands."""
    seen: list[str] = []
    database = client.get_connection_kwargs()["db"]
    with client.monitor() as monitor:
        action()
        for _ in range(20):
            mark = uuid4().hex
            client.echo(mark)
            before = len(seen)
            while mark not in (command := monitor.next_command())["command"]:
                if command["db"] == database and command["client_type"] != "lua":
                    seen.append(command["command"])
            if len(seen) == before:
                time.sleep(0.002)
    return seen


class TestFewWakeUp:
    def test_one_message_for_many_who_wait(
        self, broker: Broker, queue: Queue, client: Any, fleet: Callable[[int], Fleet]
    ) -> None:
        waiting = fleet(200)

        def publish() -> None:
            broker.publish([outgoing(queue)])
            waiting.wait_for(1)

        broker.declare([queue])
        commands = quiet_commands(client, publish)
        print(len(commands), [c[:30] for c in commands])
        assert len(commands) < 20, commands

    def test_who_took_one_is_replaced(
        self, broker: Broker, queue: Queue, fleet: Callable[[int], Fleet]
    ) -> None:
        waiting = fleet(20)
        for number in range(1, 21):
            broker.publish([outgoing(queue)])
            waiting.wait_for(number)

    def test_as_many_messages_as_consumers_in_one_batch(
        self, broker: Broker, queue: Queue, fleet: Callable[[int], Fleet]
    ) -> None:
        waiting = fleet(200)
        broker.publish([outgoing(queue) for _ in range(200)])
        waiting.wait_for(200)
        assert len({consumer for consumer, _ in waiting.fetched}) == 200

    def test_as_many_messages_as_consumers_one_by_one(
        self, broker: Broker, queue: Queue, fleet: Callable[[int], Fleet]
    ) -> None:
        waiting = fleet(100)
        for _ in range(100):
            broker.publish([outgoing(queue)])
        waiting.wait_for(100)

    def test_a_sentry_that_leaves_is_replaced(
        self, broker: Broker, queue: Queue, fleet: Callable[[int], Fleet]
    ) -> None:
        waiting = fleet(12)
        for each in waiting.consumers[:8]:
            each.close()
        broker.publish([outgoing(queue)])
        waiting.wait_for(1)

    def test_all_that_is_due_at_once_reaches_all(
        self, broker: Broker, queue: Queue, fleet: Callable[[int], Fleet]
    ) -> None:
        waiting = fleet(30)
        due = broker.options.clock.now() + timedelta(seconds=0.2)
        broker.publish([outgoing(queue, due=due) for _ in range(30)])
        waiting.wait_for(30)

    def test_nothing_is_left_of_those_who_waited(
        self, broker: Broker, queue: Queue, client: Any, fleet: Callable[[int], Fleet]
    ) -> None:
        waiting = fleet(10)
        broker.publish([outgoing(queue)])
        waiting.wait_for(1)
        waiting.close()
        assert [key for key in client.keys() if b"kombu" not in key] == []
