"""A connection to Redis that one thread waits on for what the server pushes, and that others can interrupt.

The driver connects and logs in; reading and writing are ours from then on, since the driver takes pushes for something
that happens beside replies and not for what is waited for. Nothing is ever sent again by itself: a line that broke is
at an end, and who used it opens another one.
"""

from __future__ import annotations

import os
import select
import ssl
import time
from typing import Any

import redis

from celeriac.errors import MissingExtra
from celeriac.redis.links import Argument, error_of, pack
from celeriac.redis.server import RedisServer

try:
    import hiredis
except ImportError as exc:
    raise MissingExtra("hiredis", "redis", "results in Redis") from exc

__all__ = ["Line", "Push"]

Push = hiredis.PushNotification

_CHUNK = 1 << 16
_NOTHING_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_MORE = object()


class Line:
    """Used by one thread at a time; only `wake` is for any other. Raises the driver's errors and `OSError`.

    `timeout`: seconds that writing may take. `protocol`: 3, or 2 for a server that knows no other; pushes are plain
    lists then.
    """

    def __init__(self, server: RedisServer, *, timeout: float, protocol: int = 3) -> None:
        self._connection: Any = server.connect(timeout=timeout, protocol=protocol)
        self._sock: Any = self._connection._sock
        self._timeout = timeout
        self._reader: Any = hiredis.Reader(
            protocolError=redis.InvalidResponse, replyError=error_of, notEnoughData=_MORE
        )
        self._process = os.getpid()
        #: Read, and not handed out yet.
        self._kept: list[Any] = []
        self._sock.setblocking(False)
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)

    @property
    def is_ours(self) -> bool:
        """Whether this process opened it, and not the one that it was forked from."""
        return self._process == os.getpid()

    def send(self, *commands: tuple[Argument, ...]) -> None:
        """Write commands, all at once."""
        data = memoryview(b"".join(map(pack, commands)))
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                sent = self._sock.send(data)
            except _NOTHING_YET:
                self._wait_to_write(deadline)
                continue
            if sent == len(data):
                return
            data = data[sent:]

    def _wait_to_write(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        if left <= 0 or not poll.poll(left * 1000):
            raise redis.TimeoutError(f"nothing could be written for {self._timeout:.2g} s")

    def receive(self, timeout: float) -> list[Any]:
        """Replies (errors among them) and pushes, at least one; [] after `timeout` seconds or `wake`."""
        found, self._kept = self._kept, []
        found += self._read()
        if found or timeout <= 0:
            return found
        deadline = time.monotonic() + timeout
        while True:
            # Rounded up, or else the last millisecond would be spent on looking again and again.
            ready = self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000 + 0.999)
            for fileno, _ in ready:
                if fileno == self._woken:
                    self._hear()
                    return self._read()
            if (found := self._read()) or not ready:
                return found

    def _read(self) -> list[Any]:
        try:
            data = self._sock.recv(_CHUNK)
        except _NOTHING_YET:
            return []
        found: list[Any] = []
        while data:
            self._reader.feed(data)
            while (item := self._reader.gets()) is not _MORE:
                found.append(item)
            if found:
                return found
            # Not left to the poll: TLS may hold bytes that the socket does not have any more.
            try:
                data = self._sock.recv(_CHUNK)
            except _NOTHING_YET:
                return found
        raise redis.ConnectionError("the server closed the connection")

    def ask(self, *commands: tuple[Argument, ...]) -> list[Any]:
        """Send commands and wait for their replies; what was pushed before the last of them is dropped.

        Raises the first reply that is an error, after all came.
        """
        self.send(*commands)
        deadline = time.monotonic() + self._timeout
        replies: list[Any] = []
        while len(replies) < len(commands):
            left = deadline - time.monotonic()
            if left <= 0:
                raise redis.TimeoutError(f"no answer for {self._timeout:.2g} s")
            items = self.receive(left)
            while items and len(replies) < len(commands):
                if not isinstance(item := items.pop(0), Push):
                    replies.append(item)
            self._kept = items
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def wake(self) -> None:
        """End the present wait, or the next one. Any thread."""
        try:
            os.write(self._wake, b"!")
        except OSError:
            pass  # full, so the next wait ends anyway

    def _hear(self) -> None:
        try:
            os.read(self._woken, 4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Hang up. A forked child lets go of its copies only: the line is its parent's."""
        if self.is_ours:
            self._connection.disconnect()
        else:
            self._sock.close()
        # A wake that comes later must not write into whatever has this number then.
        wake, self._wake = self._wake, -1
        os.close(wake)
        os.close(self._woken)
