"""What the memory broker does beyond the contract (tests/conformance/test_memory.py)."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.backends.base import BackendOptions
from celeriac.backends.disabled import DisabledBackend
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers.base import BrokerOptions, Completion, QueueSize, Settlement
from celeriac.brokers.memory import MemoryBroker
from celeriac.errors import ConnectionLost, OperationalError, PublishFailed
from celeriac.testing import FaultyBackend, MovableClock
from celeriac.testing.conformance.harness import LEASE, envelope, ids, let_pass, outgoing, take
from celeriac.topology import Queue
from celeriac.wire.disposition import ACK
from celeriac.wire.envelope import Outgoing
from celeriac.wire.record import Record

QUEUE, NEXT = Queue("work"), Queue("next")


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def broker(clock: MovableClock) -> MemoryBroker:
    return MemoryBroker("memory://", BrokerOptions(lease=LEASE, clock=clock))


def record(id: str) -> Record:
    return Record(task_id=id, state="SUCCESS", result=b"1")


def test_two_brokers_share_nothing(broker: MemoryBroker) -> None:
    broker.publish([outgoing(QUEUE)])
    assert MemoryBroker("memory://", BrokerOptions()).size("work") == QueueSize(0, 0, 0)


def test_the_best_of_all_queues_comes_first(broker: MemoryBroker) -> None:
    broker.publish([outgoing(QUEUE, "a"), outgoing(NEXT, "b"), outgoing(QUEUE, "c")])
    broker.publish([outgoing(NEXT, "d", priority=1)])
    assert ids(take(broker.consumer([QUEUE, NEXT], name="w"), 4)) == ["d", "a", "b", "c"]


def test_a_closed_consumer_gets_nothing_and_holds_nothing(broker: MemoryBroker, clock: MovableClock) -> None:
    closed, other = broker.consumer([QUEUE], name="w1"), broker.consumer([QUEUE], name="w2")
    broker.publish([outgoing(QUEUE, "a")])
    [delivery] = take(closed, 1)
    closed.close()
    assert list(closed.fetch(1, 10)) == []
    assert list(closed.renew()) == []
    assert list(closed.held()) == []
    assert list(closed.settle([Settlement(delivery, ACK)])) == [delivery]
    assert list(let_pass(clock, 2 * LEASE, other)) == []
    assert ids(take(other, 1)) == ["a"]


def test_after_a_lost_reply_no_more_is_claimed_than_asked_for(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    broker.publish([outgoing(QUEUE) for _ in range(10)])
    claim = broker.server.claim

    def claim_and_lose_the_reply(*args: Any) -> None:
        claim(*args)
        raise ConnectionLost

    with monkeypatch.context() as patch:
        patch.setattr(broker.server, "claim", claim_and_lose_the_reply)
        with pytest.raises(ConnectionLost):
            consumer.fetch(3, 0)
    assert (len(consumer.fetch(2, 0)), broker.size("work").unsettled) == (2, 3)
    assert (len(consumer.fetch(2, 0)), broker.size("work").unsettled) == (2, 4)


@pytest.mark.parametrize("backend", [MemoryBackend, DisabledBackend])
def test_units_with_a_backend_in_this_process_do_all_or_nothing(
    broker: MemoryBroker, backend: type[Any]
) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    broker.publish([outgoing(QUEUE, "a"), outgoing(QUEUE, "b")])
    a, b = take(consumer, 2)
    unit = consumer.unit(backend("", BackendOptions()))
    good = Completion(Settlement(a, ACK), record("a"), [outgoing(NEXT)])
    with pytest.raises(PublishFailed):
        unit.complete([good, Completion(Settlement(b, ACK), None, [Outgoing(envelope(), "nowhere", "key")])])
    assert (broker.size("work"), broker.size("next")) == (QueueSize(0, 0, 2), QueueSize(0, 0, 0))
    assert list(unit.complete([good, Completion(Settlement(b, ACK))])) == []
    assert (broker.size("work"), broker.size("next")) == (QueueSize(0, 0, 0), QueueSize(1, 0, 0))


def test_a_backend_elsewhere_that_fails_keeps_the_message(broker: MemoryBroker) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    broker.publish([outgoing(QUEUE, "a")])
    [delivery] = take(consumer, 1)
    backend = FaultyBackend(MemoryBackend("memory://", BackendOptions()))
    backend.faults.fail("put")
    unit = consumer.unit(backend)
    completion = Completion(Settlement(delivery, ACK), record("a"), [outgoing(NEXT)])
    with pytest.raises(OperationalError):
        unit.complete([completion])
    assert broker.size("work") == QueueSize(0, 0, 1)
    assert list(unit.complete([completion])) == []
    assert broker.size("work") == QueueSize(0, 0, 0)
    assert backend.get(["a"]) == [record("a")]
