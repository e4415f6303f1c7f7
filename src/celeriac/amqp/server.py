"""`AMQPServer`: the RabbitMQ servers that a URL and options name, and connections to whichever answers."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from celeriac.amqp.address import Address, read_addresses
from celeriac.amqp.connection import Connection
from celeriac.amqp.driver import open_socket, tls_options
from celeriac.errors import ConnectionLost, ImproperlyConfigured, OperationalError

__all__ = ["AMQPServer"]

_LOGIN_METHODS = ("PLAIN", "AMQPLAIN", "EXTERNAL", "GSSAPI")
_FAILOVER = ("round-robin", "shuffle")
#: Seconds that opening a connection may take, where nobody says.
_CONNECT_TIMEOUT = 10.0
#: Seconds after which the system gives up on a host that acknowledges nothing.
_USER_TIMEOUT = 15.0


class AMQPServer:
    """The servers of one URL (several are joined by ``;``). Constructing does no I/O. Thread-safe.

    `connect` tries them in turn, beginning with the one that answered last.
    """

    @classmethod
    def of(
        cls,
        url: str,
        *,
        ssl: bool | Mapping[str, Any] = False,
        connect_timeout: float | None = None,
        heartbeat: float | None = None,
        login_method: str | None = None,
        failover: str = "round-robin",
    ) -> AMQPServer:
        """The servers that a URL and options name; see `read_addresses`. Parameters of the URL are stronger.

        Raises `ImproperlyConfigured` and names the option.
        """
        addresses, parameters = read_addresses(url)
        if "heartbeat" in parameters:
            heartbeat = _number("heartbeat", parameters["heartbeat"])
        if "connection_timeout" in parameters:
            connect_timeout = _number("connection_timeout", parameters["connection_timeout"])
        method = (parameters.get("login_method") or login_method or "PLAIN").upper()
        if method not in _LOGIN_METHODS:
            raise ImproperlyConfigured(
                f"broker_login_method must be one of {', '.join(_LOGIN_METHODS)}, not {method!r}"
            )
        if failover not in _FAILOVER:
            raise ImproperlyConfigured(
                f"broker_failover_strategy must be one of {', '.join(_FAILOVER)} for RabbitMQ, not {failover!r}"
            )
        return cls(
            addresses,
            tls=[tls_options(each, ssl) for each in addresses],
            connect_timeout=connect_timeout or _CONNECT_TIMEOUT,
            heartbeat=heartbeat or 0.0,
            login_method=method,
            shuffle=failover == "shuffle",
        )

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        tls: Sequence[Mapping[str, Any] | None],
        connect_timeout: float,
        heartbeat: float,
        login_method: str,
        shuffle: bool,
    ) -> None:
        self.addresses = tuple(addresses)
        #: Seconds between heartbeats on connections that have them; 0: none.
        self.heartbeat = heartbeat
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._login_method = login_method
        self._shuffle = shuffle
        #: Which address answered last. No lock: one that is held at a fork would stay so.
        self._current = 0

    @property
    def identity(self) -> Hashable:
        """Equal where the servers and the virtual host are."""
        return tuple((each.host, each.port, each.vhost) for each in self.addresses)

    def __str__(self) -> str:
        return ", ".join(map(str, self.addresses))

    def connect(
        self,
        *,
        name: str,
        heartbeat: float = 0.0,
        patience: float | None = None,
        timeout: float | None = None,
    ) -> Connection:
        """A connection to the first server that answers, of the process that asks for it; the caller closes it.

        `name` is for people, in the server's list of connections. `heartbeat`: seconds, 0: none. `patience`:
        seconds of silence after which the connection counts as lost; None: for ever. `timeout`: seconds that
        all this may take, beside the limit that each server has.

        Raises `ConnectionLost` where none can be reached, `OperationalError` where one refuses.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        refused: OperationalError | None = None
        lost: list[str] = []
        for number in self._order():
            left = self._connect_timeout
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
                if left <= 0:
                    lost.append("no time was left to try the others")
                    break
            try:
                connection = self._open(number, name, heartbeat, patience, left)
            except ConnectionLost as exc:
                lost.append(str(exc))
            except OperationalError as exc:
                refused = exc
                lost.append(str(exc))
            else:
                self._current = number
                return connection
        if refused is not None and len(lost) == 1:
            raise refused
        raise ConnectionLost("; ".join(lost))

    def _open(
        self, number: int, name: str, heartbeat: float, patience: float | None, timeout: float
    ) -> Connection:
        address = self.addresses[number]
        opened = open_socket(
            address,
            login_method=self._login_method,
            tls=self._tls[number],
            heartbeat=heartbeat,
            timeout=timeout,
            user_timeout=_USER_TIMEOUT,
            client={
                "product": "celeriac",
                "platform": "Python",
                "connection_name": name,
                "pid": os.getpid(),
                "capabilities": {"publisher_confirms": True, "basic.nack": True},
            },
        )
        return Connection(opened, f"RabbitMQ at {address}", patience=patience)

    def _order(self) -> list[int]:
        first, count = self._current, len(self.addresses)
        order = [(first + step) % count for step in range(count)]
        if self._shuffle:
            random.shuffle(order)
        return order


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ImproperlyConfigured(f"broker URL: {name} must be a number, not {value!r}") from None
