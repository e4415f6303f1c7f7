"""From URL to broker or result backend."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions
from celeriac.backends.disabled import DisabledBackend
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers import open_broker
from celeriac.brokers.base import BrokerOptions
from celeriac.brokers.memory import MemoryBroker
from celeriac.errors import ImproperlyConfigured, MissingExtra

BROKER, BACKEND = BrokerOptions(publish_timeout=1.5), BackendOptions(timeout=1.5)


@pytest.mark.parametrize("url", ["memory://", "MEMORY://", "memory://localhost/", "memory"])
def test_memory(url: str) -> None:
    broker, backend = open_broker(url, BROKER), open_backend(url, BACKEND)
    assert (type(broker), broker.url, broker.options) == (MemoryBroker, url, BROKER)
    assert (type(backend), backend.url, backend.options) == (MemoryBackend, url, BACKEND)


@pytest.mark.parametrize("url", ["disabled://", "disabled"])
def test_no_results(url: str) -> None:
    assert type(open_backend(url, BACKEND)) is DisabledBackend


REDIS = [
    "redis://",
    "rediss://host/1",
    "valkey://host",
    "unix:///run/redis.sock",
    "redis+socket:///run/redis.sock",
]


@pytest.mark.parametrize("url", REDIS)
def test_redis(url: str) -> None:
    broker, backend = open_broker(url, BROKER), open_backend(url, BACKEND)
    assert (type(broker).__name__, type(backend).__name__) == ("RedisBroker", "RedisBackend")


@pytest.mark.parametrize(
    "url", ["amqp://", "amqps://host", "pyamqp://a;amqp://b", "librabbitmq://host//vhost"]
)
def test_rabbitmq(url: str) -> None:
    assert type(open_broker(url, BROKER)).__name__ == "AMQPBroker"


def test_results_as_messages() -> None:
    options = BackendOptions(open_broker=lambda: open_broker("memory://", BROKER))
    assert type(open_backend("rpc://", options)).__name__ == "RPCBackend"


@pytest.mark.parametrize(
    ("driver", "open"),
    [
        ("redis", lambda: open_broker("redis://", BROKER)),
        ("redis", lambda: open_backend("redis://", BACKEND)),
        ("amqp", lambda: open_broker("amqp://", BROKER)),
    ],
)
def test_a_driver_that_is_missing_is_named(driver: str, open: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        each
        for each in sys.modules
        if each.startswith(
            (
                "celeriac.redis",
                "celeriac.amqp",
                "celeriac.brokers.redis",
                "celeriac.brokers.amqp",
                "celeriac.backends.redis",
            )
        )
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in [each for each in sys.modules if each == driver or each.startswith(f"{driver}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, driver, None)  # type: ignore[arg-type]  as if it were not installed
    with pytest.raises(MissingExtra, match=rf"pip install .*celeriac\[{driver}\]"):
        open()


DATABASES = ["sqlite:///celeriac.db", "sqlite+pysqlite:///celeriac.db", "SQLite:////var/lib/celeriac.db"]


@pytest.mark.parametrize("url", DATABASES)
@pytest.mark.parametrize("prefix", ["", "sqla+", "SQLA+", "sqlalchemy+"])
def test_brokers_on_databases(prefix: str, url: str) -> None:
    broker = open_broker(prefix + url, BROKER)
    assert (type(broker).__name__, broker.url) == ("SQLBroker", url)


@pytest.mark.parametrize("url", DATABASES)
@pytest.mark.parametrize("prefix", ["", "db+", "DB+"])
def test_backends_on_databases(prefix: str, url: str) -> None:
    backend = open_backend(prefix + url, BACKEND)
    assert (type(backend).__name__, backend.url) == ("SQLBackend", url)


@pytest.mark.parametrize("url", ["mongodb://u:s3cret@host", "sqs://"])
def test_servers_that_are_planned_are_told_apart_from_mistakes(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"has no broker for (mongodb|sqs):// yet") as err:
        open_broker(url, BROKER)
    assert "sqlite://" in str(err.value)
    assert "s3cret" not in str(err.value)


def test_backends_have_names_of_their_own() -> None:
    with pytest.raises(ImproperlyConfigured, match="no result backend for s3:// yet"):
        open_backend("s3://", BACKEND)
    with pytest.raises(ImproperlyConfigured, match="unknown broker scheme 'disabled'"):
        open_broker("disabled://", BROKER)


@pytest.mark.parametrize(
    ("url", "meant"), [("sqllite:///x", "sqlite"), ("postgres://h/x", "postgresql"), ("reddis://", "redis")]
)
def test_a_mistyped_scheme_is_guessed(url: str, meant: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"did you mean {meant}://"):
        open_broker(url, BROKER)


@pytest.mark.parametrize("url", ["", "://host", "s3cret", "user:s3cret@host", "/var/lib/s3cret.db"])
def test_what_has_no_scheme_is_not_repeated(url: str) -> None:
    for open in (lambda: open_broker(url, BROKER), lambda: open_backend(url, BACKEND)):
        with pytest.raises(ImproperlyConfigured, match="URL has no scheme") as err:
            open()
        assert "s3cret" not in str(err.value)


class Foreign:
    def __init__(self, url: str, options: Any) -> None:
        self.url = url
        self.options = options


def test_other_distributions_add_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(*, group: str, name: str) -> list[EntryPoint]:
        known = {("celeriac.brokers", "nats"), ("celeriac.backends", "etcd")}
        return [EntryPoint(name, f"{__name__}:Foreign", group)] if (group, name) in known else []

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    broker, backend = open_broker("nats://host", BROKER), open_backend("etcd://host", BACKEND)
    assert type(broker).__name__ == type(backend).__name__ == "Foreign"
    assert (broker.url, broker.options) == ("nats://host", BROKER)
    with pytest.raises(ImproperlyConfigured):
        open_broker("etcd://host", BROKER)
