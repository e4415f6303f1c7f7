"""SQLite: a file, shared by every process of this host.

Writes begin with ``BEGIN IMMEDIATE``: a transaction that reads first and then writes fails at once when another
one wrote in between. The journal is a WAL, ``synchronous=NORMAL``: what was committed survives the death of any
process; a power cut may undo the last transactions, and damages nothing. ``sqlite:///file.db?synchronous=full`` syncs
every commit.

Beside the file stands ``<file>-run``, a directory with pipes and locks of the processes that run now.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
import weakref
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from celeriac.errors import ConnectionLost, ImproperlyConfigured, OperationalError
from celeriac.sql.connections import READ_TIMEOUT, Connections, patiently
from celeriac.sql.database import Database, Transaction, Waiter, repeated
from celeriac.sql.doorbell import Doorbell
from celeriac.sql.filewaiter import FileWaiter
from celeriac.sql.presence import Presences

__all__ = ["SQLite", "file_of"]


#: From the fastest to the safest.
_MODES = ("off", "normal", "full", "extra")


def file_of(url: str) -> tuple[str, str | None]:
    """The file that ``sqlite:///…`` names, absolute and without links, and the ``synchronous`` mode it asks for.

    Raises `ImproperlyConfigured`.
    """
    host, slash, rest = url.partition("://")[2].partition("/")
    path, _, query = rest.partition("?")
    if host:
        raise ImproperlyConfigured(
            f"{url}: a relative path comes after three slashes, an absolute one after four"
        )
    if not slash or not path or path == ":memory:" or path.startswith("file:"):
        raise ImproperlyConfigured(
            f"{url}: no worker can see a database in SQLite's memory; name a file (sqlite:///celeriac.db), or use "
            "memory:// within one process"
        )
    options = dict(parse_qsl(query))
    mode = options.pop("synchronous", "").lower()
    if options or mode not in ("", *_MODES):
        raise ImproperlyConfigured(f"{url}: the one option is synchronous={', '.join(_MODES)}")
    return os.path.realpath(path), mode or None


@lru_cache(maxsize=512)
def _written(sql: str, times: int) -> str:
    # Whoever writes has the whole file: there are no locks on rows.
    return _ROW_LOCKS.sub("", repeated(sql, times))


_ROW_LOCKS = re.compile(r"FOR (?:UPDATE|SHARE)(?: SKIP LOCKED)?")


class SQLite(Database):
    types: ClassVar[Mapping[str, str]] = {
        "id": "INTEGER PRIMARY KEY",
        "count": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "bytes": "BLOB",
        "real": "REAL",
        "instant": "DATETIME",
    }

    def __init__(self, path: str) -> None:
        self.name = path
        #: None: nobody asked for one.
        self._mode: str | None = None
        self._doorbell = Doorbell(f"{path}-run")
        self._presences = Presences(f"{path}-run")
        self._incarnation = 0
        #: We had it open: a directory that is not there is no mistake in the URL then.
        self._was_open = False
        self._renew_connections()

    def _renew_connections(self) -> None:
        self._connections = Connections(self.name, self._mode or "normal")
        self._finalizer = weakref.finalize(self, Connections.close_at_exit, self._connections)

    def synchronize(self, mode: str) -> None:
        """Sync as ``PRAGMA synchronous`` says; of those who ask for different ones, the safest is heard."""
        if self._mode is None or _MODES.index(mode) > _MODES.index(self._mode):
            self._mode = mode
            self.close()
            self._finalizer.detach()
            self._renew_connections()

    # -- transactions -----------------------------------------------------------------------------------------

    def incarnation(self) -> int:
        if self._connections.is_stale():
            self.close()
        return self._incarnation

    @contextmanager
    def transaction(self, timeout: float) -> Generator[Transaction]:
        deadline = time.monotonic() + timeout
        connections = self._connections
        if not connections.writing.acquire(timeout=timeout):
            raise ConnectionLost(self._is_locked(timeout))
        try:
            connection = connections.writer(deadline)
            patiently(connection, "BEGIN IMMEDIATE", deadline)
            try:
                yield Transaction(connection.execute, _written)
                patiently(connection, "COMMIT", deadline)
            except BaseException:
                connections.roll_back()
                raise
            self._was_open = True
        except sqlite3.DatabaseError as exc:
            # Not to be used again: opened while the file could only be read, say, it stays so.
            connections.close_writer()
            raise self.explained(exc, timeout) from exc
        finally:
            connections.writing.release()

    @contextmanager
    def reading(self) -> Generator[Transaction]:
        connections = self._connections
        try:
            connection = connections.lend()
            try:
                yield Transaction(connection.execute, _written)
            finally:
                connections.take_back(connection)
        except sqlite3.DatabaseError as exc:
            connections.close_idle()
            raise self.explained(exc, READ_TIMEOUT) from exc

    def borrow(self, transaction: Any) -> Transaction:
        kind = type(transaction).__name__
        if hasattr(transaction, "run_sync"):
            raise TypeError(f"publish within {kind}.run_sync, with what it hands over")
        connection = transaction
        if not hasattr(connection, "exec_driver_sql") and callable(getattr(connection, "connection", None)):
            connection = connection.connection()  # the one that a Session uses
        if not hasattr(connection, "exec_driver_sql"):
            raise TypeError(f"not a SQLAlchemy Connection or Session: {kind}")
        if connection.dialect.name != "sqlite":
            raise TypeError(
                f"a transaction on {connection.dialect.name} cannot publish tasks that are in {self.name}"
            )
        databases = connection.exec_driver_sql("PRAGMA database_list").fetchall()
        theirs = next((file for _, schema, file in databases if schema == "main"), "")
        if not theirs or os.path.realpath(theirs) != self.name:
            raise TypeError(
                f"a transaction on {theirs or 'a database in memory'} cannot publish tasks that are in {self.name}"
            )
        return Transaction(connection.exec_driver_sql, _written)

    def columns(self, transaction: Transaction, table: str) -> Collection[str]:
        schema, _, name = table.replace('"', "").rpartition(".")
        found = transaction.rows("SELECT name FROM pragma_table_info(?, ?)", name, schema or "main")
        return {column for (column,) in found}

    def from_instant(self, instant: datetime) -> str:
        text = str(instant)
        if len(text) == 32 and text.endswith("+00:00"):
            return text[:26]  # nearly always; in a third of the time
        return instant.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")

    def to_instant(self, value: Any) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value).replace(tzinfo=UTC)

    # -- changes ----------------------------------------------------------------------------------------------

    def waiter(self, topics: Collection[str]) -> Waiter:
        return FileWaiter(self._doorbell.listener(topics), self)

    def ring(self, topics: Collection[str], number: int) -> None:
        self._doorbell.ring(topics, number)

    def appear(self, holder: int) -> None:
        # Who shares a WAL shares memory, and so the kernel that keeps the locks.
        if self._connections.has_wal:
            self._presences.appear(holder)

    def disappear(self, holder: int) -> None:
        self._presences.disappear(holder)

    def has_ended(self, holder: int) -> bool:
        return self._presences.has_ended(holder)

    # -- its life ---------------------------------------------------------------------------------------------

    @property
    def connections(self) -> Connections:
        """For who has to keep one to watch the file."""
        return self._connections

    def close(self) -> None:
        connections = self._connections
        with connections.writing:
            connections.close()
            # What is there when we connect again may be another file.
            self._incarnation += 1

    def after_fork(self) -> None:
        """In a forked child: begin anew, and leave the parent what it has."""
        self._presences.after_fork()
        self._finalizer.detach()
        self._connections.leave_to_parent()
        self._renew_connections()

    # -- errors -----------------------------------------------------------------------------------------------

    def explained(self, exc: sqlite3.DatabaseError, timeout: float) -> Exception:
        """What an error of SQLite means to people, and what they can do about it."""
        file = self.name
        match getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF:
            case sqlite3.SQLITE_MISUSE:
                return exc  # a bug of ours
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return ConnectionLost(self._is_locked(timeout))
            case sqlite3.SQLITE_FULL:
                return ConnectionLost(f"no space left for {file}: free some on its disk")
            case sqlite3.SQLITE_IOERR:
                what = exc.sqlite_errorname
                return ConnectionLost(
                    f"cannot read or write {file} ({what}): see whether its disk is full or broken"
                )
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return self._cannot_open(exc)
            case sqlite3.SQLITE_READONLY:
                return OperationalError(
                    f"{file} is read-only: let this user write it, its -wal and -shm, and its directory"
                )
            case sqlite3.SQLITE_NOTADB:
                return ImproperlyConfigured(f"{file} is not an SQLite database: name another file in the URL")
            case sqlite3.SQLITE_CORRUPT:
                return OperationalError(
                    f"{file} is damaged ({exc}): stop all that uses it, save what can be saved with "
                    f"'sqlite3 {file} .recover', and begin with a new file"
                )
            case _:
                return OperationalError(f"{file}: {exc}")

    def _is_locked(self, timeout: float) -> str:
        return f"{self.name} is locked: another program has kept it so for {timeout:.2g} s"

    def _cannot_open(self, exc: Exception) -> Exception:
        kind = ConnectionLost if self._was_open else ImproperlyConfigured
        directory = os.path.dirname(self.name)
        if not os.path.isdir(directory):
            return kind(f"cannot open {self.name}: there is no directory {directory}")
        if os.path.isdir(self.name):
            return kind(f"cannot open {self.name}: it is a directory")
        return OperationalError(f"cannot open {self.name} ({exc}): let this user write it and its directory")
