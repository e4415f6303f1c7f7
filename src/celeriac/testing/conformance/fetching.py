"""What `Consumer.fetch` and `Consumer.wake` promise."""

from __future__ import annotations

import queue as queue_module
import signal
import threading
import time
from collections import Counter
from datetime import timedelta
from functools import partial

import pytest

from celeriac.brokers.base import Broker, BrokerOptions, Consumer, QueueSize, Settlement
from celeriac.clock import SystemClock
from celeriac.testing.clock import MovableClock
from celeriac.testing.conformance.harness import (
    MOMENT,
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
from celeriac.wire.disposition import ACK, Return
from celeriac.wire.envelope import Outgoing

__all__ = ["FetchTests"]


class FetchTests(BrokerHarness):
    def test_messages_come_in_the_order_they_were_published(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        if not broker.traits.ordered:
            pytest.skip("this broker keeps no order")
        broker.publish([outgoing(queue, "a"), outgoing(queue, "b")])
        broker.publish([outgoing(queue, "c")])
        broker.publish([outgoing(queue, "d"), outgoing(queue, "e")])
        assert ids(take(consume(queue), 5)) == ["a", "b", "c", "d", "e"]

    def test_higher_priorities_come_first_and_equals_stay_in_order(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        if not broker.traits.priorities:
            pytest.skip("this broker knows no priorities")
        ranks = {"a": 0, "b": 1, "c": 3, "d": 0, "e": 3, "f": 1}
        broker.publish(
            [outgoing(queue, id, priority=priority_of(broker, rank)) for id, rank in ranks.items()]
        )
        assert ids(take(consume(queue), 6)) == ["c", "e", "b", "f", "a", "d"]

    def test_a_later_message_of_higher_priority_overtakes(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        if not broker.traits.priorities:
            pytest.skip("this broker knows no priorities")
        consumer = consume(queue)
        low, high = priority_of(broker, 1), priority_of(broker, 2)
        broker.publish([outgoing(queue, "a", priority=low), outgoing(queue, "b", priority=low)])
        take(consumer, 1)
        broker.publish([outgoing(queue, "c", priority=high)])
        assert ids(take(consumer, 2)) == ["c", "b"]

    def test_no_more_than_the_limit(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        consumer = consume(queue)
        broker.publish([outgoing(queue) for _ in range(10)])
        assert 1 <= len(consumer.fetch(3, PATIENCE)) <= 3
        assert len(consumer.fetch(1, PATIENCE)) == 1

    def test_nothing_after_the_timeout(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        consumer = consume(queue)
        began = time.monotonic()
        assert list(consumer.fetch(1, MOMENT)) == []
        assert time.monotonic() - began >= MOMENT * 0.9

    def test_a_fetch_without_timeout_looks_and_returns(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        assert list(consumer.fetch(1, 0)) == []
        broker.publish([outgoing(queue, "a")])
        assert ids(consumer.fetch(1, 0)) == ["a"]

    def test_a_waiting_fetch_gets_what_is_published(
        self, broker: Broker, other: Broker, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        waiting = InThread(lambda: consumer.fetch(1, PATIENCE))
        other.publish([outgoing(queue, "a")])
        assert ids(waiting.result()) == ["a"]

    def test_a_waiting_fetch_gets_what_another_consumer_returns(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        holder, waiter = consume(queue), consume(queue)
        broker.publish([outgoing(queue, "a")])
        [delivery] = take(holder, 1)
        waiting = InThread(lambda: waiter.fetch(1, PATIENCE))
        holder.settle([Settlement(delivery, Return())])
        assert ids(waiting.result()) == ["a"]

    def test_wake_ends_a_waiting_fetch(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        consumer = consume(queue)
        waiting = InThread(lambda: consumer.fetch(1, 10 * PATIENCE))
        consumer.wake()
        assert list(waiting.result()) == []

    def test_a_wake_before_the_fetch_is_not_lost(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        consumer.wake()
        assert list(InThread(lambda: consumer.fetch(1, 10 * PATIENCE)).result()) == []
        began = time.monotonic()
        assert list(consumer.fetch(1, MOMENT)) == []
        assert time.monotonic() - began >= MOMENT * 0.9

    def test_wake_from_a_signal_handler(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        if not hasattr(signal, "pthread_kill") or threading.current_thread() is not threading.main_thread():
            pytest.skip("signals are handled on the main thread")
        consumer = consume(queue)

        def on_signal(number: int, frame: object) -> None:
            consumer.wake()

        before = signal.signal(signal.SIGUSR1, on_signal)
        try:
            main = threading.main_thread().ident or 0
            killer = InThread(lambda: signal.pthread_kill(main, signal.SIGUSR1))
            began = time.monotonic()
            assert list(consumer.fetch(1, 2 * PATIENCE)) == []
            assert time.monotonic() - began < PATIENCE
            killer.result()
        finally:
            signal.signal(signal.SIGUSR1, before)

    def test_a_consumer_takes_from_its_own_queues_only(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        second, third = Queue(f"{queue.name}-2"), Queue(f"{queue.name}-3")
        broker.publish([outgoing(queue, "a"), outgoing(second, "b"), outgoing(third, "c")])
        consumer = consume(queue, third)
        deliveries = take(consumer, 2)
        assert sorted((each.envelope.task_id, each.queue) for each in deliveries) == [
            ("a", queue.name),
            ("c", third.name),
        ]
        assert_nothing(consumer)

    def test_consuming_declares_the_queues(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        consumer = consume(queue)
        broker.publish([Outgoing(envelope("a"), queue.name, queue.name)])
        assert ids(take(consumer, 1)) == ["a"]

    def test_a_message_is_handed_to_one_consumer(
        self, broker: Broker, other: Broker, queue: Queue, consume: Consume
    ) -> None:
        first, second = consume(queue), consume(queue, on=other)
        broker.publish([outgoing(queue, "a"), outgoing(queue, "b")])
        assert sorted(ids(take(first, 1)) + ids(take(second, 1))) == ["a", "b"]
        assert_nothing(first)
        assert_nothing(second)

    def test_a_message_is_not_handed_out_before_it_is_due(
        self, broker: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_delay(broker)
        consumer = consume(queue)
        broker.publish(
            [
                outgoing(queue, "later", due=clock.now() + timedelta(seconds=3600)),
                outgoing(queue, "soon", due=clock.now() + timedelta(seconds=self.soon)),
                outgoing(queue, "late", due=clock.now() - timedelta(seconds=30)),
            ]
        )
        assert ids(take(consumer, 1)) == ["late"]
        self.pass_time(clock, self.soon - 0.2)
        assert_nothing(consumer)
        self.pass_time(clock, 0.2)
        assert ids(take(consumer, 1)) == ["soon"]
        assert_nothing(consumer)
        if not self.real_time:
            clock.advance(3600)
            assert ids(take(consumer, 1)) == ["later"]

    def test_a_waiting_fetch_notices_that_a_message_became_due(self, server: object, queue: Queue) -> None:
        clock = SystemClock()
        broker = self.open(server, BrokerOptions(clock=clock))
        self.needs_delay(broker)
        consumer = broker.consumer([queue], name="worker@test")
        due = clock.now() + timedelta(seconds=0.2)
        broker.publish([outgoing(queue, "far", due=due + timedelta(days=365)), outgoing(queue, "a", due=due)])
        began = time.monotonic()
        assert ids(consumer.fetch(1, PATIENCE)) == ["a"]
        assert clock.now() >= due
        assert time.monotonic() - began < PATIENCE / 2
        consumer.close()
        broker.close()

    def test_priority_counts_among_due_messages_too(
        self, broker: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        self.needs_delay(broker)
        if not broker.traits.priorities:
            pytest.skip("this broker knows no priorities")
        due = clock.now() + timedelta(seconds=self.soon)
        low, high = priority_of(broker, 0), priority_of(broker, 2)
        broker.publish([outgoing(queue, "a", priority=low), outgoing(queue, "b", priority=high, due=due)])
        self.pass_time(clock, self.soon)
        await_ready(broker, queue, 2)
        assert ids(take(consume(queue), 2)) == ["b", "a"]

    def test_many_producers_and_consumers_each_message_once(
        self, broker: Broker, other: Broker, queue: Queue, consume: Consume
    ) -> None:
        producers, batches, size = 8, 10, 10
        expected = [f"{n}-{i}" for n in range(producers) for i in range(batches * size)]
        consumers = [consume(queue, on=on) for on in (broker, other, broker, other)]
        settled: queue_module.SimpleQueue[str] = queue_module.SimpleQueue()
        enough = threading.Event()

        def produce(n: int) -> None:
            on = broker if n % 2 else other
            for at in range(0, batches * size, size):
                on.publish([outgoing(queue, f"{n}-{i}") for i in range(at, at + size)])

        def work(consumer: Consumer) -> None:
            while not enough.is_set():
                deliveries = consumer.fetch(7, PATIENCE)
                assert list(consumer.settle([Settlement(each, ACK) for each in deliveries])) == []
                for id in ids(deliveries):
                    settled.put(id)

        threads = [InThread(partial(produce, n)) for n in range(producers)]
        threads += [InThread(partial(work, each)) for each in consumers]
        seen = Counter(settled.get(timeout=PATIENCE) for _ in expected)
        enough.set()
        for each in consumers:
            each.wake()
        for each in threads:
            each.result()
        assert seen == Counter(expected)
        assert settled.empty()
        assert broker.size(queue.name) == QueueSize(0, 0, 0)

    def needs_delay(self, broker: Broker) -> None:
        if not broker.traits.delay:
            pytest.skip("this broker keeps no schedule")
