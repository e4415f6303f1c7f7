"""One Redis server: connections to it, and its errors in our words.

The driver retries nothing: what was sent and got no answer may have been done, and only who sent it knows what to
make of that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Hashable, Mapping
from contextlib import contextmanager
from typing import Any, cast

from celeriac.errors import ConnectionLost, ImproperlyConfigured, MissingExtra, OperationalError
from celeriac.redis.address import Address, read_address

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
    from redis.exceptions import ClusterDownError, MasterDownError, NoPermissionError
    from redis.retry import Retry
    from redis.sentinel import MasterNotFoundError, Sentinel
except ImportError as exc:
    raise MissingExtra("redis", "redis", "a Redis server") from exc

__all__ = ["RedisServer"]

#: Options of transport that are the driver's arguments of a connection.
_DRIVER = (
    *("client_name", "socket_keepalive", "socket_keepalive_options", "username", "password"),
    *("health_check_interval", "credential_provider"),
)
_NUMBERS = ("socket_timeout", "socket_connect_timeout", "health_check_interval", "max_connections")
#: The server is there and will not do it now: what helps is to come again, perhaps to another one.
_COME_AGAIN = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.BusyLoadingError,
    MasterDownError,
    ClusterDownError,
    MasterNotFoundError,
    redis.OutOfMemoryError,
    OSError,
)


class RedisServer:
    """A server and a database in it, where `url` and `transport` options say. Constructing does no I/O.

    1. `client` is for short commands from any thread: pooled connections, RESP2.
    2. `connect` gives a connection of one's own, RESP3, for who waits for what the server pushes.
    3. Whatever they raise goes through `errors`.

    Thread-safe; usable again after a fork. `timeout`: seconds that an operation on a connection may take.
    """

    @classmethod
    def of(
        cls,
        url: str,
        *,
        transport: Mapping[str, Any],
        ssl: bool | Mapping[str, Any] | None = None,
        connect_timeout: float | None = None,
        timeout: float,
        prefix: str | None = None,
    ) -> RedisServer:
        """The server that a URL and options name; see `read_address`. `prefix`: in place of ``global_keyprefix``.

        Raises `ImproperlyConfigured`.
        """
        address = read_address(url, transport, ssl)
        options: dict[str, Any] = {**transport, **address.parameters}
        for name in _NUMBERS:
            if options.get(name) is not None:
                options[name] = _number(name, options[name])
        arguments: dict[str, Any] = {
            "socket_keepalive": True,
            **{name: options[name] for name in _DRIVER if options.get(name) is not None},
            "socket_connect_timeout": options.get("socket_connect_timeout") or connect_timeout or timeout,
        }
        if address.username or address.password:
            arguments |= {"username": address.username, "password": address.password}
        return cls(
            address,
            arguments,
            timeout=min(timeout, options.get("socket_timeout") or timeout),
            prefix=str(options.get("global_keyprefix") or "") if prefix is None else prefix,
            sentinel=dict(options.get("sentinel_kwargs") or {}),
            min_other_sentinels=int(options.get("min_other_sentinels") or 0),
            max_connections=options.get("max_connections"),
        )

    def __init__(
        self,
        address: Address,
        arguments: Mapping[str, Any],
        *,
        timeout: float,
        prefix: str,
        sentinel: Mapping[str, Any],
        min_other_sentinels: int = 0,
        max_connections: float | None = None,
    ) -> None:
        self.address = address
        #: Seconds that an operation on a pooled connection may take.
        self.timeout = timeout
        #: ``global_keyprefix``, before each key.
        self.prefix = prefix
        self._arguments = dict(arguments)
        self._sentinel_arguments = sentinel
        self._min_other_sentinels = min_other_sentinels
        self._max_connections = None if max_connections is None else int(max_connections)
        self._lock = threading.Lock()
        self._client: redis.Redis | None = None
        self._pid = 0

    @property
    def identity(self) -> Hashable:
        """Equal where the server and the database are: what one transaction can change together."""
        return self.address.identity

    @property
    def db(self) -> int:
        return self.address.db

    def key(self, name: str) -> str:
        """`name` as a key of this server."""
        return self.prefix + name

    def client(self) -> redis.Redis:
        """The client of this process. Any thread."""
        if self._client is None or self._pid != os.getpid():
            with self._lock:
                if self._client is None or self._pid != os.getpid():
                    self._client = self._made_client()
                    self._pid = os.getpid()
        return self._client

    def connect(self, *, timeout: float, protocol: int = 3) -> Connection:
        """A connection of one's own, logged in, its database selected; who asked for it closes it.

        `timeout`: seconds that writing to it, or reading where no other time is given, may take.
        Raises the driver's errors: to be called within `errors`.
        """
        kind, arguments = self._kind_of_connection(timeout)
        arguments = {**arguments, "protocol": protocol}
        if self.address.service is not None:
            master: tuple[str, int] = self._sentinel(timeout).discover_master(self.address.service)
            arguments |= {"host": master[0], "port": master[1]}
        connection = cast("Connection", kind(**arguments))
        connection.connect()
        return connection

    @contextmanager
    def errors(self) -> Generator[None]:
        """Raise `ConnectionLost` and `OperationalError` in place of what the driver raises."""
        try:
            yield
        except redis.AuthenticationError as exc:
            raise OperationalError(f"Redis at {self.address} refuses the login: {exc}") from exc
        except NoPermissionError as exc:
            raise OperationalError(
                f"Redis at {self.address}: the user may not do what celeriac needs: {exc}"
            ) from exc
        except _COME_AGAIN as exc:
            raise ConnectionLost(f"Redis at {self.address}: {_reason(exc)}") from exc
        except redis.RedisError as exc:
            raise OperationalError(f"Redis at {self.address}: {_reason(exc)}") from exc

    def close(self) -> None:
        """Close the pooled connections; the object may be used again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            client.close()
            client.connection_pool.disconnect()

    def _made_client(self) -> redis.Redis:
        kind, arguments = self._kind_of_connection(self.timeout)
        if self.address.service is not None:
            return self._sentinel(self.timeout).master_for(
                self.address.service, max_connections=self._max_connections, **arguments
            )
        arguments |= {"protocol": 2, "max_connections": self._max_connections}
        return redis.Redis(connection_pool=ConnectionPool(connection_class=kind, **arguments))

    def _kind_of_connection(self, timeout: float) -> tuple[Any, dict[str, Any]]:
        """The driver's class of connections, and its arguments."""
        address = self.address
        arguments: dict[str, Any] = {
            **self._arguments,
            "db": address.db,
            "socket_timeout": timeout,
            "socket_connect_timeout": min(timeout, self._arguments["socket_connect_timeout"]),
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "legacy_responses": True,
        }
        if address.path is not None:
            for name in ("socket_keepalive", "socket_keepalive_options"):
                arguments.pop(name, None)
            return UnixDomainSocketConnection, {**arguments, "path": address.path}
        if address.service is not None:
            return (SSLConnection if address.tls else Connection), {
                **arguments,
                **(address.tls or {}),
                **({"ssl": True} if address.tls else {}),
            }
        arguments |= {"host": address.hosts[0][0], "port": address.hosts[0][1]}
        if address.tls is not None:
            return SSLConnection, {**arguments, **address.tls}
        return Connection, arguments

    def _sentinel(self, timeout: float) -> Any:
        return Sentinel(
            list(self.address.hosts),
            min_other_sentinels=self._min_other_sentinels,
            sentinel_kwargs={"socket_timeout": timeout, **self._sentinel_arguments},
        )


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ImproperlyConfigured(f"transport option {name!r} must be a number, not {value!r}") from None


def _reason(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__
