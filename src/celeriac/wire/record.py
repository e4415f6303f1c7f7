"""The state of one task as a result backend keeps it, and groups of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

__all__ = ["Group", "Record"]


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


class Group(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A saved group: Celery's result tuple ``[[id, parent], [member, …]]`` and its instant (aware, UTC)."""

    group_id: str
    result: list[Any]
    date_done: datetime | None = None
