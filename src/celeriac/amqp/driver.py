"""What celeriac takes from py-amqp: the opening of a connection. The one place that knows the driver.

Its types are unknown to type checkers, so none leaves this module.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from celeriac.amqp.address import Address
from celeriac.errors import ConnectionLost, ImproperlyConfigured, MissingExtra, OperationalError

try:
    import amqp  # pyright: ignore[reportMissingTypeStubs]
    from amqp import exceptions  # pyright: ignore[reportMissingTypeStubs]
except ImportError as exc:
    raise MissingExtra("amqp", "amqp", "a RabbitMQ server") from exc

__all__ = ["Opened", "open_socket", "tls_options"]

_driver = cast("Any", amqp)
_exceptions = cast("Any", exceptions)

_TLS = (
    *("keyfile", "certfile", "ca_certs", "cert_reqs", "ciphers", "server_hostname", "ssl_version"),
    *("tls_minimum_version", "tls_maximum_version"),
)
_REQUIREMENTS = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection after the handshake: from here on the socket is whoever's it was handed to."""

    socket: socket.socket
    #: Bytes that came behind the handshake already.
    read: bytes
    #: Bytes of a frame at most.
    frame_max: int
    #: Seconds after which the server misses us, twice; 0: never.
    heartbeat: float
    #: What the server says of itself.
    server: Mapping[str, Any]


def open_socket(
    address: Address,
    *,
    login_method: str,
    tls: Mapping[str, Any] | None,
    heartbeat: float,
    timeout: float,
    user_timeout: float,
    client: Mapping[str, Any],
) -> Opened:
    """Connect, log in and open the virtual host, in about `timeout` seconds.

    `heartbeat`: seconds, 0: none. `user_timeout`: seconds after which the system gives up on what the other
    side does not acknowledge. Raises `ConnectionLost` where the server cannot be reached and
    `OperationalError` where it refuses.
    """
    host = f"[{address.host}]" if ":" in address.host else address.host
    connection: Any = None
    try:
        connection = _driver.Connection(
            f"{host}:{address.port}",
            userid=address.user,
            password=address.password,
            login_method=login_method,
            virtual_host=address.vhost,
            ssl=dict(tls) if tls is not None else False,
            connect_timeout=timeout,
            heartbeat=round(heartbeat),
            client_properties={"product_version": f"py-amqp {_driver.__version__}", **client},
            socket_settings=_socket_settings(user_timeout),
        )
        connection.connect()
        transport = connection.transport
        return Opened(
            socket=transport.sock,
            read=bytes(transport._read_buffer),
            frame_max=int(connection.frame_max),
            heartbeat=float(connection.heartbeat or 0),
            server=dict(connection.server_properties),
        )
    except _exceptions.AMQPError as exc:
        connection.collect()
        raise _refused(address, exc) from exc
    except ssl.SSLError as exc:
        raise ConnectionLost(f"RabbitMQ at {address}: TLS failed: {exc.reason or exc}") from exc
    except (OSError, EOFError) as exc:
        raise ConnectionLost(f"RabbitMQ at {address} cannot be reached: {exc or type(exc).__name__}") from exc


def _socket_settings(user_timeout: float) -> dict[int, int]:
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    return {} if option is None else {option: round(user_timeout * 1000)}


def _refused(address: Address, exc: Any) -> OperationalError:
    text = getattr(exc, "reply_text", None) or str(exc)
    match getattr(exc, "reply_code", None):
        case 403:
            return OperationalError(
                f"RabbitMQ at {address} refuses the login of user {address.user!r}: {text}"
            )
        case 530:
            return OperationalError(
                f"RabbitMQ at {address}: user {address.user!r} cannot open virtual host "
                f"{address.vhost!r}: {text}"
            )
        case _:
            return ConnectionLost(f"RabbitMQ at {address}: {text}")


def tls_options(address: Address, ssl_option: bool | Mapping[str, Any]) -> dict[str, Any] | None:
    """The driver's TLS arguments for a server; None: no TLS.

    The server's certificate, and that it is for this host, is verified, unless ``cert_reqs`` says otherwise.
    Raises `ImproperlyConfigured`.
    """
    if not (address.tls or ssl_option):
        return None
    given: dict[str, Any] = {}
    if isinstance(ssl_option, Mapping):
        given = {key.removeprefix("ssl_"): value for key, value in ssl_option.items() if key != "ssl_version"}
        if "ssl_version" in ssl_option:
            given["ssl_version"] = ssl_option["ssl_version"]
    if unknown := given.keys() - set(_TLS):
        raise ImproperlyConfigured(
            f"broker_use_ssl: unknown options {', '.join(sorted(unknown))}; known are {', '.join(_TLS)}"
        )
    given["cert_reqs"] = _requirement(given.get("cert_reqs", ssl.CERT_REQUIRED))
    if given["cert_reqs"] != ssl.CERT_NONE:
        given.setdefault("server_hostname", address.host)
    return given


def _requirement(value: Any) -> ssl.VerifyMode:
    """``required``, ``CERT_REQUIRED`` and `ssl.CERT_REQUIRED` mean the same."""
    if isinstance(value, int):
        try:
            return ssl.VerifyMode(value)
        except ValueError:
            pass
    name = "none" if value is None else str(value).lower().removeprefix("cert_")
    if name not in _REQUIREMENTS:
        raise ImproperlyConfigured(
            f"broker_use_ssl: cert_reqs must be one of required, optional, none, not {value!r}"
        )
    return _REQUIREMENTS[name]
