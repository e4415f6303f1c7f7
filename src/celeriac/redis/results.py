"""How results lie in Redis: the keys, documents and times to live of Celery's Redis backend (wire-protocol §7, §9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import msgspec

from celeriac.errors import DecodeError, EncodeError
from celeriac.redis.scripts import Script
from celeriac.states import FAILURE, READY_STATES
from celeriac.wire import codecs
from celeriac.wire import errors as wire_errors
from celeriac.wire.compression import decompress
from celeriac.wire.record import Group, Record, from_document, to_document

__all__ = ["FINISH_ONE", "JOIN_ONE", "PUT_BATCH", "PUT_IF", "Put", "Results"]

#: ``put.lua`` in front of another script gives it ``put_record`` and ``store_record``.
PUT_BATCH = Script("put.lua", "put_batch.lua")
PUT_IF = Script("put.lua", "put_if.lua")
#: ``join.lua`` gives ``join_chord`` and ``finish_chord``.
JOIN_ONE = Script("join.lua", "join_one.lua")
FINISH_ONE = Script("join.lua", "finish_one.lua")

_TASK, _GROUP = "celery-task-meta-", "celery-taskset-meta-"
_COMPRESSED = b"\x00celery-compressed\x00"
#: After one of these a prefix needs no underscore.
_ENDS = (":", "_", "-", ".")


class Put(NamedTuple):
    """The arguments of Lua's ``put_record``; the document is published on the channel of the key's name."""

    key: bytes
    document: bytes
    #: Milliseconds, decimal; empty: for ever.
    ttl: bytes
    #: How often the task had been retried; empty where the state is final.
    guard: bytes


class Results:
    """Keys and documents of one result backend. Immutable, no I/O."""

    def __init__(self, options: Mapping[str, Any], expires: float | None) -> None:
        """`options`: ``result_serializer``, ``global_keyprefix``, ``result_failure_expires`` and
        ``result_chord_expires`` (seconds; None: like the others, which `expires` is for)."""
        prefix = str(options.get("global_keyprefix") or "")
        self.prefix = f"{prefix}_" if prefix and not prefix.endswith(_ENDS) else prefix
        self.serializer = str(options.get("result_serializer") or "json")
        self.ttl = _milliseconds(expires)
        self._ttl_of_failures = _milliseconds(options.get("result_failure_expires") or expires)
        self.ttl_of_chords = _milliseconds(options.get("result_chord_expires") or expires)
        self._task = f"{self.prefix}{_TASK}"

    # -- tasks ------------------------------------------------------------------------------------------------

    def key(self, task_id: str) -> str:
        """Where the record of a task is; the channel on which it is published has the same name."""
        return self._task + task_id

    def task_id(self, key: bytes) -> str:
        """The task of a `key`."""
        return key.decode("utf-8", "surrogateescape")[len(self._task) :]

    def put(self, record: Record) -> Put:
        """What Lua is told to store a record."""
        is_final = record.state in READY_STATES
        return Put(
            self.key(record.task_id).encode(),
            self._document(record),
            self._ttl_of_failures if record.state == FAILURE else self.ttl,
            b"" if is_final else b"%d" % record.retries,
        )

    def _document(self, record: Record) -> bytes:
        try:
            return to_document(record)
        except (DecodeError, EncodeError) as exc:
            # A worker that cannot store how one task ended must go on with the others.
            return to_document(
                _failure(record.task_id, f"how task {record.task_id} ended cannot be stored: {exc}")
            )

    def read(self, task_id: str, document: bytes) -> Record:
        """The record in a document that celeriac or Celery wrote.

        One that cannot be read is a failure that says so: it must not take those along that are asked for beside it.
        """
        try:
            plain = _decompressed(document)
            # JSON whatever the serializer is: it is safe to read, and where that was changed, the older ones are.
            record = from_document(plain, "json" if plain.startswith(b"{") else self.serializer)
        except DecodeError as exc:
            return _failure(
                task_id,
                f"what is stored as the result of task {task_id} cannot be read with result_serializer "
                f"{self.serializer!r}: {exc}",
            )
        return record if record.task_id == task_id else msgspec.structs.replace(record, task_id=task_id)

    # -- groups -----------------------------------------------------------------------------------------------

    def group_key(self, group_id: str) -> str:
        """Where a group is; the keys of a chord have that name with an ending."""
        return f"{self.prefix}{_GROUP}{group_id}"

    def put_group(self, group: Group) -> bytes:
        """The document of a group."""
        meta: dict[str, Any] = {"result": group.result}
        if group.date_done is not None:
            meta["date_done"] = group.date_done.isoformat()
        return codecs.dumps(meta, self.serializer)

    def read_group(self, group_id: str, document: bytes) -> Group:
        """The group in a document. Raises `DecodeError`."""
        plain = _decompressed(document)
        meta = codecs.loads(plain, "json" if plain.startswith(b"{") else self.serializer)
        fields = cast("dict[str, Any]", meta) if isinstance(meta, dict) else {}
        try:
            return msgspec.convert((group_id, fields.get("result"), fields.get("date_done")), Group)
        except msgspec.ValidationError as exc:
            raise DecodeError(f"group {group_id} is no group: {exc}") from exc

    # -- chords -----------------------------------------------------------------------------------------------

    def chord_keys(self, chord: str) -> list[str]:
        """What ``join.lua`` takes."""
        group = self.group_key(chord)
        return [*(f"{group}.{end}" for end in "jdtsc"), group]

    def part(self, record: Record) -> bytes:
        """A part of a chord as Celery puts it down: its task, state and result. What else a record has is lost."""
        if record.codec == "json":
            return msgspec.json.encode((1, record.task_id, record.state, msgspec.Raw(record.result)))
        value = codecs.loads(record.result, record.codec)
        return codecs.dumps([1, record.task_id, record.state, value], record.codec)

    def read_part(self, data: bytes) -> Record:
        """The record of such a part. Raises `DecodeError`."""
        codec = "json" if data.startswith(b"[") else self.serializer
        try:
            _, task_id, state, result = _split_part(data) if codec == "json" else codecs.loads(data, codec)
            plain = bytes(result) if isinstance(result, msgspec.Raw) else codecs.dumps(result, codec)
            return msgspec.convert((task_id, state, plain, codec), Record)
        except (TypeError, ValueError, msgspec.ValidationError) as exc:
            raise DecodeError(f"not a part of a chord: {exc}") from exc


def _failure(task_id: str, message: str) -> Record:
    meta = wire_errors.to_meta(DecodeError(message), "json")
    return Record(task_id=task_id, state=FAILURE, result=codecs.dumps(meta, "json"))


def _split_part(data: bytes) -> Any:
    try:
        return _decode_part(data)
    except msgspec.MsgspecError:
        # NaN and lone surrogates, which the standard library writes, or something else.
        return codecs.loads(data, "json")


_decode_part = msgspec.json.Decoder(tuple[int, str, str, msgspec.Raw]).decode


def _milliseconds(seconds: float | None) -> bytes:
    return b"" if seconds is None else b"%d" % max(1, round(seconds * 1000))


def _decompressed(document: bytes) -> bytes:
    if not document.startswith(_COMPRESSED):
        return document
    mime, _, data = document[len(_COMPRESSED) :].partition(b"\x00")
    return decompress(data, mime.decode("ascii", "replace"))
