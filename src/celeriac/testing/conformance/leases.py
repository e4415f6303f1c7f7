"""What `Consumer.renew` and `Consumer.held` promise: who holds a message, when holders or replies are lost."""

from __future__ import annotations

import pytest

from celeriac.brokers.base import Broker, QueueSize, Settlement
from celeriac.errors import ConnectionLost
from celeriac.testing.clock import MovableClock
from celeriac.testing.conformance.harness import (
    LEASE,
    PATIENCE,
    BrokerHarness,
    Consume,
    InThread,
    assert_nothing,
    ids,
    let_pass,
    outgoing,
    take,
)
from celeriac.topology import Queue
from celeriac.wire.disposition import ACK, DeadLetter, Defer, Return

__all__ = ["LeaseTests"]


class LeaseTests(BrokerHarness):
    def test_a_consumer_that_renews_keeps_its_messages(
        self, broker: Broker, other: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        busy, idle = consume(queue), consume(queue, on=other)
        broker.publish([outgoing(queue, "a")])
        [delivery] = take(busy, 1)
        assert list(let_pass(clock, 20 * LEASE, idle, busy)) == []
        assert_nothing(idle)
        assert list(busy.settle([Settlement(delivery, ACK)])) == []
        assert broker.size(queue.name) == QueueSize(0, 0, 0)

    def test_the_messages_of_a_silent_consumer_are_handed_out_again(
        self, broker: Broker, other: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_leases(broker)
        silent, alive = consume(queue, on=other), consume(queue)
        broker.publish([outgoing(queue, "a"), outgoing(queue, "b")])
        take(silent, 2)
        silent.renew()
        let_pass(clock, 0.8 * LEASE, alive)
        assert_nothing(alive)
        let_pass(clock, 0.6 * LEASE, alive)
        again = take(alive, 2)
        assert sorted(ids(again)) == ["a", "b"]
        assert all(each.redelivered for each in again)
        if broker.traits.counts_attempts:
            assert [each.attempts for each in again] == [2, 2]

    def test_a_waiting_fetch_gets_what_a_dead_consumer_held(
        self, broker: Broker, other: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_leases(broker)
        silent, alive = consume(queue, on=other), consume(queue)
        broker.publish([outgoing(queue, "a")])
        take(silent, 1)
        waiting = InThread(lambda: alive.fetch(1, PATIENCE))
        let_pass(clock, 1.4 * LEASE, alive)
        assert ids(waiting.result()) == ["a"]

    def test_who_lost_its_lease_is_told_once(
        self, broker: Broker, other: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_leases(broker)
        silent, alive = consume(queue, on=other), consume(queue)
        broker.publish([outgoing(queue, "a"), outgoing(queue, "b"), outgoing(queue, "c")])
        kept, *others = take(silent, 3)
        silent.settle([Settlement(kept, ACK)])
        let_pass(clock, 1.4 * LEASE, alive)
        assert set(silent.renew()) == set(others)
        assert list(silent.renew()) == []

    def test_who_lost_its_lease_cannot_settle(
        self, broker: Broker, other: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_leases(broker)
        silent, alive = consume(queue, on=other), consume(queue)
        broker.publish([outgoing(queue, "a")])
        [stale] = take(silent, 1)
        let_pass(clock, 1.4 * LEASE, alive)
        for disposition in (ACK, Return(), Defer(clock.now()), DeadLetter("no")):
            assert list(silent.settle([Settlement(stale, disposition)])) == [stale]
        assert broker.size(queue.name) == QueueSize(1, 0, 0)
        [fresh] = take(alive, 1)
        assert list(silent.settle([Settlement(stale, ACK)])) == [stale]
        assert list(alive.settle([Settlement(fresh, ACK)])) == []
        assert broker.size(queue.name) == QueueSize(0, 0, 0)

    def test_who_lost_its_lease_can_work_on(
        self, broker: Broker, other: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_leases(broker)
        silent, alive = consume(queue, on=other), consume(queue)
        broker.publish([outgoing(queue, "a")])
        take(silent, 1)
        let_pass(clock, 1.4 * LEASE, alive)
        silent.renew()
        assert list(let_pass(clock, 3 * LEASE, alive, silent)) == []
        [delivery] = take(silent, 1)
        assert list(let_pass(clock, 3 * LEASE, alive, silent)) == []
        assert_nothing(alive)
        assert list(silent.settle([Settlement(delivery, ACK)])) == []

    def test_a_new_claim_of_the_same_message_is_not_the_old_one(
        self, broker: Broker, other: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_leases(broker)
        silent, alive = consume(queue, on=other), consume(queue)
        broker.publish([outgoing(queue, "a")])
        [stale] = take(silent, 1)
        let_pass(clock, 1.4 * LEASE, alive)
        [fresh] = take(silent, 1)
        assert list(silent.settle([Settlement(stale, ACK)])) == [stale]
        assert broker.size(queue.name) == QueueSize(0, 0, 1)
        assert list(silent.renew()) in ([], [stale])
        assert list(silent.settle([Settlement(fresh, ACK)])) == []
        assert broker.size(queue.name) == QueueSize(0, 0, 0)

    def test_after_a_stall_nobody_takes_from_the_living(
        self, broker: Broker, other: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        first, second = consume(queue), consume(queue, on=other)
        broker.publish([outgoing(queue, "a"), outgoing(queue, "b")])
        held = {first: take(first, 1), second: take(second, 1)}
        let_pass(clock, 2 * LEASE, first, second)
        clock.advance(100 * LEASE)  # the server hung, or the machine slept: nobody could renew
        assert list(first.renew()) == []
        assert list(first.renew()) == []
        assert list(second.renew()) == []
        assert list(let_pass(clock, 2 * LEASE, first, second)) == []
        for consumer, deliveries in held.items():
            assert list(consumer.settle([Settlement(each, ACK) for each in deliveries])) == []

    @pytest.mark.parametrize("seconds", [86_400.0, -86_400.0])
    def test_a_clock_that_jumps_costs_no_lease(
        self,
        broker: Broker,
        other: Broker,
        clock: MovableClock,
        queue: Queue,
        consume: Consume,
        seconds: float,
    ) -> None:
        first, second = consume(queue), consume(queue, on=other)
        broker.publish([outgoing(queue, "a")])
        take(first, 1)
        let_pass(clock, LEASE, first, second)
        clock.jump(seconds)
        assert list(second.renew()) == []
        assert list(let_pass(clock, 2 * LEASE, first, second)) == []
        assert_nothing(second)

    def test_renew_beside_a_waiting_fetch(
        self, broker: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        waiting = InThread(lambda: consumer.fetch(1, PATIENCE))
        assert list(InThread(consumer.renew).result()) == []
        broker.publish([outgoing(queue, "a")])
        assert ids(waiting.result()) == ["a"]

    def test_nothing_is_held_that_the_caller_does_not_know(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        consumer, other = consume(queue), consume(queue)
        broker.publish([outgoing(queue, "a"), outgoing(queue, "b")])
        take(consumer, 1)
        take(other, 1)
        assert list(consumer.held()) == []

    def test_a_claim_whose_reply_was_lost_is_found_by_held(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        broker.publish([outgoing(queue, "a"), outgoing(queue, "b"), outgoing(queue, "c")])
        [known] = take(consumer, 1)
        with self.lose_reply(consumer), pytest.raises(ConnectionLost):
            consumer.fetch(1, PATIENCE)
        assert broker.size(queue.name) == QueueSize(1, 0, 2)
        found = consumer.held()
        assert len(found) == 1
        assert ids(found) != [known.envelope.task_id]
        assert list(consumer.held()) == []
        assert list(consumer.settle([Settlement(found[0], ACK), Settlement(known, ACK)])) == []
        assert broker.size(queue.name) == QueueSize(1, 0, 0)

    def test_a_claim_whose_reply_was_lost_comes_with_the_next_fetch(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        broker.publish([outgoing(queue, "a"), outgoing(queue, "b"), outgoing(queue, "c")])
        with self.lose_reply(consumer), pytest.raises(ConnectionLost):
            consumer.fetch(2, PATIENCE)
        deliveries = [*take(consumer, 1), *take(consumer, 2)]
        assert sorted(ids(deliveries)) == ["a", "b", "c"]
        if broker.traits.counts_attempts:
            assert [each.attempts for each in deliveries] == [1, 1, 1]
        assert list(consumer.settle([Settlement(each, ACK) for each in deliveries])) == []
        assert broker.size(queue.name) == QueueSize(0, 0, 0)
