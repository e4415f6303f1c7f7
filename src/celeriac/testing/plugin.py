"""Fixtures for projects that test their tasks: ``pytest_plugins = ["celeriac.testing.plugin"]``.

`redis_url` and `amqp_url` find a server or start one, see `celeriac.testing.servers`. Where there is none, tests
that want it are skipped; in CI (the environment variable ``CI`` is set) they fail.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from celeriac.app import Celeriac
from celeriac.testing.servers import ServerMissing, Servers
from celeriac.testing.worker import running_worker
from celeriac.worker.worker import Worker

__all__ = [
    "amqp_url",
    "celeriac_app",
    "celeriac_servers",
    "celeriac_worker",
    "redis_url",
    "skipped_without_server",
]


@pytest.fixture
def celeriac_app() -> Iterator[Celeriac]:
    """An app of its own for one test, with broker and results in memory. Override it to use your own app."""
    with Celeriac("tests", broker="memory://", backend="memory://", set_as_current=False) as app:
        yield app


@pytest.fixture
def celeriac_worker(celeriac_app: Celeriac) -> Iterator[Worker]:
    """A worker that runs the tasks of `celeriac_app` while the test runs."""
    with running_worker(celeriac_app) as worker:
        yield worker


@contextmanager
def skipped_without_server() -> Generator[None]:
    """Skip the test, or fail it in CI, where the block raises `ServerMissing`."""
    try:
        yield
    except ServerMissing as exc:
        if os.environ.get("CI"):
            pytest.fail(f"{exc} (CI is set: a missing server is a failure)", pytrace=False)
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def celeriac_servers() -> Iterator[Servers]:
    """The servers of this test session; those that were started for it end with it."""
    with Servers() as servers:
        yield servers


@pytest.fixture
def redis_url(celeriac_servers: Servers) -> Iterator[str]:
    """An empty Redis database of this test's own."""
    with skipped_without_server(), celeriac_servers.redis_database() as url:
        yield url


@pytest.fixture
def amqp_url(celeriac_servers: Servers) -> Iterator[str]:
    """A virtual host of RabbitMQ of this test's own."""
    with skipped_without_server(), celeriac_servers.rabbitmq_vhost() as url:
        yield url
