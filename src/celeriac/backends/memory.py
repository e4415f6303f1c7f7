"""The result backend that lives in this process: the reference implementation of the seam."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from typing import ClassVar, Generic, TypeVar
from weakref import WeakSet

from celeriac.backends.base import BackendOptions, BackendTraits, ResultBackend, Watcher, supersedes
from celeriac.states import READY_STATES
from celeriac.wire.record import Group, Record

__all__ = ["MemoryBackend"]

V = TypeVar("V")


class Shelf(Generic[V]):
    """Values by key, each for a while after it was last put there."""

    def __init__(self, options: BackendOptions) -> None:
        self._expires = options.expires
        self._clock = options.clock
        #: Oldest first, so that what expired is found at the start.
        self._entries: dict[str, tuple[float, V]] = {}

    def put(self, key: str, value: V) -> None:
        self._entries.pop(key, None)
        self._entries[key] = self._clock.monotonic(), value
        if self._expires is not None:
            self._drop_before(self._clock.monotonic() - self._expires)

    def get(self, key: str) -> V | None:
        entry = self._entries.get(key)
        return entry[1] if entry else None

    def drop(self, key: str) -> None:
        self._entries.pop(key, None)

    def _drop_before(self, instant: float) -> None:
        expired = takewhile(lambda each: each[1][0] < instant, self._entries.items())
        for key in [key for key, _ in expired]:
            del self._entries[key]


class MemoryWatcher(Watcher):
    """Told under the backend's lock, waits without it."""

    def __init__(self, lock: threading.Lock, records: Shelf[Record]) -> None:
        self._lock = lock
        self._records = records
        self._watched: set[str] = set()
        #: What came, and None for each wake.
        self._news: queue.SimpleQueue[Record | None] = queue.SimpleQueue()

    def tell(self, record: Record) -> None:
        """Take note of a record, if it is one that is waited for. Under the lock."""
        if record.task_id in self._watched and record.state in READY_STATES:
            self._news.put(record)

    def add(self, ids: Collection[str]) -> None:
        with self._lock:
            self._watched.update(ids)
            for id in ids:
                if record := self._records.get(id):
                    self.tell(record)

    def discard(self, ids: Collection[str]) -> None:
        with self._lock:
            self._watched.difference_update(ids)

    def wait(self, timeout: float | None) -> Sequence[Record]:
        deadline = None if timeout is None else time.monotonic() + timeout
        found: list[Record] = []
        try:
            while not found:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if (record := self._news.get(timeout=left)) is None:
                    break
                found += self._take(record)
            while record := self._news.get_nowait():
                found += self._take(record)
        except queue.Empty:
            pass  # out of time, or that was all
        return found

    def _take(self, record: Record) -> list[Record]:
        """The record, unless it came before or is no longer waited for."""
        with self._lock:
            if record.task_id not in self._watched:
                return []
            self._watched.discard(record.task_id)
            return [record]

    def wake(self) -> None:
        self._news.put(None)

    def close(self) -> None:
        with self._lock:
            self._watched.clear()


@dataclass(slots=True)
class Chord:
    """The parts of a chord that are there, by index."""

    parts: dict[int, Record] = field(default_factory=dict[int, Record])
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Revocation:
    position: int
    until: datetime


class MemoryBackend(ResultBackend):
    """Records in the memory of this process, gone with it. Each backend object has its own."""

    schemes: ClassVar[tuple[str, ...]] = ("memory",)
    traits: ClassVar[BackendTraits] = BackendTraits(persistent=False, push=True)

    def __init__(self, url: str, options: BackendOptions) -> None:
        super().__init__(url, options)
        #: Guards all that follows.
        self._lock = threading.Lock()
        self._records = Shelf[Record](options)
        self._groups = Shelf[Group](options)
        self._chords = Shelf[Chord](options)
        #: Latest last.
        self._revoked: dict[str, Revocation] = {}
        self._position = 0
        self._watchers: WeakSet[MemoryWatcher] = WeakSet()

    def put(self, records: Sequence[Record]) -> None:
        with self._lock:
            for record in records:
                if supersedes(record, self._records.get(record.task_id)):
                    self._records.put(record.task_id, record)
                    for watcher in self._watchers:
                        watcher.tell(record)

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        with self._lock:
            return [self._records.get(id) for id in ids]

    def watcher(self) -> Watcher:
        watcher = MemoryWatcher(self._lock, self._records)
        with self._lock:
            self._watchers.add(watcher)
        return watcher

    def forget(self, ids: Sequence[str]) -> None:
        with self._lock:
            for id in ids:
                self._records.drop(id)

    def save_group(self, group: Group) -> None:
        with self._lock:
            self._groups.put(group.group_id, group)

    def load_group(self, group_id: str) -> Group | None:
        with self._lock:
            return self._groups.get(group_id)

    def forget_group(self, group_id: str) -> None:
        with self._lock:
            self._groups.drop(group_id)

    def join(self, chord: str, index: int, record: Record, size: int) -> Sequence[Record] | None:
        with self._lock:
            state = self._chords.get(chord) or Chord()
            self._chords.put(chord, state)
            if state.finished:
                return None
            state.parts.setdefault(index, record)
            if len(state.parts) < size:
                return None
            return [state.parts[each] for each in sorted(state.parts)]

    def finish_chord(self, chord: str) -> bool:
        with self._lock:
            state = self._chords.get(chord)
            self._chords.put(chord, Chord(finished=True))
            return state is None or not state.finished

    def revoke(self, ids: Sequence[str], *, until: datetime) -> None:
        now = self.options.clock.now()
        with self._lock:
            self._revoked = {id: each for id, each in self._revoked.items() if each.until > now}
            for id in ids:
                before = self._revoked.pop(id, None)
                self._position += 1
                self._revoked[id] = Revocation(self._position, max(until, before.until) if before else until)

    def revoked(self, after: int) -> tuple[int, Mapping[str, datetime]]:
        now = self.options.clock.now()
        with self._lock:
            news = takewhile(lambda each: each[1].position > after, reversed(self._revoked.items()))
            return self._position, {id: each.until for id, each in news if each.until > now}

    def close(self) -> None:
        """Watchers end; what is stored stays as long as this object."""
        with self._lock:
            for watcher in self._watchers:
                watcher.wake()
