"""Results in an SQL database: the tables of Celery's database backend, which its clients and tools can read.

Beside a broker on the same database, what a task leads to, its record and its settlement are one transaction
(`celeriac.brokers.sql`). What has expired is deleted a little with everything that is put, so that no nightly job has
to hold the database up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from itertools import islice
from typing import ClassVar
from weakref import WeakSet

from celeriac.backends.base import BackendOptions, BackendTraits, ResultBackend, Watcher
from celeriac.sql import bookkeeping, open_database, schema
from celeriac.sql.database import Database, Transaction, Waiter, bounded
from celeriac.sql.records import Records
from celeriac.states import READY_STATES
from celeriac.wire.record import Group, Record

__all__ = ["SQLBackend"]

#: What is rung when a task has ended.
_TOPIC = "results"
#: How many watchers are told at once; the others look by themselves.
_WATCHERS = 32
#: Tasks that one look asks for, where they are many, and the seconds until it asks for the next of them.
_LOOK = 500
_ROUND = 0.05
#: Seconds until the next look where all were asked for: the file may be another one by then.
_PATIENCE = 1.0


def bytes_of(record: Record) -> int:
    """Roughly, what it takes to write a record."""
    return 500 + len(record.result)


class SQLBackend(ResultBackend):
    """Records in a database. Watchers on the same host as the writer are woken at once, others within 40 ms."""

    schemes: ClassVar[tuple[str, ...]] = ("sqlite",)
    traits: ClassVar[BackendTraits] = BackendTraits(persistent=True, push=True)

    def __init__(self, url: str, options: BackendOptions) -> None:
        super().__init__(url, options)
        self.database = open_database(url)
        tables = schema.Tables.named(
            options.transport.get("database_table_names") or {},
            options.transport.get("database_table_schemas") or {},
        )
        self._part = schema.results(tables)
        self._records = Records(self.database, tables, options.transport.get("result_serializer", "json"))
        #: The incarnation of the database that has our tables.
        self._prepared: int | None = None
        self._watchers: WeakSet[SQLWatcher] = WeakSet()

    def prepare(self) -> Database:
        """The database with our tables in it. To be called before each use, outside of transactions."""
        database = self.database
        if database.incarnation() != self._prepared:
            schema.prepare(database, self._part, self.options.timeout)
            self._prepared = database.incarnation()
        return database

    # -- records ----------------------------------------------------------------------------------------------

    def put(self, records: Sequence[Record]) -> None:
        for part in bounded(records, bytes_of):
            with self._transaction() as transaction:
                self.put_in(transaction, part)
            self.ring(part)

    def put_in(self, transaction: Transaction, records: Sequence[Record]) -> None:
        """`put` within a transaction; `ring` is to follow it."""
        if records:
            now = self.options.clock.now()
            self._expire(transaction, now, len(records))
            self._records.put(transaction, records, now)

    def ring(self, records: Sequence[Record]) -> None:
        """Wake those who may wait for one of these."""
        if any(record.state in READY_STATES for record in records):
            self.database.ring([_TOPIC], _WATCHERS)

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        with self.prepare().reading() as read:
            found = {record.task_id: record for record in self._records.get(read, ids)}
        return [found.get(id) for id in ids]

    def forget(self, ids: Sequence[str]) -> None:
        with self._transaction() as transaction:
            self._records.delete(transaction, ids)

    def waiter(self) -> Waiter:
        """Waits for records of whatever task."""
        return self.prepare().waiter([_TOPIC])

    def watcher(self) -> Watcher:
        watcher = SQLWatcher(self, Search(self._records))
        self._watchers.add(watcher)
        return watcher

    # -- groups and chords ------------------------------------------------------------------------------------

    def save_group(self, group: Group) -> None:
        now = self.options.clock.now()
        with self._transaction() as transaction:
            self._expire(transaction, now, 1)
            self._records.put_group(transaction, group, now)

    def load_group(self, group_id: str) -> Group | None:
        with self.prepare().reading() as read:
            return self._records.get_group(read, group_id)

    def forget_group(self, group_id: str) -> None:
        with self._transaction() as transaction:
            self._records.delete_group(transaction, group_id)

    def join(self, chord: str, index: int, record: Record, size: int) -> Sequence[Record] | None:
        now = self.options.clock.now()
        with self._transaction() as transaction:
            self._expire(transaction, now, 1)
            return bookkeeping.join(transaction, chord, index, record, size, now)

    def finish_chord(self, chord: str) -> bool:
        with self._transaction() as transaction:
            return bookkeeping.finish(transaction, chord, self.options.clock.now())

    # -- revocations ------------------------------------------------------------------------------------------

    def revoke(self, ids: Sequence[str], *, until: datetime) -> None:
        with self._transaction() as transaction:
            bookkeeping.revoke(transaction, ids, until, self.options.clock.now())

    def revoked(self, after: int) -> tuple[int, Mapping[str, datetime]]:
        with self.prepare().reading() as read:
            return bookkeeping.revoked_after(read, after, self.options.clock.now())

    def close(self) -> None:
        for watcher in list(self._watchers):
            watcher.wake()
        self.database.close()

    def _transaction(self) -> AbstractContextManager[Transaction]:
        return self.prepare().transaction(self.options.timeout)

    def _expire(self, transaction: Transaction, now: datetime, added: int) -> None:
        """Delete twice as much as was added, as long as there is something: so what has expired gets less."""
        if self.options.expires is not None:
            before = now - timedelta(seconds=self.options.expires)
            self._records.expire(transaction, before, 2 * added)
            bookkeeping.expire(transaction, before, 2 * added)


class SQLWatcher(Watcher):
    """Looks whenever something may have changed."""

    def __init__(self, backend: SQLBackend, search: Search) -> None:
        self._backend = backend
        self._search = search
        #: Guards what follows.
        self._lock = threading.Lock()
        self._waiter: Waiter | None = None
        self._woken = False

    def add(self, ids: Collection[str]) -> None:
        self._search.add(ids)
        with self._lock:
            if self._waiter is not None:
                self._waiter.wake()

    def discard(self, ids: Collection[str]) -> None:
        self._search.discard(ids)

    def wait(self, timeout: float | None) -> Sequence[Record]:
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        self._backend.prepare()  # so that a directory that went away is an error, and not made anew for the door
        with self._opened() as waiter:
            while True:
                found = self._look()
                left = deadline - time.monotonic()
                if self._was_woken() or found or left <= 0:
                    return found
                waiter.wait(min(left, self._search.patience))

    def _opened(self) -> Waiter:
        waiter = self._waiter
        if waiter is None:
            waiter = self._backend.waiter()
            with self._lock:
                self._waiter = waiter
        return waiter

    def _look(self) -> Sequence[Record]:
        if not self._search:
            return []
        with self._backend.prepare().reading() as read:
            return self._search.look(read)

    def _was_woken(self) -> bool:
        with self._lock:
            woken, self._woken = self._woken, False
        return woken

    def wake(self) -> None:
        with self._lock:
            self._woken = True
            if self._waiter is not None:
                self._waiter.wake()

    def close(self) -> None:
        with self._lock:
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.close()


class Search:
    """Looks again and again which of many tasks have ended, without asking for all of them each time. Thread-safe.

    1. A look asks for all that were added since the one before. 2. As long as they are many, it asks further for those
    whose row is new, and, since a row may also have been there and changed, for a few hundred of the others in turn.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = threading.Lock()
        #: Who has not ended, and those of them who were not asked for yet.
        self._waiting: set[str] = set()
        self._fresh: set[str] = set()
        #: The last row that was seen; None before the first look.
        self._row: int | None = None
        self._turn: Iterator[str] = iter(())
        #: Seconds after which to look again, even if nothing changes.
        self.patience = _PATIENCE

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, ids: Collection[str]) -> None:
        with self._lock:
            self._waiting.update(ids)
            self._fresh.update(ids)

    def discard(self, ids: Collection[str]) -> None:
        with self._lock:
            self._waiting.difference_update(ids)
            self._fresh.difference_update(ids)

    def look(self, read: Transaction) -> Sequence[Record]:
        """The final records of those who ended; they are not looked for any more."""
        with self._lock:
            fresh = list(self._fresh)
            few = list(self._waiting) if len(self._waiting) <= _LOOK else None
        if self._row is None:
            self._row = self._records.last(read)
        asked = dict.fromkeys(few or [*fresh, *self._new(read, self._row), *self._some()])
        found = [each for each in self._records.final(read, list(asked)) if each.task_id in self._waiting]
        with self._lock:
            self._fresh.difference_update(fresh)
            self._waiting.difference_update(each.task_id for each in found)
            self.patience = _ROUND if len(self._waiting) > _LOOK else _PATIENCE
        return found

    def _new(self, read: Transaction, row: int) -> Iterator[str]:
        while added := self._records.added_since(read, row, _LOOK):
            yield from (id for _, id in added if id in self._waiting)
            self._row = row = added[-1][0]

    def _some(self) -> list[str]:
        some = [id for id in islice(self._turn, _LOOK) if id in self._waiting]
        if not some:
            with self._lock:
                self._turn = iter(list(self._waiting))
        return some
