"""The bus of RabbitMQ: the suite, what is declared there, and what becomes of broken connections."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import pytest

from celeriac.amqp import methods
from celeriac.amqp.channel import ChannelClosed
from celeriac.amqp.server import AMQPServer
from celeriac.brokers import amqp_bus, open_broker
from celeriac.brokers.base import Broker, BrokerOptions
from celeriac.brokers.bus import Bus
from celeriac.errors import ConnectionLost, OperationalError
from celeriac.testing.conformance.bus import BusConformance, heard, said
from celeriac.testing.conformance.harness import MOMENT, PATIENCE
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.proxy import Proxy
from celeriac.testing.servers import Servers
from celeriac.topology import Exchange, Queue
from celeriac.wire.envelope import Envelope, Outgoing


@pytest.fixture(scope="module")
def vhost(celeriac_servers: Servers) -> Iterator[str]:
    """One for all tests here: making one takes as long as many tests, and they use names of their own."""
    with skipped_without_server(), celeriac_servers.rabbitmq_vhost() as url:
        yield url


class TestAMQPBus(BusConformance):
    @pytest.fixture
    def server(self, vhost: str) -> str:
        return vhost

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        return open_broker(server, options)


@contextmanager
def bus_on(url: str, **options: Any) -> Iterator[Bus]:
    with closing(open_broker(url, BrokerOptions(**options))) as broker:
        bus = broker.bus()
        assert bus is not None
        yield bus


@pytest.fixture
def bus(vhost: str) -> Iterator[Bus]:
    with bus_on(vhost) as bus:
        yield bus


@pytest.fixture
def exchange() -> Exchange:
    return Exchange(f"reply.{uuid4()}.pidbox", "direct", durable=False)


def queue_on(exchange: Exchange, key: str = "me") -> Queue:
    return Queue(
        f"{key}.{exchange.name}", exchange, key, durable=False, exclusive=True, auto_delete=True, no_ack=True,
        expires=10.0, message_ttl=300.0,
    )  # fmt: skip


def exists(url: str, queue: str) -> bool:
    connection = AMQPServer.of(url).connect(name="test")
    try:
        channel = connection.channel()
        channel.call(
            methods.queue_declare(channel.number, queue, passive=True), methods.QUEUE_DECLARE_OK, timeout=10
        )
    except ChannelClosed as exc:
        # 405: it is there, and somebody's own.
        return exc.code == 405
    finally:
        connection.close()
    return True


def test_the_queue_lives_as_long_as_its_listener(bus: Bus, vhost: str, exchange: Exchange) -> None:
    queue = queue_on(exchange)
    with bus.listen(queue):
        assert exists(vhost, queue.name)
    assert not exists(vhost, queue.name)


def test_a_durable_queue_without_exchange_goes_too(bus: Bus, vhost: str) -> None:
    queue = Queue(str(uuid4()), Exchange(), auto_delete=True, no_ack=True, expires=60.0)
    with bus.listen(queue) as listener:
        envelope = Envelope(b"{}", "application/json", "utf-8", {}, {"correlation_id": "id"})
        bus.send([Outgoing(envelope, "", queue.name)])
        (came,) = listener.receive(PATIENCE)
        assert came.task_id == "id"
    assert not exists(vhost, queue.name)
    bus.send([Outgoing(envelope, "", queue.name)])


def test_a_queue_of_another_listener_is_refused(bus: Bus, exchange: Exchange) -> None:
    with bus.listen(queue_on(exchange)), pytest.raises(OperationalError, match="another connection's own"):
        bus.listen(queue_on(exchange))


def test_exchanges_are_those_that_celery_declares(bus: Bus, vhost: str) -> None:
    """Whoever comes second has to declare the same, or is refused."""
    name = str(uuid4())
    exchanges = [
        Exchange(f"{name}.pidbox", "fanout", durable=False),
        Exchange(f"reply.{name}.pidbox", "direct", durable=False),
        Exchange(f"{name}ev", "topic"),
    ]
    bus.send([said("a", each) for each in exchanges])
    for each in exchanges:
        with bus.listen(queue_on(each)) as listener:
            bus.send([said("b", each, "me")])
            assert heard(listener, 1) == ["b"]


def test_an_exchange_that_was_deleted_is_declared_anew(bus: Bus, vhost: str, exchange: Exchange) -> None:
    for _ in range(2):  # then it is known to be there
        bus.send([said("a", exchange, "me")])
    connection = AMQPServer.of(vhost).connect(name="test")
    channel = connection.channel()
    delete = _delete_exchange(channel.number, exchange.name)
    channel.call(delete, b"\x00\x28\x00\x15", timeout=10)
    connection.close()
    with pytest.raises(ConnectionLost, match=exchange.name):
        bus.send([said("b", exchange, "me")])
    with bus.listen(queue_on(exchange)) as listener:
        bus.send([said("c", exchange, "me")])
        assert heard(listener, 1) == ["c"]


def _delete_exchange(channel: int, name: str) -> bytes:
    arguments = b"\x00\x00" + bytes((len(name),)) + name.encode() + b"\x00"
    payload = b"\x00\x28\x00\x14" + arguments
    return b"\x01" + channel.to_bytes(2) + len(payload).to_bytes(4) + payload + b"\xce"


def test_what_amqp_cannot_carry_is_an_error_of_ours(bus: Bus, exchange: Exchange) -> None:
    envelope = Envelope(b"", "text/plain", "utf-8", {"big": 1 << 70}, {})
    with pytest.raises(OperationalError, match="big"):
        bus.send([Outgoing(envelope, exchange.name, "me")])


def test_a_lost_connection_is_told_once(vhost: str, bus: Bus, exchange: Exchange) -> None:
    with Proxy(vhost) as proxy, bus_on(proxy.url) as far, far.listen(queue_on(exchange)) as listener:
        proxy.cut()
        with pytest.raises(ConnectionLost):
            listener.receive(PATIENCE)
        listen_again(listener)
        bus.send([said("a", exchange, "me")])
        assert heard(listener, 1) == ["a"]


def listen_again(listener: Any) -> None:
    """The server may take a moment to see that the lost connection, whose own the queue was, is gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return listener.receive(0)
        except ConnectionLost:
            assert time.monotonic() < deadline


def test_a_deleted_queue_is_a_lost_connection(bus: Bus, vhost: str) -> None:
    queue = Queue(str(uuid4()), Exchange(), auto_delete=True, no_ack=True)
    with bus.listen(queue) as listener:
        connection = AMQPServer.of(vhost).connect(name="test")
        channel = connection.channel()
        channel.call(methods.queue_delete(channel.number, queue.name), methods.QUEUE_DELETE_OK, timeout=10)
        connection.close()
        with pytest.raises(ConnectionLost, match="was deleted"):
            listener.receive(PATIENCE)
        assert list(listener.receive(MOMENT)) == []
        bus.send([said("a", Exchange(), queue.name)])
        assert heard(listener, 1) == ["a"]


def test_a_server_that_fell_silent_is_noticed(
    vhost: str, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_bus, "_HEARTBEAT", 1.0)
    with (
        Proxy(vhost) as proxy,
        bus_on(proxy.url, heartbeat=1.0, publish_timeout=0.5) as bus,
        bus.listen(queue_on(exchange)) as listener,
    ):
        assert list(listener.receive(3)) == []  # heartbeats go both ways
        proxy.stall()
        with pytest.raises(ConnectionLost, match="silent"):
            listener.receive(PATIENCE)
        with pytest.raises(ConnectionLost):
            listener.receive(PATIENCE)
        proxy.resume()
        listen_again(listener)


def test_a_server_that_is_away_is_an_error_of_ours(vhost: str, exchange: Exchange) -> None:
    with Proxy(vhost) as proxy, bus_on(proxy.url) as bus:
        proxy.refuse()
        with pytest.raises(ConnectionLost):
            bus.send([said("a", exchange)])
        with pytest.raises(ConnectionLost):
            bus.listen(queue_on(exchange))


def test_closing_needs_no_server(vhost: str, exchange: Exchange) -> None:
    with Proxy(vhost) as proxy, bus_on(proxy.url) as bus:
        listener = bus.listen(queue_on(exchange))
        proxy.refuse()
        listener.close()
