"""The bus of Redis: the suite, what lies in Redis meanwhile, and what becomes of broken connections."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import pytest
import redis

from celeriac.brokers import open_broker, redis_bus
from celeriac.brokers.base import Broker, BrokerOptions
from celeriac.brokers.bus import Bus
from celeriac.errors import ConnectionLost, OperationalError
from celeriac.testing.conformance.bus import BusConformance, heard, received, said
from celeriac.testing.conformance.harness import MOMENT, PATIENCE
from celeriac.testing.proxy import Proxy
from celeriac.topology import Exchange, Queue
from celeriac.wire.envelope import Envelope, Outgoing

EVENTS = Exchange("t-events", "topic")
REPLIES = Exchange("reply.r.pidbox", "direct", durable=False)
COMMANDS = Exchange("c.pidbox", "fanout", durable=False)


class TestRedisBus(BusConformance):
    @pytest.fixture
    def server(self, redis_url: str) -> str:
        return redis_url

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        return open_broker(server, options)


class TestRedisBusWithAPrefix(TestRedisBus):
    def open(self, server: Any, options: BrokerOptions) -> Broker:
        transport = {"global_keyprefix": "mine:", "fanout_prefix": "/of-{db}-"}
        return open_broker(server, BrokerOptions(transport=transport))


@contextmanager
def bus_on(url: str, **transport: Any) -> Iterator[Bus]:
    with closing(open_broker(url, BrokerOptions(transport=transport))) as broker:
        bus = broker.bus()
        assert bus is not None
        yield bus


@pytest.fixture
def bus(redis_url: str) -> Iterator[Bus]:
    with bus_on(redis_url) as bus:
        yield bus


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def queue_on(exchange: Exchange, key: str = "") -> Queue:
    return Queue(f"{exchange.name}-{uuid4()}", exchange, key, durable=False, exclusive=True, expires=10.0)


# -- what lies in Redis ----------------------------------------------------------------------------------------


def test_who_waits_for_answers_is_bound_as_celery_has_it(bus: Bus, client: redis.Redis) -> None:
    queue = queue_on(REPLIES, "me")
    with bus.listen(queue):
        assert client.smembers("_kombu.binding.reply.r.pidbox") == {f"me\x06\x16\x06\x16{queue.name}"}
        deadline = client.zscore("_kombu.binding_deadlines", "reply.r.pidbox")
        assert 3500 < deadline / 1000 - time.time() < 3700
    assert client.keys() == []


def test_other_bindings_of_the_exchange_stay(bus: Bus, client: redis.Redis) -> None:
    with bus.listen(queue_on(REPLIES, "me")):
        client.sadd("_kombu.binding.reply.r.pidbox", "celery\x06\x16\x06\x16celery.reply.r.pidbox")
    assert client.smembers("_kombu.binding.reply.r.pidbox") == {"celery\x06\x16\x06\x16celery.reply.r.pidbox"}
    assert client.zscore("_kombu.binding_deadlines", "reply.r.pidbox") is not None


def test_an_answer_that_nobody_reads_goes_by_itself(bus: Bus, client: redis.Redis) -> None:
    client.sadd("_kombu.binding.reply.r.pidbox", "gone\x06\x16\x06\x16gone.reply.r.pidbox")
    bus.send([said("a", REPLIES, "gone")])
    assert client.llen("gone.reply.r.pidbox") == 1
    assert 0 < client.pttl("gone.reply.r.pidbox") <= 10_000


def test_a_message_says_how_long_it_may_lie_unread(bus: Bus, client: redis.Redis) -> None:
    result = Envelope(b"{}", "application/json", "utf-8", {}, {"expiration": "3600000"})
    bus.send([Outgoing(result, "", "somebody")])
    assert 3_590_000 < client.pttl("somebody") <= 3_600_000


def test_many_answers_come_in_order(bus: Bus) -> None:
    words = [str(number) for number in range(500)]
    with bus.listen(queue_on(REPLIES, "me")) as listener:
        bus.send([said(each, REPLIES, "me") for each in words])
        assert heard(listener, 500) == words


def test_a_binding_is_renewed_before_it_is_swept(
    bus: Bus, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_bus, "_BOUND", 0.0)
    queue = Queue("short", REPLIES, "me", expires=0.01)
    with bus.listen(queue) as listener:
        client.delete("_kombu.binding.reply.r.pidbox")
        listener.receive(MOMENT)
        bus.send([said("a", REPLIES, "me")])
        assert heard(listener, 1) == ["a"]


# -- what is heard ---------------------------------------------------------------------------------------------


def test_a_star_is_one_word(bus: Bus) -> None:
    with bus.listen(queue_on(EVENTS, "worker.*")) as listener:
        bus.send([said("no", EVENTS, "worker.a.b"), said("yes", EVENTS, "worker.a")])
        assert heard(listener, 1) == ["yes"]


def test_without_patterns_all_is_heard_that_fits(redis_url: str) -> None:
    with (
        bus_on(redis_url, fanout_patterns=False) as bus,
        bus.listen(queue_on(EVENTS, "worker.#")) as listener,
    ):
        bus.send([said("no", EVENTS, "task.sent"), said("yes", EVENTS, "worker.online")])
        assert heard(listener, 1) == ["yes"]


def test_databases_do_not_hear_each_other(bus: Bus, client: redis.Redis) -> None:
    with bus.listen(queue_on(COMMANDS)) as listener:
        assert client.publish("/99.c.pidbox", b"{}") == 0
        bus.send([said("here", COMMANDS)])
        (envelope,) = received(listener, 1)
    assert envelope.properties["delivery_info"] == {"exchange": "c.pidbox", "routing_key": ""}


def test_what_is_no_message_is_dropped(
    bus: Bus, client: redis.Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with bus.listen(queue_on(COMMANDS)) as listener:
        assert client.publish(f"/{redis_url.rpartition('/')[2]}.c.pidbox", "rubbish") == 1
        bus.send([said("a", COMMANDS)])
        assert heard(listener, 1) == ["a"]
    assert "not a message envelope" in caplog.text


def test_a_headers_exchange_is_refused(bus: Bus) -> None:
    with pytest.raises(OperationalError, match="not headers"):
        bus.listen(queue_on(Exchange("h", "headers")))


# -- broken connections ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("exchange", "key"), [(COMMANDS, ""), (REPLIES, "me")])
def test_a_lost_connection_is_told_once(redis_url: str, bus: Bus, exchange: Exchange, key: str) -> None:
    with Proxy(redis_url) as proxy, bus_on(proxy.url) as far, far.listen(queue_on(exchange, key)) as listener:
        proxy.cut()
        with pytest.raises(ConnectionLost):
            listener.receive(PATIENCE)
        assert list(listener.receive(MOMENT)) == []
        bus.send([said("a", exchange, key)])
        assert heard(listener, 1) == ["a"]


@pytest.mark.parametrize(("exchange", "key"), [(COMMANDS, ""), (REPLIES, "me")])
def test_a_server_that_fell_silent_is_noticed(
    redis_url: str, exchange: Exchange, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_bus, "_QUIET", 1.0)
    with (
        Proxy(redis_url) as proxy,
        bus_on(proxy.url, socket_timeout=0.5) as bus,
        bus.listen(queue_on(exchange, key)) as listener,
    ):
        assert list(listener.receive(2.5)) == []  # nobody speaks, and it is answered all the same
        proxy.stall()
        with pytest.raises(ConnectionLost, match="does not answer"):
            listener.receive(PATIENCE)
        with pytest.raises(ConnectionLost):
            listener.receive(PATIENCE)
        proxy.resume()
        assert list(listener.receive(MOMENT)) == []


def test_a_server_that_is_away_is_an_error_of_ours(redis_url: str) -> None:
    with Proxy(redis_url) as proxy, bus_on(proxy.url) as bus:
        proxy.refuse()
        with pytest.raises(ConnectionLost):
            bus.send([said("a", COMMANDS)])
        with pytest.raises(ConnectionLost):
            bus.listen(queue_on(COMMANDS))


def test_closing_needs_no_server(redis_url: str, client: redis.Redis) -> None:
    with Proxy(redis_url) as proxy, bus_on(proxy.url) as bus:
        listener = bus.listen(queue_on(REPLIES, "me"))
        proxy.refuse()
        listener.close()
