"""What the system tests share: an app in a folder, on each server, with a worker or without.

A test module has its app as `TASKS`. Its tests run on the embedded database; those marked
``on("sqlite", "redis", "rabbitmq")`` on each of these, with results in Redis where the broker is RabbitMQ.

A test that asks for `own` has a server of its own, which it may break; one that asks for `proxy` has a network
of its own, too.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from celeriac import Celeriac
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.proxy import Proxy
from celeriac.testing.servers import PrivateRabbitMQ, PrivateRedis, PrivateServer, Servers
from support import Journal, WorkerProcess, client_of, move_to


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "on(*kinds): the servers on which a test runs: sqlite, redis, rabbitmq"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("on")
        metafunc.parametrize("server", mark.args if mark else ("sqlite",), indirect=True, scope="module")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> str:
    """Which server the test runs on."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def own_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbitMQ]:
    """A RabbitMQ node to break: its start takes seconds, so that tests share it, one after the other."""
    with skipped_without_server():
        node = PrivateRabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    with node:
        yield node


@pytest.fixture
def own(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> Iterator[PrivateServer]:
    """A server of the test's own. Redis has on disk what it answered, as RabbitMQ has what it confirmed."""
    if server == "redis":
        with skipped_without_server():
            redis = PrivateRedis(tmp_path / "redis", appendonly="always")
        with redis:
            yield redis
        return
    node: PrivateRabbitMQ = request.getfixturevalue("own_rabbitmq")
    yield node
    node.resume()
    if not node.running:
        node.start()


@pytest.fixture
def own_url(own: PrivateServer) -> Iterator[str]:
    """Room on that server."""
    if isinstance(own, PrivateRabbitMQ):
        name = uuid4().hex
        yield own.add_vhost(name)
        own.rabbitmqctl("delete_vhost", name)
    else:
        yield own.url


@pytest.fixture
def proxy(own_url: str) -> Iterator[Proxy]:
    """The network between the test's app and its own server."""
    with Proxy(own_url) as proxy:
        yield proxy


@contextmanager
def moved(folder: Path, kind: str, servers: Servers, broker: str | None = None) -> Generator[Path]:
    """The folder, with room of its own on a server of this kind, or on `broker`; results are in Redis then."""
    with skipped_without_server(), ExitStack() as stack:
        if kind == "redis":
            broker = backend = broker or stack.enter_context(servers.redis_database())
            move_to(folder, broker=broker, backend=backend)
        elif kind == "rabbitmq":
            broker = broker or stack.enter_context(servers.rabbitmq_vhost())
            move_to(folder, broker=broker, backend=stack.enter_context(servers.redis_database()))
        yield folder


# -- one worker for the tests of a module --------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    server: str,
    celeriac_servers: Servers,
) -> Iterator[Path]:
    """Where the app of the module is."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "tasks.py").write_text(request.module.TASKS)
    with moved(folder, server, celeriac_servers):
        yield folder


@pytest.fixture(scope="module")
def worker(request: pytest.FixtureRequest, folder: Path) -> Iterator[WorkerProcess]:
    """A worker that the tests of the module share, with as many executors as its `EXECUTORS` says."""
    with WorkerProcess(folder, executors=getattr(request.module, "EXECUTORS", 2)) as worker:
        yield worker.ready()
        assert worker.stop() == 0


@pytest.fixture(scope="module")
def running(folder: Path, worker: WorkerProcess) -> Iterator[Celeriac]:
    """A client of that worker."""
    with client_of(folder) as client:
        yield client


@pytest.fixture(scope="module")
def journal(folder: Path) -> Journal:
    """What the tasks of that worker note."""
    return Journal(folder)


# -- a folder for each test ----------------------------------------------------------------------------------


@pytest.fixture
def alone(
    request: pytest.FixtureRequest, tmp_path: Path, server: str, celeriac_servers: Servers
) -> Iterator[Path]:
    """A copy of the app for a test with workers of its own."""
    (tmp_path / "tasks.py").write_text(request.module.TASKS)
    broker = None
    if "proxy" in request.fixturenames:
        broker = request.getfixturevalue("proxy").url
    elif "own" in request.fixturenames:
        broker = request.getfixturevalue("own_url")
    with moved(tmp_path, server, celeriac_servers, broker):
        yield tmp_path


@pytest.fixture
def client(request: pytest.FixtureRequest, alone: Path) -> Iterator[Celeriac]:
    """A client of that app, with the settings that the module has as `CLIENT`."""
    with client_of(alone, **getattr(request.module, "CLIENT", {})) as client:
        yield client
