"""The state of one task as a result backend keeps it, and groups of them.

Celery's backends keep a *meta*, one dict per task (wire-protocol §7): `to_meta` and `from_meta` for stores
with documents of their own, `to_document` and `from_document` for those that take its bytes.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from celeriac.errors import DecodeError
from celeriac.wire import codecs

__all__ = ["Group", "Record", "from_document", "from_meta", "to_document", "to_meta"]


class Record(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The latest known state of one task: the shell in plain values, what users gave as opaque bytes.

    `result` holds the return value, the exception (see `wire.errors`) or the custom meta, encoded by the
    codec named in `codec` (the ``result_serializer`` of whoever wrote it). `children` are Celery's result
    tuples. The fields from `name` on are filled with ``result_extended`` only.
    """

    task_id: str
    state: str
    result: bytes
    codec: str = "json"
    traceback: str | None = None
    children: list[Any] | None = None
    #: Instant of the final state, aware and UTC; None while there is none.
    date_done: datetime | None = None
    #: How often the task had been retried when this was written.
    retries: int = 0
    group_id: str | None = None
    parent_id: str | None = None
    name: str | None = None
    args: bytes | None = None
    kwargs: bytes | None = None
    worker: str | None = None
    queue: str | None = None
    stamps: dict[str, Any] | None = None
    #: Where the caller waits for an answer by message (the ``rpc`` backend); not part of the meta.
    reply_to: str | None = None


class Group(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A saved group: Celery's result tuple ``[[id, parent], [member, …]]`` and its instant (aware, UTC)."""

    group_id: str
    result: list[Any]
    date_done: datetime | None = None


#: Keys of a meta that hold what users gave; opaque bytes in a `Record`.
_OPAQUE = frozenset({"result", "args", "kwargs"})


def to_meta(record: Record) -> dict[str, Any]:
    """Celery's dict for this record, keys in Celery's order, with the user's values decoded.

    ``retries`` is there without ``result_extended`` too, once the task was retried: a store compares it.
    """
    return _meta(record, lambda data: codecs.loads(data, record.codec))


def from_meta(meta: dict[str, Any], codec: str) -> Record:
    """The record of a decoded meta; `codec` is the ``result_serializer``. Raises `DecodeError`."""
    fields = dict(meta)
    for key in _OPAQUE & fields.keys():
        if key == "result" or fields[key] is not None:
            fields[key] = codecs.dumps(fields[key], codec)
    return _record(fields, codec)


def to_document(record: Record) -> bytes:
    """The encoded meta. In JSON the user's values are put in as they are, not decoded."""
    if record.codec == "pickle":
        return _pickled(record)
    if record.codec != "json":
        return codecs.dumps(to_meta(record), record.codec)
    if record.stamps:  # values of the sender's own, which may need Celery's extension types
        plain = {name: msgspec.Raw(codecs.dumps(value, "json")) for name, value in record.stamps.items()}
        record = msgspec.structs.replace(record, stamps=plain)
    return msgspec.json.encode(_meta(record, msgspec.Raw))


class _Pickled:
    """Stands for a value, in a pickle, by the pickle of it: whoever stores that need not have its class."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._data,)


def _pickled(record: Record) -> bytes:
    """The meta as a pickle. A worker's parent stores what only executors can open: users' classes are there."""
    nothing = codecs.dumps(None, "pickle")
    opaque = {
        name: data for name in ("result", "args", "kwargs") if (data := getattr(record, name)) is not None
    }
    meta = to_meta(msgspec.structs.replace(record, **dict.fromkeys(opaque, nothing)))
    return codecs.dumps(
        meta | {name: _Pickled(data) for name, data in opaque.items() if name in meta}, "pickle"
    )


def from_document(data: bytes, codec: str) -> Record:
    """The record of an encoded meta; `codec` as in `from_meta`. Raises `DecodeError`."""
    if codec != "json":
        meta = codecs.loads(data, codec)
        if not isinstance(meta, dict):
            raise DecodeError(f"not a task result: {type(meta).__name__}")
        return from_meta(cast("dict[str, Any]", meta), codec)
    fields: dict[str, Any] = {}
    for key, value in _values_in(data).items():
        opaque = key == "result" or (key in _OPAQUE and value != b"null")
        fields[key] = value if opaque else codecs.loads(value, "json")
    return _record(fields, codec)


def _meta(record: Record, opened: Callable[[bytes], Any]) -> dict[str, Any]:
    date_done = record.date_done
    meta: dict[str, Any] = {
        "status": record.state,
        "result": opened(record.result),
        "traceback": record.traceback,
        "children": record.children,
        "date_done": None if date_done is None else date_done.isoformat(),
    }
    if record.group_id is not None:
        meta["group_id"] = record.group_id
    if record.parent_id is not None:
        meta["parent_id"] = record.parent_id
    if record.name is not None:
        meta["name"] = record.name
        meta["args"] = None if record.args is None else opened(record.args)
        meta["kwargs"] = None if record.kwargs is None else opened(record.kwargs)
        meta["worker"] = record.worker
        meta["retries"] = record.retries
        meta["queue"] = record.queue
    elif record.retries:
        meta["retries"] = record.retries
    if record.stamps:
        meta["stamped_headers"] = list(record.stamps)
        # A stamp may not take the place of the state.
        meta |= {name: value for name, value in record.stamps.items() if name not in _KEYS}
    meta["task_id"] = record.task_id
    return meta


_KEYS = frozenset(
    {
        *("status", "result", "traceback", "children", "date_done", "group_id", "parent_id"),
        *("name", "args", "kwargs", "worker", "retries", "queue", "stamped_headers", "task_id"),
    }
)


def _values_in(data: bytes) -> dict[str, bytes]:
    """The values of a JSON object, each as the JSON it is written in."""
    try:
        return {key: bytes(value) for key, value in _split(data).items()}
    except msgspec.MsgspecError:
        # NaN and lone surrogates, which the standard library writes, or no JSON object at all.
        whole = codecs.loads(data, "json")
    if not isinstance(whole, dict):
        raise DecodeError(f"not a task result: {type(whole).__name__}")
    return {key: codecs.dumps(value, "json") for key, value in cast("dict[str, Any]", whole).items()}


_split = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _record(fields: dict[str, Any], codec: str) -> Record:
    """A record of a meta whose opaque values are bytes."""
    stamped: list[Any] = fields.get("stamped_headers") or []
    try:
        return msgspec.convert(
            (
                fields.get("task_id"),
                fields.get("status"),
                fields.get("result", b"null"),
                codec,
                fields.get("traceback"),
                fields.get("children"),
                _instant(fields.get("date_done")),
                fields.get("retries") or 0,
                fields.get("group_id"),
                fields.get("parent_id"),
                fields.get("name"),
                fields.get("args"),
                fields.get("kwargs"),
                fields.get("worker"),
                fields.get("queue"),
                {name: fields.get(name) for name in stamped} or None,
            ),
            Record,
        )
    except (msgspec.ValidationError, TypeError, ValueError, OverflowError) as exc:
        raise DecodeError(f"not a task result: {exc}") from exc


def _instant(value: Any) -> datetime | None:
    """`date_done` as documents hold it: text or, in some stores, an instant; without an offset it is UTC."""
    if value is None:
        return None
    instant = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
