"""How consumers on Redis wait: who is woken by what, and what becomes of those who are not told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from celeriac.brokers import open_broker
from celeriac.brokers.base import Broker, BrokerOptions, Consumer, Delivery, QueueSize, Settlement
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


@pytest.fixture(scope="module")
def quiet_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """A server that nobody else uses."""
    with skipped_without_server(), PrivateRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


class TestFewWakeUp:
    """On a server of their own: a database that somebody empties wakes who waits in any of them."""

    @pytest.fixture
    def redis_url(self, quiet_server: PrivateRedis) -> Iterator[str]:
        yield quiet_server.url
        with client_of(quiet_server.url) as client:
            client.flushall()

    def test_one_message_for_many_who_wait(
        self, broker: Broker, queue: Queue, client: Any, fleet: Callable[[int], Fleet]
    ) -> None:
        waiting = fleet(200)

        def publish() -> None:
            broker.publish([outgoing(queue)])
            waiting.wait_for(1)

        broker.declare([queue])
        commands = quiet_commands(client, publish)
        assert len(commands) < 20, commands

    def test_one_scheduled_message_for_many_who_wait(
        self, broker: Broker, queue: Queue, client: Any, fleet: Callable[[int], Fleet]
    ) -> None:
        with closing(broker.consumer([queue], name="has it scheduled")):
            due = broker.options.clock.now() + timedelta(seconds=3)
            broker.publish([outgoing(queue, due=due)])
            # All know of it when they begin to wait.
            waiting = fleet(60)
            assert not waiting.fetched
            commands = quiet_commands(client, lambda: waiting.wait_for(1))
        assert len(commands) < 30, commands

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
        assert [key for key in client.scan_iter() if b"kombu" not in key] == []


class TestBeingTold:
    @pytest.fixture
    def consumer(self, broker: Broker, queue: Queue, only_told: None) -> Iterator[Consumer]:
        consumer = broker.consumer([queue], name="w")
        yield consumer
        consumer.close()

    @pytest.fixture
    def waiting(self, consumer: Consumer, queue: Queue, client: Any) -> InThread[Any]:
        """Its fetch, which waits."""
        fetch = InThread(lambda: consumer.fetch(1, 60.0))
        eventually(lambda: client.exists(consumer.broker.layout.block(queue.name)[6]))
        return fetch

    def test_by_celery_or_whoever_pushes(
        self, waiting: InThread[Any], broker: Broker, queue: Queue, client: Any
    ) -> None:
        client.lpush(f"{queue.name}\x06\x169", b"{}")
        [delivery] = waiting.result()
        assert delivery.tag.step == 9

    def test_by_a_message_that_is_due_earlier_than_any_other(
        self, waiting: InThread[Any], broker: Broker, queue: Queue
    ) -> None:
        now = broker.options.clock.now()
        broker.publish([outgoing(queue, "later", due=now + timedelta(days=365))])
        broker.publish([outgoing(queue, "soon", due=now + timedelta(seconds=0.05))])
        assert ids(waiting.result()) == ["soon"]

    def test_when_the_server_is_emptied(
        self, waiting: InThread[Any], consumer: Consumer, broker: Broker, queue: Queue, client: Any
    ) -> None:
        client.flushdb()
        assert waiting.is_running()
        broker.publish([outgoing(queue, "a")])
        [delivery] = waiting.result()
        assert list(consumer.settle([Settlement(delivery, ACK)])) == []
        assert broker.size(queue.name) == QueueSize(0, 0, 0)

    def test_when_its_connection_is_killed(
        self, waiting: InThread[Any], consumer: Consumer, broker: Broker, queue: Queue, client: Any
    ) -> None:
        [connection] = [
            each for each in client.client_list() if "t" in each["flags"] and each["db"] == db_of(client)
        ]
        client.client_kill_filter(_id=connection["id"])
        with pytest.raises(ConnectionLost):
            waiting.result()
        broker.publish([outgoing(queue, "a")])
        assert ids(take(consumer, 1)) == ["a"]

    def test_a_wake_before_there_is_a_connection_counts(self, consumer: Consumer) -> None:
        consumer.wake()
        assert list(InThread(lambda: consumer.fetch(1, 60.0)).result()) == []

    def test_what_is_broadcast_while_it_waits(
        self, broker: Broker, queue: Queue, client: Any, only_told: None
    ) -> None:
        all_hear = Queue(queue.name, Exchange("news", "fanout"))
        consumer = broker.consumer([all_hear], name="w")
        fetch = InThread(lambda: consumer.fetch(1, 60.0))
        eventually(lambda: client.exists(broker.layout.block(queue.name)[6]))
        broker.publish([Outgoing(outgoing(queue, "a").envelope, "news", "any.key", queue=all_hear)])
        [delivery] = fetch.result()
        assert (delivery.envelope.task_id, delivery.queue) == ("a", queue.name)
        consumer.close()


def db_of(client: Any) -> str:
    return str(client.get_connection_kwargs()["db"])


@pytest.fixture(scope="module")
def old_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """A server without RESP3, as Redis 5 and some proxies are."""
    folder = tmp_path_factory.mktemp("redis")
    with skipped_without_server(), PrivateRedis(folder, config={"rename-command": 'HELLO ""'}) as server:
        yield server


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """A server with a user who may not track."""
    folder = tmp_path_factory.mktemp("redis")
    users = {"limited": "on >secret ~* &* +@all -client|tracking"}
    with skipped_without_server(), PrivateRedis(folder, users=users) as server:
        yield server


class TestNotBeingTold:
    """Servers that do not push: the consumer looks again and again, and says nothing."""

    def waits(self, broker: Broker, queue: Queue) -> None:
        consumer = broker.consumer([queue], name="w")
        fetch = InThread(lambda: consumer.fetch(1, 60.0))
        broker.publish([outgoing(queue, "a")])
        assert ids(fetch.result()) == ["a"]
        due = broker.options.clock.now() + timedelta(seconds=0.05)
        broker.publish([outgoing(queue, "b", due=due)])
        assert ids(consumer.fetch(1, 60.0)) == ["b"]
        fetch = InThread(lambda: consumer.fetch(1, 60.0))
        consumer.wake()
        assert list(fetch.result()) == []
        consumer.close()
        broker.close()

    def test_a_server_without_resp3(self, old_server: PrivateRedis, queue: Queue) -> None:
        self.waits(open_broker(old_server.url, BrokerOptions()), queue)

    def test_a_user_who_may_not_track(self, strict_server: PrivateRedis, queue: Queue) -> None:
        self.waits(open_broker(strict_server.url_of("limited", "secret"), BrokerOptions()), queue)

    def test_broadcasts_are_heard(self, old_server: PrivateRedis, queue: Queue) -> None:
        broker = open_broker(old_server.url, BrokerOptions())
        all_hear = replace(queue, exchange=Exchange("news", "fanout"))
        consumer = broker.consumer([all_hear], name="w")
        assert list(consumer.fetch(1, 0.01)) == []
        broker.publish([Outgoing(outgoing(queue, "a").envelope, "news", "", queue=all_hear)])
        assert ids(take(consumer, 1)) == ["a"]
        consumer.close()
        broker.close()
