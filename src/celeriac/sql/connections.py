"""The connections of one process to one SQLite file: one that writes, and those that read."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time

__all__ = ["READ_TIMEOUT", "Connections", "patiently"]

#: Seconds that a read may wait, which it does for others that recover the file after a crash only.
READ_TIMEOUT = 5.0
#: Seconds between two tries, at random, so that nobody is in step with another.
_PAUSE = (0.0002, 0.002)
#: Bytes to which the WAL is cut once it was larger.
_WAL_LIMIT = 64 << 20


class Connections:
    """1. Opens connections as they are needed, and keeps them.
    2. `writing` is a lock; who holds it may use the one `writer`.
    3. `lend` gives a connection for reading to one caller at a time, until `take_back`.

    Thread-safe. Not to be used after a fork, nor closed: see `leave_to_parent`.
    """

    def __init__(self, path: str, synchronous: str) -> None:
        self._path = path
        self._synchronous = synchronous
        self.has_wal = False
        #: Device and inode of the file that is open.
        self._file: tuple[int, int] | None = None
        self.writing = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        #: Guards the two that follow: connections that read, in use and not.
        self._lending = threading.Lock()
        self._lent: set[sqlite3.Connection] = set()
        self._idle: list[sqlite3.Connection] = []

    def writer(self, deadline: float) -> sqlite3.Connection:
        """The connection for writing; it does not wait for locks by itself (see `patiently`)."""
        if self._writer is None:
            self._writer = self._connect(0.0, deadline)
        return self._writer

    def lend(self) -> sqlite3.Connection:
        with self._lending:
            connection = self._idle.pop() if self._idle else None
            if connection is not None:
                self._lent.add(connection)
                return connection
        connection = self._connect(READ_TIMEOUT, time.monotonic() + READ_TIMEOUT)
        with self._lending:
            self._lent.add(connection)
        return connection

    def take_back(self, connection: sqlite3.Connection) -> None:
        with self._lending:
            if connection in self._lent:
                self._lent.discard(connection)
                self._idle.append(connection)
                return
        connection.close()  # all were closed meanwhile

    def is_stale(self) -> bool:
        """Whether the file was deleted or replaced: whatever we write then is lost with our last connection."""
        return self._file is not None and self._file != _file_at(self._path)

    def roll_back(self) -> None:
        """End what the writer has begun; `writing` is held."""
        if self._writer is not None and self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    def close_idle(self) -> None:
        """Close what reads and is not in use."""
        with self._lending:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Close what is not in use now, and the rest when it comes back; `writing` is held."""
        with self._lending:
            self._lent.clear()
        self.close_idle()
        self.close_writer()
        self._file = None

    def close_at_exit(self) -> None:
        """Close what is not in use, beside threads that may still be running."""
        if self.writing.acquire(blocking=False):
            self.close()
            self.writing.release()

    def leave_to_parent(self) -> None:
        """In a forked child: these are the parent's, and closing one here could end a transaction there."""
        self._lending = threading.Lock()  # some thread of the parent may have had it
        _parents.append(self)

    def close_writer(self) -> None:
        """Connect anew for the next transaction; `writing` is held."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _connect(self, patience: float, deadline: float) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=patience, isolation_level=None, check_same_thread=False
        )
        try:
            [[journal]] = patiently(connection, "PRAGMA journal_mode", deadline)
            if journal != "wal":
                # Where there can be none (a network file system) we go on without.
                [[journal]] = patiently(connection, "PRAGMA journal_mode = WAL", deadline)
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
        except BaseException:
            connection.close()
            raise
        self.has_wal = journal == "wal"
        self._file = self._file or _file_at(self._path)
        return connection


#: What forked children keep for their parents' sake. Nothing is ever read from it.
_parents: list[Connections] = []


def patiently(connection: sqlite3.Connection, sql: str, deadline: float) -> list[tuple[object, ...]]:
    """Run `sql`, again and again while others keep the file locked, until the `deadline` (monotonic).

    SQLite's own patience grows to pauses of 100 ms, which starved one writer beside eight busy ones for 1.4 s; so it
    is 0.06 s.
    """
    while True:
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(random.uniform(*_PAUSE))


def _file_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
