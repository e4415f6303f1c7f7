"""Servers that fail on demand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celeriac.backends.base import BackendOptions
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers.base import BrokerOptions, Completion, Consumer, QueueSize, Settlement, Unit
from celeriac.brokers.memory import MemoryBroker
from celeriac.errors import ConnectionLost, OperationalError, PublishFailed
from celeriac.testing import Faults, FaultyBackend, FaultyBroker, MovableClock
from celeriac.testing.conformance.harness import LEASE, ids, let_pass, outgoing, take
from celeriac.topology import Queue
from celeriac.wire.disposition import ACK
from celeriac.wire.record import Record

QUEUE = Queue("work")
RECORD = Record(task_id="a", state="SUCCESS", result=b"1")


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def broker(clock: MovableClock) -> FaultyBroker:
    return FaultyBroker(MemoryBroker("memory://", BrokerOptions(lease=LEASE, clock=clock)))


@pytest.fixture
def backend() -> FaultyBackend:
    return FaultyBackend(MemoryBackend("memory://", BackendOptions()))


@pytest.fixture
def consumer(broker: FaultyBroker) -> Consumer:
    return broker.consumer([QUEUE], name="w")


def outcomes(function: Callable[[], object], number: int) -> str:
    """For each call, ``.`` where it went well and ``x`` where it failed."""
    found = ""
    for _ in range(number):
        try:
            function()
        except OperationalError:
            found += "x"
        else:
            found += "."
    return found


class TestPlan:
    def test_once(self, broker: FaultyBroker) -> None:
        broker.faults.fail("size")
        assert outcomes(lambda: broker.size("work"), 4) == "x..."

    def test_by_a_plan(self, broker: FaultyBroker) -> None:
        broker.faults.fail("size", None, "before", None, "after")
        broker.faults.fail("size", "before")
        assert outcomes(lambda: broker.size("work"), 7) == ".x.xx.."

    def test_until_healed(self, broker: FaultyBroker) -> None:
        broker.faults.fail("size", None, "before", forever=True)
        assert outcomes(lambda: broker.size("work"), 5) == ".xxxx"
        broker.faults.heal()
        assert outcomes(lambda: broker.size("work"), 3) == "..."

    def test_each_method_has_its_own(self, broker: FaultyBroker) -> None:
        broker.faults.fail("purge")
        assert outcomes(lambda: broker.size("work"), 1) == "."
        assert outcomes(lambda: broker.purge("work"), 2) == "x."

    def test_brokers_and_backends_can_share_one(self) -> None:
        faults = Faults()
        broker = FaultyBroker(MemoryBroker("memory://", BrokerOptions()), faults)
        backend = FaultyBackend(MemoryBackend("memory://", BackendOptions()), faults)
        faults.fail("size")
        faults.fail("put")
        assert outcomes(lambda: broker.size("work"), 2) + outcomes(lambda: backend.put([]), 2) == "x.x."


class TestBroker:
    @pytest.mark.parametrize(("moment", "there"), [("before", 0), ("after", 1)])
    def test_publish(self, broker: FaultyBroker, moment, there: int) -> None:
        broker.faults.fail("publish", moment)
        with pytest.raises(PublishFailed) as failed:
            broker.publish([outgoing(QUEUE, "a")])
        assert failed.value.ids == ("a",)
        assert not failed.value.unroutable
        assert broker.size("work").ready == there

    def test_a_fetch_that_fails_before_claims_nothing(self, broker: FaultyBroker, consumer: Consumer) -> None:
        broker.publish([outgoing(QUEUE, "a")])
        broker.faults.fail("fetch")
        with pytest.raises(ConnectionLost):
            consumer.fetch(1, 0)
        assert broker.size("work") == QueueSize(1, 0, 0)
        assert ids(consumer.fetch(1, 0)) == ["a"]

    def test_lost_replies_come_with_the_next_fetches(self, broker: FaultyBroker, consumer: Consumer) -> None:
        broker.publish([outgoing(QUEUE, id) for id in "abc"])
        broker.faults.fail("fetch", "after")
        with pytest.raises(ConnectionLost):
            consumer.fetch(2, 0)
        assert broker.size("work") == QueueSize(1, 0, 2)
        assert [ids(consumer.fetch(1, 0)) for _ in range(4)] == [["a"], ["b"], ["c"], []]

    def test_who_never_got_a_delivery_is_not_told_that_it_is_lost(
        self, broker: FaultyBroker, consumer: Consumer, clock: MovableClock
    ) -> None:
        broker.publish([outgoing(QUEUE, "known"), outgoing(QUEUE, "unknown")])
        known = take(consumer, 1)
        broker.faults.fail("fetch", "after")
        with pytest.raises(ConnectionLost):
            consumer.fetch(1, 0)
        let_pass(clock, 1.4 * LEASE, broker.consumer([QUEUE], name="other"))
        assert consumer.renew() == known
        assert list(consumer.held()) == []

    @pytest.mark.parametrize(("moment", "left"), [("before", 1), ("after", 0)])
    def test_settle(self, broker: FaultyBroker, consumer: Consumer, moment, left: int) -> None:
        broker.publish([outgoing(QUEUE)])
        [delivery] = take(consumer, 1)
        broker.faults.fail("settle", moment)
        with pytest.raises(ConnectionLost):
            consumer.settle([Settlement(delivery, ACK)])
        assert broker.size("work").unsettled == left

    def test_a_consumer_that_cannot_renew_loses_its_lease(
        self, broker: FaultyBroker, consumer: Consumer, clock: MovableClock
    ) -> None:
        broker.publish([outgoing(QUEUE)])
        taken = take(consumer, 1)
        other = broker.inner.consumer([QUEUE], name="other")
        broker.faults.fail("renew", forever=True)
        assert outcomes(consumer.renew, 3) == "xxx"
        let_pass(clock, 1.4 * LEASE, other)
        broker.faults.heal()
        assert consumer.renew() == taken


class TestUnit:
    def completion(self, consumer: Consumer) -> Completion:
        consumer.broker.publish([outgoing(QUEUE, "a")])
        [delivery] = take(consumer, 1)
        return Completion(Settlement(delivery, ACK), RECORD, [outgoing(Queue("next"))])

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_beside_a_sound_backend_it_fails_as_a_whole(
        self, broker: FaultyBroker, consumer: Consumer, backend: FaultyBackend, moment
    ) -> None:
        completion = self.completion(consumer)
        broker.faults.fail("complete", moment)
        unit = consumer.unit(backend.inner)
        with pytest.raises(ConnectionLost):
            unit.complete([completion])
        done = moment == "after"
        assert backend.get(["a"]) == [RECORD if done else None]
        assert broker.size("next").ready == done
        assert broker.size("work").unsettled == (not done)
        assert list(unit.complete([completion])) == ([completion.settlement.delivery] if done else [])

    @pytest.mark.parametrize(
        ("faulty", "method", "published", "stored"),
        [("broker", "publish", 0, None), ("backend", "put", 1, None), ("broker", "settle", 1, RECORD)],
    )
    def test_beside_a_faulty_backend_each_step_can_fail(
        self, broker, backend, consumer: Consumer, faulty: str, method: str, published: int, stored
    ) -> None:
        completion = self.completion(consumer)
        unit = consumer.unit(backend)
        assert type(unit) is Unit
        {"broker": broker, "backend": backend}[faulty].faults.fail(method)
        with pytest.raises(OperationalError):
            unit.complete([completion])
        assert broker.size("next").ready == published
        assert backend.get(["a"]) == [stored]
        assert broker.size("work").unsettled == 1
        assert list(unit.complete([completion])) == []
        assert broker.size("work").unsettled == 0


class TestBackend:
    @pytest.mark.parametrize(("moment", "stored"), [("before", None), ("after", RECORD)])
    def test_put(self, backend: FaultyBackend, moment, stored: Record | None) -> None:
        backend.faults.fail("put", moment)
        with pytest.raises(OperationalError, match="put was made to fail"):
            backend.put([RECORD])
        assert backend.get(["a"]) == [stored]
