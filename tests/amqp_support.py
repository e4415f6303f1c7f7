"""What tests of RabbitMQ share: a virtual host for a module, brokers on it, and a raw client on the other side."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import amqp
import pytest

from celeriac.brokers import open_broker
from celeriac.brokers.amqp import AMQPBroker
from celeriac.brokers.base import BrokerOptions
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.servers import Servers
from celeriac.topology import Queue

__all__ = ["OpenBroker", "new_queue", "opened", "raw", "vhost", "vhost_on"]

OpenBroker = Callable[..., AMQPBroker]


@pytest.fixture(scope="module")
def vhost(celeriac_servers: Servers) -> Iterator[str]:
    """The URL of a virtual host for the tests of one module."""
    with skipped_without_server(), celeriac_servers.rabbitmq_vhost() as url:
        yield url


@pytest.fixture
def opened(vhost: str) -> Iterator[OpenBroker]:
    """Makes brokers that the test's end closes: ``opened(url=…, publish_timeout=…)``."""
    brokers: list[AMQPBroker] = []

    def make(url: str = vhost, **options: Any) -> AMQPBroker:
        broker = open_broker(url, BrokerOptions(**options))
        assert isinstance(broker, AMQPBroker)
        brokers.append(broker)
        return broker

    yield make
    for each in brokers:
        each.close()


def new_queue(**options: Any) -> Queue:
    return Queue(f"q-{uuid4().hex[:12]}", **options)


def vhost_on(url: str, vhost: str) -> str:
    """A URL with another virtual host."""
    return urlsplit(url)._replace(path=f"/{vhost}").geturl()


@contextmanager
def raw(url: str, **options: Any) -> Generator[Any]:
    """A channel of py-amqp, which shares nothing with what is tested."""
    parts = urlsplit(url)
    connection = amqp.Connection(
        f"{parts.hostname}:{parts.port or 5672}",
        userid=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        virtual_host=unquote(parts.path[1:]) or "/",
        connect_timeout=10,
        read_timeout=10,
        write_timeout=10,
        **options,
    )
    connection.connect()
    try:
        yield connection.channel()
    finally:
        try:
            connection.close()
        except (OSError, amqp.AMQPError):
            connection.collect()
