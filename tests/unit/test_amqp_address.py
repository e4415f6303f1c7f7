"""URLs and options of RabbitMQ, and what becomes of them."""

from __future__ import annotations

import ssl
import time

import pytest

from celeriac.amqp.address import read_addresses
from celeriac.amqp.driver import tls_options
from celeriac.amqp.server import AMQPServer
from celeriac.brokers import open_broker
from celeriac.brokers.base import BrokerOptions
from celeriac.errors import ConnectionLost, ImproperlyConfigured
from celeriac.testing.servers import free_port


@pytest.mark.parametrize(
    ("url", "vhost"),
    [
        ("amqp://host", "/"),
        ("amqp://host/", "/"),
        ("amqp://host//", "/"),
        ("amqp://host/name", "name"),
        ("amqp://host//name", "/name"),
        ("amqp://host/%2F", "/"),
        ("amqp://host/a%2Fb", "a/b"),
    ],
)
def test_virtual_hosts_are_named_as_in_celery(url: str, vhost: str) -> None:
    [address], _ = read_addresses(url)
    assert address.vhost == vhost


def test_the_parts_of_a_url() -> None:
    [address], parameters = read_addresses("amqps://us%40er:p%3Bw%2F@host:1234/v?heartbeat=3")
    assert (address.host, address.port, address.user, address.password, address.tls) == (
        *("host", 1234, "us@er", "p;w/", True),
    )
    assert parameters == {"heartbeat": "3"}
    assert str(address) == "host:1234/v"


def test_what_is_missing_is_usual() -> None:
    [plain], _ = read_addresses("pyamqp://")
    [tls], _ = read_addresses("amqps://[::1]")
    assert (plain.host, plain.port, plain.user, plain.password) == ("localhost", 5672, "guest", "guest")
    assert (tls.host, tls.port, str(tls)) == ("::1", 5671, "[::1]:5671")


def test_several_servers() -> None:
    addresses, _ = read_addresses("amqp://a:p;w@one//;amqp://two:5673/v; librabbitmq://three")
    assert [(each.host, each.port, each.vhost) for each in addresses] == [
        ("one", 5672, "/"),
        ("two", 5673, "v"),
        ("three", 5672, "/"),
    ]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://host", "not the URL of a RabbitMQ server"),
        ("amqp://host:port", "port must be a number"),
        ("amqp://host?colour=red", "unknown parameters colour; known are"),
        ("amqp://host?heartbeat=often", "heartbeat must be a number"),
        ("amqp://host?login_method=KERBEROS", "broker_login_method must be one of PLAIN"),
        ("", "empty"),
    ],
)
def test_wrong_urls_say_what_is_wrong(url: str, said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=said):
        AMQPServer.of(url)


def test_a_password_is_never_told() -> None:
    with pytest.raises(ImproperlyConfigured) as told:
        AMQPServer.of("amqp://user:s3cret@host:port")
    assert "s3cret" not in str(told.value)


def test_wrong_options_say_what_is_wrong() -> None:
    with pytest.raises(ImproperlyConfigured, match="broker_failover_strategy"):
        AMQPServer.of("amqp://a", failover="random")
    with pytest.raises(ImproperlyConfigured, match="consumer_timeout must be a number"):
        open_broker("amqp://a", BrokerOptions(transport={"consumer_timeout": "long"}))


def test_tls_options() -> None:
    [plain], _ = read_addresses("amqp://host")
    [tls], _ = read_addresses("amqps://host")
    assert tls_options(plain, False) is None
    assert tls_options(tls, False) == {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "host"}
    assert tls_options(plain, True) == {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "host"}
    given = {"ca_certs": "ca.pem", "keyfile": "key.pem", "certfile": "cert.pem", "cert_reqs": "CERT_NONE"}
    assert tls_options(plain, given) == {**given, "cert_reqs": ssl.CERT_NONE}
    assert tls_options(plain, {"ssl_cert_reqs": ssl.CERT_OPTIONAL}) == {
        "cert_reqs": ssl.CERT_OPTIONAL,
        "server_hostname": "host",
    }
    with pytest.raises(ImproperlyConfigured, match="cert_reqs must be one of"):
        tls_options(plain, {"cert_reqs": "perhaps"})
    with pytest.raises(ImproperlyConfigured, match="unknown options cafile"):
        tls_options(plain, {"cafile": "x"})


def test_the_same_servers_are_the_same() -> None:
    one, again = AMQPServer.of("amqp://a//;amqp://b//"), AMQPServer.of("amqp://u:p@a;amqp://u:p@b")
    assert one.identity == again.identity != AMQPServer.of("amqp://a/other;amqp://b//").identity


def test_who_cannot_be_reached_is_named_and_nothing_takes_long() -> None:
    ports = free_port(), free_port()
    server = AMQPServer.of(";".join(f"amqp://127.0.0.1:{port}" for port in ports))
    began = time.monotonic()
    with pytest.raises(ConnectionLost) as told:
        server.connect(name="test")
    assert all(f"127.0.0.1:{port} cannot be reached" in str(told.value) for port in ports)
    assert time.monotonic() - began < 5
