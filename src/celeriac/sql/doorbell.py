"""Waking who waits on this host: named pipes in a directory beside the database file.

A database file tells nobody that it changed; who waits has to look. To be noticed at once all the same, a
waiter opens a pipe of its own for reading *while it waits*, and whoever wrote something for it writes a byte
there. The kernel keeps the books: a pipe that nobody reads cannot be opened for writing, so a busy waiter costs
its ringers 2 µs, a dead one is told apart, and a ring never blocks.

It is a hint and no more. What cannot be had (another host, no permission, a file system without pipes) or gets
lost costs the 40 ms until the waiter looks by itself.
"""

from __future__ import annotations

import os
import random
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from itertools import count

__all__ = ["Doorbell", "Listener"]

#: Listeners that did not hear, after which a ring is given up: those who are busy are many.
_MISSES = 8
#: Seconds for which the directory's time stamp may not show that it changed again.
_STAMP = 0.05

#: What a pipe is called: the topics of its owner, its process, a number of its own.
_NAME = re.compile(r"(?P<mask>[0-9a-f]{16})-(?P<pid>\d+)-\d+")

_numbers = count()


def _mask(topics: Iterable[str]) -> int:
    """A bit for each topic, of 64. Two topics may share one: then somebody wakes in vain."""
    mask = 0
    for topic in topics:
        mask |= 1 << (zlib.crc32(topic.encode()) & 63)
    return mask


class Doorbell:
    """The pipes of one directory, which is made when the first listener comes. Thread-safe; usable after a fork."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        #: Topics and path of each listener, as of the directory's time stamp; None: look again.
        self._known: list[tuple[int, str]] = []
        self._stamp: int | None = None

    def listener(self, topics: Iterable[str]) -> Listener:
        """Someone to be rung for any of these topics."""
        return Listener(self._directory, _mask(topics))

    def ring(self, topics: Iterable[str], number: int) -> None:
        """Wake up to `number` of those who listen to one of `topics`. Never blocks, never fails."""
        listeners = self._listeners()
        if not listeners:
            return
        mask = _mask(topics)
        misses = 0
        start = random.randrange(len(listeners))
        for theirs, path in listeners[start:] + listeners[:start]:
            if theirs & mask:
                if _ring(path):
                    number -= 1
                else:
                    misses += 1
                if number <= 0 or misses >= _MISSES:
                    return

    def _listeners(self) -> list[tuple[int, str]]:
        try:
            stamp = os.stat(self._directory).st_mtime_ns
            if stamp != self._stamp:
                self._known = list(self._listed())
                settled = time.time() - stamp / 1e9 > _STAMP
                self._stamp = stamp if settled else None
        except OSError:
            return []
        return self._known

    def _listed(self) -> Iterator[tuple[int, str]]:
        for name in os.listdir(self._directory):
            if found := _NAME.fullmatch(name):
                yield int(found["mask"], 16), os.path.join(self._directory, name)


def _ring(path: str) -> bool:
    """Whether somebody listened. The pipe of a process that died is removed."""
    try:
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        _remove_if_dead(path)
        return False
    try:
        os.write(pipe, b"!")
    except OSError:
        pass  # full: there is a ring it has not heard yet
    finally:
        os.close(pipe)
    return True


def _remove_if_dead(path: str) -> None:
    # A live process that we cannot see (in another container) makes its pipe again when it waits next.
    found = _NAME.fullmatch(os.path.basename(path))
    try:
        os.kill(int(found["pid"]) if found else 0, 0)
    except ProcessLookupError:
        _unlink(path)
    except (OSError, OverflowError):
        pass  # it lives, under another user


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


class Listener:
    """One pipe, open while its owner waits. Used by one thread at a time."""

    def __init__(self, directory: str, mask: int) -> None:
        self._directory = directory
        self._process = os.getpid()
        self._path = os.path.join(directory, f"{mask:016x}-{self._process}-{next(_numbers)}")
        self._pipe: int | None = None

    def open(self) -> int | None:
        """Listen from now on; returns what to wait on, or None where there are no pipes to be had."""
        # For writing too: else it would read as ended once the first ringer has gone.
        flags = os.O_RDWR | os.O_NONBLOCK
        try:
            self._pipe = os.open(self._path, flags)
        except OSError:
            try:
                os.makedirs(self._directory, exist_ok=True)
                os.mkfifo(self._path)
                self._pipe = os.open(self._path, flags)
            except OSError:
                self._pipe = None
        return self._pipe

    def close(self) -> None:
        """Do not listen any more; what was rung and not heard is forgotten."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def remove(self) -> None:
        """Leave for good; the last one takes the directory along."""
        self.close()
        if os.getpid() == self._process:  # a forked child has got a copy only
            _unlink(self._path)
            try:
                os.rmdir(self._directory)
            except OSError:
                pass  # somebody else is there
