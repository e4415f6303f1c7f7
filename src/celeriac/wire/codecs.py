"""Bodies and results as bytes: the codecs (``task_serializer``, ``result_serializer``, ``accept_content``).

A codec has a name (``"json"``), the content type under which its bytes travel, and the content encoding
Celery puts beside it (wire-protocol §2). JSON is Celery's, with its extension types.

A codec runs foreign code (``__json__``, ``__reduce__``, what users `register`), so whatever it raises
becomes `EncodeError` or `DecodeError` here; only celeriac's own errors pass as they are, a
`SoftTimeLimitExceeded` that strikes meanwhile among them.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from importlib import import_module
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from celeriac.errors import (
    CeleriacError,
    ContentDisallowed,
    DecodeError,
    EncodeError,
    ImproperlyConfigured,
    MissingExtra,
)

__all__ = [
    "TRUSTED",
    "Encoded",
    "accepted",
    "decode",
    "dumps",
    "encode",
    "loads",
    "name_of",
    "optional",
    "register",
]

#: Content types that are only text or bytes, and need no permission.
TRUSTED = frozenset({"application/data", "application/text", "text/plain"})


class Encoded(NamedTuple):
    """A value as bytes, and how to read them back."""

    data: bytes
    content_type: str
    content_encoding: str


@dataclass(frozen=True, slots=True)
class _Codec:
    name: str
    encode: Callable[[Any], bytes | str]
    decode: Callable[[bytes], Any]
    content_type: str
    content_encoding: str


def encode(value: Any, codec: str) -> Encoded:
    """Turn `value` into bytes with the codec of that name.

    Raises `EncodeError` where the codec cannot, `ImproperlyConfigured` where there is no such codec and
    `MissingExtra` where its library is not installed.
    """
    known = _named(codec)
    content_encoding = known.content_encoding
    if known.name == "raw" and isinstance(value, bytes):
        content_encoding = "binary"
    return Encoded(_encode(value, known), known.content_type, content_encoding)


def decode(data: bytes, content_type: str, content_encoding: str, *, accept: frozenset[str]) -> Any:
    """Read a foreign body back. `accept` holds content types, as `accepted` gives them.

    Raises `ContentDisallowed` before anything is decoded where `accept` does not hold the content type, and
    `DecodeError` where the bytes are not of it.
    """
    if content_type in TRUSTED:
        return data if content_encoding in _BINARY else _text(data, content_encoding)
    if content_type not in accept:
        raise ContentDisallowed(
            f"refused content of type {content_type!r}: accept_content allows {', '.join(sorted(accept)) or 'none'}"
        )
    codec = _by_content_type.get(content_type)
    if codec is None:
        raise DecodeError(f"no codec is registered for content of type {content_type!r}")
    return _decode(data, codec)


def dumps(value: Any, codec: str) -> bytes:
    """The bytes of `value` alone; errors as `encode`."""
    return _encode(value, _named(codec))


def loads(data: bytes, codec: str, *, accept: frozenset[str] | None = None) -> Any:
    """Read back what `dumps` wrote; `accept` holds the content types that may be read, None for all.

    Raises `ContentDisallowed`, `DecodeError`, and `ImproperlyConfigured` where there is no such codec.
    """
    found = _named(codec)
    if accept is not None and found.content_type not in accept:
        raise ContentDisallowed(f"a result is stored as {codec}, which result_accept_content does not allow")
    return _decode(data, found)


def accepted(names: Iterable[str]) -> frozenset[str]:
    """Content types of ``accept_content``: codec names (``"json"``) or content types (``"application/json"``)."""
    return frozenset(name if "/" in name else _named(name).content_type for name in names)


def name_of(content_type: str) -> str | None:
    """The name of the codec of a content type; None where there is none."""
    codec = _by_content_type.get(content_type)
    return codec and codec.name


def register(
    name: str,
    encode: Callable[[Any], bytes | str],
    decode: Callable[[bytes], Any],
    content_type: str,
    content_encoding: str = "utf-8",
) -> None:
    """Make a codec known under `name`, in this process and for every app; one of that name is replaced.

    `encode` may return text, which travels as UTF-8; `decode` is given bytes. What they raise becomes
    `EncodeError` and `DecodeError`.
    """
    codec = _Codec(name, encode, decode, content_type, content_encoding)
    _by_name[name] = codec
    _by_content_type[content_type] = codec


def optional(module: str, *, extra: str, purpose: str) -> Any:
    """Import the library of an optional codec. Raises `MissingExtra`, which names the extra that brings it."""
    try:
        return import_module(module)
    except ImportError as exc:
        raise MissingExtra(module, extra, purpose) from exc


def _named(name: str) -> _Codec:
    codec = _by_name.get(name)
    if codec is None:
        raise ImproperlyConfigured(f"unknown serializer {name!r}; known are {', '.join(sorted(_by_name))}")
    return codec


def _encode(value: Any, codec: _Codec) -> bytes:
    try:
        data = codec.encode(value)
        return data.encode() if isinstance(data, str) else data
    except CeleriacError:
        raise
    except Exception as exc:  # boundary: codecs run foreign code, see above
        raise EncodeError(f"{codec.name} cannot encode it: {_reason(exc)}") from exc


def _decode(data: bytes, codec: _Codec) -> Any:
    try:
        return codec.decode(data)
    except CeleriacError:
        raise
    except Exception as exc:  # boundary: codecs run foreign code, see above
        raise DecodeError(f"not valid {codec.name}: {_reason(exc)}") from exc


def _reason(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


# -- json ------------------------------------------------------------------------------------------------------


def _json_default(value: Any) -> Any:
    """What Celery's JSON makes of a value that JSON does not have."""
    if (reduce := getattr(value, "__json__", None)) is not None:
        return reduce()
    match value:
        case datetime():
            return _marked("datetime", value.isoformat())
        case date():
            return _marked("date", value.isoformat())
        case time():
            return _marked("time", value.isoformat())
        case Decimal():
            return _marked("decimal", str(value))
        case UUID():
            return _marked("uuid", {"hex": value.hex})
        case bytes():
            try:
                return _marked("bytes", value.decode())
            except UnicodeDecodeError:
                return _marked("base64", base64.b64encode(value).decode())
        case _ if _is_django_lazy(value):
            return str(value)
        case _:
            raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _marked(type: str, value: Any) -> dict[str, Any]:
    return {"__type__": type, "__value__": value}


def _is_django_lazy(value: Any) -> bool:
    functional = sys.modules.get("django.utils.functional")  # a lazy string cannot exist without it
    return functional is not None and isinstance(value, functional.Promise)


_JSON_TYPES: dict[Any, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "decimal": Decimal,
    "uuid": lambda value: UUID(**value),
    "bytes": lambda value: value.encode(),
    "base64": base64.b64decode,
}


def _json_object(value: dict[str, Any]) -> Any:
    if len(value) != 2 or "__type__" not in value or "__value__" not in value:
        return value
    read = _JSON_TYPES.get(value["__type__"])
    if read is None:
        raise ValueError(f"unknown __type__ {value['__type__']!r}")
    return read(value["__value__"])


def _encode_json(value: Any) -> str:
    # What most tasks return; the standard library builds an encoder for each value, which costs 3 µs.
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    return _json_encode(value)


_json_encode = json.JSONEncoder(default=_json_default).encode
_json_decode = json.JSONDecoder(object_hook=_json_object).decode
_msgspec_decode = msgspec.json.Decoder().decode


def is_plain_json(data: bytes) -> bool:
    """Whether this JSON holds none of Celery's extension types, so that msgspec may read it."""
    return b"__type__" not in data and b"\\u00" not in data


def _decode_json(data: bytes) -> Any:
    """Read Celery's JSON: by msgspec (5 times faster) where it is certain to find the same.

    msgspec knows no extension types, whose mark may be spelt with ``\\u00…`` escapes too. For the rest it
    finds what the standard library finds, or refuses (NaN, lone surrogates, numbers out of range).
    """
    if is_plain_json(data):
        try:
            return _msgspec_decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # whether it is wrong is for the standard library to say
    return _json_decode(data.decode())


# -- the others ------------------------------------------------------------------------------------------------

_PICKLE_PROTOCOL = int(os.environ.get("PICKLE_PROTOCOL", "4"))


def _encode_pickle(value: Any) -> bytes:
    return pickle.dumps(value, protocol=_PICKLE_PROTOCOL)


def _encode_yaml(value: Any) -> str:
    return optional("yaml", extra="yaml", purpose="the yaml serializer").safe_dump(value)


def _decode_yaml(data: bytes) -> Any:
    return optional("yaml", extra="yaml", purpose="the yaml serializer").safe_load(data.decode())


def _encode_msgpack(value: Any) -> bytes:
    return optional("msgpack", extra="msgpack", purpose="the msgpack serializer").packb(value)


def _decode_msgpack(data: bytes) -> Any:
    msgpack = optional("msgpack", extra="msgpack", purpose="the msgpack serializer")
    return msgpack.unpackb(data, strict_map_key=False)


def _encode_raw(value: Any) -> bytes:
    match value:
        case bytes():
            return value
        case str():
            return value.encode()
        case _:
            raise TypeError(f"expected bytes or str, got {type(value).__name__}")


_BINARY = frozenset({"binary", "ascii-8bit"})


def _text(data: bytes, content_encoding: str) -> str:
    try:
        return data.decode(content_encoding or "utf-8")
    except (UnicodeError, LookupError) as exc:
        raise DecodeError(f"not text in {content_encoding!r}: {exc}") from exc


# Known to the whole process, as Celery's users expect of `register`: codecs have no state of their own.
_by_name: dict[str, _Codec] = {}
_by_content_type: dict[str, _Codec] = {}

register("json", _encode_json, _decode_json, "application/json")
register("pickle", _encode_pickle, pickle.loads, "application/x-python-serialize", "binary")
register("yaml", _encode_yaml, _decode_yaml, "application/x-yaml")
register("msgpack", _encode_msgpack, _decode_msgpack, "application/x-msgpack", "binary")
register("raw", _encode_raw, lambda data: data, "application/data")
