"""Messages and bindings as they lie in Redis: Celery's keys and bytes (wire-protocol §1.5, §4, §5)."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions
from celeriac.brokers import open_broker
from celeriac.brokers.base import Broker, BrokerOptions, Completion, Delivery, QueueSize, Settlement
from celeriac.errors import ImproperlyConfigured, PublishFailed
from celeriac.redis import letters
from celeriac.redis.bindings import topic_pattern
from celeriac.testing.conformance.harness import InThread, envelope, outgoing, take
from celeriac.topology import Binding, Broadcast, Exchange, Queue
from celeriac.wire.disposition import Ack, DeadLetter, Defer, Disposition, Return
from celeriac.wire.envelope import Envelope, Outgoing
from redis_support import client_of

SEP = b"\x06\x16"
TASK = "cef9ceb9-144b-4760-8fc8-640a5ccc1134"
HEADERS = {
    "lang": "py",
    "task": "tasks.add",
    "id": TASK,
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "root_id": TASK,
    "parent_id": None,
    "argsrepr": "(2, 3)",
    "kwargsrepr": "{}",
    "origin": "gen17852@vm",
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
BODY = b'[[2, 3], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
#: As Celery 5.7 wrote it (wire-protocol §1.5).
CAPTURED = {
    "body": base64.b64encode(BODY).decode(),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": HEADERS,
    "properties": {
        "correlation_id": TASK,
        "reply_to": "d5f5b07e-1140-3e1b-8c6f-019e1fda8f97",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "q"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": "02f57592-cba1-4033-a0bc-17b52261ef51",
    },
}

Open = Callable[..., Broker]


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with client_of(redis_url) as client:
        yield client


@pytest.fixture
def opened(redis_url: str) -> Iterator[Open]:
    brokers: list[Broker] = []

    def opened(**transport: Any) -> Broker:
        brokers.append(open_broker(redis_url, BrokerOptions(transport=transport)))
        return brokers[-1]

    yield opened
    for each in brokers:
        each.close()


@pytest.fixture
def broker(opened: Open) -> Broker:
    return opened()


def fetched(broker: Broker, queue: Queue, disposition: Disposition | None = None) -> Delivery:
    """The next message of a queue."""
    consumer = broker.consumer([queue], name="w")
    [delivery] = take(consumer, 1)
    consumer.settle([Settlement(delivery, disposition or Ack())])
    consumer.close()
    return delivery


class TestMessages:
    def test_what_is_published_is_what_celery_publishes(self, broker: Broker, client: Any) -> None:
        sent = Envelope(
            BODY,
            "application/json",
            "utf-8",
            HEADERS,
            {
                "correlation_id": TASK,
                "reply_to": "d5f5b07e-1140-3e1b-8c6f-019e1fda8f97",
                "delivery_mode": 2,
                "priority": 0,
            },
        )
        broker.publish([Outgoing(sent, "", "q", queue=Queue("q"))])
        [data] = client.lrange("q", 0, -1)
        found = json.loads(data)
        tag = found["properties"].pop("delivery_tag")
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", tag)
        expected = json.loads(json.dumps(CAPTURED))
        del expected["properties"]["delivery_tag"]
        assert found == expected
        assert list(found["headers"]) == list(expected["headers"])

    def test_what_celery_published_is_read(self, broker: Broker, client: Any) -> None:
        client.lpush("q", json.dumps(CAPTURED))
        delivery = fetched(broker, Queue("q"))
        assert delivery.envelope.body == BODY
        assert delivery.envelope.headers == HEADERS
        assert delivery.envelope.properties == {
            "correlation_id": TASK,
            "reply_to": "d5f5b07e-1140-3e1b-8c6f-019e1fda8f97",
            "delivery_mode": 2,
            "priority": 0,
        }
        assert (delivery.attempts, delivery.redelivered) == (1, False)

    @pytest.mark.parametrize("where", ["headers", "delivery_info"])
    def test_what_celery_restored_is_redelivered(self, broker: Broker, client: Any, where: str) -> None:
        document = json.loads(json.dumps(CAPTURED))
        place = document["headers"] if where == "headers" else document["properties"]["delivery_info"]
        place["redelivered"] = True
        client.lpush("q", json.dumps(document))
        delivery = fetched(broker, Queue("q"))
        assert (delivery.attempts, delivery.redelivered) == (1, True)
        assert "redelivered" not in delivery.envelope.headers
        assert "delivery_info" not in delivery.envelope.properties

    def test_the_exchange_a_message_came_through_is_told(self, broker: Broker) -> None:
        queue = Queue("q", Exchange("x", "topic"), "a.#")
        broker.publish([Outgoing(envelope(), "x", "a.b", queue=queue)])
        info = fetched(broker, queue).envelope.properties["delivery_info"]
        assert info == {"exchange": "x", "routing_key": "a.b"}

    def test_plain_bodies_are_read_too(self, broker: Broker, client: Any) -> None:
        document = json.loads(json.dumps(CAPTURED))
        document["body"] = BODY.decode()
        del document["properties"]["body_encoding"]
        client.lpush("q", json.dumps(document))
        assert fetched(broker, Queue("q")).envelope.body == BODY

    @pytest.mark.parametrize("data", [b"hello", b"", b"\xff\x00", b"[1]", b'{"body": 5}', b"{}", b"null"])
    def test_what_is_no_message_comes_as_it_is_and_can_be_put_away(
        self, broker: Broker, client: Any, data: bytes
    ) -> None:
        client.lpush("q", data)
        delivery = fetched(broker, Queue("q"), Return(counted=True))
        assert (delivery.envelope.body, delivery.envelope.content_type) == (data, "application/data")
        assert client.llen("q") == 1
        fetched(broker, Queue("q"), DeadLetter("no message"))
        assert broker.size("q") == QueueSize(0, 0, 0)
        assert fetched(broker, Queue("q.dead")).envelope.body == data

    def test_attempts_stand_where_celery_does_not_look(self, broker: Broker, client: Any) -> None:
        client.lpush("q", json.dumps(CAPTURED))
        fetched(broker, Queue("q"), Return(counted=True))
        [data] = client.lrange("q", 0, -1)
        assert json.loads(data) == {"celeriac-attempts": 1, **CAPTURED}
        # What Celery takes and puts back was decoded and encoded anew.
        client.delete("q")
        client.lpush("q", json.dumps(json.loads(data)))
        fetched(broker, Queue("q"), Return(counted=True))
        delivery = fetched(broker, Queue("q"), Return())
        assert (delivery.attempts, delivery.redelivered) == (3, True)
        assert delivery.envelope.headers == HEADERS
        [data] = client.lrange("q", 0, -1)
        assert data.startswith(b'{"celeriac-attempts":2,"body": ')

    def test_marks_of_python_and_lua_are_the_same(self) -> None:
        data = letters.write(envelope("a"), "", "q")
        assert letters.read(letters.marked(data, 3), "q")[1:] == (3, True)
        assert letters.read(letters.marked(data, 3), "q").envelope == letters.read(data, "q").envelope


class TestQueues:
    @pytest.mark.parametrize(
        ("priority", "suffix"),
        [
            (0, b""),
            (1, b""),
            (3, SEP + b"3"),
            (5, SEP + b"3"),
            (8, SEP + b"6"),
            (9, SEP + b"9"),
            (250, SEP + b"9"),
        ],
    )
    def test_priorities_are_steps_and_0_comes_first(
        self, broker: Broker, client: Any, priority: int, suffix: bytes
    ) -> None:
        broker.publish([outgoing(Queue("q"), priority=priority)])
        [data] = client.lrange(b"q" + suffix, 0, -1)
        assert json.loads(data)["properties"]["priority"] == priority

    def test_steps_can_be_chosen(self, opened: Open, client: Any) -> None:
        broker = opened(priority_steps=[0, 5], sep=":")
        broker.publish([outgoing(Queue("q"), str(p), priority=p) for p in (9, 4, 5)])
        assert (client.llen("q"), client.llen("q:5")) == (1, 2)
        consumer = broker.consumer([Queue("q")], name="w")
        assert [each.envelope.task_id for each in take(consumer, 3)] == ["4", "9", "5"]
        consumer.close()

    def test_the_oldest_lies_at_the_right_end(self, broker: Broker, client: Any) -> None:
        broker.publish([outgoing(Queue("q"), "a"), outgoing(Queue("q"), "b")])
        broker.publish([outgoing(Queue("q"), "c")])
        found = [json.loads(each)["headers"]["id"] for each in client.lrange("q", 0, -1)]
        assert found == ["c", "b", "a"]

    def test_a_prefix_is_before_every_key(self, opened: Open, client: Any) -> None:
        broker = opened(global_keyprefix="mine:")
        consumer = broker.consumer([Queue("q")], name="w")
        broker.publish(
            [outgoing(Queue("q"), "a"), outgoing(Queue("q"), due=datetime.now(UTC) + timedelta(hours=1))]
        )
        take(consumer, 1)
        assert [key for key in client.scan_iter() if not key.startswith(b"mine:")] == []
        consumer.close()

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("priority_steps", []),
            ("priority_steps", "0369"),
            ("priority_steps", [0, "3"]),
            ("queue_order_strategy", "random"),
            ("visibility_timeout", "long"),
        ],
    )
    def test_wrong_options_are_named(self, opened: Open, option: str, value: Any) -> None:
        with pytest.raises(ImproperlyConfigured, match=option):
            opened(**{option: value})

    def test_queues_take_turns(self, opened: Open) -> None:
        first, second = Queue("b"), Queue("a")
        for strategy, expected in (
            ("round_robin", "babababa"),
            ("priority", "bbbbaaaa"),
            ("sorted", "aaaabbbb"),
        ):
            broker = opened(queue_order_strategy=strategy)
            broker.publish([outgoing(queue) for queue in (first, second) for _ in range(4)])
            consumer = broker.consumer([first, second], name="w")
            order = "".join(take(consumer, 1)[0].queue for _ in range(8))
            assert order == expected, strategy
            for each in list(consumer._given.values()):
                consumer.settle([Settlement(each, Ack())])
            consumer.close()


class TestBindings:
    def members(self, client: Any, exchange: str) -> set[bytes]:
        found = client.smembers(f"_kombu.binding.{exchange}")
        assert found == client.smembers(f"_kombu.binding_permanent.{exchange}")
        return found

    def test_of_an_ordinary_queue(self, broker: Broker, client: Any) -> None:
        broker.declare([Queue("inv_q")])
        assert self.members(client, "inv_q") == {b"inv_q\x06\x16\x06\x16inv_q"}

    def test_of_topic_and_direct_exchanges(self, broker: Broker, client: Any) -> None:
        topic, direct = Exchange("t", "topic"), Exchange("d")
        broker.declare([Queue("q", topic, "eu.*.web", (Binding(direct, "key"), Binding(topic, "us.#")))])
        assert self.members(client, "d") == {b"key\x06\x16\x06\x16q"}
        assert self.members(client, "t") == {
            rb"eu.*.web" + SEP + rb"^eu\.[^.]+\.web$" + SEP + b"q",
            rb"us.#" + SEP + rb"^us(?:\.[^.]+)*$" + SEP + b"q",
        }

    def test_what_celery_bound_is_found(self, broker: Broker, client: Any) -> None:
        client.sadd("_kombu.binding.x", "a.#\x06\x16^a\\..*?$\x06\x16q1", "a.b\x06\x16\x06\x16q2", "nonsense")
        broker.publish([Outgoing(envelope(), "x", "a.b")])
        assert (client.llen("q1"), client.llen("q2")) == (1, 1)

    @pytest.mark.parametrize(
        ("key", "fits", "does_not"),
        [
            ("a.b", ["a.b"], ["a", "a.b.c", "aXb"]),
            ("*", ["a"], ["", "a.b"]),
            ("a.*", ["a.b"], ["a", "a.b.c"]),
            ("a.#", ["a", "a.b", "a.b.c"], ["ab", "b.a"]),
            ("#", ["", "a", "a.b"], []),
            ("#.web", ["web", "a.web", "a.b.web"], ["aweb", "web.a"]),
            ("#.#.x", ["x", "a.x"], ["a"]),
            ("a.#.b", ["a.b", "a.x.b", "a.x.y.b"], ["ab", "a"]),
            ("*.#", ["a", "a.b"], [""]),
        ],
    )
    def test_patterns_say_what_keys_say(self, key: str, fits: list[str], does_not: list[str]) -> None:
        pattern = re.compile(topic_pattern(key))
        assert [each for each in fits if not pattern.match(each)] == []
        assert [each for each in does_not if pattern.match(each)] == []

    def test_of_a_queue_that_expires(self, broker: Broker, client: Any) -> None:
        queue = Queue("q", expires=7200.0)
        broker.publish([outgoing(queue), outgoing(queue, priority=9)])
        assert client.smembers("_kombu.binding.q") == {b"q\x06\x16\x06\x16q"}
        assert not client.exists("_kombu.binding_permanent.q")
        seconds, _ = client.time()
        assert abs(client.zscore("_kombu.binding_deadlines", "q") / 1000 - (seconds + 14_400)) < 60
        assert 0 < client.pttl("q") <= 7_200_000
        assert 0 < client.pttl(b"q" + SEP + b"9") <= 7_200_000

    def test_bindings_end_with_their_queues(self, broker: Broker, client: Any) -> None:
        broker.declare([Queue("mortal", expires=1.0), Queue("both", expires=1.0), Queue("both")])
        client.zadd("_kombu.binding_deadlines", {"mortal": 1000, "both": 1000})
        broker.declare([Queue("other", expires=1.0)])
        assert broker.bindings.sweep() == 2
        assert client.exists("_kombu.binding.mortal", "_kombu.binding.both", "_kombu.binding.other") == 2
        assert client.zrange("_kombu.binding_deadlines", 0, -1) == [b"other"]

    def test_a_queue_may_take_what_no_other_does(self, opened: Open) -> None:
        broker = opened(deadletter_queue="stranded")
        broker.publish([Outgoing(envelope("a"), "nowhere", "key")])
        assert fetched(broker, Queue("stranded")).envelope.task_id == "a"


class TestBroadcasts:
    ALL = Queue("mine", Exchange("news", "fanout"))

    def test_are_published_where_celery_listens(self, broker: Broker, client: Any, redis_url: str) -> None:
        database = client.get_connection_kwargs()["db"]
        with client.pubsub() as celery:
            celery.psubscribe(f"/{database}.news", f"/{database}.news/celery")
            for _ in range(2):
                celery.get_message(timeout=5)
            broker.publish([Outgoing(envelope("a"), "news", "", queue=self.ALL)])
            broker.publish([Outgoing(envelope("b"), "news", "celery")])
            heard = [celery.get_message(timeout=5) for _ in range(2)]
        assert [each["channel"].decode() for each in heard] == [
            f"/{database}.news",
            f"/{database}.news/celery",
        ]
        assert [json.loads(each["data"])["headers"]["id"] for each in heard] == ["a", "b"]

    def test_an_exchange_that_nobody_told_us_of_is_found_by_who_listens(
        self, broker: Broker, opened: Open
    ) -> None:
        consumer = broker.consumer([self.ALL], name="w")
        fetch = InThread(lambda: consumer.fetch(1, 20.0))
        stranger = opened()

        def published() -> bool:
            try:
                stranger.publish([Outgoing(envelope("a"), "news", "whatever")])
            except PublishFailed as exc:
                return not exc.unroutable
            return True

        while not published():  # until it listens
            pass
        assert [each.envelope.task_id for each in fetch.result()] == ["a"]
        consumer.close()

    @pytest.mark.parametrize(
        ("disposition", "attempts"),
        [
            (Return(), 1),
            (Return(counted=True), 2),
            (Defer(datetime(2020, 1, 1, tzinfo=UTC)), 1),
            (Defer(datetime(2020, 1, 1, tzinfo=UTC), envelope("a", retries=1)), 1),
        ],
    )
    def test_what_is_put_back_comes_to_the_same_queue(
        self, broker: Broker, disposition: Disposition, attempts: int
    ) -> None:
        consumer = broker.consumer([self.ALL], name="w")
        assert list(consumer.fetch(1, 0)) == []
        broker.publish([Outgoing(envelope("a"), "news", "", queue=self.ALL)])
        [delivery] = take(consumer, 1)
        assert list(consumer.settle([Settlement(delivery, disposition)])) == []
        assert list(consumer.settle([Settlement(delivery, disposition)])) == [delivery]
        [again] = take(consumer, 1)
        assert (again.envelope.task_id, again.attempts, again.queue) == ("a", attempts, "mine")
        consumer.settle([Settlement(again, DeadLetter("no"))])
        assert broker.size("mine.dead").ready == 1
        consumer.close()

    def test_what_follows_a_task_may_be_one(self, broker: Broker, redis_url: str) -> None:
        consumer, other = broker.consumer([self.ALL], name="w"), Queue("other")
        assert list(consumer.fetch(1, 0)) == []
        backend = open_backend(redis_url, BackendOptions())
        worker = broker.consumer([other], name="w")
        broker.publish([outgoing(other)])
        [delivery] = take(worker, 1)
        follow = [Outgoing(envelope("a"), "news", "key", queue=self.ALL)]
        assert (
            list(worker.unit(backend).complete([Completion(Settlement(delivery, Ack()), None, follow)])) == []
        )
        assert [each.envelope.task_id for each in take(consumer, 1)] == ["a"]
        for each in (consumer, worker, backend):
            each.close()

    def test_nothing_is_left_of_a_queue_of_ones_own(self, broker: Broker, client: Any) -> None:
        queue = Broadcast("news")
        consumer = broker.consumer([queue], name="w")
        assert list(consumer.fetch(1, 0)) == []
        broker.publish([Outgoing(envelope("a"), "news", "", queue=queue)])
        [delivery] = take(consumer, 1)
        consumer.settle([Settlement(delivery, Return())])
        assert client.llen(queue.name) == 1
        consumer.close()
        assert list(client.scan_iter()) == []

    def test_nothing_is_left_of_who_listened(self, broker: Broker, client: Any) -> None:
        consumer = broker.consumer([self.ALL], name="w")
        assert list(consumer.fetch(1, 0)) == []
        broker.publish([Outgoing(envelope("a"), "news", "", queue=self.ALL)])
        take(consumer, 1)
        assert list(consumer.renew()) == []
        consumer.close()
        assert list(client.scan_iter()) == []
