"""The unit for a broker and a backend that share nothing, when a step of it fails."""

from __future__ import annotations

import pytest

from celeriac.backends.base import BackendOptions
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers.base import BrokerOptions, Completion, QueueSize, Settlement, Unit
from celeriac.brokers.memory import MemoryBroker, MemoryConsumer
from celeriac.errors import ConnectionLost, PublishFailed
from celeriac.testing.conformance.harness import envelope, outgoing, take
from celeriac.testing.faults import FaultyBackend
from celeriac.topology import Queue
from celeriac.wire.disposition import ACK
from celeriac.wire.envelope import Outgoing

QUEUE, NEXT = Queue("q"), Queue("next")


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker("memory://", BrokerOptions())


@pytest.fixture
def backend() -> FaultyBackend:
    return FaultyBackend(MemoryBackend("memory://", BackendOptions()))


def consumer_with_one(broker: MemoryBroker) -> tuple[MemoryConsumer, Settlement]:
    broker.publish([outgoing(QUEUE, "a")])
    consumer = broker.consumer([QUEUE], name="w")
    (delivery,) = take(consumer, 1)
    return consumer, Settlement(delivery, ACK)


def test_what_was_published_is_not_published_again_when_a_later_step_failed(
    broker: MemoryBroker, backend: FaultyBackend
) -> None:
    consumer, settlement = consumer_with_one(broker)
    unit = Unit(consumer, backend)
    settle = consumer.settle
    consumer.settle = _lost  # type: ignore[method-assign]
    batch = [Completion(settlement, None, [outgoing(NEXT, "b")])]
    with pytest.raises(ConnectionLost):
        unit.complete(batch)
    consumer.settle = settle  # type: ignore[method-assign]
    assert list(unit.complete(batch)) == []
    assert broker.size("next") == QueueSize(1, 0, 0)
    assert broker.size("q") == QueueSize(0, 0, 0)


def _lost(_: object) -> None:
    raise ConnectionLost("cut")


def test_the_neighbours_of_a_message_that_no_queue_takes_are_published_once(
    broker: MemoryBroker, backend: FaultyBackend
) -> None:
    consumer, settlement = consumer_with_one(broker)
    unit = Unit(consumer, backend)
    neighbour, stray = outgoing(NEXT, "b"), Outgoing(envelope("stray"), "nowhere", "key")
    with pytest.raises(PublishFailed) as caught:
        unit.complete([Completion(settlement, None, [neighbour, stray])])
    assert caught.value.ids == ("stray",)
    assert list(unit.complete([Completion(settlement, None, [neighbour])])) == []
    assert broker.size("next") == QueueSize(1, 0, 0)


def test_the_same_message_of_another_batch_is_published(broker: MemoryBroker, backend: FaultyBackend) -> None:
    consumer, settlement = consumer_with_one(broker)
    unit = Unit(consumer, backend)
    message = outgoing(NEXT, "b")
    unit.complete([Completion(settlement, None, [message])])
    unit.complete([Completion(None, None, [message])])
    assert broker.size("next") == QueueSize(2, 0, 0)
