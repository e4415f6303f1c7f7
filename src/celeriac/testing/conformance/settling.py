"""What `Consumer.settle` and `Consumer.close` promise: the ways a delivery leaves a consumer."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from celeriac.brokers.base import Broker, Consumer, QueueSize, Settlement
from celeriac.brokers.dead import DEAD_AT, DEAD_ATTEMPTS, DEAD_QUEUE, DEAD_REASON
from celeriac.testing.clock import MovableClock
from celeriac.testing.conformance.harness import (
    PATIENCE,
    BrokerHarness,
    Consume,
    InThread,
    assert_nothing,
    await_ready,
    envelope,
    ids,
    outgoing,
    priority_of,
    take,
)
from celeriac.topology import Queue
from celeriac.wire.disposition import ACK, DeadLetter, Defer, Disposition, Return

__all__ = ["SettleTests"]


class SettleTests(BrokerHarness):
    def settle(self, consumer: Consumer, disposition: Disposition, number: int = 1) -> None:
        """Fetch that many and settle each so."""
        deliveries = take(consumer, number)
        assert list(consumer.settle([Settlement(each, disposition) for each in deliveries])) == []

    def test_acked_messages_are_gone(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        consumer = consume(queue)
        broker.publish([outgoing(queue), outgoing(queue)])
        self.settle(consumer, ACK, 2)
        assert broker.size(queue.name) == QueueSize(0, 0, 0)
        consumer.close()
        assert broker.size(queue.name) == QueueSize(0, 0, 0)

    def test_returned_messages_come_again_first_and_in_order(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        broker.publish([outgoing(queue, id) for id in "abcd"])
        self.settle(consumer, Return(), 2)
        again = take(consumer, 4)
        assert sorted(ids(again[:2])) == ["a", "b"]
        if broker.traits.ordered:
            assert ids(again) == ["a", "b", "c", "d"]
        assert all(each.redelivered for each in again[:2])
        assert not any(each.redelivered for each in again[2:])

    def test_only_counted_returns_are_attempts(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        if not broker.traits.counts_attempts:
            pytest.skip("this broker counts no attempts")
        consumer = consume(queue)
        broker.publish([outgoing(queue)])
        expected = 1
        for counted in (False, True, False, True, True):
            [delivery] = take(consumer, 1)
            assert delivery.attempts == expected
            consumer.settle([Settlement(delivery, Return(counted=counted))])
            expected += counted
        [delivery] = take(consumer, 1)
        assert (delivery.attempts, delivery.redelivered) == (4, True)

    def test_a_deferred_message_waits_and_has_lost_no_attempt(
        self, broker: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_delay(broker)
        consumer = consume(queue)
        sent = outgoing(queue, "a", priority=4)
        broker.publish([sent])
        self.settle(consumer, Return(counted=True))
        self.settle(consumer, Defer(clock.now() + timedelta(seconds=self.soon)))
        assert broker.size(queue.name) == QueueSize(0, self.scheduled(broker, 1), 0)
        self.pass_time(clock, self.soon - 0.2)
        assert_nothing(consumer)
        self.pass_time(clock, 0.2)
        [delivery] = take(consumer, 1)
        assert delivery.envelope == sent.envelope
        if broker.traits.counts_attempts:
            assert delivery.attempts == 2

    def test_a_message_deferred_with_another_is_replaced_and_starts_over(
        self, broker: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_delay(broker)
        consumer = consume(queue)
        broker.publish([outgoing(queue, "a")])
        self.settle(consumer, Return(counted=True))
        retry = envelope("a", b"[[1], {}, {}]", retries=1)
        self.settle(consumer, Defer(clock.now() + timedelta(seconds=self.soon), retry))
        assert broker.size(queue.name) == QueueSize(0, self.scheduled(broker, 1), 0)
        self.pass_time(clock, self.soon)
        [delivery] = take(consumer, 1)
        assert delivery.envelope == retry
        assert (delivery.queue, delivery.attempts, delivery.redelivered) == (queue.name, 1, False)
        assert_nothing(consumer)

    def test_deferred_to_the_past_is_due_at_once(
        self, broker: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_delay(broker)
        consumer = consume(queue)
        broker.publish([outgoing(queue, "a")])
        self.settle(consumer, Defer(clock.now() - timedelta(seconds=1)))
        assert ids(take(consumer, 1)) == ["a"]

    def test_a_deferred_message_keeps_its_priority(
        self, broker: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_delay(broker)
        if not broker.traits.priorities:
            pytest.skip("this broker knows no priorities")
        consumer = consume(queue)
        low, high = priority_of(broker, 1), priority_of(broker, 2)
        broker.publish([outgoing(queue, "a", priority=high), outgoing(queue, "b", priority=high)])
        until = clock.now() + timedelta(seconds=self.soon)
        first, second = take(consumer, 2)
        retry = envelope("retry", priority=high)
        consumer.settle([Settlement(first, Defer(until)), Settlement(second, Defer(until, retry))])
        consumer.close()
        broker.publish([outgoing(queue, "c", priority=low)])
        self.pass_time(clock, self.soon)
        await_ready(broker, queue, 3)
        assert sorted(ids(take(consume(queue), 2))) == ["a", "retry"]

    def test_dead_letters_tell_their_story(
        self, broker: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        sent = outgoing(queue, "a")
        broker.publish([sent])
        self.settle(consumer, Return(counted=True))
        self.settle(consumer, DeadLetter("poison: ü"))
        assert broker.size(queue.name) == QueueSize(0, 0, 0)
        assert broker.size(queue.dead) == QueueSize(1, 0, 0)
        [dead] = take(consume(Queue(queue.dead)), 1)
        assert (dead.queue, dead.attempts, dead.redelivered) == (queue.dead, 1, False)
        assert dead.envelope.body == sent.envelope.body
        assert dead.envelope.properties == sent.envelope.properties
        story = dead.envelope.headers.items() - sent.envelope.headers.items()
        expected = {DEAD_REASON: "poison: ü", DEAD_ATTEMPTS: 2, DEAD_QUEUE: queue.name}
        if not broker.traits.counts_attempts:
            expected[DEAD_ATTEMPTS] = 1
        assert dict(story) == expected | {DEAD_AT: dead.envelope.headers[DEAD_AT]}
        assert datetime.fromisoformat(dead.envelope.headers[DEAD_AT]) == clock.now()

    def test_one_batch_settles_each_in_its_way(
        self, broker: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        broker.publish([outgoing(queue, id) for id in "abcd"])
        a, b, c, d = take(consumer, 4)
        lost = consumer.settle(
            [
                Settlement(a, ACK),
                Settlement(b, Return()),
                Settlement(c, DeadLetter("no")),
                Settlement(d, Defer(clock.now() + timedelta(seconds=9)) if broker.traits.delay else ACK),
            ]
        )
        assert list(lost) == []
        await_ready(broker, queue, 1)
        assert broker.size(queue.name) == QueueSize(1, self.scheduled(broker, int(broker.traits.delay)), 0)
        assert broker.size(queue.dead) == QueueSize(1, 0, 0)
        assert ids(take(consumer, 1)) == ["b"]

    def test_a_delivery_is_settled_once(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        consumer = consume(queue)
        broker.publish([outgoing(queue, "a"), outgoing(queue, "b")])
        a, b = take(consumer, 2)
        assert list(consumer.settle([Settlement(a, ACK)])) == []
        assert list(consumer.settle([Settlement(a, Return()), Settlement(b, ACK)])) == [a]
        assert broker.size(queue.name) == QueueSize(0, 0, 0)

    def test_settling_nothing_is_fine(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        assert list(consume(queue).settle([])) == []

    def test_settle_beside_a_waiting_fetch(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        consumer = consume(queue)
        broker.publish([outgoing(queue, "a")])
        [delivery] = take(consumer, 1)
        waiting = InThread(lambda: consumer.fetch(1, PATIENCE))
        assert list(consumer.settle([Settlement(delivery, ACK)])) == []
        broker.publish([outgoing(queue, "b")])
        assert ids(waiting.result()) == ["b"]

    def test_closing_returns_what_is_unsettled_at_once(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        leaving = consume(queue)
        broker.publish([outgoing(queue, id) for id in "abc"])
        done, *_ = take(leaving, 3)
        leaving.settle([Settlement(done, ACK)])
        broker.publish([outgoing(queue, "d")])
        leaving.close()
        again = take(consume(queue), 3)
        assert sorted(ids(again[:2])) == ["b", "c"]
        assert ids(again[2:]) == ["d"]
        if broker.traits.counts_attempts:
            assert [each.attempts for each in again] == [1, 1, 1]
        # "d" may have been on its way to the one that left.
        assert [each.redelivered for each in again[:2]] == [True, True]

    def test_closing_wakes_a_consumer_that_waits(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        leaving, waiting = consume(queue), consume(queue)
        broker.publish([outgoing(queue, "a")])
        take(leaving, 1)
        fetch = InThread(lambda: waiting.fetch(1, PATIENCE))
        leaving.close()
        leaving.close()
        assert ids(fetch.result()) == ["a"]

    def needs_delay(self, broker: Broker) -> None:
        if not broker.traits.delay:
            pytest.skip("this broker keeps no schedule")
