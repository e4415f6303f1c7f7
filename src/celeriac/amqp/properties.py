"""The content header of a message: its properties and headers ↔ `Envelope`. Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celeriac.amqp.tables import Unencodable, decode_table, encode_shortstr, encode_table
from celeriac.wire.envelope import Envelope

__all__ = ["decode_envelope", "encode_properties", "read_correlation_id"]

_pack_flags = struct.Struct(">H").pack
_pack_u64 = struct.Struct(">Q").pack
_unpack_flags = struct.Struct(">H").unpack_from
_unpack_u64 = struct.Struct(">Q").unpack_from

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 1 << 15, 1 << 14, 1 << 13
_DELIVERY_MODE, _PRIORITY = 1 << 12, 1 << 11
#: Those after the priority, in the order they travel; `timestamp` is the one that is no string.
_REST = {
    "correlation_id": 1 << 10,
    "reply_to": 1 << 9,
    "expiration": 1 << 8,
    "message_id": 1 << 7,
    "timestamp": 1 << 6,
    "type": 1 << 5,
    "user_id": 1 << 4,
    "app_id": 1 << 3,
    "cluster_id": 1 << 2,
}


def encode_properties(
    content_type: str,
    content_encoding: str,
    headers: Mapping[str, Any],
    properties: Mapping[str, Any],
    priority: int | None,
) -> bytes:
    """Flags and values of a message's properties; those that AMQP has no place for are left out.

    Raises `Unencodable` and names what cannot travel.
    """
    flags = _CONTENT_TYPE | _CONTENT_ENCODING | _HEADERS
    parts = [
        encode_shortstr(content_type, "content_type"),
        encode_shortstr(content_encoding, "content_encoding"),
        encode_table(headers),
    ]
    mode = properties.get("delivery_mode")
    if mode is not None:
        flags |= _DELIVERY_MODE
        parts.append(_octet("delivery_mode", mode))
    if priority is not None:
        flags |= _PRIORITY
        parts.append(_octet("priority", priority))
    for name, flag in _REST.items():
        value = properties.get(name)
        if value is not None:
            flags |= flag
            parts.append(_timestamp(value) if name == "timestamp" else encode_shortstr(str(value), name))
    return _pack_flags(flags) + b"".join(parts)


def _octet(name: str, value: Any) -> bytes:
    if isinstance(value, int) and 0 <= value <= 255:
        return bytes((value,))
    raise Unencodable(f"{name} must be a number from 0 to 255, not {value!r}")


def _timestamp(value: Any) -> bytes:
    if isinstance(value, datetime):
        value = int(value.timestamp())
    if not isinstance(value, int) or not 0 <= value < 2**64:
        raise Unencodable(f"timestamp must be seconds since 1970, not {value!r}")
    return _pack_u64(value)


def decode_envelope(data: bytes, body: bytes) -> Envelope:
    """A message as it was sent. Raises `ValueError` where the properties cannot be read."""
    try:
        return _envelope(data, body)
    except (struct.error, IndexError) as exc:
        raise ValueError(f"not the properties of a message: {exc!r}") from exc


def _envelope(data: bytes, body: bytes) -> Envelope:
    (flags,) = _unpack_flags(data, 0)
    at = 2
    content_type = content_encoding = ""
    headers: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    if flags & _CONTENT_TYPE:
        content_type, at = _shortstr(data, at)
    if flags & _CONTENT_ENCODING:
        content_encoding, at = _shortstr(data, at)
    if flags & _HEADERS:
        headers, at = decode_table(data, at)
    if flags & _DELIVERY_MODE:
        properties["delivery_mode"] = data[at]
        at += 1
    if flags & _PRIORITY:
        properties["priority"] = data[at]
        at += 1
    for name, flag in _REST.items():
        if flags & flag:
            if name == "timestamp":
                (properties[name],) = _unpack_u64(data, at)
                at += 8
            else:
                properties[name], at = _shortstr(data, at)
    return Envelope(body, content_type, content_encoding, headers, properties)


def read_correlation_id(data: bytes) -> str:
    """The ``correlation_id`` alone; "" where there is none."""
    found = decode_envelope(data, b"").properties.get("correlation_id")
    return found if isinstance(found, str) else ""


def _shortstr(data: bytes, at: int) -> tuple[str, int]:
    stop = at + 1 + data[at]
    return data[at + 1 : stop].decode("utf-8", "replace"), stop
