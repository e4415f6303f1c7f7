"""Waiting until an SQLite file changed."""

from __future__ import annotations

import os
import select
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

from celeriac.sql.connections import READ_TIMEOUT, Connections
from celeriac.sql.database import Waiter
from celeriac.sql.doorbell import Listener

if TYPE_CHECKING:
    from celeriac.sql.sqlite import SQLite

__all__ = ["FileWaiter"]

#: Seconds between two looks at the file, which cost 0.1 ms each: with a pipe at the door, and without.
_LOOK, _LOOK_ALONE = 0.04, 0.01


class FileWaiter(Waiter):
    """Listens at the door, and looks now and then whether the file changed all the same."""

    def __init__(self, listener: Listener, database: SQLite) -> None:
        self._listener = listener
        self._database = database
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        self._poll = select.poll()
        self._poll.register(self._woken, select.POLLIN)
        #: What we look with while we are inside, and whose it is. It has no transaction open.
        self._lent: tuple[sqlite3.Connection, Connections] | None = None
        self._version = 0
        self._pipe: int | None = None
        #: Guards the door, through which another thread may close us while we wait.
        self._door = threading.Lock()
        self._closed = False

    def __enter__(self) -> FileWaiter:
        try:
            with self._door:
                if not self._closed:
                    self._arm()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _arm(self) -> None:
        connections = self._database.connections
        try:
            connection = connections.lend()
        except sqlite3.DatabaseError as exc:
            raise self._database.explained(exc, READ_TIMEOUT) from exc
        self._lent = connection, connections
        self._version = self._look(connection)
        self._pipe = self._listener.open()
        if self._pipe is not None:
            self._poll.register(self._pipe, select.POLLIN)

    def __exit__(self, *exc: object) -> None:
        with self._door:
            if self._pipe is not None:
                self._poll.unregister(self._pipe)
                self._listener.close()
                self._pipe = None
            if self._lent is not None:
                connection, connections = self._lent
                connections.take_back(connection)
                self._lent = None
                if self._closed:
                    self._release()

    def wait(self, timeout: float) -> bool:
        if self._lent is None:
            return True  # closed before we came in
        connection, _ = self._lent
        pause = _LOOK_ALONE if self._pipe is None else _LOOK
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            heard = self._poll.poll(min(left, pause) * 1000)
            version = self._look(connection)
            if heard or not left or version != self._version:
                # Whoever waits looks now, and so knows all that this version has.
                self._version = version
                return self._were_woken(heard)

    def _look(self, connection: sqlite3.Connection) -> int:
        try:
            return connection.execute("PRAGMA data_version").fetchall()[0][0]
        except sqlite3.DatabaseError as exc:
            raise self._database.explained(exc, READ_TIMEOUT) from exc

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
            pass  # full, so the next wait ends anyway; or closed, so there is none

    def close(self) -> None:
        with self._door:
            if not self._closed:
                self._closed = True
                self.wake()
                if self._lent is None:
                    self._release()

    def _release(self) -> None:
        self._listener.remove()
        # A wake that comes later must not write into whatever has this number then.
        wake, self._wake = self._wake, -1
        os.close(wake)
        os.close(self._woken)
