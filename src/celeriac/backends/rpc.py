"""Results as messages to the client that waits for them (Celery's ``rpc://``, wire-protocol §8.2).

A client has one queue, which its calls name as ``reply_to``; a worker sends the state of a task there, through the
app's broker. Nothing is stored: what nobody waits for is gone, and only the process that called can ask.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, ClassVar, NoReturn
from uuid import uuid4

from celeriac.backends.base import BackendOptions, BackendTraits, ResultBackend, Watcher
from celeriac.backends.memory import MemoryBackend, Shelf
from celeriac.brokers.bus import Bus, Listener
from celeriac.errors import (
    ConnectionLost,
    ContentDisallowed,
    ImproperlyConfigured,
    OperationalError,
    WireError,
)
from celeriac.states import FAILURE
from celeriac.topology import Exchange, Queue
from celeriac.wire import codecs
from celeriac.wire.envelope import Envelope, Outgoing
from celeriac.wire.record import Group, Record, from_document, to_document

__all__ = ["NoGroups", "RPCBackend"]

logger = logging.getLogger(__name__)

#: Results that a client keeps for who may ask, where ``result_cache_max`` says nothing: the oldest go first.
_KEPT = 100_000
#: Seconds that RabbitMQ can count as milliseconds of 32 bits.
_LONGEST = 4_294_967.0
#: Seconds that a wait for messages takes at most, and pauses while the broker is away.
_WAIT, _PAUSE, _LONGEST_PAUSE = 60.0, 0.1, 5.0


class NoGroups(OperationalError, NotImplementedError):
    """Groups and chords were asked for, but results that travel as messages are kept nowhere."""


class RPCBackend(ResultBackend):
    """1. `reply_to`, at its first use in a process, makes the queue and starts the thread that reads it.
    2. `put` sends each record to who waits for it; what names nobody is dropped.
    3. The others know what came to this process, in memory: they do no I/O.

    Revocations are known to this process only.
    """

    schemes: ClassVar[tuple[str, ...]] = ("rpc",)
    traits: ClassVar[BackendTraits] = BackendTraits(
        persistent=False, push=True, groups=False, opaque=False, by_message=True
    )

    def __init__(self, url: str, options: BackendOptions) -> None:
        super().__init__(url, options)
        broker = options.open_broker() if options.open_broker else None
        bus = broker.bus() if broker else None
        if broker is None or bus is None:
            raise ImproperlyConfigured(
                "result_backend rpc:// sends results through the broker: broker_url must be that of Redis or RabbitMQ"
            )
        self._broker = broker
        self._bus = bus
        persistent = options.transport.get("result_persistent")
        #: Of each message. Servers without queues that expire forget it when it has lain unread for so long.
        self._properties: dict[str, Any] = {
            "delivery_mode": 2 if persistent else 1,
            "priority": 0,
            "expiration": str(round(min(options.expires or _LONGEST, _LONGEST) * 1000)),
        }
        #: By process id: no lock that a fork could find locked.
        self._inboxes: dict[int, _Inbox] = {}

    @property
    def _inbox(self) -> _Inbox:
        """The one of this process."""
        pid = os.getpid()
        inbox = self._inboxes.get(pid)
        if inbox is None:
            for stale in [each for each in self._inboxes if each != pid]:
                self._inboxes.pop(stale, None)
            inbox = self._inboxes.setdefault(pid, _Inbox(self._bus, self.options))
        return inbox

    @property
    def reply_to(self) -> str:
        """Name of this process's queue. Raises `OperationalError` where it cannot be made."""
        return self._inbox.open()

    def put(self, records: Sequence[Record]) -> None:
        """Send each to its `Record.reply_to`; nobody there is no error."""
        self._bus.send([self._message(each, each.reply_to) for each in records if each.reply_to])

    def _message(self, record: Record, reply_to: str) -> Outgoing:
        _, content_type, content_encoding = codecs.encode(None, record.codec)
        properties = {"correlation_id": record.task_id, **self._properties}
        envelope = Envelope(to_document(record), content_type, content_encoding, {}, properties)
        return Outgoing(envelope, "", reply_to)

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        return self._inbox.known.get(ids)

    def watcher(self) -> Watcher:
        return self._inbox.known.watcher()

    def forget(self, ids: Sequence[str]) -> None:
        self._inbox.known.forget(ids)

    def save_group(self, group: Group) -> None:
        _refuse()

    def load_group(self, group_id: str) -> Group | None:
        _refuse()

    def forget_group(self, group_id: str) -> None:
        """Nothing was saved."""

    def join(self, chord: str, index: int, record: Record, size: int) -> Sequence[Record] | None:
        _refuse()

    def finish_chord(self, chord: str) -> bool:
        _refuse()

    def revoke(self, ids: Sequence[str], *, until: datetime) -> None:
        self._inbox.known.revoke(ids, until=until)

    def revoked(self, after: int) -> tuple[int, Mapping[str, datetime]]:
        return self._inbox.known.revoked(after)

    def close(self) -> None:
        """Delete the queue; what has come stays known. Results that come later do so to a new one."""
        self._inbox.close()
        self._broker.close()


class _Inbox:
    """What came to one process: its queue, the thread that reads it, and the latest of each task."""

    def __init__(self, bus: Bus, options: BackendOptions) -> None:
        self._bus = bus
        self._options = options
        expires = options.expires
        self.queue = Queue(
            str(uuid4()),
            Exchange(),
            auto_delete=True,
            no_ack=True,
            expires=None if expires is None else min(expires, _LONGEST),
        )
        self.known = _Known(options)
        #: Content types that may be read.
        self._accept = frozenset[str]()
        #: Guards the reader.
        self._lock = threading.Lock()
        self._reader: _Reader | None = None

    def open(self) -> str:
        """Read the queue from now on, if that is not so already; returns its name."""
        if self._reader is None:
            with self._lock:
                if self._reader is None:
                    given = self._options.transport
                    names = given.get("result_accept_content") or given.get("accept_content") or ("json",)
                    self._accept = codecs.accepted(names)
                    self._reader = _Reader(self._listen(), self._take)
        return self.queue.name

    def _listen(self) -> Listener:
        """A broker that is away for a moment is waited for, as it is by who publishes."""
        deadline = time.monotonic() + self._options.timeout
        while True:
            try:
                return self._bus.listen(self.queue)
            except ConnectionLost:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_PAUSE)

    def _take(self, envelopes: Iterable[Envelope]) -> None:
        """Results that came."""
        records: list[Record] = []
        for each in envelopes:
            try:
                records.append(_read(each, self._accept))
            except (WireError, ImproperlyConfigured) as exc:
                logger.warning("dropped what came as the result of task %s: %s", each.task_id or "?", exc)
        self.known.put(records)

    def close(self) -> None:
        with self._lock:
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()
        self.known.close()


class _Reader:
    """The thread that reads a queue and hands on what comes, until it is stopped."""

    def __init__(self, listener: Listener, take: Callable[[Sequence[Envelope]], None]) -> None:
        self._listener = listener
        self._take = take
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="celeriac-results", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        pause = _PAUSE
        while not self._stopping.is_set():
            try:
                self._take(self._listener.receive(_WAIT))
                pause = _PAUSE
            except OperationalError as exc:
                logger.warning("results of tasks cannot come: %s; next try in %.1fs", exc, pause)
                self._stopping.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def stop(self) -> None:
        self._stopping.set()
        self._listener.close()
        self._thread.join()


class _Bounded(Shelf[Record]):
    """Not more than so many."""

    def __init__(self, options: BackendOptions, most: int) -> None:
        super().__init__(options)
        self._most = most

    def put(self, key: str, value: Record) -> None:
        super().put(key, value)
        excess = len(self._entries) - self._most
        for oldest in list(islice(self._entries, max(0, excess))):
            self.drop(oldest)


class _Known(MemoryBackend):
    """The latest record of each task."""

    def __init__(self, options: BackendOptions) -> None:
        super().__init__("memory://", options)
        most: int = options.transport.get("result_cache_max") or 0
        self._records = _Bounded(options, most if most > 0 else _KEPT)


def _read(envelope: Envelope, accept: frozenset[str]) -> Record:
    """The record of a message. Content that is not accepted is not looked into: it is for who asks for the result
    to refuse it."""
    codec = codecs.name_of(envelope.content_type)
    if codec is None:
        raise ContentDisallowed(f"no codec is registered for content of type {envelope.content_type!r}")
    if envelope.content_type not in accept:
        return Record(task_id=envelope.task_id, state=FAILURE, result=envelope.body, codec=codec)
    return from_document(envelope.body, codec)


def _refuse() -> NoReturn:
    raise NoGroups(
        "result_backend rpc:// keeps no groups and chords: set it to a store, for example 'redis://localhost/0'"
    )
