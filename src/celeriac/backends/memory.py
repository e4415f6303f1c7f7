"""The result backend that lives in this process: the reference implementation of the seam."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from typing import ClassVar, Generic, TypeVar

from celeriac.backends.base import BackendOptions, BackendTraits, ResultBackend, supersedes
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


class Watch:
    """One caller who waits for final records: told under the backend's lock, read without it."""

    def __init__(self, ids: Collection[str]) -> None:
        self.waiting = set(ids)
        self._news: queue.SimpleQueue[Record | None] = queue.SimpleQueue()

    def tell(self, record: Record) -> None:
        if record.task_id in self.waiting and record.state in READY_STATES:
            self._news.put(record)

    def end(self) -> None:
        self._news.put(None)

    def next(self, deadline: float | None) -> Record | None:
        """The final record of one more id; None at the `deadline` (monotonic) or the end."""
        try:
            while record := self._news.get(timeout=_seconds_until(deadline)):
                if record.task_id in self.waiting:
                    self.waiting.discard(record.task_id)
                    return record
        except queue.Empty:
            pass  # out of time
        return None


def _seconds_until(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


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
        self._watches: set[Watch] = set()

    def put(self, records: Sequence[Record]) -> None:
        with self._lock:
            for record in records:
                if supersedes(record, self._records.get(record.task_id)):
                    self._records.put(record.task_id, record)
                    for watch in self._watches:
                        watch.tell(record)

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        with self._lock:
            return [self._records.get(id) for id in ids]

    def watch(self, ids: Collection[str], timeout: float | None) -> Iterator[Record]:
        # Not itself a generator, so that the time runs from the call and not from the first look.
        return self._watch(Watch(ids), None if timeout is None else time.monotonic() + timeout)

    def _watch(self, watch: Watch, deadline: float | None) -> Iterator[Record]:
        with self._lock:
            self._watches.add(watch)
            for id in watch.waiting:
                if record := self._records.get(id):
                    watch.tell(record)
        try:
            while watch.waiting and (record := watch.next(deadline)):
                yield record
        finally:
            with self._lock:
                self._watches.discard(watch)

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
            for watch in self._watches:
                watch.end()
