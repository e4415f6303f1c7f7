"""Messages in SQL beyond what every broker promises: many queues, large numbers, large bodies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.brokers import open_broker
from celeriac.brokers.base import Broker, BrokerOptions, Completion, QueueSize, Settlement
from celeriac.errors import PublishFailed
from celeriac.testing.clock import MovableClock
from celeriac.testing.conformance.harness import envelope, ids, outgoing, take
from celeriac.topology import Exchange, Queue
from celeriac.wire.disposition import ACK, Return
from celeriac.wire.envelope import Outgoing
from celeriac.wire.record import Record

QUEUE = Queue("q")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/celeriac.db"


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def broker(url: str, clock: MovableClock) -> Iterator[Broker]:
    broker = open_broker(url, BrokerOptions(clock=clock))
    yield broker
    broker.close()


@pytest.fixture
def backend(url: str, clock: MovableClock) -> Iterator[ResultBackend]:
    backend = open_backend(url, BackendOptions(clock=clock))
    yield backend
    backend.close()


def test_several_queues_are_one_line_by_priority_and_age(broker: Broker) -> None:
    one, two, three = Queue("one"), Queue("two"), Queue("three")
    broker.publish(
        [outgoing(one, "a"), outgoing(two, "b", priority=5), outgoing(three, "c"), outgoing(one, "d")]
    )
    broker.publish([outgoing(two, "e"), outgoing(three, "f", priority=9)])
    consumer = broker.consumer([one, two, three], name="w")
    deliveries = take(consumer, 3)
    assert ids(deliveries) == ["f", "b", "a"]
    assert [each.queue for each in deliveries] == ["three", "two", "one"]
    assert ids(take(consumer, 3)) == ["c", "d", "e"]
    consumer.close()


def test_a_claim_takes_no_more_bytes_than_is_good(broker: Broker) -> None:
    broker.publish([Outgoing(envelope(f"{n}", os.urandom(1 << 20)), "", "q") for n in range(10)])
    consumer = broker.consumer([QUEUE], name="w")
    first = consumer.fetch(10, 1)
    assert 1 <= len(first) < 10
    assert broker.size("q") == QueueSize(10 - len(first), 0, len(first))
    assert ids([*first, *take(consumer, 10 - len(first))]) == [f"{n}" for n in range(10)]
    consumer.close()


def test_thousands_that_become_due_at_once_all_come(broker: Broker, clock: MovableClock) -> None:
    due = clock.now() + timedelta(seconds=60)
    broker.publish([outgoing(QUEUE, f"{n}", due=due) for n in range(2500)])
    consumer = broker.consumer([QUEUE], name="w")
    assert list(consumer.fetch(1, 0)) == []
    clock.advance(60)
    assert broker.size("q") == QueueSize(2500, 0, 0)
    assert ids(take(consumer, 2500)) == [f"{n}" for n in range(2500)]
    consumer.close()


def test_a_large_queue_is_purged_whole(broker: Broker) -> None:
    broker.publish([outgoing(QUEUE) for _ in range(2500)])
    assert broker.purge("q") == 2500
    assert broker.size("q") == QueueSize(0, 0, 0)


def test_what_of_a_large_batch_was_not_published_is_named(
    broker: Broker, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large batch is several transactions."""
    broker.declare([QUEUE])
    nowhere = Outgoing(envelope("unroutable"), "none", "key")
    batch = [nowhere, *(outgoing(QUEUE, f"{n}") for n in range(2500))]
    impatient = open_broker(url, BrokerOptions(publish_timeout=0.1))
    impatient.declare([QUEUE])
    lock = broker.transaction()
    first_part_is_in = impatient.ring
    monkeypatch.setattr(impatient, "ring", lambda ready: (first_part_is_in(ready), lock.__enter__()))
    with pytest.raises(PublishFailed, match="locked") as failed:
        impatient.publish(batch)
    lock.__exit__(None, None, None)
    assert failed.value.ids == ("unroutable", *(f"{n}" for n in range(999, 2500)))
    assert broker.size("q") == QueueSize(999, 0, 0)


def test_a_large_unit_is_carried_out_whole(broker: Broker, backend: ResultBackend) -> None:
    broker.publish([outgoing(QUEUE, f"{n}") for n in range(1500)])
    consumer = broker.consumer([QUEUE], name="w")
    deliveries = take(consumer, 1500)
    completions = [
        Completion(
            Settlement(each, ACK), Record(task_id=each.envelope.task_id, state="SUCCESS", result=b"1" * 2000)
        )
        for each in deliveries
    ]
    nowhere = Completion(Settlement(deliveries[-1], ACK), None, [Outgoing(envelope("x"), "none", "key")])
    unit = consumer.unit(backend)
    with pytest.raises(PublishFailed):
        unit.complete([*completions[:-1], nowhere])
    assert broker.size("q") == QueueSize(0, 0, 1500)
    assert list(unit.complete(completions)) == []
    assert None not in backend.get([each.envelope.task_id for each in deliveries])
    assert broker.size("q") == QueueSize(0, 0, 0)
    consumer.close()


def test_an_idle_database_is_not_written_to(broker: Broker, tmp_path: Path) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    before = (tmp_path / "celeriac.db-wal").stat().st_size
    for _ in range(20):
        assert list(consumer.fetch(1, 0.01)) == []
    assert (tmp_path / "celeriac.db-wal").stat().st_size == before
    consumer.close()


def test_bindings_add_up(broker: Broker) -> None:
    exchange = Exchange("x", "topic")
    broker.declare([Queue("bound", exchange, "a.*")])
    broker.declare([Queue("bound", exchange, "b.*")])
    broker.publish([Outgoing(envelope(key), "x", key) for key in ("a.1", "b.1")])
    assert broker.size("bound") == QueueSize(2, 0, 0)


def test_a_delivery_that_was_returned_and_taken_again_is_another_one(broker: Broker) -> None:
    broker.publish([outgoing(QUEUE, "a")])
    consumer = broker.consumer([QUEUE], name="w")
    [first] = take(consumer, 1)
    consumer.settle([Settlement(first, Return())])
    [second] = take(consumer, 1)
    assert list(consumer.settle([Settlement(first, ACK)])) == [first]
    assert broker.size("q") == QueueSize(0, 0, 1)
    assert list(consumer.settle([Settlement(second, ACK)])) == []
    consumer.close()


def test_fetching_after_close_brings_nothing(broker: Broker) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    broker.publish([outgoing(QUEUE)])
    consumer.close()
    assert list(consumer.fetch(1, 10)) == []
    consumer.wake()
    assert list(consumer.renew()) == []
    assert broker.size("q") == QueueSize(1, 0, 0)
