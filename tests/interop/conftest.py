"""The fleets of the interoperability tests: one on Redis, one on RabbitMQ, results in Redis.

Skipped where a server or the virtual environment of Celery cannot be had; with ``CI`` set that is a failure.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.private import PrivateRedis
from celeriac.testing.servers import Servers
from interop.fleet import CELERY_PYTHON, ROOT, Fleet


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interop")


@pytest.fixture(scope="session")
def celery() -> Path:
    """The Python that has the real Celery."""
    script, venv = ROOT / "tools" / "celery_venv.sh", CELERY_PYTHON.parent.parent
    made = subprocess.run(
        ["sh", str(script), str(venv)], capture_output=True, text=True, timeout=600, check=False
    )
    if made.returncode:
        reason = f"no virtual environment with Celery:\n{made.stdout}{made.stderr}"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return CELERY_PYTHON


@pytest.fixture(scope="session")
def redis_server(folder: Path) -> Iterator[PrivateRedis]:
    """A server of our own: what Celery's workers hold is in one place for all of a database."""
    with skipped_without_server(), PrivateRedis(folder / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def vhost(celeriac_servers: Servers) -> Iterator[str]:
    """URL of a virtual host of RabbitMQ."""
    with skipped_without_server(), celeriac_servers.rabbitmq_vhost() as url:
        yield url


@pytest.fixture(scope="session")
def on_redis(celery: Path, redis_server: PrivateRedis, folder: Path) -> Iterator[Fleet]:
    with closing(Fleet(redis_server.url, redis_server.url, folder)) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def on_rabbitmq(celery: Path, redis_server: PrivateRedis, vhost: str, folder: Path) -> Iterator[Fleet]:
    with closing(Fleet(vhost, redis_server.url.replace("/0", "/1"), folder, extended=True)) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def on_quorum(celery: Path, redis_server: PrivateRedis, vhost: str, folder: Path) -> Iterator[Fleet]:
    """RabbitMQ with quorum queues: Celery then delays messages through its delayed-delivery exchanges."""
    results = redis_server.url.replace("/0", "/3")
    with closing(Fleet(vhost, results, folder, queue_arguments={"x-queue-type": "quorum"})) as fleet:
        yield fleet


@pytest.fixture(scope="session", params=["redis", "rabbitmq"])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """Each broker in turn."""
    return request.getfixturevalue(f"on_{request.param}")
