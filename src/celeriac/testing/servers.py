"""Servers for tests: the one that is named, the one that runs on this host, or one that is started for them.

A test's server is the first of

1. what ``REDIS_URL`` or ``AMQP_URL`` names;
2. what answers on the standard port of this host (6379 without a password; 5672 as ``guest``), if room of the
   test's own can be had there;
3. a private one, started from the installed program and ended with the tests (`celeriac.testing.private`).

Room of its own is an empty Redis database, or a virtual host of RabbitMQ. Nothing that somebody else put on a
server is ever touched. The fixtures `redis_url` and `amqp_url` of `celeriac.testing.plugin` hand it out::

    def test_something(redis_url: str) -> None:
        app = Celeriac("tests", broker=redis_url, backend=redis_url)
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from celeriac.errors import MissingExtra
from celeriac.testing.certificates import Certificates, make_certificates
from celeriac.testing.private import (
    PrivateRabbitMQ,
    PrivateRedis,
    PrivateServer,
    ServerMissing,
    free_port,
    run_rabbitmqctl,
)
from celeriac.urls import mask_url

__all__ = [
    "Certificates",
    "PrivateRabbitMQ",
    "PrivateRedis",
    "PrivateServer",
    "ServerMissing",
    "Servers",
    "free_port",
    "make_certificates",
]

_STANDARD_REDIS = "redis://localhost:6379"
_STANDARD_RABBITMQ = "amqp://guest:guest@localhost:5672//"
#: Seconds that a server may take to answer.
_PATIENCE = 5.0


class Servers:
    """The servers of one test session: looked for at the first use, those that were started end with `close`.

    :param environ: where ``REDIS_URL`` and ``AMQP_URL`` are looked up; default: this process's environment.

    Methods raise `ServerMissing`, which says what was tried and what to install.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._stack = ExitStack()
        self._folder: Path | None = None
        self._private_redis: PrivateRedis | None = None
        self._private_rabbitmq: PrivateRabbitMQ | None = None
        #: Whether virtual hosts can be made on the server that is named or runs here; None: not tried yet.
        self._shared_rabbitmq: bool | None = None

    @contextmanager
    def redis_database(self) -> Generator[str]:
        """The URL of an empty Redis database, which is emptied again at the end of the block."""
        named = self._environ.get("REDIS_URL")
        with ExitStack() as stack:
            url = _claim_database(named or _STANDARD_REDIS, stack, required=named is not None)
            if url is None:
                url = _claim_database(self._redis().url, stack, required=True)
            assert url is not None
            yield url

    @contextmanager
    def rabbitmq_vhost(self) -> Generator[str]:
        """The URL of a virtual host of RabbitMQ of one's own, deleted at the end of the block.

        Where ``AMQP_URL`` names a server whose ``rabbitmqctl`` cannot be used, it is that URL's own virtual host,
        which should be kept for tests.
        """
        named = self._environ.get("AMQP_URL")
        name = f"celeriac-tests-{secrets.token_hex(6)}"
        url = self._vhost_of_shared(named or _STANDARD_RABBITMQ, name)
        if url is None and named is not None:
            _require_rabbitmq(named)
            yield named
        elif url is not None:
            try:
                yield url
            finally:
                _delete_vhost(name)
        else:
            server = self._rabbitmq()
            yield server.add_vhost(name)
            server.rabbitmqctl("delete_vhost", name)

    def _vhost_of_shared(self, server: str, name: str) -> str | None:
        """The URL of a new virtual host on a server that is not ours; None where none can be made."""
        if self._shared_rabbitmq is None:
            self._shared_rabbitmq = _answers_amqp(server)
        url = _make_vhost(server, name) if self._shared_rabbitmq else None
        self._shared_rabbitmq = url is not None
        return url

    def close(self) -> None:
        """End what was started."""
        self._private_redis = self._private_rabbitmq = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _redis(self) -> PrivateRedis:
        if self._private_redis is None:
            self._private_redis = self._stack.enter_context(PrivateRedis(self._own_folder() / "redis"))
        return self._private_redis

    def _rabbitmq(self) -> PrivateRabbitMQ:
        if self._private_rabbitmq is None:
            server = PrivateRabbitMQ(self._own_folder() / "rabbitmq")
            self._private_rabbitmq = self._stack.enter_context(server)
        return self._private_rabbitmq

    def _own_folder(self) -> Path:
        if self._folder is None:
            name = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="celeriac-servers-"))
            self._folder = Path(name)
        return self._folder


# -- Redis ---------------------------------------------------------------------------------------------------


def _claim_database(server: str, stack: ExitStack, *, required: bool) -> str | None:
    """The URL of an empty database on `server`: the one that the URL names, else the last that is free.

    It is ours until `stack` closes, and empty then. None if there is none and it is not `required`.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as exc:
        raise MissingExtra("redis", "redis", "a Redis server") from exc
    named = urlsplit(server).path.strip("/")
    driver: Any = redis
    # A database of a private server's URL is no choice of anybody's.
    numbers = [int(named)] if named not in ("", "0") else range(15, 0, -1)
    try:
        for number in numbers:
            url = urlsplit(server)._replace(path=f"/{number}").geturl()
            with ExitStack() as attempt:
                client = attempt.enter_context(
                    driver.Redis.from_url(
                        url,
                        protocol=2,
                        retry=Retry(NoBackoff(), 0),
                        socket_timeout=_PATIENCE,
                        socket_connect_timeout=_PATIENCE,
                    )
                )
                if not _lock(attempt, url) or client.dbsize():
                    continue
                attempt.callback(client.flushdb)
                stack.enter_context(attempt.pop_all())
                return url
    except redis.RedisError as exc:
        if required:
            raise ServerMissing(f"no Redis server answers at {mask_url(server)}: {exc}") from exc
        return None
    if required:
        raise ServerMissing(
            f"no database of {mask_url(server)} is empty: tests use none that holds keys. Name another one in "
            f"REDIS_URL (redis://host:port/number), or flush it"
        )
    return None


def _lock(stack: ExitStack, url: str) -> bool:
    """Keep other test sessions of this host from a database until `stack` closes, or this process ends."""
    parts = urlsplit(url)
    lock = stack.enter_context(socket.socket(socket.AF_UNIX))
    try:
        # An abstract address: no file is left behind, whatever happens.
        lock.bind(f"\0celeriac-tests {parts.hostname}:{parts.port}{parts.path}")
    except OSError:
        return False
    return True


# -- RabbitMQ ------------------------------------------------------------------------------------------------


def _require_rabbitmq(server: str) -> None:
    try:
        _connect(server)
    except OSError as exc:
        raise ServerMissing(f"no RabbitMQ server answers at {mask_url(server)}: {exc}") from exc


def _answers_amqp(server: str) -> bool:
    try:
        _connect(server)
    except OSError:
        return False
    return True


def _make_vhost(server: str, name: str) -> str | None:
    """The URL of a new virtual host on `server`; None where none can be made."""
    user = unquote(urlsplit(server).username or "guest")
    url = urlsplit(server)._replace(path=f"/{name}").geturl()
    try:
        run_rabbitmqctl("add_vhost", name, timeout=30)
        run_rabbitmqctl("set_permissions", "-p", name, user, ".*", ".*", ".*", timeout=30)
        # rabbitmqctl may have spoken to another server than the URL's.
        _connect(url)
    except (ServerMissing, RuntimeError, OSError):
        _delete_vhost(name)
        return None
    return url


def _delete_vhost(name: str) -> None:
    """Delete it if it is there."""
    with suppress(ServerMissing, RuntimeError, OSError):
        run_rabbitmqctl("delete_vhost", name, timeout=30)


def _connect(url: str) -> None:
    """Log in and out again; raises `OSError` where that is not possible."""
    try:
        import amqp  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as exc:
        raise MissingExtra("amqp", "amqp", "a RabbitMQ server") from exc
    parts = urlsplit(url)
    connection: Any = amqp.Connection(
        f"{parts.hostname}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}",
        userid=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        virtual_host=unquote(parts.path[1:]) or "/",
        ssl=parts.scheme == "amqps",
        connect_timeout=_PATIENCE,
        read_timeout=_PATIENCE,
        write_timeout=_PATIENCE,
    )
    try:
        connection.connect()
        connection.close()
    except amqp.AMQPError as exc:
        raise ConnectionRefusedError(str(exc)) from exc
    finally:
        connection.collect()
