"""The kinds of values that settings hold: what each accepts, and what it becomes.

The names here are used as annotations in `celeriac.settings.fields`: to a type checker they are the plain type
they stand for, to `Field` they say how a value is read. A kind is lenient where programs are: an int for a float,
a `timedelta` for seconds, text for numbers and truth (environment, command line), one name for a list of names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, timedelta, tzinfo
from typing import Any, Literal, NamedTuple, TypeAlias, cast, get_args

from celeriac.errors import ImproperlyConfigured
from celeriac.topology import Binding, Exchange, ExchangeType, Queue

__all__ = [
    "Account",
    "ClassPath",
    "Concurrency",
    "DeliveryMode",
    "ExchangeType",
    "Hook",
    "KINDS",
    "KiB",
    "Kind",
    "Level",
    "Milliseconds",
    "Names",
    "Options",
    "Path",
    "Protocol",
    "QueueType",
    "Queues",
    "RateLimit",
    "Seconds",
    "StartMethod",
    "TimeZone",
    "Tls",
    "Url",
]

Seconds: TypeAlias = float
Milliseconds: TypeAlias = int
KiB: TypeAlias = int
Path: TypeAlias = str
#: A user, group or mask of file modes: by name, or as a number.
Account: TypeAlias = str | int
Level: TypeAlias = str
TimeZone: TypeAlias = str
#: One URL, or several joined by ``;``, to be tried in turn.
Url: TypeAlias = str
Names: TypeAlias = tuple[str, ...]
Options: TypeAlias = dict[str, Any]
#: ``"package.module:Class"``, or the class.
ClassPath: TypeAlias = str | type[Any]
Hook: TypeAlias = Callable[[Any], Any]
Queues: TypeAlias = tuple[Queue, ...]
Tls: TypeAlias = bool | dict[str, Any]
Concurrency: TypeAlias = int | Literal["auto"]
#: ``"10/m"`` (also ``/s``, ``/h``), or a number for each second.
RateLimit: TypeAlias = str | float
Protocol: TypeAlias = Literal[1, 2]
DeliveryMode: TypeAlias = Literal[1, 2]
QueueType: TypeAlias = Literal["classic", "quorum"]
StartMethod: TypeAlias = Literal["fork", "spawn"]


class Kind(NamedTuple):
    """One kind of value."""

    #: What a value has to be, in words that follow "expected".
    expects: str
    #: Turn a value into what is kept. Raises `TypeError` or `ValueError` where it is of another kind, and
    #: `ImproperlyConfigured` where more can be said.
    convert: Callable[[Any], Any]
    unit: str = ""


_TRUTH = {
    "1": True, "true": True, "yes": True, "on": True,
    "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip


def _bool(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise TypeError


def _number(value: Any) -> int | float:
    """Ints stay ints: a time limit of 60 travels as 60, not as 60.0."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # the last: NaN
        raise TypeError
    return value


def _int(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _seconds(value: Any) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else _number(value)


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return str.__str__(value)  # an enum's member or a template's marked string is kept as what it says


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(memoryview(value))


def _path(value: Any) -> str:
    return os.fsdecode(value)


def _account(value: Any) -> str | int:
    return _str(value) if isinstance(value, str) else _int(value)


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(name for each in value.split(",") if (name := each.strip()))
    if isinstance(value, Mapping | bytes):
        raise TypeError
    return tuple(_str(each) for each in value)


def _url(value: Any) -> str:
    return _str(value) if isinstance(value, str) else ";".join(_names(value))


def _options(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError
    options = cast("Mapping[Any, Any]", value)
    for key in options:
        _str(key)
    # The user's own dict is kept: what is added to it later counts, as in Celery.
    return cast("dict[str, Any]", options) if isinstance(options, dict) else dict(options)


def _class_path(value: Any) -> str | type[Any]:
    return cast("type[Any]", value) if isinstance(value, type) else _str(value)


def _hook(value: Any) -> Callable[[Any], Any]:
    if not callable(value):
        raise TypeError
    return value


def _tls(value: Any) -> bool | dict[str, Any]:
    return _options(value) if isinstance(value, Mapping) else _bool(value)


def _concurrency(value: Any) -> int | str:
    return "auto" if value == "auto" else _int(value)


_RATE = re.compile(r"\d+(\.\d+)?(/[smh])?")


def _rate_limit(value: Any) -> str | float:
    if not isinstance(value, str):
        return _number(value)
    if not _RATE.fullmatch(value):
        raise ValueError
    return value


def _level(value: Any) -> str:
    from celeriac.log import level_name

    return level_name(value)


def _time_zone(value: Any) -> str:
    if isinstance(value, tzinfo):
        # zoneinfo's zones have a key, pytz's a zone
        value = "UTC" if value is UTC else getattr(value, "key", None) or getattr(value, "zone", None)
    name = _str(value)
    if name != "UTC":
        from zoneinfo import ZoneInfo, available_timezones  # 3 ms, and most apps live in UTC

        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            from celeriac.settings.names import did_you_mean

            hint = did_you_mean(name, available_timezones())
            raise ImproperlyConfigured(f"there is no time zone {name!r}{hint}") from None
    return name


def _queues(value: Any) -> tuple[Queue, ...]:
    if isinstance(value, str):
        return tuple(Queue(name) for name in _names(value))
    if isinstance(value, Mapping):
        named = cast("Mapping[str, Any]", value)
        return tuple(
            _queue({**options, "name": name}) if isinstance(options, Mapping) else Queue.of(options)
            for name, options in named.items()
        )
    return tuple(_queue(each) for each in cast("Iterable[Any]", value))


def _queue(value: Any) -> Queue:
    """A queue from what `Queue.of` takes, or from a dict: its own fields, or those of Celery's dict form
    (``{"exchange": "web", "exchange_type": "topic", "binding_key": "web.#"}``)."""
    if not isinstance(value, Mapping):
        return Queue.of(value)
    fields = dict(cast("Mapping[str, Any]", value))
    kind: ExchangeType = fields.pop("exchange_type", "direct")
    key = fields.pop("binding_key", "")
    fields["exchange"] = _exchange(fields.get("exchange"), kind)
    fields["routing_key"] = fields.get("routing_key") or key
    fields["bindings"] = tuple(_binding(each) for each in fields.get("bindings", ()))
    try:
        return Queue(**fields)
    except TypeError as exc:
        raise ImproperlyConfigured(f"queue {fields.get('name')!r}: {exc}") from None


def _exchange(value: Any, kind: ExchangeType) -> Exchange | None:
    if isinstance(value, str):
        return Exchange(value, kind)
    return Exchange(**cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else value


def _binding(value: Any) -> Binding:
    if not isinstance(value, Mapping):
        return value
    fields = dict(cast("Mapping[str, Any]", value))
    exchange = _exchange(fields.pop("exchange", None), "direct") or Exchange()
    return Binding(exchange, **fields)


def _choice(*choices: str) -> Kind:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return _str(value)

    return Kind(" or ".join(map(repr, choices)), convert)


def _numbered(**names: int) -> Callable[[Any], int]:
    """Numbers that may be called by name."""

    def convert(value: Any) -> int:
        number = names[value] if isinstance(value, str) and value in names else _int(value)
        if number not in names.values():
            raise ValueError
        return number

    return convert


def _anything(value: Any) -> Any:
    return value


#: Kinds by the annotation that asks for them.
KINDS: dict[str, Kind] = {
    "bool": Kind("true or false", _bool),
    "int": Kind("a whole number", _int),
    "float": Kind("a number", _number),
    "Seconds": Kind("seconds (a number or a timedelta)", _seconds, "seconds"),
    "Milliseconds": Kind("milliseconds (a whole number)", _int, "milliseconds"),
    "KiB": Kind("KiB (a whole number)", _int, "KiB"),
    "str": Kind("a string", _str),
    "bytes": Kind("bytes or a string", _bytes),
    "Path": Kind("a path", _path),
    "Account": Kind("a name or a number", _account),
    "Level": Kind("a log level", _level),
    "TimeZone": Kind("the name of a time zone", _time_zone),
    "Url": Kind("a URL, or a list of URLs to try in turn", _url),
    "Names": Kind("a list of names", _names),
    "Options": Kind("a dict with names as keys", _options),
    "ClassPath": Kind("a class, or its path as a string", _class_path),
    "Hook": Kind("a function", _hook),
    "Queues": Kind("a list of queues (Queue objects or names), or a dict of name to options", _queues),
    "Tls": Kind("true, false or a dict of TLS options", _tls),
    "Concurrency": Kind("a whole number or 'auto'", _concurrency),
    "RateLimit": Kind("a rate such as '10/m' ('/s', '/m', '/h') or a number for each second", _rate_limit),
    "Protocol": Kind("1 or 2", _numbered(**{"1": 1, "2": 2})),
    "DeliveryMode": Kind("2 ('persistent') or 1 ('transient')", _numbered(persistent=2, transient=1)),
    "QueueType": _choice(*get_args(QueueType)),
    "ExchangeType": _choice(*get_args(ExchangeType)),
    "StartMethod": _choice(*get_args(StartMethod)),
    "Any": Kind("any value", _anything),
}
