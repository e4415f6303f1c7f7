"""The methods of AMQP 0-9-1 that celeriac sends and reads, as bytes. Pure.

Every function that makes a method takes the number of the channel first and returns whole frames.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from celeriac.amqp.tables import encode_shortstr, encode_table

__all__ = ["FRAME_END", "HEARTBEAT", "Closed", "read_closed", "read_shortstr"]

FRAME_END = 0xCE
#: A whole frame.
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"

# What servers send, by class and method as they stand at the beginning of a method frame.
CONNECTION_CLOSE, CONNECTION_CLOSE_OK = b"\x00\x0a\x00\x32", b"\x00\x0a\x00\x33"
CONNECTION_BLOCKED, CONNECTION_UNBLOCKED = b"\x00\x0a\x00\x3c", b"\x00\x0a\x00\x3d"
CHANNEL_OPEN_OK, CHANNEL_FLOW = b"\x00\x14\x00\x0b", b"\x00\x14\x00\x14"
CHANNEL_CLOSE, CHANNEL_CLOSE_OK = b"\x00\x14\x00\x28", b"\x00\x14\x00\x29"
EXCHANGE_DECLARE_OK, EXCHANGE_BIND_OK = b"\x00\x28\x00\x0b", b"\x00\x28\x00\x1f"
QUEUE_DECLARE_OK, QUEUE_BIND_OK = b"\x00\x32\x00\x0b", b"\x00\x32\x00\x15"
QUEUE_PURGE_OK, QUEUE_DELETE_OK = b"\x00\x32\x00\x1f", b"\x00\x32\x00\x29"
BASIC_QOS_OK, BASIC_CONSUME_OK = b"\x00\x3c\x00\x0b", b"\x00\x3c\x00\x15"
BASIC_CANCEL, BASIC_CANCEL_OK = b"\x00\x3c\x00\x1e", b"\x00\x3c\x00\x1f"
BASIC_RETURN, BASIC_DELIVER = b"\x00\x3c\x00\x32", b"\x00\x3c\x00\x3c"
BASIC_ACK, BASIC_NACK = b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78"
CONFIRM_SELECT_OK = b"\x00\x55\x00\x0b"

_frame_head = struct.Struct(">BHI").pack
_settle = struct.Struct(">BHIHHQBB").pack
_content_head = struct.Struct(">BHIHHQ").pack
_END = bytes((FRAME_END,))


def _method(channel: int, klass: int, method: int, arguments: bytes = b"") -> bytes:
    size = 4 + len(arguments)
    return b"".join(
        (_frame_head(1, channel, size), struct.pack(">HH", klass, method), arguments, _END),
    )


def _bits(*flags: bool) -> bytes:
    return bytes((sum(flag << place for place, flag in enumerate(flags)),))


# -- connection and channel ----------------------------------------------------------------------------------


def connection_close() -> bytes:
    return _method(0, 10, 50, struct.pack(">HBHH", 200, 0, 0, 0))


def connection_close_ok() -> bytes:
    return _method(0, 10, 51)


def channel_open(channel: int) -> bytes:
    return _method(channel, 20, 10, b"\x00")


def channel_flow_ok(channel: int, active: bool) -> bytes:
    return _method(channel, 20, 21, _bits(active))


def channel_close(channel: int) -> bytes:
    return _method(channel, 20, 40, struct.pack(">HBHH", 200, 0, 0, 0))


def channel_close_ok(channel: int) -> bytes:
    return _method(channel, 20, 41)


def confirm_select(channel: int) -> bytes:
    return _method(channel, 85, 10, b"\x00")


# -- exchanges and queues ------------------------------------------------------------------------------------


def exchange_declare(
    channel: int,
    name: str,
    type: str = "direct",
    *,
    durable: bool = False,
    auto_delete: bool = False,
    passive: bool = False,
    nowait: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> bytes:
    flags = _bits(passive, durable, auto_delete, False, nowait)
    name_and_type = _name("exchange", name) + encode_shortstr(type)
    return _method(channel, 40, 10, b"\x00\x00" + name_and_type + flags + encode_table(arguments or {}))


def exchange_bind(
    channel: int, destination: str, source: str, routing_key: str, *, nowait: bool = False
) -> bytes:
    names = _name("exchange", destination) + _name("exchange", source) + _key(routing_key)
    return _method(channel, 40, 30, b"\x00\x00" + names + _bits(nowait) + encode_table({}))


def queue_declare(
    channel: int,
    name: str,
    *,
    durable: bool = False,
    exclusive: bool = False,
    auto_delete: bool = False,
    passive: bool = False,
    nowait: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> bytes:
    flags = _bits(passive, durable, exclusive, auto_delete, nowait)
    return _method(
        channel, 50, 10, b"\x00\x00" + _name("queue", name) + flags + encode_table(arguments or {})
    )


def queue_bind(
    channel: int,
    queue: str,
    exchange: str,
    routing_key: str,
    *,
    nowait: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> bytes:
    names = _name("queue", queue) + _name("exchange", exchange) + _key(routing_key)
    return _method(channel, 50, 20, b"\x00\x00" + names + _bits(nowait) + encode_table(arguments or {}))


def queue_purge(channel: int, queue: str) -> bytes:
    return _method(channel, 50, 30, b"\x00\x00" + _name("queue", queue) + _bits(False))


def queue_delete(channel: int, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> bytes:
    return _method(channel, 50, 40, b"\x00\x00" + _name("queue", queue) + _bits(if_unused, if_empty, False))


# -- messages ------------------------------------------------------------------------------------------------


def basic_qos(channel: int, prefetch: int) -> bytes:
    """For the consumers that this channel gets from now on, each by itself."""
    return _method(channel, 60, 10, struct.pack(">IHB", 0, prefetch, 0))


def basic_consume(
    channel: int,
    queue: str,
    tag: str,
    *,
    exclusive: bool = False,
    no_ack: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> bytes:
    flags = _bits(False, no_ack, exclusive, False)
    names = _name("queue", queue) + encode_shortstr(tag)
    return _method(channel, 60, 20, b"\x00\x00" + names + flags + encode_table(arguments or {}))


def basic_cancel(channel: int, tag: str) -> bytes:
    return _method(channel, 60, 30, encode_shortstr(tag) + _bits(False))


def basic_ack(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    return _settle(1, channel, 13, 60, 80, tag, multiple, FRAME_END)


def basic_nack(channel: int, tag: int, *, multiple: bool = False, requeue: bool = True) -> bytes:
    return _settle(1, channel, 13, 60, 120, tag, multiple | requeue << 1, FRAME_END)


@lru_cache(maxsize=1024)
def basic_publish(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    """The method frame; `content` follows."""
    names = _name("exchange", exchange) + _key(routing_key)
    return _method(channel, 60, 40, b"\x00\x00" + names + _bits(mandatory, False))


def content(channel: int, properties: bytes, body: bytes, frame_max: int) -> list[bytes]:
    """Header and body frames of a message."""
    size = len(body)
    parts = [_content_head(2, channel, 12 + len(properties), 60, 0, size), properties, _END]
    room = frame_max - 8
    if size <= room:
        if size:
            parts += (_frame_head(3, channel, size), body, _END)
        return parts
    for at in range(0, size, room):
        chunk = body[at : at + room]
        parts += (_frame_head(3, channel, len(chunk)), chunk, _END)
    return parts


def _name(kind: str, name: str) -> bytes:
    return encode_shortstr(name, f"the name of {kind} {name[:40]!r}")


def _key(routing_key: str) -> bytes:
    return encode_shortstr(routing_key, "a routing key")


# -- what comes ----------------------------------------------------------------------------------------------


class Closed(NamedTuple):
    """Why the server closed a channel or a connection."""

    code: int
    text: str
    #: Class and method that made it do so; zeros where none did.
    method: tuple[int, int]


def read_closed(payload: bytes) -> Closed:
    (code,) = struct.unpack_from(">H", payload, 4)
    text, at = read_shortstr(payload, 6)
    return Closed(code, text, struct.unpack_from(">HH", payload, at))


def read_message_count(payload: bytes) -> int:
    """Out of the answer to ``queue.declare`` or ``queue.purge``."""
    at = read_shortstr(payload, 4)[1] if payload[:4] == QUEUE_DECLARE_OK else 4
    (found,) = struct.unpack_from(">I", payload, at)
    return found


def read_shortstr(payload: bytes, at: int) -> tuple[str, int]:
    stop = at + 1 + payload[at]
    return payload[at + 1 : stop].decode("utf-8", "replace"), stop
