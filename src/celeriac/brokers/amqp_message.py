"""Messages between `Envelope` and RabbitMQ, with the marks that celeriac leaves on them for itself.

Marks are headers; whoever consumes through celeriac never sees them, nor those that the server adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from celeriac.amqp.channel import Arrival
from celeriac.amqp.properties import decode_envelope, encode_properties
from celeriac.wire.envelope import Envelope, Outgoing

__all__ = ["ATTEMPTS", "TOKEN", "Letter", "Sending", "due_marks", "properties_of", "read_letter"]

#: Hand-outs that count as attempts so far.
ATTEMPTS = "x-celeriac-attempts"
#: Seconds since 1970 before which no worker may have the message.
_DUE = "x-celeriac-due"
#: Which copy in a hold queue this is.
TOKEN = "x-celeriac-token"
#: The ``expiration`` property of a message that waits where that would throw it out.
_EXPIRATION = "x-celeriac-expiration"

_OURS = frozenset({ATTEMPTS, _DUE, TOKEN, _EXPIRATION})
#: What the server adds when it moves a message or hands it out again.
_SERVERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
_NO_MARKS: Mapping[str, Any] = {}


class Sending(NamedTuple):
    """A message to publish, and the marks that it gets."""

    outgoing: Outgoing
    marks: Mapping[str, Any] = _NO_MARKS


class Letter(NamedTuple):
    """A message that came, as it was sent, and what its marks say."""

    envelope: Envelope
    #: Hand-outs so far; None: it carries no such mark.
    attempts: int | None = None
    #: Seconds since 1970 before which nobody is to have it.
    due: float | None = None
    token: str | None = None


def _eta_of(headers: Mapping[str, Any]) -> float | None:
    """The ``eta`` header in seconds since 1970; None where there is none that says so."""
    eta = headers.get("eta")
    if not isinstance(eta, str):
        return None
    try:
        found = datetime.fromisoformat(eta)
    except ValueError:
        return None
    return found.timestamp() if found.tzinfo is not None else None


def due_marks(outgoing: Outgoing) -> Mapping[str, Any]:
    """How a message says when it is due: by Celery's own header, where that is there."""
    if outgoing.due is None:
        return _NO_MARKS
    due = outgoing.due.timestamp()
    return _NO_MARKS if _eta_of(outgoing.envelope.headers) == due else {_DUE: due}


def properties_of(sending: Sending) -> bytes:
    """Properties and headers as AMQP carries them. Raises `celeriac.amqp.tables.Unencodable`."""
    outgoing, marks = sending
    envelope = outgoing.envelope
    headers, properties = envelope.headers, envelope.properties
    if marks:
        headers = {**headers, **marks}
        expiration = properties.get("expiration")
        if expiration is not None:
            headers[_EXPIRATION] = str(expiration)
            properties = {name: value for name, value in properties.items() if name != "expiration"}
    return encode_properties(
        envelope.content_type,
        envelope.content_encoding,
        headers,
        properties,
        outgoing.priority or properties.get("priority"),
    )


def read_letter(arrival: Arrival) -> Letter:
    """Take the marks off. What cannot be read is a message without headers: it is for the worker to bury."""
    try:
        envelope = decode_envelope(arrival.properties, arrival.body)
    except ValueError:
        return Letter(Envelope(arrival.body, "", "", {}, {}))
    headers = envelope.headers
    if b"x-" not in arrival.properties:
        return Letter(envelope, due=_eta_of(headers))
    attempts, due, token = headers.get(ATTEMPTS), headers.get(_DUE), headers.get(TOKEN)
    properties = envelope.properties
    if _EXPIRATION in headers:
        properties = {**properties, "expiration": headers[_EXPIRATION]}
    own = {
        name: value for name, value in headers.items() if name not in _OURS and not name.startswith(_SERVERS)
    }
    return Letter(
        msgspec.structs.replace(envelope, headers=own, properties=properties),
        attempts if isinstance(attempts, int) else None,
        float(due) if isinstance(due, int | float) else _eta_of(headers),
        token if isinstance(token, str) else None,
    )
