"""Publishing to RabbitMQ: what arrives at a client that is not ours, and what is said when it does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import amqp
import pytest

from amqp_support import OpenBroker, new_queue, opened, raw, vhost
from celeriac.errors import ConnectionLost, ImproperlyConfigured, OperationalError, PublishFailed
from celeriac.testing.conformance.harness import InThread, envelope, ids, in_fork, outgoing, take
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.proxy import Proxy
from celeriac.testing.servers import PrivateRabbitMQ, free_port, make_certificates
from celeriac.topology import Binding, Exchange, Queue
from celeriac.wire.envelope import Envelope, Outgoing

__all__ = ["opened", "vhost"]


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbitMQ]:
    """A node of our own, with TLS: its memory alarm may be raised, it may be stopped."""
    folder = tmp_path_factory.mktemp("rabbitmq")
    certificates = make_certificates(folder / "certificates")
    config = {
        "listeners.ssl.1": f"127.0.0.1:{free_port()}",
        "ssl_options.cacertfile": str(certificates.authority),
        "ssl_options.certfile": str(certificates.certificate),
        "ssl_options.keyfile": str(certificates.key),
    }
    with skipped_without_server(), PrivateRabbitMQ(folder, config=config) as server:
        yield server


# -- what arrives --------------------------------------------------------------------------------------------


def test_a_message_on_the_wire_is_celerys(opened: OpenBroker, vhost: str) -> None:
    queue = new_queue()
    headers = {
        "lang": "py",
        "task": "tasks.add",
        "id": "some-id",
        "shadow": None,
        "eta": None,
        "retries": 0,
        "timelimit": [30, 20.5],
        "stamps": {"k": ["v"]},
        "big": 2**40,
    }
    properties = {
        "correlation_id": "some-id",
        "reply_to": "oid",
        "delivery_mode": 2,
        "expiration": "100000",
        "priority": 7,
        "origin": "gen1@host",
    }
    sent = Envelope(b"[[1], {}, {}]", "application/json", "utf-8", headers, properties)
    opened().publish([Outgoing(sent, "", queue.name, 7, None, queue)])
    with raw(vhost) as channel:
        message = channel.basic_get(queue.name, no_ack=True)
    assert message.body == "[[1], {}, {}]"
    assert message.delivery_info["exchange"] == ""
    assert message.delivery_info["routing_key"] == queue.name
    assert message.properties == {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "application_headers": headers,
        "delivery_mode": 2,
        "priority": 7,
        "correlation_id": "some-id",
        "reply_to": "oid",
        "expiration": "100000",
    }


@pytest.mark.parametrize("size", [0, 1, 131_000, 131_064, 131_065, 500_000])
def test_bodies_are_cut_into_frames(opened: OpenBroker, vhost: str, size: int) -> None:
    queue, broker = new_queue(), opened()
    body = bytes(range(256)) * (size // 256 + 1)
    sent = Envelope(body[:size], "application/octet-stream", "binary", {}, {})
    broker.publish([Outgoing(sent, "", queue.name, queue=queue)] * 2)
    with raw(vhost) as channel:
        channel.auto_decode = False
        for _ in range(2):
            # The driver has text for no bytes.
            assert (channel.basic_get(queue.name, no_ack=True).body or b"") == body[:size]


def test_queues_are_declared_as_celery_does(opened: OpenBroker, vhost: str) -> None:
    exchange = Exchange(
        f"x-{new_queue().name}", "topic", durable=False, arguments={"alternate-exchange": "amq.fanout"}
    )
    queue = Queue(
        new_queue().name,
        exchange,
        "a.#",
        (Binding(exchange, "b"), Binding(Exchange("amq.headers", "headers"), "", {"x-match": "any", "k": 1})),
        expires=60.0,
        message_ttl=1.5,
        max_length=10,
        max_length_bytes=1000,
        max_priority=5,
        queue_arguments={"x-queue-mode": "lazy"},
    )
    plain = new_queue()
    opened().declare([queue, plain])
    with raw(vhost) as channel:
        # What is not the same is refused.
        channel.exchange_declare(
            exchange.name,
            "topic",
            durable=False,
            auto_delete=False,
            arguments={"alternate-exchange": "amq.fanout"},
        )
        channel.queue_declare(
            queue.name,
            durable=True,
            auto_delete=False,
            arguments={
                "x-expires": 60000,
                "x-message-ttl": 1500,
                "x-max-length": 10,
                "x-max-length-bytes": 1000,
                "x-max-priority": 5,
                "x-queue-mode": "lazy",
            },
        )
        channel.exchange_declare(plain.name, "direct", durable=True, auto_delete=False)
        for number, (name, key) in enumerate(
            [(exchange.name, "a.b"), (exchange.name, "b"), ("amq.headers", "")]
        ):
            message = amqp.Message("x", application_headers={"k": 1})
            channel.basic_publish(message, exchange=name, routing_key=key)
            assert wait_for_messages(channel, queue.name, number + 1)
        channel.basic_publish(amqp.Message("x"), exchange=plain.name, routing_key=plain.name)
        assert wait_for_messages(channel, plain.name, 1)


def wait_for_messages(channel: Any, queue: str, number: int) -> bool:
    deadline = time.monotonic() + 10
    while channel.queue_declare(queue, passive=True).message_count != number:
        assert time.monotonic() < deadline
    return True


def test_times_of_messages_and_priorities_arrive(opened: OpenBroker, vhost: str) -> None:
    queue = new_queue(max_priority=9)
    opened().publish([outgoing(queue, "low", priority=1), outgoing(queue, "high", priority=9)])
    with raw(vhost) as channel:
        assert channel.basic_get(queue.name, no_ack=True).properties["priority"] == 9


# -- what does not -------------------------------------------------------------------------------------------


def test_what_is_unroutable_is_named(opened: OpenBroker) -> None:
    queue, broker = new_queue(), opened()
    with pytest.raises(PublishFailed) as failed:
        broker.publish(
            [
                outgoing(queue, "a"),
                Outgoing(envelope("lost-1"), "", "no-such-queue"),
                outgoing(queue, "b"),
                Outgoing(envelope("lost-2"), "amq.topic", "no.binding"),
                Outgoing(envelope("lost-1"), "", "no-such-queue"),
            ]
        )
    assert failed.value.ids == ("lost-1", "lost-2", "lost-1")
    assert failed.value.unroutable
    assert "there is no queue 'no-such-queue'" in str(failed.value)
    assert "no queue is bound to exchange 'amq.topic' with key 'no.binding'" in str(failed.value)
    assert broker.size(queue.name).ready == 2


def test_what_a_fanout_brings_to_nobody_is_no_failure(opened: OpenBroker) -> None:
    broker = opened()
    exchange = Exchange(f"fan-{new_queue().name}", "fanout")
    listener = Queue(new_queue().name, exchange, auto_delete=True)
    broker.declare([listener])
    consumer = broker.consumer([listener], name="w")
    broker.publish([Outgoing(envelope("a"), exchange.name, "")])
    assert ids(take(consumer, 1)) == ["a"]
    consumer.close()  # the queue is gone with its last consumer
    broker.publish([Outgoing(envelope("b"), exchange.name, "")])
    other = opened()  # who was not told what kind of exchange it is
    other.publish([Outgoing(envelope("c"), exchange.name, ""), Outgoing(envelope("d"), "amq.fanout", "")])
    with pytest.raises(PublishFailed):
        other.publish([Outgoing(envelope("c"), "amq.direct", "")])


def test_a_queue_that_was_deleted_is_made_again(opened: OpenBroker, vhost: str) -> None:
    queue, broker = new_queue(), opened()
    broker.publish([outgoing(queue, "a")])
    with raw(vhost) as channel:
        channel.queue_delete(queue.name)
    broker.publish([outgoing(queue, "b"), outgoing(queue, "c")])
    assert broker.size(queue.name).ready == 2


def test_an_exchange_that_was_deleted_is_a_failure_and_then_made_again(
    opened: OpenBroker, vhost: str
) -> None:
    queue, broker = new_queue(), opened()
    bound = Queue(queue.name, Exchange(f"x-{queue.name}"), "key")
    message = Outgoing(envelope("a"), f"x-{queue.name}", "key", queue=bound)
    broker.publish([message])
    with raw(vhost) as channel:
        channel.exchange_delete(f"x-{queue.name}")
    with pytest.raises(PublishFailed, match="no exchange") as failed:
        broker.publish([message])
    assert not failed.value.unroutable
    broker.publish([message])
    assert broker.size(queue.name).ready == 2


def test_a_full_queue_refuses(opened: OpenBroker) -> None:
    queue = new_queue(max_length=2, queue_arguments={"x-overflow": "reject-publish"})
    broker = opened()
    with pytest.raises(PublishFailed, match="its queue refused it") as failed:
        broker.publish([outgoing(queue, id) for id in "abcd"])
    assert (failed.value.ids, failed.value.unroutable) == (("c", "d"), False)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"stamps": {"number": 2**63}}, "stamps: number: 9223372036854775808 does not fit 64 bits"),
        ({"stamps": {"set": {1}}}, "no form for set"),
        ({"argsrepr": "x" * 140_000}, "headers and properties have 140.* bytes"),
    ],
)
def test_what_amqp_cannot_carry_is_named_and_the_rest_arrives(
    opened: OpenBroker, broken: dict[str, Any], said: str
) -> None:
    queue, broker = new_queue(), opened()
    with pytest.raises(PublishFailed, match=said) as failed:
        broker.publish(
            [
                outgoing(queue, "a"),
                Outgoing(envelope("broken", **broken), "", queue.name, queue=queue),
                outgoing(queue, "b"),
            ]
        )
    assert (failed.value.ids, failed.value.unroutable) == (("broken",), True)
    assert broker.size(queue.name).ready == 2


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (
            {"max_priority": 5},
            {},
            "exists with x-max-priority = 5, and is declared here with no value: give it the same arguments",
        ),
        ({}, {"message_ttl": 3.0}, "exists with x-message-ttl = no value, and is declared here with 3000"),
        ({"durable": False}, {}, "exists with durable = false, and is declared here with true"),
        (
            {"queue_arguments": {"x-queue-type": "quorum"}},
            {"queue_arguments": {"x-queue-type": "classic"}},
            "exists with x-queue-type = quorum, and is declared here with classic",
        ),
    ],
)
def test_a_queue_that_exists_otherwise_is_explained(
    opened: OpenBroker, first: dict[str, Any], second: dict[str, Any], said: str
) -> None:
    queue, broker = new_queue(**first), opened()
    broker.declare([queue])
    other = Queue(queue.name, **second)
    for action in (
        lambda: broker.declare([other]),
        lambda: broker.publish([outgoing(other, "a")]),
        lambda: broker.consumer([other], name="w"),
    ):
        with pytest.raises(OperationalError) as refused:
            action()
        assert f"queue {queue.name!r} {said}" in str(refused.value)
    broker.publish([outgoing(queue, "a")])


def test_an_exchange_of_another_type_is_explained(opened: OpenBroker) -> None:
    name = f"x-{new_queue().name}"
    broker = opened()
    broker.declare([new_queue(exchange=Exchange(name, "topic"))])
    with pytest.raises(OperationalError, match=f"exchange '{name}' exists with type = topic"):
        broker.declare([new_queue(exchange=Exchange(name, "fanout"))])


def test_a_queue_of_another_connection_is_explained(opened: OpenBroker, vhost: str) -> None:
    queue, broker = new_queue(durable=False), opened()
    with raw(vhost) as channel:
        channel.queue_declare(queue.name, exclusive=True, auto_delete=False)
        with pytest.raises(OperationalError, match=f"queue '{queue.name}' is another connection's own"):
            broker.declare([queue])


def test_what_a_user_may_not_do_is_explained(opened: OpenBroker, private: PrivateRabbitMQ) -> None:
    queue = new_queue()
    opened(private.url).publish([outgoing(queue, "a")])
    private.rabbitmqctl("add_user", "reader", "secret")
    private.rabbitmqctl("set_permissions", "reader", "^$", "^$", ".*")
    broker = opened(private.url.replace("guest:guest", "reader:secret"))
    with pytest.raises(OperationalError, match=r"the user may not declare .*ACCESS_REFUSED") as refused:
        broker.declare([queue])
    assert "secret" not in str(refused.value)
    with pytest.raises(PublishFailed, match="ACCESS_REFUSED") as failed:
        broker.publish([Outgoing(envelope("a"), "amq.direct", "key")])
    assert failed.value.ids == ("a",)
    assert broker.size(queue.name).ready == 1


def test_an_exclusive_queue_is_its_consumers(opened: OpenBroker) -> None:
    queue, broker = new_queue(exclusive=True), opened()
    broker.declare([queue])
    consumer = broker.consumer([queue], name="w")
    broker.publish([outgoing(queue, "a")])
    assert ids(take(consumer, 1)) == ["a"]
    consumer.close()


# -- the connection ------------------------------------------------------------------------------------------


def test_a_login_that_is_refused_is_explained(vhost: str, opened: OpenBroker) -> None:
    broker = opened(vhost.replace("guest:guest", "guest:wrong"))
    with pytest.raises(OperationalError, match="refuses the login of user 'guest'") as refused:
        broker.size("q")
    assert "wrong" not in str(refused.value)
    with pytest.raises(OperationalError, match="cannot open virtual host 'nowhere'"):
        opened(vhost.rpartition("/")[0] + "/nowhere").size("q")


@pytest.mark.parametrize("method", ["PLAIN", "AMQPLAIN", "plain"])
def test_login_methods(opened: OpenBroker, method: str) -> None:
    assert opened(login_method=method).size("q").ready == 0


def test_a_login_method_that_the_server_does_not_know(opened: OpenBroker) -> None:
    with pytest.raises(OperationalError, match="EXTERNAL"):
        opened(login_method="EXTERNAL").size("q")


@pytest.mark.parametrize("failover", ["round-robin", "shuffle"])
def test_the_next_server_is_tried(opened: OpenBroker, vhost: str, failover: str) -> None:
    dead = f"amqp://127.0.0.1:{free_port()}"
    broker = opened(f"{dead};{vhost};{dead}//", failover=failover)
    queue = new_queue()
    broker.publish([outgoing(queue, "a")])
    consumer = broker.consumer([queue], name="w")
    assert ids(take(consumer, 1)) == ["a"]
    consumer.close()


def test_an_idle_connection_that_was_closed_is_noticed(opened: OpenBroker, vhost: str) -> None:
    queue = new_queue()
    with Proxy(vhost) as proxy:
        broker = opened(proxy.url)
        for id in "abc":
            broker.publish([outgoing(queue, id)])
            proxy.cut()
    assert opened().size(queue.name).ready == 3


def test_a_server_that_is_away_is_told_at_once(opened: OpenBroker) -> None:
    broker = opened(f"amqp://127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(PublishFailed, match="cannot be reached") as failed:
        broker.publish([Outgoing(envelope("a"), "", "q"), Outgoing(envelope("b"), "", "q")])
    assert failed.value.ids == ("a", "b")
    assert not failed.value.unroutable
    with pytest.raises(ConnectionLost):
        broker.size("q")
    with pytest.raises(ConnectionLost):
        broker.consumer([Queue("q")], name="w")
    assert time.monotonic() - began < 3


def test_a_server_that_is_silent_fails_a_publish_in_time(opened: OpenBroker, vhost: str) -> None:
    queue = new_queue()
    with Proxy(vhost) as proxy:
        broker = opened(proxy.url, publish_timeout=0.5, connect_timeout=0.5)
        broker.publish([outgoing(queue, "a")])
        proxy.stall()
        began = time.monotonic()
        with pytest.raises(PublishFailed, match="did not confirm in time") as failed:
            broker.publish([outgoing(queue, "b")])
        assert failed.value.ids == ("b",)
        with pytest.raises(PublishFailed):
            broker.publish([outgoing(queue, "c")])
        assert time.monotonic() - began < 3
        proxy.resume()
        broker.publish([outgoing(queue, "d")])


def test_a_confirm_that_is_lost_leaves_the_message_unconfirmed(opened: OpenBroker, vhost: str) -> None:
    queue = new_queue()
    with Proxy(vhost) as proxy:
        broker = opened(proxy.url)
        broker.publish([outgoing(queue, "a")])
        proxy.cut_reply(b"\x00\x3c\x00\x50")  # basic.ack
        with pytest.raises(PublishFailed) as failed:
            broker.publish([outgoing(queue, "b")])
        assert (failed.value.ids, failed.value.unroutable) == (("b",), False)


def test_blocked_publishers_are_told_why(opened: OpenBroker, private: PrivateRabbitMQ) -> None:
    queue = new_queue()
    broker = opened(private.url, publish_timeout=1.0)
    consumer = broker.consumer([queue], name="w")
    broker.publish([outgoing(queue, "a")])
    private.rabbitmqctl("set_vm_memory_high_watermark", "0")
    try:
        for _ in range(2):
            with pytest.raises(PublishFailed, match="has blocked all who publish: low on memory"):
                broker.publish([outgoing(queue, "b")])
        # Who consumes is not blocked.
        assert "a" in ids(consumer.fetch(1, 5))
    finally:
        private.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1GB")
    broker.publish([outgoing(queue, "c")])
    consumer.close()


def test_tls(opened: OpenBroker, private: PrivateRabbitMQ, tmp_path: Path) -> None:
    port = private.config["listeners.ssl.1"].rpartition(":")[2]
    url, queue = f"amqps://guest:guest@127.0.0.1:{port}//", new_queue()
    broker = opened(url, ssl={"ca_certs": private.config["ssl_options.cacertfile"]})
    body = b"x" * 300_000
    consumer = broker.consumer([queue], name="w")
    waiting = InThread(lambda: take(consumer, 50))
    broker.publish([Outgoing(envelope(str(n), body), "", queue.name, queue=queue) for n in range(50)])
    assert all(each.envelope.body == body for each in waiting.result())
    consumer.close()
    assert broker.size(queue.name).ready == 50
    with pytest.raises(ConnectionLost, match="TLS failed"):
        opened(url).size("q")
    stranger = make_certificates(tmp_path)
    with pytest.raises(ConnectionLost, match="TLS failed"):
        opened(url, ssl={"ca_certs": str(stranger.authority)}).size("q")
    assert opened(url, ssl={"cert_reqs": "none"}).size("q").ready == 0
    with pytest.raises(ImproperlyConfigured, match="unknown options"):
        opened(url, ssl={"nonsense": 1})


# -- threads and processes -----------------------------------------------------------------------------------


def test_many_threads_share_few_connections(opened: OpenBroker, vhost: str) -> None:
    queue, broker = new_queue(), opened(pool_limit=3)

    def publish(number: int) -> None:
        for n in range(50):
            broker.publish([outgoing(queue, f"{number}-{n}-{i}") for i in range(3)])

    threads = [InThread(partial(publish, number)) for number in range(12)]
    for each in threads:
        each.result()
    consumer = opened().consumer([queue], name="w")
    found = take(consumer, 12 * 50 * 3)
    assert len(set(ids(found))) == len(found)
    consumer.close()


def test_who_waits_for_a_connection_is_told(opened: OpenBroker) -> None:
    queue, broker = new_queue(), opened(pool_limit=1, publish_timeout=0.3)
    broker.publish([outgoing(queue, "a")])
    has_it, done = threading.Event(), threading.Event()

    def keep() -> None:
        with broker.publisher.line(time.monotonic() + 5):
            has_it.set()
            done.wait(10)

    keeper = InThread(keep)
    has_it.wait(10)
    with pytest.raises(PublishFailed, match="broker_pool_limit"):
        broker.publish([outgoing(queue, "b")])
    done.set()
    keeper.result()
    broker.publish([outgoing(queue, "c")])


def test_a_child_and_its_parent_do_not_share_a_socket(opened: OpenBroker) -> None:
    queue, broker = new_queue(), opened()
    broker.publish([outgoing(queue, "before")])

    def child() -> None:
        for n in range(20):
            broker.publish([outgoing(queue, f"child-{n}")])
        broker.close()

    in_fork(child)
    for n in range(20):
        broker.publish([outgoing(queue, f"parent-{n}")])
    assert broker.size(queue.name).ready == 41


def test_without_confirms_it_is_fast_and_nothing_is_said(opened: OpenBroker) -> None:
    queue = new_queue()
    broker = opened(transport={"confirm_publish": False})
    broker.publish([outgoing(queue, "a"), Outgoing(envelope("b"), "", "no-such-queue")])
    for n in range(1000):
        broker.publish([outgoing(queue, str(n))])
    consumer = broker.consumer([queue], name="w")
    assert len(take(consumer, 1001)) == 1001
    consumer.close()


def test_without_confirms_a_connection_that_is_lost_is_told_all_the_same(
    opened: OpenBroker, vhost: str
) -> None:
    queue = new_queue()
    with Proxy(vhost) as proxy:
        broker = opened(proxy.url, transport={"confirm_publish": False})
        broker.publish([outgoing(queue, "a")])
        proxy.refuse()
        with pytest.raises(PublishFailed) as failed:
            broker.publish([outgoing(queue, "b")])
        assert failed.value.ids == ("b",)


# -- later ---------------------------------------------------------------------------------------------------


def test_delayed_messages_go_where_celery_sends_them(opened: OpenBroker, vhost: str) -> None:
    queue, broker = new_queue(), opened()
    due = datetime.now(UTC) + timedelta(seconds=1_000_010.5)
    broker.publish([outgoing(queue, "a", due=due)])
    bits = ".".join(f"{1_000_010:028b}")
    with raw(vhost) as channel:
        # Declared again as Celery does: what is not the same is refused.
        declare_as_celery(channel)
        message = channel.basic_get("celery_delayed_19", no_ack=True)
    assert message.delivery_info["routing_key"] == f"{bits}.{queue.name}"


def test_a_message_that_says_by_itself_when_it_is_due_gets_no_mark(opened: OpenBroker, vhost: str) -> None:
    queue, broker = new_queue(), opened()
    due = datetime.now(UTC) + timedelta(seconds=0.7)
    plain = envelope("eta", eta=due.isoformat())
    broker.publish([Outgoing(plain, "", queue.name, due=due, queue=queue), outgoing(queue, "mark", due=due)])
    with raw(vhost) as channel:
        first, second = channel.basic_get(queue.name), channel.basic_get(queue.name)
        assert first.headers == plain.headers
        assert second.headers.keys() - envelope().headers.keys() == {"x-celeriac-due"}
    consumer = broker.consumer([queue], name="w")
    found = take(consumer, 2)
    assert datetime.now(UTC) >= due
    assert [each.envelope for each in found] == [plain, envelope("mark")]
    consumer.close()


def declare_as_celery(channel: Any) -> None:
    for level in range(27, -1, -1):
        name = f"celery_delayed_{level}"
        channel.exchange_declare(name, "topic", durable=True, auto_delete=False)
        channel.queue_declare(
            name,
            durable=True,
            auto_delete=False,
            arguments={
                "x-queue-type": "quorum",
                "x-overflow": "reject-publish",
                "x-message-ttl": 2**level * 1000,
                "x-dead-letter-exchange": f"celery_delayed_{level - 1}"
                if level
                else "celery_delayed_delivery",
                "x-dead-letter-strategy": "at-least-once",
            },
        )
    channel.exchange_declare("celery_delayed_delivery", "topic", durable=True, auto_delete=False)


def test_what_celery_delays_arrives(opened: OpenBroker, vhost: str) -> None:
    name = new_queue().name
    exchange = Exchange(f"x-{name}", "topic")
    queue = Queue(name, exchange, "eu.web", queue_arguments={"x-queue-type": "quorum"})
    consumer = opened().consumer([queue], name="w")
    with raw(vhost) as channel:
        bits = ".".join(f"{1:028b}")
        for key in ("eu.web", name):
            message = amqp.Message("body", application_headers={"task": "t", "id": key})
            channel.basic_publish(message, exchange="celery_delayed_27", routing_key=f"{bits}.{key}")
    deliveries = take(consumer, 2)
    assert sorted(ids(deliveries)) == sorted(["eu.web", name])
    assert all(each.envelope.headers.keys() == {"task", "id"} for each in deliveries)
    consumer.close()


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout", "headers"])
def test_messages_to_any_exchange_can_come_later(opened: OpenBroker, kind: Any) -> None:
    broker = opened()
    exchange = Exchange(f"x-{new_queue().name}", kind)
    queues = [
        Queue(new_queue().name, exchange, "the.key", binding_arguments={"x-match": "all", "kind": "a"})
        for _ in range(2)
    ]
    broker.declare(queues)
    due = datetime.now(UTC) + timedelta(seconds=1.2)
    broker.publish([Outgoing(envelope("a", kind="a"), exchange.name, "the.key", due=due)])
    for queue in queues:
        consumer = broker.consumer([queue], name="w")
        [delivery] = take(consumer, 1)
        assert datetime.now(UTC) >= due
        assert delivery.envelope == envelope("a", kind="a")
        consumer.close()


def test_many_delays_come_in_their_order_and_none_early(opened: OpenBroker) -> None:
    queue, broker = new_queue(), opened(publish_timeout=20.0)
    now = datetime.now(UTC)
    delays = {f"{n}": 0.1 + n % 40 / 10 for n in range(400)}
    broker.publish([outgoing(queue, id, due=now + timedelta(seconds=delay)) for id, delay in delays.items()])
    consumer = broker.consumer([queue], name="w")
    late: list[float] = []
    seen: list[str] = []
    while len(seen) < len(delays):
        deliveries = consumer.fetch(100, 10)
        passed = (datetime.now(UTC) - now).total_seconds()
        late += [passed - delays[id] for id in ids(deliveries)]
        seen += ids(deliveries)
    assert len(set(seen)) == len(delays)
    assert min(late) >= 0
    assert sorted(late)[-20] < 1.0
    consumer.close()
