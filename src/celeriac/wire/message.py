"""A task call as a value, to and from the envelope that carries it.

`encode` writes Celery's task protocol 2 (wire-protocol §1): what routing and monitoring need in the headers,
the body ``[args, kwargs, embed]`` opaque to them. `decode` reads protocol 2, protocol 1 (all in the body) and
the hybrid of both. A foreign message may be anything: `decode` raises `WireError`, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Annotated, Any, cast

import msgspec

from celeriac.errors import CeleriacError, DecodeError, EncodeError, InvalidTaskError, MissingExtra
from celeriac.wire import codecs
from celeriac.wire.compression import compress, decompress
from celeriac.wire.envelope import TASK_HEADERS, TASK_PROPERTIES, Envelope, unplain

__all__ = ["Message", "decode", "encode", "encode_v1", "safe_repr"]


#: What a foreign message may count to: no store keeps more than 32 bits.
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a task, with all that travels along."""

    task: str
    id: str
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] = {}
    #: Name to show in place of `task`.
    shadow: str | None = None
    #: Not to run before, not to run after (aware).
    eta: datetime | None = None
    expires: datetime | None = None
    group: str | None = None
    group_index: _Count | None = None
    retries: _Count = 0
    #: Seconds.
    time_limit: int | float | None = None
    soft_time_limit: int | float | None = None
    #: First task of the workflow; None: this one.
    root_id: str | None = None
    parent_id: str | None = None
    #: How the arguments look, for people; `encode` fills them in.
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    #: Who sent it: ``gen<pid>@<host>``.
    origin: str | None = None
    #: None: the worker's task decides.
    ignore_result: bool | None = None
    replaced_task_nesting: _Count = 0
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] = {}
    reply_to: str = ""
    priority: _Count = 0
    delivery_mode: _Count = 2
    #: Signature dicts (wire-protocol §1.4): ``link``, ``link_error``, the rest of the chain with the *last*
    #: element to run next, and the body of the chord this is a header member of.
    callbacks: list[dict[str, Any]] | None = None
    errbacks: list[dict[str, Any]] | None = None
    chain: list[dict[str, Any]] | None = None
    chord: dict[str, Any] | None = None
    #: The sender's own headers and message properties.
    headers: dict[str, Any] = {}
    properties: dict[str, Any] = {}


# -- out -------------------------------------------------------------------------------------------------------


def encode(
    message: Message,
    *,
    codec: str = "json",
    compression: str | None = None,
    repr_levels: int = 3,
    now: datetime | None = None,
) -> Envelope:
    """Put a message into an envelope, as task protocol 2.

    `now` (aware) is the instant from which ``expiration`` counts; the system's where it is not given.
    Raises `EncodeError` that names the argument, header or link which cannot be put into bytes.
    """
    embed = {
        "callbacks": message.callbacks,
        "errbacks": message.errbacks,
        "chain": message.chain,
        "chord": message.chord,
    }
    body = _body(message, (message.args, message.kwargs, embed), codec)
    eta, expires, argsrepr, kwargsrepr = message.eta, message.expires, message.argsrepr, message.kwargsrepr
    headers: dict[str, Any] = {
        "lang": "py",
        "task": message.task,
        "id": message.id,
        "shadow": message.shadow,
        "eta": None if eta is None else eta.isoformat(),
        "expires": None if expires is None else expires.isoformat(),
        "group": message.group,
        "group_index": message.group_index,
        "retries": message.retries,
        "timelimit": [message.time_limit, message.soft_time_limit],
        "root_id": message.root_id or message.id,
        "parent_id": message.parent_id,
        "argsrepr": safe_repr(message.args, levels=repr_levels) if argsrepr is None else argsrepr,
        "kwargsrepr": safe_repr(message.kwargs, levels=repr_levels) if kwargsrepr is None else kwargsrepr,
        "origin": message.origin,
        "ignore_result": message.ignore_result,
        "replaced_task_nesting": message.replaced_task_nesting,
        "stamped_headers": message.stamped_headers,
        "stamps": message.stamps,
        **message.headers,
    }
    return _envelope(message, body, headers, compression, now)


def encode_v1(
    message: Message, *, codec: str = "json", compression: str | None = None, now: datetime | None = None
) -> Envelope:
    """Put a message into an envelope, as task protocol 1 (``task_protocol=1``); otherwise as `encode`."""
    fields = {
        "task": message.task,
        "id": message.id,
        "args": message.args,
        "kwargs": message.kwargs,
        "group": message.group,
        "group_index": message.group_index,
        "retries": message.retries,
        "eta": message.eta.isoformat() if message.eta else None,
        "expires": message.expires.isoformat() if message.expires else None,
        "utc": True,
        "callbacks": _linked(message.callbacks, message.chain),
        "errbacks": message.errbacks,
        "timelimit": (message.time_limit, message.soft_time_limit),
        "taskset": message.group,
        "chord": message.chord,
    }
    body = _body(message, fields, codec)
    return _envelope(message, body, dict(message.headers), compression, now)


def _linked(
    callbacks: list[dict[str, Any]] | None, chain: list[dict[str, Any]] | None
) -> list[dict[str, Any]] | None:
    """A chain as protocol 1 has it: each task is a callback of the one before."""
    if not chain:
        return callbacks
    following = chain[0]
    for signature in chain[1:]:
        options: dict[str, Any] = signature.get("options") or {}
        links: Any = options.get("link") or []
        links = [*(links if isinstance(links, list | tuple) else [links]), following]
        following = {**signature, "options": {**options, "link": links}}
    return [*(callbacks or ()), following]


def _envelope(
    message: Message,
    body: codecs.Encoded,
    headers: dict[str, Any],
    compression: str | None,
    now: datetime | None,
) -> Envelope:
    _check_plain(message)
    data, content_type, content_encoding = body
    if compression:
        data, headers["compression"] = compress(data, compression)
    properties: dict[str, Any] = {
        "correlation_id": message.id,
        "reply_to": message.reply_to,
        "delivery_mode": message.delivery_mode,
    }
    if message.expires is not None:
        left = (message.expires - (now or datetime.now(UTC))).total_seconds()
        properties["expiration"] = str(max(0, math.ceil(left * 1000)))
    properties["priority"] = message.priority
    properties.update(message.properties)
    return Envelope(data, content_type, content_encoding, headers, properties)


def _body(message: Message, body: Any, codec: str) -> codecs.Encoded:
    try:
        return codecs.encode(body, codec)
    except EncodeError as exc:
        raise _culprit(message, codec) or exc from exc


def _culprit(message: Message, codec: str) -> EncodeError | None:
    """The error that names the part of a message which cannot be encoded, if one alone can be blamed."""
    task = message.task
    parts = {f"argument {i + 1} of {task} (args[{i}])": each for i, each in enumerate(message.args)}
    parts |= {f"argument {k!r} of {task} (kwargs[{k!r}])": each for k, each in message.kwargs.items()}
    parts |= {
        f"{name} of {task}": getattr(message, name) for name in ("callbacks", "errbacks", "chain", "chord")
    }
    for part, value in parts.items():
        try:
            codecs.dumps(value, codec)
        except EncodeError as exc:
            return EncodeError(f"{part}: {exc}")
    return None


def _check_plain(message: Message) -> None:
    """Refuse headers and properties no broker can carry: they travel outside the body, without its codec."""
    for kind, values in (
        ("header", message.headers),
        ("stamp", message.stamps),
        ("property", message.properties),
    ):
        for name, value in values.items():
            if reason := unplain((name, value)):
                raise EncodeError(f"{kind} {name!r} of {message.task} is not a plain value: {reason}")


# -- in --------------------------------------------------------------------------------------------------------


def decode(envelope: Envelope, *, accept: frozenset[str], timezone: tzinfo = UTC) -> Message:
    """Read a message from its envelope: protocol 2, 1, or headers of 2 with a body of 1.

    `accept` are the content types to decode (`codecs.accepted`); `timezone` is that of times without an
    offset. Raises `ContentDisallowed`, `DecodeError`, or `InvalidTaskError` where the content is no task call.
    """
    headers, properties = envelope.headers, envelope.properties
    body = _decoded(envelope, accept)
    if "task" in headers and isinstance(body, list | tuple):
        fields: dict[str, Any] = headers
        args, kwargs, embed = _three(cast("Sequence[Any]", body))
    elif isinstance(body, dict) and ("task" in headers or "task" in body):
        embed = cast("dict[str, Any]", body)
        fields = {**_from_v1(embed), **headers}
        args: Any = embed.get("args") or ()
        kwargs: Any = embed.get("kwargs") or {}
        if embed.get("utc", True):
            timezone = UTC
    else:
        raise InvalidTaskError(f"not a task message: {safe_repr(cast(object, body), limit=100)}")
    time_limit, soft_time_limit = _limits(fields.get("timelimit"))
    argsrepr, kwargsrepr = fields.get("argsrepr"), fields.get("kwargsrepr")
    return _validated(
        {
            **fields,
            "id": fields.get("id") or properties.get("correlation_id"),
            "args": args,
            "kwargs": kwargs,
            "eta": _instant("eta", fields.get("eta"), timezone),
            "expires": _instant("expires", fields.get("expires"), timezone),
            "retries": fields.get("retries") or 0,
            "time_limit": time_limit,
            "soft_time_limit": soft_time_limit,
            "argsrepr": safe_repr(args) if argsrepr is None else argsrepr,
            "kwargsrepr": safe_repr(kwargs) if kwargsrepr is None else kwargsrepr,
            "replaced_task_nesting": fields.get("replaced_task_nesting") or 0,
            "stamps": fields.get("stamps") or {},
            "reply_to": properties.get("reply_to") or "",
            "priority": properties.get("priority") or 0,
            "delivery_mode": properties.get("delivery_mode") or 2,
            "callbacks": embed.get("callbacks"),
            "errbacks": embed.get("errbacks"),
            "chain": embed.get("chain"),
            "chord": embed.get("chord"),
            "headers": _without(headers, TASK_HEADERS),
            "properties": _without(properties, TASK_PROPERTIES),
        }
    )


def _decoded(envelope: Envelope, accept: frozenset[str]) -> Any:
    data = envelope.body
    compression = envelope.headers.get("compression")
    try:
        if compression is not None:
            data = decompress(data, str(compression))
        return codecs.decode(data, envelope.content_type, envelope.content_encoding, accept=accept)
    except MissingExtra as exc:
        raise DecodeError(str(exc)) from exc


def _three(body: Sequence[Any]) -> tuple[Any, Any, dict[str, Any]]:
    if len(body) != 3:
        raise InvalidTaskError(f"the body must be [args, kwargs, embed], not {len(body)} items")
    args, kwargs, embed = body
    if not isinstance(embed, dict):
        raise InvalidTaskError(f"the third item of the body must be an object, not {type(embed).__name__}")
    return args, kwargs, cast("dict[str, Any]", embed)


def _from_v1(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a protocol 1 body that protocol 2 has in its headers."""
    fields = {name: body[name] for name in _V1_FIELDS if name in body}
    # The old name of the group wins.
    fields["group"] = body.get("taskset") or body.get("group")
    if reason := unplain(fields):
        raise InvalidTaskError(f"not a valid task message: {reason}")
    return fields


_V1_FIELDS = ("task", "id", "group_index", "retries", "eta", "expires", "timelimit")


def _limits(value: Any) -> tuple[Any, Any]:
    if value is None:
        return None, None
    try:
        hard, soft = value
    except (TypeError, ValueError) as exc:
        raise InvalidTaskError(f"timelimit must be [hard, soft], not {safe_repr(value)}") from exc
    return hard, soft


def _instant(name: str, value: Any, timezone: tzinfo) -> datetime | None:
    if value is None:
        return None
    try:
        instant = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return (instant if instant.tzinfo else instant.replace(tzinfo=timezone)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidTaskError(f"{name} must be an ISO 8601 time, not {safe_repr(value)}: {exc}") from exc


def _without(values: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    if values.keys() <= names:
        return {}
    return {name: value for name, value in values.items() if name not in names}


def _validated(fields: dict[str, Any]) -> Message:
    try:
        return msgspec.convert(fields, Message)
    except msgspec.ValidationError as exc:
        raise InvalidTaskError(f"not a valid task message: {exc}") from exc


# -- for people ------------------------------------------------------------------------------------------------


def safe_repr(value: object, *, levels: int = 3, limit: int = 1024) -> str:
    """`repr` for headers, events and logs: at most `limit` characters, `levels` containers deep.

    Never raises for a broken ``__repr__``, and takes no longer for a million items than for a hundred.
    """
    text = _repr(value, levels, limit)
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    # A __repr__ may hold lone surrogates, which no header can.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


_BRACKETS: dict[type, tuple[str, str]] = {
    tuple: ("(", ")"),
    list: ("[", "]"),
    dict: ("{", "}"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}


def _repr(value: Any, levels: int, room: int) -> str:
    kind = cast("type[object]", type(value))
    if kind is str or kind is bytes:
        return repr(value if len(value) <= room else value[:room])
    brackets = _BRACKETS.get(kind)
    if brackets is None or not value:
        return _leaf(value)
    if levels <= 0:
        return f"{brackets[0]}...{brackets[1]}"
    if kind is dict:
        pieces = (f"{_repr(k, levels - 1, room)}: {_repr(v, levels - 1, room)}" for k, v in value.items())
    else:
        pieces = (_repr(item, levels - 1, room) for item in value)
    shown: list[str] = []
    for piece in pieces:
        shown.append(piece)
        room -= len(piece) + 2
        if room < 0:
            break  # whoever asked cuts it off here
    comma = "," if kind is tuple and len(shown) == 1 else ""
    return f"{brackets[0]}{', '.join(shown)}{comma}{brackets[1]}"


def _leaf(value: object) -> str:
    try:
        return repr(value)
    except CeleriacError:
        raise
    except Exception as exc:  # noqa: BLE001 boundary: a __repr__ is the user's, and never worth a failure
        return f"<{type(value).__name__} object, its repr raised {type(exc).__name__}>"
