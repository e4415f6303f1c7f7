"""The seam to result stores: the latest state of each task, and the bookkeeping of groups and chords."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from celeriac.clock import Clock, SystemClock
from celeriac.states import READY_STATES, SUCCESS
from celeriac.wire.record import Group, Record

if TYPE_CHECKING:
    from celeriac.brokers.base import Broker

__all__ = ["BackendOptions", "BackendTraits", "ResultBackend", "Watcher", "supersedes"]


def _no_options() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendOptions:
    """What every backend is told beside its URL."""

    #: Seconds after which a record may be deleted; None: never.
    expires: float | None = 86400.0
    #: Seconds a single operation may take before `OperationalError`.
    timeout: float = 5.0
    #: ``result_backend_transport_options`` and ``database_*``, ``redis_*`` settings of that backend.
    transport: Mapping[str, Any] = field(default_factory=_no_options)
    clock: Clock = field(default_factory=SystemClock)
    #: Makes a broker of the app's, for results that travel as messages.
    open_broker: Callable[[], Broker] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendTraits:
    """What a backend can do, read by code and by the conformance suite."""

    #: Records survive the process that wrote them.
    persistent: bool
    #: `watch` is told by the server; otherwise it looks now and then.
    push: bool
    #: Groups and chords can be kept.
    groups: bool = True
    #: The extended fields of a record come back.
    extended: bool = True
    #: Results come to who called as messages, to `ResultBackend.reply_to`; the first look at that makes a queue.
    by_message: bool = False
    #: Results come back byte by byte, whatever they are; otherwise they must be what their codec can read.
    opaque: bool = True


def supersedes(new: Record, old: Record | None) -> bool:
    """Whether `new` may replace `old`: SUCCESS stays, and a RETRY never goes back to an earlier try."""
    if old is None:
        return True
    if old.state == SUCCESS:
        return False
    return not (new.state not in READY_STATES and old.state == "RETRY" and old.retries > new.retries)


class Watcher(ABC):
    """Tells the final record (`READY_STATES`) of each id it was given, once.

    One thread calls `wait`, any thread the others. Constructing does no I/O. It belongs to the process that made it:
    a forked child may do no more with it than close it.
    """

    @abstractmethod
    def add(self, ids: Collection[str]) -> None:
        """Watch these too. Those that have ended come with the next `wait`; one that waits now takes them in."""

    @abstractmethod
    def discard(self, ids: Collection[str]) -> None:
        """Watch these no longer; unknown ids are ignored."""

    @abstractmethod
    def wait(self, timeout: float | None) -> Sequence[Record]:
        """At least one record, or none after `timeout` seconds (0: look once), `wake`, or `close` of the backend.

        An id that came is no longer watched. Holds no transaction while it waits. Raises `OperationalError`: what
        is watched still is, and may be waited for again.
        """

    @abstractmethod
    def wake(self) -> None:
        """End the present `wait`, or the next one."""

    @abstractmethod
    def close(self) -> None:
        """Release what it waits on. Not while another thread waits: `wake` it first."""


def _watched(watcher: Watcher, ids: set[str], deadline: float | None) -> Generator[Record]:
    with closing(watcher):
        watcher.add(ids)
        while ids:
            found = watcher.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if not found:
                return
            for record in found:
                ids.discard(record.task_id)
                yield record


class ResultBackend(ABC):
    """The latest state of each task. Thread-safe; usable again after a fork. Constructing does no I/O.

    Every method may raise `OperationalError` (the store cannot be reached or is damaged) and nothing else
    that is not a bug.
    """

    schemes: ClassVar[tuple[str, ...]]
    traits: ClassVar[BackendTraits]

    def __init__(self, url: str, options: BackendOptions) -> None:
        self.url = url
        self.options = options

    @property
    def reply_to(self) -> str:
        """The ``reply_to`` of messages whose results come back as messages; "" where results are looked up."""
        return ""

    @abstractmethod
    def put(self, records: Sequence[Record]) -> None:
        """Store each record where it `supersedes` the present one; the last of one id wins. Wakes watchers."""

    @abstractmethod
    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        """The record of each id, in order; None where nothing is known."""

    @abstractmethod
    def watcher(self) -> Watcher:
        """Wait for the final records of ids that may grow and shrink while somebody waits."""

    def watch(self, ids: Collection[str], timeout: float | None) -> Iterator[Record]:
        """Yield the final record (`READY_STATES`) of each id once, as it comes; those already there at once.

        Ends when all came, `timeout` seconds after the call, or when the backend is closed.
        """
        # Not itself a generator, so that the time runs from the call and not from the first look.
        deadline = None if timeout is None else time.monotonic() + timeout
        return _watched(self.watcher(), set(ids), deadline)

    @abstractmethod
    def forget(self, ids: Sequence[str]) -> None:
        """Delete these records; unknown ids are ignored."""

    @abstractmethod
    def save_group(self, group: Group) -> None:
        """Keep a group's result tuple, replacing one of the same id."""

    @abstractmethod
    def load_group(self, group_id: str) -> Group | None:
        """A saved group, or None."""

    @abstractmethod
    def forget_group(self, group_id: str) -> None:
        """Delete a saved group, if it is there."""

    @abstractmethod
    def join(self, chord: str, index: int, record: Record, size: int) -> Sequence[Record] | None:
        """Add the part `index` (0-based) of a chord of `size` parts; idempotent per index.

        Returns all parts in order once every one is there and `finish_chord` was not called; else None.
        A part that is added again replaces nothing: the first one stays.
        """

    @abstractmethod
    def finish_chord(self, chord: str) -> bool:
        """Mark a chord as done and drop its parts. True for the one caller that did it first."""

    @abstractmethod
    def revoke(self, ids: Sequence[str], *, until: datetime) -> None:
        """Remember that these tasks must not run, at least until that instant (aware, UTC)."""

    @abstractmethod
    def revoked(self, after: int) -> tuple[int, Mapping[str, datetime]]:
        """Revocations recorded after the position `after` (0: all that still hold), and the new position.

        A worker asks before each batch it starts, thousands of times a second: where nothing was revoked since, the
        answer should cost no round trip. It must know all that `revoke` returned for, in whatever process.
        """

    @abstractmethod
    def close(self) -> None:
        """Release connections and `wake` every watcher; the object may be used again afterwards."""
