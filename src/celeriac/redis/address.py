"""Where a Redis server is and how to log in there, read from a URL and from options. No I/O, no driver."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from celeriac.errors import ImproperlyConfigured
from celeriac.urls import mask_url

__all__ = ["Address", "read_address"]

#: Scheme → whether it means TLS.
_NETWORK = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_SOCKET = frozenset({"unix", "redis+socket"})
_SENTINEL = "sentinel"
_REQUIREMENTS = {"required", "optional", "none"}

#: Names that Celery's URLs and settings have for what the driver calls `ssl_…`.
_TLS = (
    "keyfile",
    "certfile",
    "ca_certs",
    "ca_path",
    "ca_data",
    "cert_reqs",
    "check_hostname",
    "password",
    "ciphers",
)
_JOINT = re.compile(r";(?=[A-Za-z][\w+.-]*://)")


def _nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One server (or one service that sentinels know), a database in it, and how to log in."""

    #: Host and port; several of sentinels; empty for a socket.
    hosts: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = None
    #: The driver's ``ssl_…`` arguments; None: no TLS.
    tls: dict[str, Any] | None = None
    #: The URL's parameters that are neither TLS nor the database.
    parameters: dict[str, str] = field(default_factory=_nothing)
    #: Name of the service, where `hosts` are sentinels.
    service: str | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal where the server and the database are."""
        return self.service, self.hosts, self.path, self.db

    def __str__(self) -> str:
        where = self.path or ", ".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.service} (by sentinels {where})" if self.service else where


def read_address(url: str, options: Mapping[str, Any], ssl: bool | Mapping[str, Any] | None) -> Address:
    """Read a URL: ``redis://user:password@host:port/db``, ``rediss://…``, ``unix:///path?db=1``, or sentinels:
    ``sentinel://a:26379;sentinel://b:26379/0`` with ``master_name`` in `options`. `ssl` are the settings' TLS options.

    Raises `ImproperlyConfigured` and names what is wrong.
    """
    parts = [_split(each) for each in _JOINT.split(url)]
    first, last = parts[0], parts[-1]
    scheme = first.scheme.lower()
    if len(parts) > 1 and scheme != _SENTINEL:
        raise ImproperlyConfigured(
            f"{mask_url(url)}: one Redis server is expected; several are for sentinels (sentinel://a;sentinel://b)"
        )
    parameters = {key: value for part in parts for key, value in parse_qsl(part.query)}
    tls = _tls(url, parameters, ssl, wanted=_NETWORK.get(scheme, False))
    username, password = _login(first)
    if scheme in _SOCKET:
        db = parameters.pop("virtual_host", None) or parameters.pop("db", None) or "0"
        path = unquote(f"{first.netloc.rpartition('@')[2]}{first.path}")
        if not path:
            raise ImproperlyConfigured(
                f"{mask_url(url)}: the path of the socket is missing ({scheme}:///path)"
            )
        return Address(
            path=path, db=_db(url, db), username=username, password=password, parameters=parameters
        )
    service = None
    if scheme == _SENTINEL:
        service = options.get("master_name") or options.get("service_name")
        if not isinstance(service, str):
            raise ImproperlyConfigured(
                "a sentinel:// URL needs the name of the service: transport option 'master_name'"
            )
    elif scheme not in _NETWORK:
        raise ImproperlyConfigured(f"not the URL of a Redis server: {mask_url(url)}")
    port = 26379 if service else 6379
    return Address(
        hosts=tuple(_host(part, port) for part in parts),
        db=_db(url, parameters.pop("db", None) or last.path.strip("/") or "0"),
        username=username,
        password=password,
        tls=tls,
        parameters=parameters,
        service=service,
    )


def _split(url: str) -> SplitResult:
    return urlsplit(url.replace("redis+socket://", "unix://", 1) if url.startswith("redis+socket") else url)


def _login(part: SplitResult) -> tuple[str | None, str | None]:
    username = unquote(part.username) if part.username else None
    return username, unquote(part.password) if part.password else None


def _host(part: SplitResult, port: int) -> tuple[str, int]:
    try:
        return part.hostname or "localhost", part.port or port
    except ValueError:
        raise ImproperlyConfigured(f"{mask_url(part.geturl())}: the port must be a number") from None


def _db(url: str, text: str) -> int:
    if not text.isdigit():
        raise ImproperlyConfigured(f"{mask_url(url)}: the database must be a number, not {text!r}")
    return int(text)


def _tls(
    url: str, parameters: dict[str, str], ssl: bool | Mapping[str, Any] | None, *, wanted: bool
) -> dict[str, Any] | None:
    """The driver's TLS arguments, from the URL's parameters and, stronger, from the settings."""
    given: dict[str, Any] = {key: parameters.pop(key) for key in list(parameters) if key.startswith("ssl_")}
    if isinstance(ssl, Mapping):
        given |= {key if key.startswith("ssl_") else f"ssl_{key}": value for key, value in ssl.items()}
    if not (wanted or ssl):
        return None
    unknown = [key for key in given if key.removeprefix("ssl_") not in _TLS]
    if unknown:
        raise ImproperlyConfigured(
            f"{mask_url(url)}: unknown TLS options {', '.join(unknown)}; "
            f"known are {', '.join(f'ssl_{name}' for name in _TLS)}"
        )
    requirement = _requirement(given.pop("ssl_cert_reqs", "required"))
    given["ssl_cert_reqs"] = requirement
    if requirement != "required":
        given.setdefault("ssl_check_hostname", False)
    return given


def _requirement(value: Any) -> str:
    """``required``, ``CERT_REQUIRED`` and `ssl.CERT_REQUIRED` mean the same."""
    if isinstance(value, int):
        value = ("none", "optional", "required")[value] if 0 <= value <= 2 else str(value)
    name = "none" if value is None else str(value).lower().removeprefix("cert_")
    if name not in _REQUIREMENTS:
        raise ImproperlyConfigured(f"ssl_cert_reqs must be one of required, optional, none, not {value!r}")
    return name
