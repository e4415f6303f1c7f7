"""Connections to Redis for questions and answers: lean, kept ready, one per thread that is asking at the moment.

The driver connects and logs in; what is written and read then is ours, because the driver's own way costs as much as
the server's answer. Nothing is ever sent again by itself.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import redis
from redis.exceptions import MasterDownError, NoPermissionError, NoScriptError

from celeriac.errors import MissingExtra
from celeriac.redis.scripts import Script
from celeriac.redis.server import RedisServer

try:
    import hiredis
except ImportError as exc:
    raise MissingExtra("hiredis", "redis", "a Redis server") from exc

__all__ = ["Argument", "Link", "Links", "error_of", "pack"]

Argument = str | bytes | int

_CHUNK = 1 << 16
_MORE = object()

#: One command, arguments as a tuple, as bytes for the server.
pack: Callable[[tuple[Argument, ...]], bytes] = cast("Any", hiredis).pack_command


def error_of(text: str) -> Exception:
    """The driver's error for the text of an error reply."""
    return _KINDS.get(text.partition(" ")[0], redis.ResponseError)(text)


_KINDS: dict[str, type[redis.RedisError]] = {
    "LOADING": redis.BusyLoadingError,
    "BUSY": redis.BusyLoadingError,
    "READONLY": redis.ReadOnlyError,
    "MASTERDOWN": MasterDownError,
    # It writes nothing at all: its disk is full, or its replicas are gone and there may be another master.
    "MISCONF": redis.BusyLoadingError,
    "NOREPLICAS": redis.BusyLoadingError,
    "OOM": redis.OutOfMemoryError,
    "NOPERM": NoPermissionError,
    "NOSCRIPT": NoScriptError,
}
#: The server is no good any more, or not yet: the next try is better made on another connection, perhaps elsewhere.
_LEAVE = (redis.ReadOnlyError, redis.BusyLoadingError, MasterDownError)


class Link:
    """One connection, used by one thread at a time. Raises the driver's errors and `OSError`."""

    def __init__(self, server: RedisServer, timeout: float) -> None:
        self._connection: Any = server.connect(timeout=timeout, protocol=2)
        self._sock: Any = self._connection._sock
        self._timeout = timeout
        self._sock.settimeout(timeout)
        self._reader: Any = hiredis.Reader(
            protocolError=redis.InvalidResponse, replyError=error_of, notEnoughData=_MORE
        )
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)

    def is_quiet(self) -> bool:
        """Whether it is as it should be before a question: the server has neither said anything nor hung up."""
        return not self._poll.poll(0)

    def exchange(self, data: bytes, replies: int, timeout: float) -> list[Any]:
        """Write `data` and read so many replies, errors among them."""
        if timeout != self._timeout:
            self._sock.settimeout(timeout)
            self._timeout = timeout
        self._sock.sendall(data)
        reader, found = self._reader, list[Any]()
        deadline = 0.0
        while len(found) < replies:
            received = self._sock.recv(_CHUNK)
            if not received:
                raise redis.ConnectionError("the server closed the connection")
            reader.feed(received)
            while (reply := reader.gets()) is not _MORE:
                found.append(reply)
            if len(found) < replies:  # what comes in drops must be there in time too
                now = time.monotonic()
                deadline = deadline or now + timeout
                if now > deadline:
                    raise redis.TimeoutError(f"no whole answer within {timeout:.2g} s")
        return found

    def close(self) -> None:
        self._connection.disconnect()


class Links:
    """Connections to one server, opened when needed and kept. Any thread; anew after a fork.

    `timeout`: seconds that an exchange may take where nothing else is said; `limit`: how many connections may be in use
    at once (who comes later waits), None: any number. Raises `ConnectionLost` and `OperationalError`.
    """

    def __init__(self, server: RedisServer, *, timeout: float, limit: int | None = None) -> None:
        self.server = server
        self.timeout = timeout
        self._limit = limit
        self._process = 0
        #: How often a connection was found broken: whoever knows something of the server should look again.
        self.breaks = 0
        self._begin()

    def _begin(self) -> None:
        self._free: deque[Link] = deque()
        self._places = None if self._limit is None else threading.BoundedSemaphore(self._limit)
        self._process = os.getpid()

    def exchange(self, data: bytes, replies: int, timeout: float | None = None) -> list[Any]:
        """Write packed commands and return their replies, errors among them as objects."""
        if self._process != os.getpid():
            self._begin()
        timeout = self.timeout if timeout is None else timeout
        places = self._places
        if places is None:
            return self._exchange(data, replies, timeout)
        if not places.acquire(blocking=False):
            began = time.monotonic()
            if not places.acquire(timeout=timeout):
                self._raise(
                    redis.TimeoutError(f"all {self._limit} connections were busy for {timeout:.2g} s")
                )
            timeout = max(0.001, timeout - (time.monotonic() - began))
        try:
            return self._exchange(data, replies, timeout)
        finally:
            places.release()

    def _exchange(self, data: bytes, replies: int, timeout: float) -> list[Any]:
        link: Link | None = None
        try:
            link = self._ready()
            if link is None:
                began = time.monotonic()
                link = Link(self.server, timeout)
                timeout = max(0.001, timeout - (time.monotonic() - began))
            found = link.exchange(data, replies, timeout)
        except (redis.RedisError, OSError) as exc:
            self.breaks += 1
            if link is not None:
                link.close()
            self._raise(exc)
        except BaseException:
            # A signal's exception: an answer may be under way.
            if link is not None:
                link.close()
            raise
        if isinstance(found[0], _LEAVE) or isinstance(found[-1], _LEAVE):
            self.breaks += 1
            link.close()
        else:
            self._free.append(link)
        return found

    def _ready(self) -> Link | None:
        """A free connection that is still good."""
        while self._free:
            try:
                link = self._free.pop()
            except IndexError:
                break
            if link.is_quiet():
                return link
            self.breaks += 1
            link.close()
        return None

    def ask(self, *commands: tuple[Argument, ...], timeout: float | None = None) -> list[Any]:
        """The replies to commands, sent in one go. Raises the first error, after all came."""
        found = self.exchange(b"".join(map(pack, commands)), len(commands), timeout)
        for reply in found:
            if isinstance(reply, Exception):
                self._raise(reply)
        return found

    def run(
        self,
        script: Script,
        keys: Sequence[str | bytes],
        args: Sequence[Argument],
        timeout: float | None = None,
    ) -> Any:
        """The reply of a script. Its text goes out only where the server does not know it."""
        [reply] = self.exchange(pack(("EVALSHA", script.sha, len(keys), *keys, *args)), 1, timeout)
        if isinstance(reply, NoScriptError):
            [reply] = self.exchange(pack(("EVAL", script.text, len(keys), *keys, *args)), 1, timeout)
        if isinstance(reply, Exception):
            self._raise(reply)
        return reply

    def _raise(self, exc: BaseException) -> NoReturn:
        with self.server.errors():
            raise exc
        raise exc

    def close(self) -> None:
        """Close what is free; the object may be used again."""
        if self._process == os.getpid():
            while self._free:
                self._free.pop().close()
