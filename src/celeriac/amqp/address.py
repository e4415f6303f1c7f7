"""Where RabbitMQ is and how to log in, as a URL says it: ``amqp://user:password@host:5672/vhost``. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from celeriac.errors import ImproperlyConfigured
from celeriac.urls import mask_url

__all__ = ["Address", "read_addresses"]

# A password may hold a ";" too, so only one before a scheme cuts.
_JOINT = re.compile(r";\s*(?=[A-Za-z][\w+.-]*://)")
_PLAIN = frozenset({"amqp", "pyamqp", "librabbitmq"})
_TLS = frozenset({"amqps", "pyamqps"})
#: What a URL may say behind its ``?``.
_PARAMETERS = frozenset({"heartbeat", "login_method", "connection_timeout"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One server, a virtual host of it, and who logs in."""

    host: str
    port: int
    vhost: str
    user: str
    password: str
    #: The URL asks for TLS.
    tls: bool

    def __str__(self) -> str:
        """For people: without the password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{'' if self.vhost == '/' else f'/{self.vhost}'}"


def read_addresses(url: str) -> tuple[list[Address], dict[str, str]]:
    """The servers of a URL, or of several joined by ``;``, and the parameters that follow a ``?``.

    Virtual hosts as Celery has them: none or ``//`` is ``/``, ``/name`` is ``name``.
    Raises `ImproperlyConfigured` and names what is wrong.
    """
    parameters: dict[str, str] = {}
    addresses: list[Address] = []
    for each in filter(None, (part.strip() for part in _JOINT.split(url))):
        part = urlsplit(each)
        addresses.append(_address(part))
        parameters |= dict(parse_qsl(part.query))
    if not addresses:
        raise ImproperlyConfigured("the URL of a RabbitMQ server is empty (amqp://user:password@host:5672//)")
    if unknown := parameters.keys() - _PARAMETERS:
        raise ImproperlyConfigured(
            f"{mask_url(url)}: unknown parameters {', '.join(sorted(unknown))}; "
            f"known are {', '.join(sorted(_PARAMETERS))}"
        )
    return addresses, parameters


def _address(part: SplitResult) -> Address:
    scheme = part.scheme.lower()
    if scheme not in _PLAIN | _TLS:
        raise ImproperlyConfigured(f"not the URL of a RabbitMQ server: {mask_url(part.geturl())}")
    try:
        port = part.port
    except ValueError:
        raise ImproperlyConfigured(
            f"{mask_url(part.geturl())}: the port must be a number, and what is special in a password "
            f"percent-encoded"
        ) from None
    tls = scheme in _TLS
    return Address(
        host=part.hostname or "localhost",
        port=port or (5671 if tls else 5672),
        vhost=unquote(part.path[1:]) or "/",
        user=unquote(part.username) if part.username else "guest",
        password=unquote(part.password) if part.password is not None else "guest",
        tls=tls,
    )
