"""What `Broker` promises to those who publish, declare, count and purge."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from celeriac.brokers.base import Broker, Consumer, QueueSize, Settlement
from celeriac.errors import PublishFailed
from celeriac.testing.clock import MovableClock
from celeriac.testing.conformance.harness import (
    BrokerHarness,
    Consume,
    assert_nothing,
    envelope,
    ids,
    in_fork,
    outgoing,
    take,
)
from celeriac.topology import Binding, Exchange, Queue
from celeriac.wire.disposition import ACK
from celeriac.wire.envelope import Outgoing

__all__ = ["ExchangeTests", "PublishTests", "TransactionTests"]


class PublishTests(BrokerHarness):
    def test_a_message_arrives_as_it_was_sent(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        sent = msgspec.structs.replace(
            envelope(
                "ä-1", bytes(range(256)), retries=0, timelimit=[None, 3.5], stamps={"k": ["v", 1]}, none=None
            ),
            content_type="application/x-thing",
            content_encoding="binary",
        )
        broker.publish([Outgoing(sent, "", queue.name, queue=queue)])
        [delivery] = take(consume(queue), 1)
        assert delivery.envelope == sent
        assert delivery.queue == queue.name
        assert (delivery.attempts, delivery.redelivered) == (1, False)

    def test_a_large_body_arrives_whole(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        body = os.urandom(3_000_000)
        broker.publish([Outgoing(envelope(body=body), "", queue.name, queue=queue)])
        [delivery] = take(consume(queue), 1)
        assert delivery.envelope.body == body

    def test_an_empty_batch_is_fine(self, broker: Broker, queue: Queue) -> None:
        broker.publish([])
        assert broker.size(queue.name) == QueueSize(0, 0, 0)

    def test_the_default_exchange_takes_the_name_of_any_queue(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        broker.declare([queue])
        broker.publish([Outgoing(envelope("a"), "", queue.name)])
        assert ids(take(consume(queue), 1)) == ["a"]

    def test_a_batch_reaches_several_queues(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        second = Queue(f"{queue.name}-2")
        broker.publish([outgoing(queue, "a"), outgoing(second, "b"), outgoing(queue, "c")])
        assert sorted(ids(take(consume(queue), 2))) == ["a", "c"]
        assert ids(take(consume(second), 1)) == ["b"]

    def test_what_one_broker_publishes_another_fetches(
        self, broker: Broker, other: Broker, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        other.publish([outgoing(queue, "a")])
        assert ids(take(consumer, 1)) == ["a"]

    def test_a_broker_that_was_closed_can_be_used_again(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        broker.publish([outgoing(queue, "a")])
        broker.close()
        broker.close()
        broker.publish([outgoing(queue, "b")])
        assert sorted(ids(take(consume(queue), 2))) == ["a", "b"]

    def test_size_tells_ready_scheduled_and_unsettled_apart(
        self, broker: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        if not broker.traits.delay:
            pytest.skip("this broker keeps no schedule")
        consumer = consume(queue)
        due = clock.now() + timedelta(seconds=60)
        broker.publish([outgoing(queue), outgoing(queue), outgoing(queue), outgoing(queue, due=due)])
        assert broker.size(queue.name) == QueueSize(3, self.scheduled(broker, 1), 0)
        take(consumer, 2)
        assert broker.size(queue.name) == QueueSize(1, self.scheduled(broker, 1), 2)
        if not self.real_time:
            clock.advance(60)
            assert broker.size(queue.name) == QueueSize(2, 0, 2)

    def test_a_queue_that_does_not_exist_has_no_messages(self, broker: Broker, queue: Queue) -> None:
        assert broker.size(queue.name) == QueueSize(0, 0, 0)
        assert broker.purge(queue.name) == 0

    def test_purge_deletes_what_waits_and_leaves_what_is_held(
        self, broker: Broker, clock: MovableClock, queue: Queue, consume: Consume
    ) -> None:
        consumer = consume(queue)
        broker.publish([outgoing(queue, "held")])
        take(consumer, 1)
        due = clock.now() + timedelta(seconds=60) if broker.traits.delay else None
        broker.publish([outgoing(queue), outgoing(queue), outgoing(queue, due=due)])
        other = Queue(f"{queue.name}-2")
        broker.publish([outgoing(other)])
        assert broker.purge(queue.name) == (3 if broker.traits.counts_scheduled or due is None else 2)
        assert broker.size(queue.name) == QueueSize(0, 0, 1)
        assert broker.size(other.name) == QueueSize(1, 0, 0)
        consumer.close()
        assert ids(take(consume(queue), 1)) == ["held"]

    def test_a_forked_child_publishes_and_the_parent_goes_on(
        self, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        if not broker.traits.persistent:
            pytest.skip("there is nothing to share with a child")
        broker.publish([outgoing(queue, "before")])
        consumer = consume(queue)
        in_fork(lambda: broker.publish([outgoing(queue, "child")]))
        broker.publish([outgoing(queue, "after")])
        assert sorted(ids(take(consumer, 3))) == ["after", "before", "child"]


class ExchangeTests(BrokerHarness):
    def bound(self, queue: Queue, type: Any, *keys: str, **arguments: Any) -> tuple[Exchange, list[Queue]]:
        """One queue per binding key (or with these headers), on an exchange of its own."""
        exchange = Exchange(f"x-{queue.name}", type)
        queues = [
            Queue(f"{queue.name}-{i}", exchange, key, binding_arguments=arguments)
            for i, key in enumerate(keys)
        ]
        return exchange, queues

    def supports(self, broker: Broker, type: str) -> None:
        if type not in broker.traits.exchanges:
            pytest.skip(f"this broker has no {type} exchanges")

    def sizes(self, broker: Broker, queues: list[Queue]) -> list[int]:
        return [broker.size(each.name).ready for each in queues]

    def test_a_direct_exchange_compares_the_key(self, broker: Broker, queue: Queue) -> None:
        self.supports(broker, "direct")
        exchange, queues = self.bound(queue, "direct", "red", "red", "blue")
        broker.declare(queues)
        broker.publish([Outgoing(envelope(), exchange.name, "red")])
        assert self.sizes(broker, queues) == [1, 1, 0]

    def test_a_topic_exchange_matches_words(self, broker: Broker, queue: Queue) -> None:
        self.supports(broker, "topic")
        exchange, queues = self.bound(queue, "topic", "eu.*", "eu.#", "#.web", "us.*")
        broker.declare(queues)
        broker.publish([Outgoing(envelope(), exchange.name, "eu.de.web")])
        assert self.sizes(broker, queues) == [0, 1, 1, 0]

    def test_a_fanout_exchange_reaches_all(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        self.supports(broker, "fanout")
        exchange, queues = self.bound(queue, "fanout", "", "a")
        broker.declare(queues)
        consumers = [] if broker.traits.stores_fanout else self.listening(consume, queues)
        broker.publish([Outgoing(envelope("a"), exchange.name, "whatever")])
        for consumer in consumers or [consume(each) for each in queues]:
            [delivery] = take(consumer, 1)
            assert ids([delivery]) == ["a"]
            assert list(consumer.settle([Settlement(delivery, ACK)])) == []

    def listening(self, consume: Consume, queues: list[Queue]) -> list[Consumer]:
        """Consumers that have looked once, and listen from then on."""
        consumers = [consume(each) for each in queues]
        for each in consumers:
            assert_nothing(each)
        return consumers

    def test_nobody_hears_a_broadcast(self, broker: Broker, queue: Queue) -> None:
        self.supports(broker, "fanout")
        exchange, queues = self.bound(queue, "fanout", "")
        if broker.traits.stores_fanout:
            pytest.skip("queues keep what is broadcast")
        broker.publish([Outgoing(envelope("a"), exchange.name, "", queue=queues[0])])
        assert self.sizes(broker, queues) == [0]

    @pytest.mark.parametrize(("how", "expected"), [("all", [1, 0, 0]), ("any", [1, 1, 0])])
    def test_a_headers_exchange_compares_headers(
        self, broker: Broker, queue: Queue, how: str, expected: list[int]
    ) -> None:
        self.supports(broker, "headers")
        exchange = Exchange(f"x-{queue.name}", "headers")
        wanted = [{"kind": "a", "size": 1}, {"kind": "a", "size": 2}, {"kind": "b", "size": 2}]
        queues = [
            Queue(f"{queue.name}-{i}", exchange, binding_arguments={"x-match": how, **each})
            for i, each in enumerate(wanted)
        ]
        broker.declare(queues)
        broker.publish([Outgoing(envelope(kind="a", size=1), exchange.name, "")])
        assert self.sizes(broker, queues) == expected

    def test_a_message_that_fits_two_bindings_of_a_queue_comes_once(
        self, broker: Broker, queue: Queue
    ) -> None:
        self.supports(broker, "topic")
        exchange = Exchange(f"x-{queue.name}", "topic")
        twice = Queue(queue.name, exchange, "a.#", (Binding(exchange, "#.b"),))
        broker.declare([twice])
        broker.publish([Outgoing(envelope(), exchange.name, "a.b")])
        assert broker.size(queue.name) == QueueSize(1, 0, 0)

    def test_bindings_add_up(self, broker: Broker, other: Broker, queue: Queue) -> None:
        self.supports(broker, "topic")
        exchange = Exchange(f"x-{queue.name}", "topic")
        broker.declare([Queue(queue.name, exchange, "a.#")])
        other.declare([Queue(queue.name, exchange, "#.b")])
        broker.publish([Outgoing(envelope(), exchange.name, key) for key in ("a.b", "a.x", "x.b")])
        assert broker.size(queue.name) == QueueSize(3, 0, 0)

    def test_a_message_brings_its_queue_along(self, broker: Broker, queue: Queue) -> None:
        self.supports(broker, "direct")
        bound = Queue(queue.name, Exchange(f"x-{queue.name}"), "key")
        broker.publish([Outgoing(envelope(), f"x-{queue.name}", "key", queue=bound)])
        assert broker.size(queue.name) == QueueSize(1, 0, 0)

    def test_bindings_are_known_to_every_broker_of_a_server(
        self, broker: Broker, other: Broker, queue: Queue
    ) -> None:
        self.supports(broker, "topic")
        exchange, queues = self.bound(queue, "topic", "a.*", "b.*")
        broker.declare(queues)
        other.publish([Outgoing(envelope(), exchange.name, "b.c")])
        assert self.sizes(broker, queues) == [0, 1]

    def test_declaring_again_changes_nothing(self, broker: Broker, queue: Queue, consume: Consume) -> None:
        broker.declare([queue])
        broker.publish([outgoing(queue, "a")])
        broker.declare([queue])
        broker.declare([queue, queue])
        assert broker.size(queue.name) == QueueSize(1, 0, 0)

    def test_what_reaches_no_queue_is_named_and_the_rest_is_published(
        self, broker: Broker, queue: Queue
    ) -> None:
        self.supports(broker, "direct")
        exchange, queues = self.bound(queue, "direct", "known")
        broker.declare(queues)
        batch = [
            Outgoing(envelope("good"), exchange.name, "known"),
            Outgoing(envelope("no-binding"), exchange.name, "unknown"),
            Outgoing(envelope("no-exchange"), f"none-{queue.name}", "known"),
        ]
        with pytest.raises(PublishFailed) as failed:
            broker.publish(batch)
        assert sorted(failed.value.ids) == ["no-binding", "no-exchange"]
        assert failed.value.unroutable
        assert self.sizes(broker, queues) == [1]


class TransactionTests(BrokerHarness):
    def test_nothing_is_visible_before_the_commit(
        self, server: Any, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        self.needs_transactions(broker)
        broker.declare([queue])
        consumer = consume(queue)
        with self.transaction(server) as transaction:
            broker.publish_in(transaction, [outgoing(queue, "a"), outgoing(queue, "b")])
            assert_nothing(consumer)
        assert ids(take(consumer, 2)) == ["a", "b"]

    def test_a_rollback_takes_the_messages_along(
        self, server: Any, broker: Broker, queue: Queue, consume: Consume
    ) -> None:
        self.needs_transactions(broker)
        broker.declare([queue])

        def publish_and_fail() -> None:
            with self.transaction(server) as transaction:
                broker.publish_in(transaction, [outgoing(queue, "a")])
                raise RuntimeError("after all, no")

        with pytest.raises(RuntimeError, match="after all"):
            publish_and_fail()
        assert broker.size(queue.name) == QueueSize(0, 0, 0)

    def test_unroutable_messages_are_named_within_a_transaction_too(
        self, server: Any, broker: Broker, queue: Queue
    ) -> None:
        self.needs_transactions(broker)
        with pytest.raises(PublishFailed) as failed:
            with self.transaction(server) as transaction:
                broker.publish_in(transaction, [Outgoing(envelope("a"), f"none-{queue.name}", "key")])
        assert failed.value.ids == ("a",)

    def test_what_is_no_transaction_of_this_server_is_refused(self, broker: Broker, queue: Queue) -> None:
        with pytest.raises(TypeError):
            broker.publish_in(object(), [outgoing(queue)])

    def needs_transactions(self, broker: Broker) -> None:
        if not broker.traits.transactional:
            pytest.skip("this broker shares no transactions")
