"""The rows of records and groups, in the tables of Celery's database backend (wire-protocol §8.1).

A BLOB holds what the ``result_serializer`` of its writer made, and nothing says which one that was: readers need the
same setting. Up to Celery 5.6 it was always a pickle, which is recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from celeriac.backends.base import supersedes
from celeriac.sql.database import Database, Transaction
from celeriac.sql.schema import Tables
from celeriac.states import READY_STATES
from celeriac.wire import codecs
from celeriac.wire.record import Group, Record

__all__ = ["Records"]

#: Always written; ``retries`` is compared when a record is to be replaced.
_SHELL = ("task_id", "status", "result", "date_done", "traceback", "children", "retries")
#: Written with ``result_extended``.
_EXTENDED = ("name", "args", "kwargs", "worker", "queue", "stamps")
_COLUMNS = ", ".join((*_SHELL, *_EXTENDED))
_FINAL = ", ".join(f"'{state}'" for state in sorted(READY_STATES))


def _upsert(table: str, columns: Sequence[str]) -> str:
    """A new record takes the place of one that it `supersedes`."""
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
    return f"""
        INSERT INTO {table} AS old ({", ".join(columns)}) VALUES [({", ".join("?" * len(columns))})]
        ON CONFLICT (task_id) DO UPDATE SET {changes}
        WHERE old.status <> 'SUCCESS' AND NOT (
            old.status = 'RETRY' AND coalesce(old.retries, 0) > excluded.retries AND excluded.status NOT IN ({_FINAL})
        )
    """


class Records:
    """Writes and reads the rows of two tables of these names. `codec` is the ``result_serializer``."""

    def __init__(self, database: Database, tables: Tables, codec: str) -> None:
        self._from_instant: Callable[[datetime], Any] = database.from_instant
        self._to_instant: Callable[[Any], datetime | None] = database.to_instant
        self._codec = codec
        task, group = tables.task, tables.group
        self._put = _upsert(task, _SHELL)
        self._put_extended = _upsert(task, (*_SHELL, *_EXTENDED))
        self._get = f"SELECT {_COLUMNS} FROM {task} WHERE task_id IN ([?])"
        self._final = f"SELECT {_COLUMNS} FROM {task} WHERE status IN ({_FINAL}) AND task_id IN ([?])"
        self._since = f"SELECT id, task_id FROM {task} WHERE id > ? ORDER BY id LIMIT ?"
        self._last = f"SELECT max(id) FROM {task}"
        self._delete = f"DELETE FROM {task} WHERE task_id IN ([?])"
        self._put_group = f"""
            INSERT INTO {group} (taskset_id, result, date_done) VALUES (?, ?, ?)
            ON CONFLICT (taskset_id) DO UPDATE SET result = excluded.result, date_done = excluded.date_done
        """
        self._get_group = f"SELECT result, date_done FROM {group} WHERE taskset_id = ?"
        self._delete_group = f"DELETE FROM {group} WHERE taskset_id = ?"
        self._expire = [
            f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE date_done < ? ORDER BY date_done LIMIT ?)"
            for table in (task, group)
        ]

    # -- records ----------------------------------------------------------------------------------------------

    def put(self, transaction: Transaction, records: Sequence[Record], now: datetime) -> None:
        """Store what supersedes what is there. The rows of unfinished tasks are dated `now`, to expire too."""
        if len({record.task_id for record in records}) < len(records):
            records = _latest(records)
        today = self._from_instant(now)
        rows = [self._shell(record, today) for record in records]
        if any(_is_extended(record) for record in records):
            rows = [(*row, *_extended(record)) for row, record in zip(rows, records, strict=True)]
            transaction.insert(self._put_extended, rows)
        else:
            transaction.insert(self._put, rows)

    def get(self, transaction: Transaction, ids: Sequence[str]) -> list[Record]:
        """Those that are there, in any order."""
        return [self._record(row) for row in transaction.rows_in(self._get, ids)]

    def final(self, transaction: Transaction, ids: Sequence[str]) -> list[Record]:
        """Those that have ended."""
        return [self._record(row) for row in transaction.rows_in(self._final, ids)]

    def last(self, transaction: Transaction) -> int:
        """The row that was added last."""
        return transaction.rows(self._last)[0][0] or 0

    def added_since(self, transaction: Transaction, row: int, limit: int) -> list[tuple[int, str]]:
        """Row and task id of what was added after `row`."""
        return [(id, task_id) for id, task_id in transaction.rows(self._since, row, limit)]

    def delete(self, transaction: Transaction, ids: Sequence[str]) -> None:
        transaction.run_in(self._delete, ids)

    def expire(self, transaction: Transaction, before: datetime, limit: int) -> None:
        """Delete up to `limit` records, and groups, of tasks that ended before that instant."""
        for delete in self._expire:
            transaction.run(delete, self._from_instant(before), limit)

    def _shell(self, record: Record, today: Any) -> tuple[Any, ...]:
        return (
            record.task_id,
            record.state,
            record.result,
            today if record.date_done is None else self._from_instant(record.date_done),
            record.traceback,
            None if record.children is None else _encoded(record.children, record.codec),
            record.retries,
        )

    def _record(self, row: tuple[Any, ...]) -> Record:
        id, state, result, done, traceback, children, retries, name, args, kwargs, worker, queue, stamps = row
        codec = "pickle" if _is_pickle(result) else self._codec
        return Record(
            task_id=id,
            state=state,
            result=b"null" if result is None else result,
            codec=codec,
            traceback=traceback,
            children=self._decoded(children),
            date_done=self._to_instant(done) if state in READY_STATES else None,
            retries=retries or 0,
            name=name,
            args=args,
            kwargs=kwargs,
            worker=worker,
            queue=queue,
            stamps=None if stamps is None else codecs.loads(stamps, codec)["stamps"],
        )

    def _decoded(self, data: bytes | None) -> Any:
        """Children, or a group. A pickle is not opened here, unless pickles are what this app writes."""
        if data is None or (_is_pickle(data) and self._codec != "pickle"):
            return None
        return codecs.loads(data, self._codec)

    # -- groups -----------------------------------------------------------------------------------------------

    def put_group(self, transaction: Transaction, group: Group, now: datetime) -> None:
        result = codecs.dumps(group.result, self._codec)
        transaction.run(self._put_group, group.group_id, result, self._from_instant(group.date_done or now))

    def get_group(self, transaction: Transaction, group_id: str) -> Group | None:
        for result, done in transaction.rows(self._get_group, group_id):
            return Group(group_id=group_id, result=self._decoded(result), date_done=self._to_instant(done))
        return None

    def delete_group(self, transaction: Transaction, group_id: str) -> None:
        transaction.run(self._delete_group, group_id)


def _latest(records: Sequence[Record]) -> list[Record]:
    """One record of each task: what they come to, in this order."""
    latest: dict[str, Record] = {}
    for record in records:
        if supersedes(record, latest.get(record.task_id)):
            latest[record.task_id] = record
    return list(latest.values())


def _is_extended(record: Record) -> bool:
    return record.name is not None or record.stamps is not None


def _extended(record: Record) -> tuple[Any, ...]:
    stamps = record.stamps
    document = None if stamps is None else {"stamped_headers": list(stamps), "stamps": stamps}
    return (
        record.name,
        record.args,
        record.kwargs,
        record.worker,
        record.queue,
        None if document is None else codecs.dumps(document, record.codec),
    )


def _encoded(children: list[Any], codec: str) -> bytes:
    # Most tasks have none; encoding that took longer than the rest of the row.
    return codecs.dumps(children, codec) if children else _nothing(codec)


@lru_cache
def _nothing(codec: str) -> bytes:
    return codecs.dumps([], codec)


def _is_pickle(data: bytes | None) -> bool:
    """By the mark of its protocol; a lone 0x80 is an empty map of msgpack."""
    return data is not None and data[:1] == b"\x80" and len(data) > 1
