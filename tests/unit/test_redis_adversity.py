"""The Redis broker in adversity: what it keeps, what it says, and that it goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.brokers import open_broker
from celeriac.brokers.base import BrokerOptions, Completion, QueueSize, Settlement
from celeriac.brokers.redis import RedisBroker, RedisConsumer, _looked_at
from celeriac.errors import ConnectionLost, OperationalError, PublishFailed
from celeriac.states import SUCCESS
from celeriac.testing.clock import MovableClock
from celeriac.testing.conformance.harness import InThread, envelope, ids, let_pass, outgoing, take
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.proxy import Proxy
from celeriac.testing.servers import PrivateRedis, make_certificates
from celeriac.topology import Exchange, Queue
from celeriac.wire.disposition import ACK, DeadLetter, Defer, Return
from celeriac.wire.envelope import Outgoing
from celeriac.wire.record import Record
from redis_support import client_of, commands_of
from support import eventually

QUEUE = Queue("q")
#: Seconds that an operation may take where a test waits for the end of that.
SHORT = 0.3

Open = Callable[..., RedisBroker]


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with client_of(redis_url) as client:
        yield client


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def opened(redis_url: str, clock: MovableClock) -> Iterator[Open]:
    """Brokers on the test's database, or elsewhere, and with other options."""
    with ExitStack() as stack:

        def opened(url: str = redis_url, **options: Any) -> RedisBroker:
            broker = open_broker(url, BrokerOptions(**{"clock": clock, **options}))
            assert isinstance(broker, RedisBroker)
            stack.callback(broker.close)
            return broker

        yield opened


@pytest.fixture
def broker(opened: Open) -> RedisBroker:
    return opened()


@pytest.fixture
def consume() -> Iterator[Callable[..., RedisConsumer]]:
    with ExitStack() as stack:

        def consume(broker: RedisBroker, *queues: Queue) -> RedisConsumer:
            consumer = broker.consumer(queues or [QUEUE], name="w")
            stack.callback(consumer.close)
            return consumer

        yield consume


Consume = Callable[..., RedisConsumer]


@pytest.fixture
def backend(redis_url: str) -> Iterator[ResultBackend]:
    backend = open_backend(redis_url, BackendOptions())
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """A server that tests may stop, restart and confuse."""
    users = {
        "reader": "on >secret ~* &* +@all -evalsha -eval -lpush",
        "deaf": "on >secret ~* resetchannels +@all",
    }
    folder = tmp_path_factory.mktemp("redis")
    with skipped_without_server(), PrivateRedis(folder, users=users) as server:
        yield server


def done(id: str) -> Record:
    return Record(task_id=id, state=SUCCESS, result=b"5")


class TestSchedule:
    def later(self, clock: MovableClock, number: int) -> list[Outgoing]:
        due = clock.now() + timedelta(hours=1)
        return [outgoing(QUEUE, str(n), due=due + timedelta(seconds=n)) for n in range(number)]

    def test_without_a_consumer_of_ours_it_is_celerys(
        self, broker: RedisBroker, clock: MovableClock, client: Any
    ) -> None:
        broker.publish(self.later(clock, 2))
        assert client.llen("q") == 2
        assert broker.size("q") == QueueSize(2, 0, 0)

    def test_the_last_of_ours_hands_it_over(
        self, broker: RedisBroker, clock: MovableClock, client: Any, consume: Consume
    ) -> None:
        first, second = consume(broker), consume(broker)
        broker.publish(self.later(clock, 2))
        first.close()
        assert broker.size("q") == QueueSize(0, 2, 0)
        second.close()
        assert broker.size("q") == QueueSize(2, 0, 0)
        assert {key for key in client.scan_iter() if b"kombu" not in key} == {b"q"}
        assert [each.envelope.task_id for each in take(consume(broker), 2)] == ["0", "1"]

    def test_one_that_died_does_not_keep_the_last_from_it(
        self, broker: RedisBroker, clock: MovableClock, client: Any, consume: Consume
    ) -> None:
        silent, alive = consume(broker), consume(broker)
        broker.publish(self.later(clock, 2))
        let_pass(clock, 15.0, alive)
        alive.close()
        assert broker.size("q") == QueueSize(2, 0, 0)
        assert list(silent.renew()) == []

    def test_a_long_one_goes_in_parts(
        self, broker: RedisBroker, clock: MovableClock, consume: Consume
    ) -> None:
        consumer = consume(broker)
        broker.publish(self.later(clock, 2500))
        assert broker.size("q") == QueueSize(0, 2500, 0)
        consumer.close()
        assert broker.size("q") == QueueSize(2500, 0, 0)

    def test_much_that_is_due_at_once_comes_in_order(
        self, broker: RedisBroker, clock: MovableClock, consume: Consume
    ) -> None:
        consumer = consume(broker)
        broker.publish(self.later(clock, 1500))
        clock.advance(2 * 3600)
        deliveries = take(consumer, 1500)
        assert sorted(int(each) for each in ids(deliveries)) == list(range(1500))
        assert [int(each) for each in ids(deliveries)[:1000]] == list(range(1000))
        assert broker.size("q") == QueueSize(0, 0, 1500)

    def test_one_that_lost_its_message_is_passed_over(
        self, broker: RedisBroker, clock: MovableClock, client: Any, consume: Consume
    ) -> None:
        consumer = consume(broker)
        broker.publish(self.later(clock, 2))
        first, _ = client.zrange("{q}:celeriac:schedule", 0, -1)
        client.hdel("{q}:celeriac:scheduled", first)
        clock.advance(2 * 3600)
        assert ids(take(consumer, 1)) == ["1"]
        assert list(consumer.fetch(1, 0)) == []
        assert not client.exists("{q}:celeriac:schedule", "{q}:celeriac:next")

    def test_after_the_last_of_ours_was_killed_it_is_celerys(
        self, broker: RedisBroker, clock: MovableClock, client: Any, consume: Consume, backend: ResultBackend
    ) -> None:
        consumer = consume(broker)
        assert 0 < client.pttl("{q}:celeriac:alive") <= 2000 * broker.options.lease
        broker.publish(self.later(clock, 2))
        client.delete("{q}:celeriac:alive")  # as it is two leases later
        broker.publish(self.later(clock, 1))
        assert client.llen("q") == 3
        unit = consume(broker, Queue("other")).unit(backend)
        unit.complete([Completion(None, None, self.later(clock, 1))])
        assert client.llen("q") == 4
        assert list(consumer.renew()) == []
        broker.publish(self.later(clock, 1))
        assert broker.size("q") == QueueSize(4, 1, 0)

    def test_a_deferred_follow_up_of_a_queue_without_consumers_is_celerys(
        self, broker: RedisBroker, clock: MovableClock, client: Any, consume: Consume, backend: ResultBackend
    ) -> None:
        due = clock.now() + timedelta(hours=1)
        consume(broker).unit(backend).complete([Completion(None, None, [outgoing(Queue("other"), due=due)])])
        assert client.llen("other") == 1


class TestHolders:
    def test_one_that_died_with_much_is_buried_in_parts(
        self, broker: RedisBroker, clock: MovableClock, consume: Consume
    ) -> None:
        silent, alive = consume(broker), consume(broker)
        broker.publish([outgoing(QUEUE, str(n)) for n in range(2500)])
        take(silent, 2500)
        let_pass(clock, 15.0, alive)
        assert broker.size("q") == QueueSize(2500, 0, 0)
        again = take(alive, 2500)
        assert ids(again) == [str(n) for n in range(2500)]
        assert {each.attempts for each in again} == {2}
        assert len(silent.renew()) == 2500

    def test_burying_costs_the_living_no_leases(
        self, broker: RedisBroker, client: Any, consume: Consume
    ) -> None:
        silent, alive = consume(broker), consume(broker)
        broker.publish([outgoing(QUEUE, str(n)) for n in range(2500)])
        take(silent, 2500)
        dead = silent._registration.holder
        _, beats = alive._registration.beat()
        alive._lease = 0.0
        alive._dead["q", dead] = beats["q", dead]
        for ready in (1000, 2000, 2500):
            assert list(alive.renew()) == []
            assert broker.size("q").ready == ready
        assert not alive._dead
        assert ids(take(alive, 2500)) == [str(n) for n in range(2500)]

    def test_what_one_holds_is_listed_once_however_much_it_is(
        self, broker: RedisBroker, client: Any, consume: Consume
    ) -> None:
        consumer = consume(broker)
        broker.publish([outgoing(QUEUE, str(n)) for n in range(4500)])
        take(consumer, 4500)
        with commands_of(client) as commands:
            consumer.close()
        assert [each[0] for each in commands].count("HKEYS") == 1
        assert ids(take(consume(broker), 4500)) == [str(n) for n in range(4500)]

    def test_one_whose_server_forgot_it_declares_its_queues_again(
        self, broker: RedisBroker, opened: Open, client: Any, consume: Consume
    ) -> None:
        bound = Queue("bound", Exchange("x", "topic"), "a.*")
        consumer = consume(broker, bound)
        client.flushdb()
        consumer.renew()
        opened().publish([Outgoing(envelope("a"), "x", "a.b")])
        assert ids(take(consumer, 1)) == ["a"]

    def test_a_queue_that_expires_does_not_while_it_has_one(
        self, broker: RedisBroker, client: Any, consume: Consume
    ) -> None:
        queue = Queue("q", expires=0.001)
        consumer = consume(broker, queue)
        broker.publish([outgoing(queue, id) for id in "abc"])
        assert client.pttl("q") > 3 * 1000 * broker.options.lease
        [delivery] = take(consumer, 1)
        client.pexpire("q", 5000)
        consumer.renew()
        assert client.pttl("q") > 3 * 1000 * broker.options.lease
        client.delete("q")
        consumer.settle([Settlement(delivery, Return())])
        consumer.close()
        assert client.llen("q") == 1
        assert client.pttl("q") > 0

    def test_one_that_is_half_buried_cannot_come_back(
        self, broker: RedisBroker, client: Any, consume: Consume
    ) -> None:
        silent = consume(broker)
        broker.publish([outgoing(QUEUE, str(n)) for n in range(10)])
        deliveries = take(silent, 10)
        # The reaper died after the first part.
        client.hset("{q}:celeriac:beats", silent._registration.holder, -1)
        assert set(silent.renew()) == set(deliveries)
        assert broker.size("q") == QueueSize(10, 0, 0)
        assert [each.attempts for each in take(silent, 10)] == [1] * 10

    def test_one_that_is_gone_from_one_queue_leaves_the_others_too(
        self, broker: RedisBroker, client: Any, consume: Consume
    ) -> None:
        other = Queue("other")
        consumer = consume(broker, QUEUE, other)
        broker.publish([outgoing(QUEUE, "a"), outgoing(other, "b")])
        held = take(consumer, 2)
        client.hdel("{q}:celeriac:beats", consumer._registration.holder)
        assert set(consumer.renew()) == set(held)
        assert [broker.size(name) for name in ("q", "other")] == [QueueSize(1, 0, 0)] * 2
        assert list(consumer.settle([Settlement(each, ACK) for each in held])) == held

    def test_one_that_moved_on_is_not_buried(self, broker: RedisBroker, consume: Consume) -> None:
        alive, reaper = consume(broker), consume(broker)
        broker.publish([outgoing(QUEUE)])
        take(alive, 1)
        _, beats = reaper._registration.beat()
        alive.renew()
        reaper._registration.bury("q", alive._registration.holder, beats["q", alive._registration.holder])
        assert broker.size("q") == QueueSize(0, 0, 1)

    def test_a_claim_that_nobody_heard_of_is_noticed(self, broker: RedisBroker, consume: Consume) -> None:
        consumer = consume(broker)
        assert list(consumer.fetch(1, 0)) == []
        broker.publish([outgoing(QUEUE, "a")])
        # A claim that a server, which hung, carried out when the consumer had given its connection up long ago.
        consumer._claimer.claim(consumer._registration.holder, 1, 0.0)
        assert list(consumer.fetch(1, 0)) == []
        consumer.renew()
        assert ids(consumer.fetch(1, 0)) == ["a"]

    def test_looking_for_such_claims_may_fail_too(
        self, broker: RedisBroker, consume: Consume, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        consumer = consume(broker)
        broker.publish([outgoing(QUEUE, id) for id in "abc"])
        consumer._claimer.claim(consumer._registration.holder, 3, 0.0)
        consumer.renew()
        ask, asked = broker.links.ask, []

        def breaks_at_the_third(*commands: Any, **options: Any) -> Any:
            asked.append(commands)
            if len(asked) == 3:
                raise ConnectionLost("reset")
            return ask(*commands, **options)

        monkeypatch.setattr(broker.links, "ask", breaks_at_the_third)
        with pytest.raises(ConnectionLost):
            consumer.fetch(3, 0)
        assert ids(consumer.fetch(3, 0)) == ["a", "b", "c"]

    def test_renewing_does_not_wait_for_a_stuck_fetch(self, broker: RedisBroker, consume: Consume) -> None:
        consumer = consume(broker)
        line, stuck = consumer._claimer._opened(), threading.Event()
        entered = threading.Event()
        receive = line.receive

        def hangs(timeout: float) -> list[Any]:
            entered.set()
            stuck.wait(20)
            return receive(timeout)

        line.receive = hangs
        fetch = InThread(lambda: consumer.fetch(1, 0))
        entered.wait(20)
        beats = broker.links.ask(("HVALS", "{q}:celeriac:beats"))[0]
        assert list(consumer.renew()) == []
        assert broker.links.ask(("HVALS", "{q}:celeriac:beats"))[0] != beats
        stuck.set()
        assert list(fetch.result()) == []

    def test_who_left_does_not_come_back_by_renewing(
        self, broker: RedisBroker, client: Any, consume: Consume
    ) -> None:
        consumer = consume(broker)
        consumer.close()
        # A heartbeat that had begun before.
        assert consumer._registration.beat() == (0, {})
        assert not client.exists("{q}:celeriac:beats")

    def test_nothing_is_left_of_consumers_that_left(
        self, broker: RedisBroker, clock: MovableClock, client: Any, consume: Consume
    ) -> None:
        consumers = [consume(broker) for _ in range(3)]
        broker.publish([outgoing(QUEUE) for _ in range(9)])
        for each in consumers:
            a, b, c = take(each, 3)
            each.settle([Settlement(a, ACK), Settlement(b, Return()), Settlement(c, Defer(clock.now()))])
        for each in consumers:
            each.close()
        broker.purge("q")
        broker.close()
        assert {key for key in client.scan_iter() if b"kombu" not in key} == set()


class TestScripts:
    def test_what_follows_into_a_wrong_key_holds_up_only_its_own_task(
        self, broker: RedisBroker, client: Any, consume: Consume, backend: ResultBackend
    ) -> None:
        consumer = consume(broker)
        unit = consumer.unit(backend)
        client.set("wrong", "no list")
        broker.publish([outgoing(QUEUE, id) for id in "abc"])
        a, b, c = take(consumer, 3)
        batch = [
            Completion(Settlement(a, ACK), done("a"), [outgoing(Queue("next"), "x")]),
            Completion(Settlement(b, ACK), done("b"), [outgoing(Queue("wrong"), "y")]),
            Completion(Settlement(c, Return()), None, [outgoing(Queue("next"), "z")]),
        ]
        with pytest.raises(PublishFailed, match=r"WRONGTYPE.*wrong") as failed:
            unit.complete(batch)
        assert (failed.value.ids, failed.value.unroutable) == (("y",), True)
        assert [record and record.task_id for record in backend.get(["a", "b"])] == ["a", None]
        assert broker.size("q") == QueueSize(1, 0, 1)
        # What the worker makes of it: the same batch, but for what cannot be done.
        batch[1] = Completion(Settlement(b, DeadLetter("cannot publish")), done("b"))
        assert list(unit.complete(batch)) == []
        assert broker.size("next") == QueueSize(2, 0, 0)
        assert broker.size("q.dead") == QueueSize(1, 0, 0)
        assert broker.size("q") == QueueSize(1, 0, 0)

    def test_a_record_that_cannot_be_stored_holds_up_only_its_own_task(
        self, broker: RedisBroker, client: Any, consume: Consume, backend: ResultBackend
    ) -> None:
        consumer = consume(broker)
        unit = consumer.unit(backend)
        client.lpush("celery-task-meta-b", "no string")
        broker.publish([outgoing(QUEUE, id) for id in "ab"])
        batch = [Completion(Settlement(each, ACK), done(each.envelope.task_id)) for each in take(consumer, 2)]
        with pytest.raises(OperationalError, match=r"1 of 2 .*WRONGTYPE"):
            unit.complete(batch)
        assert broker.size("q") == QueueSize(0, 0, 1)
        client.delete("celery-task-meta-b")
        assert list(unit.complete(batch)) == []
        assert None not in backend.get(["a", "b"])
        assert broker.size("q") == QueueSize(0, 0, 0)

    def test_what_cannot_be_put_back_stays_held(
        self, broker: RedisBroker, client: Any, consume: Consume
    ) -> None:
        consumer = consume(broker)
        broker.publish([outgoing(QUEUE, "a")])
        [delivery] = take(consumer, 1)
        client.set("q", "no list")
        with pytest.raises(OperationalError, match=r"WRONGTYPE.*RPUSH q"):
            consumer.settle([Settlement(delivery, Return())])
        client.delete("q")
        assert list(consumer.settle([Settlement(delivery, Return())])) == []
        assert broker.size("q") == QueueSize(1, 0, 0)

    def test_a_queue_that_is_no_list_is_named_and_loses_nothing_of_the_others(
        self, broker: RedisBroker, client: Any, consume: Consume
    ) -> None:
        consumer = consume(broker, QUEUE, Queue("wrong"))
        client.set("wrong", "no list")
        with pytest.raises(PublishFailed, match=r"WRONGTYPE.*wrong") as failed:
            broker.publish([outgoing(Queue("wrong"), "x")])
        assert failed.value.ids == ("x",)
        with pytest.raises(PublishFailed, match="WRONGTYPE") as failed:
            broker.publish([outgoing(QUEUE, "a"), outgoing(Queue("wrong"), "x"), outgoing(QUEUE, "b")])
        assert failed.value.ids == ("x",)
        with pytest.raises(OperationalError, match=r"WRONGTYPE.*LRANGE wrong"):
            consumer.fetch(5, 0)
        deliveries = [*consumer.fetch(5, 0)]
        assert ids(deliveries) == ["a", "b"]
        assert [each.attempts for each in deliveries] == [1, 1]

    def test_a_server_that_forgot_the_scripts_is_told_again(
        self, private: PrivateRedis, opened: Open, clock: MovableClock, consume: Consume
    ) -> None:
        broker = opened(private.url)
        backend = open_backend(private.url, BackendOptions())
        with client_of(private.url) as client:

            def forgetting() -> RedisBroker:
                client.script_flush()
                return broker

            consumer = consume(forgetting())
            due = clock.now() + timedelta(seconds=5)
            forgetting().publish([outgoing(QUEUE, "a"), outgoing(QUEUE, "b", due=due)])
            assert forgetting().size("q") == QueueSize(1, 1, 0)
            forgetting()
            [delivery] = take(consumer, 1)
            forgetting()
            waiting = InThread(lambda: consumer.fetch(1, 20))
            consumer.unit(backend).complete([Completion(Settlement(delivery, ACK), done("a"))])
            forgetting()
            assert list(consumer.renew()) == []
            forgetting().publish([outgoing(QUEUE, "c")])
            assert ids(waiting.result()) == ["c"]
            assert forgetting().purge("q") == 1
            forgetting()
            consumer.close()
            client.flushall()
        backend.close()

    def test_retries_with_large_messages_go_few_at_a_time(
        self, broker: RedisBroker, clock: MovableClock, consume: Consume, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        consumer = consume(broker)
        large = b"x" * 400_000
        broker.publish([Outgoing(envelope(id, large), "", "q") for id in "abcdef"])
        deliveries = take(consumer, 6)
        run, scripts = broker.links.run, []

        def counted(*args: Any, **options: Any) -> Any:
            scripts.append(args)
            return run(*args, **options)

        monkeypatch.setattr(broker.links, "run", counted)
        retried = [Settlement(each, Defer(clock.now(), each.envelope)) for each in deliveries[:3]]
        put_back = [Settlement(each, Return()) for each in deliveries[3:]]
        assert list(consumer.settle([*retried, *put_back])) == []
        assert len(scripts) == 3

    def test_much_at_once(self, broker: RedisBroker, consume: Consume, backend: ResultBackend) -> None:
        consumer, next = consume(broker), Queue("next")
        broker.publish([outgoing(QUEUE, str(n)) for n in range(8500)])
        deliveries = take(consumer, 8500)
        assert ids(deliveries) == [str(n) for n in range(8500)]
        lost = consumer.unit(backend).complete(
            [
                Completion(Settlement(each, ACK), done(str(n)), [outgoing(next)] if n % 2 else [])
                for n, each in enumerate(deliveries)
            ]
        )
        assert list(lost) == []
        assert (broker.size("q"), broker.size("next")) == (QueueSize(0, 0, 0), QueueSize(4250, 0, 0))
        assert broker.purge("next") == 4250

    def test_large_messages_come_few_at_a_time(self, broker: RedisBroker, consume: Consume) -> None:
        consumer = consume(broker)
        body = b"x" * 1_000_000
        sent = [Outgoing(envelope(str(n), body), "", "q") for n in range(12)]
        broker.publish(sent)
        first = consumer.fetch(500, 20)
        assert len(first) == 1
        rest = take(consumer, 11)
        assert ids([*first, *rest]) == [str(n) for n in range(12)]
        assert all(each.envelope.body == body for each in rest)
        assert (
            list(consumer.settle([Settlement(each, Return(counted=True)) for each in [*first, *rest]])) == []
        )
        assert ids(take(consumer, 12)) == [str(n) for n in range(12)]


class TestConnections:
    def test_an_answer_that_was_lost_is_not_asked_for_again(
        self, redis_url: str, opened: Open, client: Any
    ) -> None:
        with Proxy(redis_url) as proxy:
            broker = opened(proxy.url)
            broker.declare([QUEUE])
            broker.publish([outgoing(QUEUE)])
            proxy.cut_reply(b":2")
            with pytest.raises(PublishFailed) as failed:
                broker.publish([outgoing(QUEUE, "doubtful")])
            assert (failed.value.ids, failed.value.unroutable) == (("doubtful",), False)
            assert client.llen("q") == 2
            broker.publish([outgoing(QUEUE)])
            assert client.llen("q") == 3

    def test_what_may_have_arrived_is_not_published_twice(
        self, redis_url: str, opened: Open, client: Any, clock: MovableClock, consume: Consume
    ) -> None:
        with Proxy(redis_url) as proxy:
            broker = opened(proxy.url)
            consumer = consume(opened())
            due = clock.now() + timedelta(hours=1)
            a, b, later = (
                outgoing(QUEUE, "a"),
                outgoing(QUEUE, "b", priority=9),
                outgoing(QUEUE, "c", due=due),
            )
            broker.declare([QUEUE])
            broker.publish([outgoing(QUEUE, "first")])
            for batch, reply in (([a], b":2"), ([later], b":1"), ([b, a], b":1")):
                proxy.cut_reply(reply)
                with pytest.raises(PublishFailed):
                    broker.publish(batch)
                broker.publish(batch)
                broker.publish([outgoing(QUEUE, "other")])
            # Published again on purpose, after all went well, it is there again.
            broker.publish([a])
        clock.advance(7200)
        found = take(consumer, consumer.broker.size("q").ready)
        assert sorted(ids(found)) == ["a", "a", "a", "b", "c", "first", "other", "other", "other"]
        assert [each.envelope.task_id for each in found if each.redelivered] == ["c"]

    def test_what_may_have_arrived_and_was_taken_is_marked(
        self, redis_url: str, opened: Open, client: Any, consume: Consume
    ) -> None:
        with Proxy(redis_url) as proxy:
            broker = opened(proxy.url)
            consumer = consume(opened())
            broker.publish([outgoing(QUEUE, "x")])
            doubtful = outgoing(QUEUE, "a")
            proxy.cut_reply(b":2")
            with pytest.raises(PublishFailed):
                broker.publish([doubtful])
            assert ids(take(consumer, 2)) == ["x", "a"]
            broker.publish([doubtful])
            [again] = take(consumer, 1)
            assert (again.envelope, again.attempts, again.redelivered) == (doubtful.envelope, 1, True)

    def test_of_a_batch_those_are_named_that_got_no_answer(
        self, redis_url: str, opened: Open, client: Any
    ) -> None:
        with Proxy(redis_url) as proxy:
            broker = opened(proxy.url)
            broker.declare([QUEUE])
            large = b"x" * 1_000_000
            proxy.cut_reply(b":2")
            with pytest.raises(PublishFailed) as failed:
                broker.publish([Outgoing(envelope(id, large), "", "q") for id in "abc"])
            # Each is a part of its own; the first was answered.
            assert failed.value.ids == ("b", "c")

    def test_a_message_that_reached_one_of_its_two_queues_is_named(
        self, opened: Open, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broker, exchange = opened(), Exchange("x", "topic")
        broker.declare([Queue("one", exchange, "k"), Queue("two", exchange, "#")])
        message = Outgoing(envelope("a", b"x" * 900_000), "x", "k")
        send, parts = broker._publishing.exchange, []

        def breaks_at_the_second(data: bytes, *args: Any) -> Any:
            if b"LPUSH" in data[:40]:
                parts.append(data)
                if len(parts) == 2:
                    raise ConnectionLost("reset")
            return send(data, *args)

        monkeypatch.setattr(broker._publishing, "exchange", breaks_at_the_second)
        with pytest.raises(PublishFailed) as failed:
            broker.publish([message])
        assert failed.value.ids == ("a",)
        broker.publish([message])
        assert client.llen("two") == 1

    def test_publishing_ends_in_time(self, redis_url: str, opened: Open) -> None:
        with Proxy(redis_url) as proxy:
            broker = opened(proxy.url, publish_timeout=SHORT)
            broker.publish([outgoing(QUEUE)])
            proxy.stall()
            for number in (1, 5):
                began = time.monotonic()
                with pytest.raises(PublishFailed) as failed:
                    broker.publish([outgoing(QUEUE, str(n)) for n in range(number)])
                assert time.monotonic() - began < 10 * SHORT
                assert failed.value.ids == tuple(str(n) for n in range(number))
            proxy.resume()
            broker.publish([outgoing(QUEUE)])

    def test_a_connection_that_the_server_closed_meanwhile_costs_nothing(
        self, broker: RedisBroker, client: Any
    ) -> None:
        broker.publish([outgoing(QUEUE)])
        for each in client.client_list():
            if each["db"] == str(client.get_connection_kwargs()["db"]) and each["id"] != str(
                client.client_id()
            ):
                client.client_kill_filter(_id=each["id"])
        broker.publish([outgoing(QUEUE)])
        assert client.llen("q") == 2

    def test_a_fetch_from_a_server_that_hangs_ends_in_time(
        self, redis_url: str, opened: Open, consume: Consume
    ) -> None:
        with Proxy(redis_url) as proxy:
            broker = opened(proxy.url, lease=4 * SHORT)
            consumer = consume(broker)
            assert list(consumer.fetch(1, 0)) == []
            opened().publish([outgoing(QUEUE, "a")])
            proxy.drop_replies()
            began = time.monotonic()
            with pytest.raises(ConnectionLost):
                consumer.fetch(1, 60)
            assert time.monotonic() - began < 20 * SHORT
            proxy.resume()
            assert ids(take(consumer, 1)) == ["a"]
            consumer.close()

    def test_who_finds_all_connections_in_use_waits_and_then_gives_up(
        self, redis_url: str, opened: Open
    ) -> None:
        with Proxy(redis_url) as proxy:
            broker = opened(proxy.url, publish_timeout=SHORT, pool_limit=1)
            broker.publish([outgoing(QUEUE)])
            proxy.delay(SHORT / 10)
            threads = [InThread(lambda: broker.publish([outgoing(QUEUE)])) for _ in range(3)]
            for each in threads:
                each.result()
            assert proxy.connections == 1
            proxy.stall()
            stuck = InThread(lambda: broker.publish([outgoing(QUEUE)]))
            eventually(lambda: not broker._publishing._free)
            with pytest.raises(PublishFailed):
                broker.publish([outgoing(QUEUE)])
            with pytest.raises(PublishFailed):
                stuck.result()
            proxy.resume()

    def test_a_server_that_is_away_and_comes_back(
        self, private: PrivateRedis, opened: Open, consume: Consume
    ) -> None:
        broker = opened(private.url)
        consumer = consume(broker)
        broker.publish([outgoing(QUEUE, "a")])
        take(consumer, 1)
        waiting = InThread(lambda: consumer.fetch(1, 60))
        private.kill()
        with pytest.raises(ConnectionLost):
            waiting.result()
        with pytest.raises(PublishFailed):
            broker.publish([outgoing(QUEUE)])
        for act in (
            consumer.renew,
            lambda: consumer.fetch(1, 1),
            lambda: broker.size("q"),
            lambda: broker.consumer([QUEUE], name="x"),
        ):
            with pytest.raises(ConnectionLost):
                act()
        private.start()
        broker.publish([outgoing(QUEUE, "b")])
        assert ids(take(consumer, 1)) == ["b"]
        assert ids(consumer.renew()) == ["a"]

    def test_a_bound_queue_is_declared_again_after_a_restart(
        self, private: PrivateRedis, opened: Open
    ) -> None:
        broker = opened(private.url)
        bound = Queue("bound", Exchange("x"), "key")
        broker.publish([Outgoing(envelope(), "x", "key", queue=bound)])
        private.kill()
        private.start()
        broker.publish([Outgoing(envelope(), "x", "key", queue=bound)])
        assert broker.purge("bound") == 1

    def test_a_replica_is_a_server_to_leave(
        self, private: PrivateRedis, opened: Open, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        config = {"replicaof": f"127.0.0.1 {private.port}"}
        with PrivateRedis(tmp_path_factory.mktemp("replica"), config=config) as replica:
            broker = opened(replica.url)
            with pytest.raises(PublishFailed, match=r"READONLY|read only"):
                broker.publish([outgoing(QUEUE, "a")])
            with pytest.raises(ConnectionLost):
                broker.consumer([QUEUE], name="w")

    def test_a_server_that_becomes_a_replica_is_left(
        self, private: PrivateRedis, opened: Open, consume: Consume
    ) -> None:
        broker, backend = opened(private.url), open_backend(private.url, BackendOptions())
        consumer = consume(broker)
        broker.publish([outgoing(QUEUE, "a")])
        [delivery] = take(consumer, 1)
        batch, unit = [Completion(Settlement(delivery, ACK), done("a"))], consumer.unit(backend)
        with client_of(private.url) as client:
            client.replicaof("127.0.0.1", 1)
            breaks = broker.links.breaks
            with pytest.raises(ConnectionLost, match=r"READONLY|read only"):
                unit.complete(batch)
            assert broker.links.breaks == breaks + 1
            client.replicaof("NO", "ONE")
        assert list(unit.complete(batch)) == []
        assert broker.size("q") == QueueSize(0, 0, 0)
        backend.close()

    def test_encrypted(
        self, opened: Open, consume: Consume, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("tls")
        certificates = make_certificates(folder)
        with PrivateRedis(folder, tls=certificates) as server:
            broker = opened(server.url, ssl={"ssl_ca_certs": str(certificates.authority)})
            consumer = consume(broker)
            waiting = InThread(lambda: consumer.fetch(1, 20))
            broker.publish([Outgoing(envelope("a", b"x" * 300_000), "", "q")])
            [delivery] = waiting.result()
            assert list(consumer.settle([Settlement(delivery, ACK)])) == []
            for n in range(5):
                broker.publish([outgoing(QUEUE, str(n))])
            assert len(take(consumer, 5)) == 5
            # What TLS says by itself is no reason to take a connection for broken.
            assert (broker.links.breaks, broker._publishing.breaks) == (0, 0)
            consumer.close()

    def test_over_a_socket_of_this_host(
        self, opened: Open, consume: Consume, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("unix")
        with PrivateRedis(folder, config={"unixsocket": str(folder / "redis.sock")}):
            broker = opened(f"redis+socket://{folder}/redis.sock?virtual_host=3")
            consumer = consume(broker)
            waiting = InThread(lambda: consumer.fetch(1, 20))
            broker.publish([outgoing(QUEUE, "a")])
            assert ids(waiting.result()) == ["a"]
            consumer.close()

    @pytest.mark.parametrize("scripts", [1, 2], ids=["one script", "step by step"])
    def test_an_outcome_whose_answer_was_lost_is_not_a_lease_that_was_lost(
        self,
        redis_url: str,
        broker: RedisBroker,
        consume: Consume,
        scripts: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        backend = open_backend(redis_url if scripts == 1 else "memory://", BackendOptions())
        consumer = consume(broker)
        broker.publish([outgoing(QUEUE, id) for id in "ab"])
        a, b = take(consumer, 2)
        unit = consumer.unit(backend)
        batch = [
            Completion(Settlement(a, ACK), done("a"), [outgoing(Queue("next"))]),
            Completion(None, done("b"), fence=b),
        ]
        run, left = broker.links.run, [None] * scripts

        def unheard(*args: Any, **options: Any) -> Any:
            reply = run(*args, **options)
            left.pop()
            if not left:
                monkeypatch.undo()
                raise ConnectionLost("reset")
            return reply

        monkeypatch.setattr(broker.links, "run", unheard)
        with pytest.raises(ConnectionLost):
            unit.complete(batch)
        assert broker.size("q").unsettled == 1
        assert list(unit.complete(batch)) == []
        assert broker.size("next") == QueueSize(1, 0, 0)
        assert None not in backend.get(["a", "b"])
        assert list(consumer.settle([Settlement(a, ACK), Settlement(b, ACK)])) == [a]
        assert broker.size("q") == QueueSize(0, 0, 0)
        backend.close()

    def test_no_connection_is_left(self, opened: Open, client: Any, consume: Consume) -> None:
        def others() -> int:
            database = str(client.get_connection_kwargs()["db"])
            return sum(each["db"] == database for each in client.client_list())

        before = others()
        broker = opened()
        consumer = consume(broker)
        broker.publish([outgoing(QUEUE)])
        take(consumer, 1)
        assert others() > before
        consumer.close()
        broker.close()
        eventually(lambda: others() == before)


class TestComplaints:
    def test_a_user_who_may_too_little_is_told_what(self, private: PrivateRedis, opened: Open) -> None:
        broker = opened(private.url_of("reader", "secret"))
        with pytest.raises(PublishFailed, match="lpush"):
            broker.publish([outgoing(QUEUE)])
        with pytest.raises(OperationalError, match="evalsha"):
            broker.size("q")

    def test_a_user_who_may_not_listen_is_told_so(self, private: PrivateRedis, opened: Open) -> None:
        broker = opened(private.url_of("deaf", "secret"))
        consumer = broker.consumer([Queue("all", Exchange("news", "fanout"))], name="w")
        for _ in range(2):
            with pytest.raises(OperationalError, match=r"may not.*channel"):
                consumer.fetch(1, 1)
        consumer.close()

    def test_a_memory_policy_that_deletes_is_warned_of_once(
        self, private: PrivateRedis, opened: Open, consume: Consume, caplog: pytest.LogCaptureFixture
    ) -> None:
        _looked_at.clear()
        with client_of(private.url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            broker = opened(private.url)
            with caplog.at_level(logging.WARNING):
                consume(broker)
                consume(broker)
            client.config_set("maxmemory-policy", "noeviction")
            [record] = caplog.records
            assert "maxmemory-policy allkeys-lru" in record.getMessage()
            _looked_at.clear()
            consume(broker)
            assert len(caplog.records) == 1

    def test_a_memory_policy_is_found_where_config_is_forbidden(
        self,
        opened: Open,
        consume: Consume,
        caplog: pytest.LogCaptureFixture,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        config = {"rename-command": 'CONFIG ""', "maxmemory-policy": "volatile-ttl"}
        with PrivateRedis(tmp_path_factory.mktemp("redis"), config=config) as server:
            with caplog.at_level(logging.WARNING):
                consumer = consume(opened(server.url))
            assert "volatile-ttl" in caplog.text
            consumer.close()

    def test_a_full_server_takes_no_more_and_can_be_drained(
        self, private: PrivateRedis, opened: Open, consume: Consume, clock: MovableClock
    ) -> None:
        broker, backend = opened(private.url), open_backend(private.url, BackendOptions())
        consumer = consume(broker)
        broker.publish([outgoing(QUEUE, id) for id in "abcde"])
        with client_of(private.url) as client:
            a, b = take(consumer, 2)
            client.config_set("maxmemory", 1)
            with pytest.raises(PublishFailed, match="maxmemory"):
                broker.publish([outgoing(QUEUE)])
            unit = consumer.unit(backend)
            follow = [outgoing(Queue("next"))]
            with pytest.raises(OperationalError, match="OOM"):
                unit.complete([Completion(Settlement(a, ACK), done("a"), follow)])
            assert list(unit.complete([Completion(Settlement(a, ACK), done("a"))])) == []
            assert list(consumer.renew()) == []
            assert list(consumer.settle([Settlement(b, Return())])) == []
            joins = consume(broker)
            found = [each for _ in range(4) for each in joins.fetch(1, 0)]
            assert ids(found) == ["b", "c", "d", "e"]
            later = Defer(clock.now() + timedelta(hours=1))
            assert list(joins.settle([Settlement(found[0], later), Settlement(found[1], ACK)])) == []
            joins.close()
            assert broker.size("q") == QueueSize(2, 1, 0)
            # A worker comes again until there is room for what it declares.
            with pytest.raises(ConnectionLost, match="OOM"):
                opened(private.url).consumer([QUEUE], name="w")
            client.config_set("maxmemory", 0)
            client.flushall()
        backend.close()
