"""SQLite: a file, shared by every process of this host.

One connection of a process writes, for whoever holds its lock; those that read come from a pool. Writers of
several processes queue at SQLite's own lock, which is asked again every millisecond or so: SQLite's own waits grow
to 100 ms, and beside eight busy producers that starved one writer for 1.4 s (now 0.06 s).

Writes begin with ``BEGIN IMMEDIATE``: a transaction that reads first and then writes fails at once when another
one wrote in between. The journal is a WAL, ``synchronous=NORMAL``: what was committed survives the death of any
process; a power cut may undo the last transactions, and damages nothing. ``sqlite:///file.db?synchronous=full`` syncs
every commit.
"""

from __future__ import annotations

import os
import random
import select
import sqlite3
import threading
import time
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from celeriac.errors import CeleriacError, ConnectionLost, ImproperlyConfigured, OperationalError
from celeriac.sql.database import Database, Transaction, Waiter
from celeriac.sql.doorbell import Doorbell, Listener

__all__ = ["SQLite", "file_of"]

#: Seconds between two tries to begin, at random, so that nobody is in step with another.
_PAUSE = (0.0002, 0.002)
#: Seconds that a read may wait, which it does for others that recover the file after a crash only.
_READ_TIMEOUT = 5.0
#: Seconds between two looks at the file by who waits: at first, and later on.
_LOOK, _LOOK_LATER = 0.005, 0.02
#: Bytes to which the WAL is cut once it was larger.
_WAL_LIMIT = 64 << 20


def file_of(url: str) -> tuple[str, str]:
    """The file that ``sqlite:///…`` names, absolute and without links, and its ``synchronous`` mode.

    Raises `ImproperlyConfigured`.
    """
    host, slash, rest = url.partition("://")[2].partition("/")
    path, _, query = rest.partition("?")
    if host:
        raise ImproperlyConfigured(f"{url}: a relative path comes after three slashes, an absolute one after four")
    if not slash or not path or path == ":memory:" or path.startswith("file:"):
        raise ImproperlyConfigured(
            f"{url}: a database in SQLite's memory is lost to workers; name a file (sqlite:///celeriac.db), "
            "or use memory:// within one process"
        )
    options = dict(parse_qsl(query))
    synchronous = options.pop("synchronous", "normal").lower()
    if options or synchronous not in {"off", "normal", "full", "extra"}:
        raise ImproperlyConfigured(f"{url}: the one option is synchronous=off, normal, full or extra")
    return os.path.realpath(path), synchronous


class SQLite(Database):
    types: ClassVar[Mapping[str, str]] = {
        "id": "INTEGER PRIMARY KEY",
        "count": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "bytes": "BLOB",
        "real": "REAL",
        "instant": "DATETIME",
    }

    def __init__(self, path: str, synchronous: str) -> None:
        self.name = path
        self._synchronous = synchronous
        self._doorbell = Doorbell(f"{path}-bells")
        self._incarnation = 0
        #: Device and inode of the file that our connections have open.
        self._file: tuple[int, int] | None = None
        self._connections = Connections()
        self._finalizer = weakref.finalize(self, Connections.close_idle, self._connections)

    # -- transactions -----------------------------------------------------------------------------------------

    def incarnation(self) -> int:
        # When the file was deleted while we have it open, all that we write is lost with our last connection.
        if self._file is not None and self._file != _file_at(self.name):
            self.close()
        return self._incarnation

    @contextmanager
    def transaction(self, timeout: float) -> Iterator[Transaction]:
        deadline = time.monotonic() + timeout
        connections = self._connections
        if not connections.writing.acquire(timeout=timeout):
            raise ConnectionLost(self._is_locked(timeout))
        try:
            connection = connections.writer
            if connection is None:
                connection = connections.writer = self._connect(0.0, deadline)
            _patiently(connection, "BEGIN IMMEDIATE", deadline)
            try:
                yield Transaction(connection.execute)
                _patiently(connection, "COMMIT", deadline)
            except BaseException:
                connections.roll_back()
                raise
        except sqlite3.DatabaseError as exc:
            raise self.explained(exc, timeout) from exc
        finally:
            connections.writing.release()

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        connection = self.lend()
        try:
            yield Transaction(connection.execute)
        except sqlite3.DatabaseError as exc:
            raise self.explained(exc, _READ_TIMEOUT) from exc
        finally:
            self.take_back(connection)

    def borrow(self, transaction: Any) -> Transaction:
        if hasattr(transaction, "run_sync"):
            raise TypeError(f"publish within {type(transaction).__name__}.run_sync, with what it hands over")
        # A Session has a connection() to its transaction.
        connection = transaction if hasattr(transaction, "exec_driver_sql") else _call(transaction, "connection")
        if not hasattr(connection, "exec_driver_sql"):
            raise TypeError(f"not a SQLAlchemy Connection or Session: {type(transaction).__name__}")
        kind: str = connection.dialect.name
        if kind != "sqlite":
            raise TypeError(f"a transaction on {kind}, while the tasks are in {self.name}")
        databases = connection.exec_driver_sql("PRAGMA database_list").fetchall()
        theirs = next((file for _, schema, file in databases if schema == "main"), "")
        if not theirs or os.path.realpath(theirs) != self.name:
            raise TypeError(f"a transaction on {theirs or 'a database in memory'}, while the tasks are in {self.name}")
        return Transaction(connection.exec_driver_sql)

    def columns(self, transaction: Transaction, table: str) -> Collection[str]:
        schema, _, name = table.replace('"', "").rpartition(".")
        found = transaction.rows("SELECT name FROM pragma_table_info(?, ?)", name, schema or "main")
        return {column for (column,) in found}

    def from_instant(self, instant: datetime) -> str:
        return instant.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")

    def to_instant(self, value: Any) -> datetime | None:
        return None if value is None else datetime.fromisoformat(value).replace(tzinfo=UTC)

    # -- changes ----------------------------------------------------------------------------------------------

    def waiter(self, topics: Collection[str]) -> Waiter:
        return FileWaiter(self, self._doorbell.listener(topics))

    def ring(self, topics: Collection[str], number: int) -> None:
        self._doorbell.ring(topics, number)

    # -- connections ------------------------------------------------------------------------------------------

    def lend(self) -> sqlite3.Connection:
        """A connection for reading, which the caller has for itself until `take_back`."""
        try:
            return self._connections.lend() or self._lend_new()
        except sqlite3.DatabaseError as exc:
            raise self.explained(exc, _READ_TIMEOUT) from exc

    def take_back(self, connection: sqlite3.Connection) -> None:
        self._connections.take_back(connection)

    def _lend_new(self) -> sqlite3.Connection:
        connection = self._connect(_READ_TIMEOUT, time.monotonic() + _READ_TIMEOUT)
        self._connections.lent.add(connection)
        return connection

    def _connect(self, patience: float, deadline: float) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.name, timeout=patience, isolation_level=None, check_same_thread=False
        )
        try:
            [[journal]] = connection.execute("PRAGMA journal_mode").fetchall()
            if journal != "wal":
                # Where there is none (a network file system) we go on without.
                _patiently(connection, "PRAGMA journal_mode = WAL", deadline)
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}").fetchall()
        except BaseException:
            connection.close()
            raise
        self._file = self._file or _file_at(self.name)
        return connection

    def close(self) -> None:
        connections = self._connections
        with connections.writing:
            connections.close()
            # What is there when we connect again may be another file.
            self._file = None
            self._incarnation += 1

    def after_fork(self) -> None:
        """In a forked child: what is open belongs to the parent, and must not even be closed."""
        self._finalizer.detach()
        _parents_connections.append(self._connections)
        self._connections = Connections()
        self._finalizer = weakref.finalize(self, Connections.close_idle, self._connections)

    # -- errors -----------------------------------------------------------------------------------------------

    def explained(self, exc: sqlite3.DatabaseError, timeout: float) -> Exception:
        """What an error of SQLite means, to whom, and what to do about it."""
        file = self.name
        match getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF:
            case sqlite3.SQLITE_MISUSE:
                return exc  # a bug of ours
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return ConnectionLost(self._is_locked(timeout))
            case sqlite3.SQLITE_FULL:
                return ConnectionLost(f"no space left for {file}: free some on its disk")
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
                return self._cannot_open(exc)
            case sqlite3.SQLITE_READONLY:
                return OperationalError(f"{file} is read-only: this user must be able to write it and its directory")
            case sqlite3.SQLITE_NOTADB:
                return ImproperlyConfigured(f"{file} is not an SQLite database: name another file in the URL")
            case sqlite3.SQLITE_CORRUPT:
                return OperationalError(
                    f"{file} is damaged ({exc}): stop everything that uses it, and save what can be saved with "
                    f"sqlite3 {file} .recover"
                )
            case sqlite3.SQLITE_IOERR:
                return ConnectionLost(f"cannot read or write {file} ({exc.sqlite_errorname}): look after its disk")
            case _:
                return OperationalError(f"{file}: {exc}")

    def _is_locked(self, timeout: float) -> str:
        return f"{self.name} is locked: another program has kept it so for {timeout:g} s; end its transaction"

    def _cannot_open(self, exc: Exception) -> CeleriacError:
        directory = os.path.dirname(self.name)
        if not os.path.isdir(directory):
            return ImproperlyConfigured(f"cannot open {self.name}: there is no directory {directory}")
        if os.path.isdir(self.name):
            return ImproperlyConfigured(f"cannot open {self.name}: it is a directory")
        return OperationalError(f"cannot open {self.name} ({exc}): see to the permissions of it and its directory")


class Connections:
    """The open connections of one process to one file: one that writes, and those that read. Thread-safe."""

    def __init__(self) -> None:
        #: Held by whoever uses or changes `writer`.
        self.writing = threading.Lock()
        self.writer: sqlite3.Connection | None = None
        #: Those that read, in use and not.
        self.lent: set[sqlite3.Connection] = set()
        self._idle: list[sqlite3.Connection] = []
        self._changing = threading.Lock()

    def lend(self) -> sqlite3.Connection | None:
        """One that is idle, if there is any."""
        with self._changing:
            if not self._idle:
                return None
            connection = self._idle.pop()
            self.lent.add(connection)
            return connection

    def take_back(self, connection: sqlite3.Connection) -> None:
        with self._changing:
            if connection in self.lent:
                self.lent.discard(connection)
                self._idle.append(connection)
                return
        connection.close()  # all were closed meanwhile

    def roll_back(self) -> None:
        """End what the writer has begun, if need be with its connection."""
        assert self.writer is not None
        try:
            if self.writer.in_transaction:
                self.writer.execute("ROLLBACK")
        except sqlite3.DatabaseError:
            self.writer.close()
            self.writer = None

    def close(self) -> None:
        """Close all that are not in use now, and the others when they come back; `writing` is held."""
        with self._changing:
            idle, self._idle = self._idle, []
            self.lent.clear()
        for connection in idle:
            connection.close()
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def close_idle(self) -> None:
        """At the end of the process, beside threads that may go on: what they use is left alone."""
        if self.writing.acquire(blocking=False):
            self.close()
            self.writing.release()


class FileWaiter(Waiter):
    """Listens at the door, and looks now and then whether the file changed all the same."""

    def __init__(self, database: SQLite, listener: Listener) -> None:
        self._database = database
        self._listener = listener
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        self._poll = select.poll()
        self._poll.register(self._woken, select.POLLIN)
        #: What we listen at, and what we look with: no transaction is open on it.
        self._pipe: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._version = 0
        #: Guards the leaving, which may happen beside a wait.
        self._door = threading.Lock()
        self._closed = False

    def __enter__(self) -> FileWaiter:
        try:
            with self._door:
                if not self._closed:
                    self._connection = self._database.lend()
                    self._version = self._look(self._connection)
                    self._pipe = self._listener.open()
                    if self._pipe is not None:
                        self._poll.register(self._pipe, select.POLLIN)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        with self._door:
            if self._pipe is not None:
                self._poll.unregister(self._pipe)
                self._listener.close()
                self._pipe = None
            if self._connection is not None:
                self._database.take_back(self._connection)
                self._connection = None
                if self._closed:
                    self._release()

    def wait(self, timeout: float) -> bool:
        connection = self._connection
        if connection is None:
            return True
        deadline = time.monotonic() + timeout
        pause = _LOOK
        while True:
            left = max(0.0, deadline - time.monotonic())
            heard = self._poll.poll(min(left, pause) * 1000)
            version = self._look(connection)
            if heard or not left or version != self._version:
                # Whoever waits looks now, and so knows all that this version has.
                self._version = version
                return self._were_woken(heard)
            pause = min(1.2 * pause, _LOOK_LATER)

    def _look(self, connection: sqlite3.Connection) -> int:
        try:
            return connection.execute("PRAGMA data_version").fetchall()[0][0]
        except sqlite3.DatabaseError as exc:
            raise self._database.explained(exc, _READ_TIMEOUT) from exc

    def _were_woken(self, heard: list[tuple[int, int]]) -> bool:
        for pipe, _ in heard:
            try:
                os.read(pipe, 4096)
            except BlockingIOError:
                pass
        return any(pipe == self._woken for pipe, _ in heard)

    def wake(self) -> None:
        try:
            os.write(self._wake, b"!")
        except OSError:
            pass  # full, so it will be; or closed, so nobody waits

    def close(self) -> None:
        with self._door:
            if self._closed:
                return
            self._closed = True
            self.wake()
            if self._connection is None:
                self._release()

    def _release(self) -> None:
        self._listener.remove()
        wake, self._wake = self._wake, -1
        os.close(wake)
        os.close(self._woken)


#: Connections of the process that forked this one, kept from being closed here for good: that could end a
#: transaction of the parent. Nothing is ever read from it.
_parents_connections: list[Connections] = []


def _patiently(connection: sqlite3.Connection, sql: str, deadline: float) -> None:
    """Run `sql`, again and again while others keep the file locked, until the `deadline` (monotonic)."""
    while True:
        try:
            connection.execute(sql).close()
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(random.uniform(*_PAUSE))


def _file_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _call(thing: Any, method: str) -> Any:
    found = getattr(thing, method, None)
    return found() if callable(found) else None
