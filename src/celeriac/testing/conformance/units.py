"""What a `Unit` promises: what follows, the record and the settlement, together or not at all."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celeriac.backends.base import ResultBackend
from celeriac.brokers.base import Broker, Completion, QueueSize, Settlement
from celeriac.errors import PublishFailed
from celeriac.states import SUCCESS
from celeriac.testing.clock import MovableClock
from celeriac.testing.conformance.harness import (
    LEASE,
    PATIENCE,
    BrokerHarness,
    Consume,
    InThread,
    await_ready,
    envelope,
    ids,
    let_pass,
    outgoing,
    priority_of,
    take,
)
from celeriac.topology import Exchange, Queue
from celeriac.wire.disposition import ACK, DeadLetter, Defer, Disposition, Return
from celeriac.wire.envelope import Outgoing
from celeriac.wire.record import Record

__all__ = ["UnitTests"]


class UnitTests(BrokerHarness):
    def record(self, id: str, state: str = SUCCESS) -> Record:
        return Record(task_id=id, state=state, result=b'"done"')

    def test_a_unit_publishes_stores_and_settles(
        self, broker: Broker, backend: ResultBackend, queue: Queue, consume: Consume
    ) -> None:
        consumer, next = consume(queue), Queue(f"{queue.name}-next")
        broker.publish([outgoing(queue, "a"), outgoing(queue, "b")])
        a, b = take(consumer, 2)
        lost = consumer.unit(backend).complete(
            [
                Completion(Settlement(a, ACK), self.record("a"), [outgoing(next, "x"), outgoing(next, "y")]),
                Completion(Settlement(b, Return(counted=True))),
            ]
        )
        assert list(lost) == []
        assert [record and record.task_id for record in backend.get(["a", "b"])] == ["a", None]
        assert broker.size(next.name) == QueueSize(2, 0, 0)
        assert broker.size(queue.name) == QueueSize(1, 0, 0)

    def test_a_unit_settles_in_every_way(
        self, broker: Broker, backend: ResultBackend, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        broker.publish([outgoing(queue, id) for id in "abcde"])
        a, b, c, d, e = take(consumer, 5)
        until = clock.now() + timedelta(seconds=self.soon)
        later: list[Disposition] = (
            [Defer(until), Defer(until, envelope("retry", retries=1))] if broker.traits.delay else [ACK, ACK]
        )
        dispositions = [ACK, Return(), DeadLetter("no"), *later]
        completions = [
            Completion(Settlement(delivery, disposition), self.record(delivery.envelope.task_id, "RETRY"))
            for delivery, disposition in zip([a, b, c, d, e], dispositions, strict=True)
        ]
        assert list(consumer.unit(backend).complete(completions)) == []
        await_ready(broker, queue, 1)
        assert broker.size(queue.name) == QueueSize(1, self.scheduled(broker, 2 * broker.traits.delay), 0)
        assert broker.size(queue.dead) == QueueSize(1, 0, 0)
        assert None not in backend.get(list("abcde"))
        self.pass_time(clock, self.soon)
        expected = ["b", "d", "retry"] if broker.traits.delay else ["b"]
        assert sorted(ids(take(consumer, len(expected)))) == expected

    def test_what_follows_is_routed_like_what_is_published(
        self, broker: Broker, backend: ResultBackend, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        if "topic" not in broker.traits.exchanges:
            pytest.skip("this broker has no topic exchanges")
        bound = Queue(f"{queue.name}-bound", Exchange(f"x-{queue.name}", "topic"), "a.#")
        due = clock.now() + timedelta(seconds=30) if broker.traits.delay else None
        follow = [
            Outgoing(envelope("routed"), f"x-{queue.name}", "a.b", queue=bound),
            outgoing(queue, "low", priority=priority_of(broker, 1)),
            outgoing(queue, "high", priority=priority_of(broker, 2)),
            outgoing(queue, "later", due=due),
        ]
        consumer = consume(queue)
        consumer.unit(backend).complete([Completion(None, None, follow)])
        assert broker.size(bound.name) == QueueSize(1, 0, 0)
        if broker.traits.delay:
            assert broker.size(queue.name) == QueueSize(2, self.scheduled(broker, 1), 0)
        if broker.traits.priorities:
            assert ids(take(consumer, 2)) == ["high", "low"]

    def test_a_unit_beside_a_waiting_fetch_that_gets_what_follows(
        self, broker: Broker, backend: ResultBackend, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        broker.publish([outgoing(queue, "a")])
        [delivery] = take(consumer, 1)
        waiting = InThread(lambda: consumer.fetch(1, PATIENCE))
        unit = consumer.unit(backend)
        unit.complete([Completion(Settlement(delivery, ACK), self.record("a"), [outgoing(queue, "b")])])
        assert ids(waiting.result()) == ["b"]

    def test_what_needs_no_settlement_is_published_and_stored(
        self, broker: Broker, backend: ResultBackend, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        lost = consumer.unit(backend).complete(
            [
                Completion(None, self.record("a", "STARTED")),
                Completion(None, self.record("a", "PROGRESS"), [outgoing(queue, "x")]),
            ]
        )
        assert list(lost) == []
        [record] = backend.get(["a"])
        assert record and record.state == "PROGRESS"
        assert ids(take(consumer, 1)) == ["x"]

    def test_who_lost_its_lease_stores_and_publishes_nothing(
        self,
        broker: Broker,
        other: Broker,
        backend: ResultBackend,
        clock: MovableClock,
        queue: Queue,
        consume: Consume,
    ) -> None:
        self.needs_leases(broker)
        silent, alive, next = consume(queue, on=other), consume(queue), Queue(f"{queue.name}-next")
        broker.publish([outgoing(queue, "stale")])
        [stale] = take(silent, 1)
        let_pass(clock, 1.4 * LEASE, alive)
        take(alive, 1)
        broker.publish([outgoing(queue, "fresh")])
        [fresh] = take(silent, 1)
        lost = silent.unit(backend).complete(
            [
                Completion(Settlement(stale, ACK), self.record("stale"), [outgoing(next, "from-stale")]),
                Completion(Settlement(fresh, ACK), self.record("fresh"), [outgoing(next, "from-fresh")]),
            ]
        )
        assert list(lost) == [stale]
        assert [record and record.task_id for record in backend.get(["stale", "fresh"])] == [None, "fresh"]
        assert ids(take(consume(next), 1)) == ["from-fresh"]
        assert broker.size(next.name) == QueueSize(0, 0, 1)

    def test_a_unit_that_cannot_publish_stores_and_settles_nothing(
        self, broker: Broker, backend: ResultBackend, queue: Queue, consume: Consume
    ) -> None:
        consumer, next = consume(queue), Queue(f"{queue.name}-next")
        broker.publish([outgoing(queue, "a"), outgoing(queue, "b")])
        a, b = take(consumer, 2)
        unit = consumer.unit(backend)
        nowhere = Outgoing(envelope("nowhere"), f"none-{queue.name}", "key")
        with pytest.raises(PublishFailed) as failed:
            unit.complete(
                [
                    Completion(Settlement(a, ACK), self.record("a"), [outgoing(next, "x")]),
                    Completion(Settlement(b, ACK), self.record("b"), [nowhere]),
                ]
            )
        assert (failed.value.ids, failed.value.unroutable) == (("nowhere",), True)
        assert list(backend.get(["a", "b"])) == [None, None]
        assert broker.size(queue.name) == QueueSize(0, 0, 2)
        if self.atomic:
            assert broker.size(next.name) == QueueSize(0, 0, 0)
        assert list(unit.complete([Completion(Settlement(a, ACK)), Completion(Settlement(b, ACK))])) == []

    def test_a_record_is_never_there_while_its_message_still_is(
        self, broker: Broker, backend: ResultBackend, queue: Queue, consume: Consume
    ) -> None:
        if not self.atomic:
            pytest.skip("units with this backend are done step by step")
        consumer = consume(queue)
        broker.publish([outgoing(queue, str(n)) for n in range(50)])
        deliveries = take(consumer, 50)
        unit = consumer.unit(backend)
        all_ids = ids(deliveries)

        def complete() -> None:
            for each in deliveries:
                unit.complete([Completion(Settlement(each, ACK), self.record(each.envelope.task_id))])

        working = InThread(complete)
        while working.is_running():
            recorded = sum(record is not None for record in backend.get(all_ids))
            assert broker.size(queue.name).unsettled <= 50 - recorded
        working.result()
        assert None not in backend.get(all_ids)

    def test_an_empty_unit_is_fine(
        self, broker: Broker, backend: ResultBackend, queue: Queue, consume: Consume
    ) -> None:
        assert list(consume(queue).unit(backend).complete([])) == []
