"""Where a Redis server is, from URLs and options."""

from __future__ import annotations

from typing import Any

import pytest

from celeriac.errors import ConnectionLost, ImproperlyConfigured
from celeriac.redis.address import Address, read_address
from celeriac.redis.server import RedisServer


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", Address(hosts=(("localhost", 6379),))),
        ("redis://host:7000/3", Address(hosts=(("host", 7000),), db=3)),
        ("valkey://host/3", Address(hosts=(("host", 6379),), db=3)),
        ("redis://host?db=4", Address(hosts=(("host", 6379),), db=4)),
        ("redis://:secret@host", Address(hosts=(("host", 6379),), password="secret")),
        ("redis://me:p%40ss@host", Address(hosts=(("host", 6379),), username="me", password="p@ss")),
        ("redis://[::1]:7000", Address(hosts=(("::1", 7000),))),
        ("unix:///run/redis.sock", Address(path="/run/redis.sock")),
        ("unix://:pw@/run/redis.sock?db=2", Address(path="/run/redis.sock", db=2, password="pw")),
        ("redis+socket:///run/redis.sock?virtual_host=5", Address(path="/run/redis.sock", db=5)),
        (
            "redis://host?client_name=me",
            Address(hosts=(("host", 6379),), parameters={"client_name": "me"}),
        ),
        ("rediss://host", Address(hosts=(("host", 6379),), tls={"ssl_cert_reqs": "required"})),
        (
            "rediss://host?ssl_cert_reqs=CERT_NONE&ssl_ca_certs=ca.pem",
            Address(
                hosts=(("host", 6379),),
                tls={"ssl_ca_certs": "ca.pem", "ssl_cert_reqs": "none", "ssl_check_hostname": False},
            ),
        ),
    ],
)
def test_urls(url: str, expected: Address) -> None:
    assert read_address(url, {}, None) == expected


def test_sentinels_and_the_service_they_know() -> None:
    url = "sentinel://:pw@a;sentinel://b:7000;sentinel://c/2"
    address = read_address(url, {"master_name": "cluster1"}, None)
    assert address.hosts == (("a", 26379), ("b", 7000), ("c", 26379))
    assert (address.service, address.db, address.password) == ("cluster1", 2, "pw")


@pytest.mark.parametrize("ssl", [{"keyfile": "key.pem", "cert_reqs": 2}, {"ssl_keyfile": "key.pem"}])
def test_tls_options_of_the_settings(ssl: dict[str, Any]) -> None:
    assert read_address("redis://host", {}, ssl).tls == {
        "ssl_keyfile": "key.pem",
        "ssl_cert_reqs": "required",
    }


@pytest.mark.parametrize(
    ("url", "ssl", "message"),
    [
        ("redis://:secret@host:port", None, "port must be a number"),
        ("redis://:secret@host/web", None, "database must be a number, not 'web'"),
        ("redis://:secret@a;redis://b", None, "one Redis server is expected"),
        ("sentinel://:secret@a", None, "master_name"),
        ("unix://", None, "path of the socket"),
        ("rediss://:secret@host?ssl_cert_reqs=perhaps", None, "required, optional, none, not 'perhaps'"),
        (
            "redis://:secret@host",
            {"certificate": "x"},
            "unknown TLS options ssl_certificate; known are ssl_keyfile",
        ),
        ("amqp://:secret@host", None, "not the URL of a Redis server"),
    ],
)
def test_what_is_wrong_is_named_and_no_password(url: str, ssl: Any, message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message) as caught:
        read_address(url, {}, ssl)
    assert "secret" not in str(caught.value)


def server(url: str, **transport: Any) -> RedisServer:
    return RedisServer.of(url, transport=transport, timeout=2.0)


def test_servers_are_the_same_where_host_and_database_are() -> None:
    assert server("redis://host/1").identity == server("redis://me:pw@host:6379/1").identity
    assert server("redis://host/1").identity != server("redis://host/2").identity


def test_numbers_among_the_options() -> None:
    assert server("redis://host", socket_timeout="0.5").timeout == 0.5
    assert server("redis://host?socket_timeout=30").timeout == 2.0
    with pytest.raises(ImproperlyConfigured, match="'socket_timeout' must be a number, not 'long'"):
        server("redis://host", socket_timeout="long")


def test_the_key_prefix() -> None:
    assert server("redis://host", global_keyprefix="app:").key("celery") == "app:celery"


def test_a_server_that_is_not_there() -> None:
    away = server("redis://127.0.0.1:1")
    with pytest.raises(ConnectionLost, match=r"Redis at 127.0.0.1:1: .*refused"), away.errors():
        away.client().ping()
    with pytest.raises(ConnectionLost, match="refused"), away.errors():
        away.connect(timeout=1.0)
    away.close()
