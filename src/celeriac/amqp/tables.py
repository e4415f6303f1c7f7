"""Field tables of AMQP 0-9-1, as RabbitMQ has them: headers and arguments ↔ dicts. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

__all__ = ["Unencodable", "decode_table", "encode_shortstr", "encode_table"]

_pack_u32 = struct.Struct(">I").pack
_pack_tagged_u32 = struct.Struct(">cI").pack
_pack_int32 = struct.Struct(">ci").pack
_pack_int64 = struct.Struct(">cq").pack
_pack_double = struct.Struct(">cd").pack
_pack_time = struct.Struct(">cQ").pack
_pack_decimal = struct.Struct(">cBi").pack
_unpack_u32 = struct.Struct(">I").unpack_from


class Unencodable(ValueError):
    """A value that AMQP has no form for; the message names it."""


def encode_shortstr(text: str, what: str = "a name") -> bytes:
    """Text of at most 255 bytes with its length before it."""
    data = _utf8(text)
    if len(data) > 255:
        raise Unencodable(f"{what} has {len(data)} bytes, and AMQP takes at most 255: {text[:60]!r}…")
    return bytes((len(data),)) + data


@lru_cache(maxsize=4096)
def _key(name: str) -> bytes:
    return encode_shortstr(name, "the name of a header")


def encode_table(table: Mapping[str, Any]) -> bytes:
    """A table with its length before it. Raises `Unencodable` and names the key."""
    parts: list[bytes] = []
    add = parts.append
    name = ""
    try:
        for name, value in table.items():
            add(_key(str(name)))
            # The two most frequent kinds; a header table is encoded for each message.
            if type(value) is str:
                data = _utf8(value)
                add(_pack_tagged_u32(b"S", len(data)))
                add(data)
            elif value is None:
                add(b"V")
            else:
                add(_encode(value))
    except Unencodable as exc:
        raise Unencodable(f"{name}: {exc}") from None
    data = b"".join(parts)
    return _pack_u32(len(data)) + data


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _encode(value: object) -> bytes:
    return _ENCODERS.get(type(value), _encode_other)(value)


def _encode_str(value: str) -> bytes:
    data = _utf8(value)
    return _pack_tagged_u32(b"S", len(data)) + data


def _encode_bytes(value: bytes) -> bytes:
    return _pack_tagged_u32(b"x", len(value)) + value


def _encode_bool(value: bool) -> bytes:
    return b"t\x01" if value else b"t\x00"


def _encode_int(value: int) -> bytes:
    if -0x8000_0000 <= value < 0x8000_0000:
        return _pack_int32(b"I", value)
    if -0x8000_0000_0000_0000 <= value < 0x8000_0000_0000_0000:
        return _pack_int64(b"l", value)
    raise Unencodable(f"{value} does not fit 64 bits")


def _encode_float(value: float) -> bytes:
    return _pack_double(b"d", value)


def _encode_none(value: None) -> bytes:
    return b"V"


def _encode_time(value: datetime) -> bytes:
    """Whole seconds since 1970, as the protocol has it; what has no zone is UTC."""
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    seconds = int(aware.timestamp())
    if seconds < 0:
        raise Unencodable(f"{value} is before 1970")
    return _pack_time(b"T", seconds)


def _encode_decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise Unencodable(f"{value} is not a number")
    number = int("".join(map(str, digits))) * 10 ** max(exponent, 0)
    number = -number if sign else number
    if not -0x8000_0000 <= number < 0x8000_0000 or -exponent > 255:
        raise Unencodable(f"{value} does not fit a decimal of 32 bits")
    return _pack_decimal(b"D", max(-exponent, 0), number)


def _encode_list(values: list[Any] | tuple[Any, ...]) -> bytes:
    data = b"".join([_encode(each) for each in values])
    return _pack_tagged_u32(b"A", len(data)) + data


def _encode_dict(value: Mapping[str, Any]) -> bytes:
    return b"F" + encode_table(value)


def _encode_other(value: object) -> bytes:
    """What is an instance of a class of somebody's own."""
    for kind, encode in _ENCODERS.items():
        if isinstance(value, kind):
            return encode(value)
    raise Unencodable(f"AMQP has no form for {type(value).__name__}")


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    str: _encode_str,
    type(None): _encode_none,
    bool: _encode_bool,
    int: _encode_int,
    float: _encode_float,
    list: _encode_list,
    tuple: _encode_list,
    dict: _encode_dict,
    datetime: _encode_time,
    bytes: _encode_bytes,
    Decimal: _encode_decimal,
}


def decode_table(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    """The table at an offset, and the offset after it.

    Raises `ValueError` where it is none: of any kind that reading beyond the end or unknown types leads to.
    """
    try:
        return _table(data, at)
    except (struct.error, IndexError, RecursionError, KeyError, OverflowError, OSError) as exc:
        raise ValueError(f"not an AMQP table: {exc!r}") from exc


def _table(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    end = at + 4 + _unpack_u32(data, at)[0]
    at += 4
    found: dict[str, Any] = {}
    while at < end:
        stop = at + 1 + data[at]
        name = data[at + 1 : stop].decode("utf-8", "replace")
        kind = data[stop]
        at = stop + 1
        if kind == 0x53:  # S, by far the most frequent
            stop = at + 4 + _unpack_u32(data, at)[0]
            raw = data[at + 4 : stop]
            try:
                found[name] = raw.decode()
            except UnicodeDecodeError:
                found[name] = raw
            at = stop
        elif kind == 0x56:  # V
            found[name] = None
        else:
            found[name], at = _DECODERS[kind](data, at)
    if at != end:
        raise IndexError("a value ends beyond its table")
    return found, at


def _string(data: bytes, at: int) -> tuple[str | bytes, int]:
    raw, at = _bytes(data, at)
    try:
        return raw.decode(), at
    except UnicodeDecodeError:
        return raw, at


def _bytes(data: bytes, at: int) -> tuple[bytes, int]:
    stop = at + 4 + _unpack_u32(data, at)[0]
    if stop > len(data):
        raise IndexError("a string ends beyond the table")
    return data[at + 4 : stop], stop


def _array(data: bytes, at: int) -> tuple[list[Any], int]:
    end = at + 4 + _unpack_u32(data, at)[0]
    at += 4
    found: list[Any] = []
    while at < end:
        value, at = _DECODERS[data[at]](data, at + 1)
        found.append(value)
    return found, at


def _bool(data: bytes, at: int) -> tuple[bool, int]:
    return data[at] != 0, at + 1


def _none(data: bytes, at: int) -> tuple[None, int]:
    return None, at


def _time(data: bytes, at: int) -> tuple[datetime, int]:
    (seconds,) = struct.unpack_from(">Q", data, at)
    return datetime.fromtimestamp(seconds, tz=UTC), at + 8


def _decimal(data: bytes, at: int) -> tuple[Decimal, int]:
    scale, number = struct.unpack_from(">Bi", data, at)
    return Decimal(number).scaleb(-scale), at + 5


def _number(format: str) -> Callable[[bytes, int], tuple[Any, int]]:
    form = struct.Struct(format)
    unpack, size = form.unpack_from, form.size

    def decode(data: bytes, at: int) -> tuple[Any, int]:
        return unpack(data, at)[0], at + size

    return decode


_DECODERS: dict[int, Callable[[bytes, int], tuple[Any, int]]] = {
    ord("S"): _string,
    ord("x"): _bytes,
    ord("A"): _array,
    ord("F"): _table,
    ord("t"): _bool,
    ord("V"): _none,
    ord("T"): _time,
    ord("D"): _decimal,
    ord("b"): _number(">b"),
    ord("B"): _number(">B"),
    ord("s"): _number(">h"),
    ord("U"): _number(">h"),
    ord("u"): _number(">H"),
    ord("I"): _number(">i"),
    ord("i"): _number(">I"),
    ord("l"): _number(">q"),
    ord("L"): _number(">q"),
    ord("f"): _number(">f"),
    ord("d"): _number(">d"),
}
