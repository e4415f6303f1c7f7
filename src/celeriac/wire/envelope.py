"""A message as a broker carries it: opaque body, readable headers.

`to_virtual` and `from_virtual` are the JSON form it has on every server that has no properties of its own
(wire-protocol §4).
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

import msgspec

from celeriac.errors import DecodeError
from celeriac.topology import Queue
from celeriac.wire import codecs

__all__ = ["TASK_HEADERS", "TASK_PROPERTIES", "Envelope", "Outgoing", "from_virtual", "to_virtual", "unplain"]

#: The headers of task protocol 2; all others are the sender's own.
TASK_HEADERS = frozenset(
    {
        "lang",
        "task",
        "id",
        "shadow",
        "eta",
        "expires",
        "group",
        "group_index",
        "retries",
        "timelimit",
        "root_id",
        "parent_id",
        "argsrepr",
        "kwargsrepr",
        "origin",
        "ignore_result",
        "replaced_task_nesting",
        "stamped_headers",
        "stamps",
        "compression",
    }
)

#: The properties that celeriac writes or a transport adds; all others are the sender's own.
TASK_PROPERTIES = frozenset(
    {
        "correlation_id",
        "reply_to",
        "delivery_mode",
        "expiration",
        "priority",
        "content_type",
        "content_encoding",
        "delivery_info",
        "delivery_tag",
        "body_encoding",
    }
)


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """Bytes and headers of one message. The body is never decoded outside an executor or a client.

    `headers` are Celery's protocol-2 task headers plus the user's own, `properties` the AMQP properties
    (``correlation_id``, ``reply_to``, ``priority``, ``delivery_info`` …); see wire-protocol §1.
    """

    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]

    @property
    def task_id(self) -> str:
        """The task's id, or ``""`` where the headers carry none (protocol 1, foreign messages)."""
        for found in (self.headers.get("id"), self.properties.get("correlation_id")):
            if found and isinstance(found, str):
                return found
        return ""


class Outgoing(msgspec.Struct, frozen=True, array_like=True):
    """An envelope and where it goes.

    With an empty `exchange` the `routing_key` is the name of the queue. `queue`, where it is known, is
    declared before the first message that is published to it. `due` (aware, UTC) is the earliest instant at
    which a worker may have the message; `priority`: larger is sooner.
    """

    envelope: Envelope
    exchange: str = ""
    routing_key: str = ""
    priority: int = 0
    due: datetime | None = None
    queue: Queue | None = None


def unplain(value: object) -> str | None:
    """Why `value` cannot travel outside a body, as a header or property, to an executor; None where it can."""
    try:
        msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        return str(exc)
    return None


def to_virtual(envelope: Envelope, *, exchange: str, routing_key: str, delivery_tag: str) -> bytes:
    """The envelope as JSON, body in base64. `delivery_tag` is the sender's choice, unique (a UUID4)."""
    headers, properties = envelope.headers, dict(envelope.properties)
    # In Celery's order, to the byte: monitors and tests of users compare messages.
    priority = properties.pop("priority", 0)
    properties["delivery_info"] = {"exchange": exchange, "routing_key": routing_key}
    properties["priority"] = priority
    properties["body_encoding"] = "base64"
    properties["delivery_tag"] = delivery_tag
    document = {
        "body": base64.b64encode(envelope.body).decode("ascii"),
        "content-encoding": envelope.content_encoding,
        "content-type": envelope.content_type,
        "headers": headers,
        "properties": properties,
    }
    if headers.keys() <= TASK_HEADERS and properties.keys() <= TASK_PROPERTIES and not headers.get("stamps"):
        return msgspec.json.encode(document)
    # Values of the sender's own may need Celery's extension types.
    return codecs.dumps(document, "json")


def from_virtual(data: bytes) -> Envelope:
    """Read what `to_virtual` or Celery wrote. Raises `DecodeError` where it is no envelope."""
    try:
        document = _read(data)
        headers, properties = document.headers or {}, document.properties or {}
        is_base64 = properties.pop("body_encoding", None) == "base64"
        body = base64.b64decode(document.body) if is_base64 else document.body.encode()
    except (msgspec.ValidationError, ValueError) as exc:
        raise DecodeError(f"not a message envelope: {exc}") from exc
    if reason := unplain((headers, properties)):
        raise DecodeError(f"headers or properties are not plain values: {reason}")
    return Envelope(body, document.content_type or "", document.content_encoding or "", headers, properties)


def _read(data: bytes) -> _Virtual:
    if codecs.is_plain_json(data):
        try:
            return _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # whether it is wrong is for the standard library to say
    return msgspec.convert(codecs.loads(data, "json"), _Virtual)


class _Virtual(msgspec.Struct, rename="kebab"):
    body: str
    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] | None = None
    properties: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Virtual).decode
