"""Waiting for results: each is published on a channel of its own, and one connection listens to many of them."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, cast

import redis

from celeriac.backends.base import Watcher
from celeriac.errors import ConnectionLost
from celeriac.redis.line import Line, Push
from celeriac.redis.links import Links
from celeriac.redis.results import Results
from celeriac.redis.server import RedisServer
from celeriac.states import READY_STATES
from celeriac.wire.record import Record

__all__ = ["RedisWatcher", "Subscriber", "Subscribers"]

#: Up to so many tasks are asked for in the same breath in which we subscribe. With more of them the reply could be of
#: a size (``client-output-buffer-limit pubsub``: 32 MB) at which the server drops who listens to channels.
_FEW = 64
#: Channels that are subscribed to by one command, and documents that are read by one.
_CHANNELS, _DOCUMENTS = 1000, 100
#: Channels of tasks that are watched no longer, after which they are given up even if nothing else is to be said.
_BAGGAGE = 128
#: Connections that wait for the next one to watch.
_IDLE = 8
#: Seconds of silence after which the server has to show that it is there.
_SILENCE = 10.0
#: Seconds between attempts to find a lost server again: the first, the longest; and how long they go on.
_PAUSE, _LONGEST_PAUSE, _PATIENCE = 0.05, 1.0, 60.0


class Subscriber:
    """A line, and the channels it has been told to listen to that nobody is interested in any more."""

    def __init__(self, line: Line, *, protocol: int) -> None:
        self.line = line
        #: With 2, nothing but channels can be asked for on it.
        self.protocol = protocol
        self.left: set[str] = set()

    def is_push(self, item: Any) -> bool:
        """Whether the server said `item` by itself; the rest are replies."""
        if self.protocol == 2:
            return isinstance(item, list) and cast("list[Any]", item)[0] != b"pong"
        return isinstance(item, Push)


class Subscribers:
    """The idle ones of a process: a wait should not begin with a log in. Thread-safe, usable after a fork."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._protocol = 3
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[Subscriber] = []

    def take(self) -> Subscriber:
        """One that is connected. Raises the driver's errors."""
        while (idle := self._pop()) is not None:
            try:
                idle.line.receive(0)  # what came for those before us
            except (redis.RedisError, OSError):
                idle.line.close()
            else:
                return idle
        if self._protocol == 3:
            try:
                return Subscriber(Line(self._server, timeout=self._server.timeout), protocol=3)
            except redis.ResponseError:
                pass  # an old server, or a proxy
        line = Line(self._server, timeout=self._server.timeout, protocol=2)
        self._protocol = 2
        return Subscriber(line, protocol=2)

    def _pop(self) -> Subscriber | None:
        if self._process != os.getpid():
            for each in self._idle:
                each.line.close()
            self._begin()
        with self._lock:
            return self._idle.pop() if self._idle else None

    def give_back(self, subscriber: Subscriber) -> None:
        """It waits for no reply; `left` are all that it listens to."""
        with self._lock:
            if len(self._idle) < _IDLE and len(subscriber.left) <= _BAGGAGE and subscriber.line.is_ours:
                self._idle.append(subscriber)
                return
        subscriber.line.close()

    def close(self) -> None:
        """Close those that are idle."""
        while (idle := self._pop()) is not None:
            idle.line.close()


class RedisWatcher(Watcher):
    """1. `add` and `discard` write down what is wanted; `wait` does it, on a connection that only it uses.
    2. It subscribes first and asks then, in one write: a result comes by the one way or the other.
    3. A lost connection is opened anew, and everything asked for again.
    """

    def __init__(self, links: Links, results: Results, subscribers: Subscribers) -> None:
        self._links = links
        self._server = links.server
        self._results = results
        self._subscribers = subscribers
        #: Guards what follows, up to the next comment of this kind.
        self._changed = threading.Condition()
        self._watched: set[str] = set()
        #: Watched, and the server does not know it yet; left, and it does not know that.
        self._fresh: list[str] = []
        self._left: set[str] = set()
        self._woken = False
        #: The line that `wait` is blocked on now, or is about to be.
        self._blocked: Line | None = None
        #: What follows is for the thread that waits.
        self._subscriber: Subscriber | None = None
        #: The tasks of each reply that is to come, oldest first, and until when (monotonic) the first must be there.
        self._asked: deque[list[str]] = deque()
        self._answer_due = 0.0
        self._found: list[Record] = []
        self._was_lost = False

    # -- any thread -----------------------------------------------------------------------------------------------

    def add(self, ids: Collection[str]) -> None:
        with self._changed:
            fresh = [id for id in dict.fromkeys(ids) if id not in self._watched]
            self._watched.update(fresh)
            self._fresh += fresh
            self._interrupt()

    def discard(self, ids: Collection[str]) -> None:
        with self._changed:
            self._left |= self._watched.intersection(ids)
            self._watched.difference_update(ids)

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._interrupt()

    def _interrupt(self) -> None:
        if self._blocked is not None:
            self._blocked.wake()
        self._changed.notify()

    # -- the thread that waits ------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> Sequence[Record]:
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        given_up_at = time.monotonic() + _PATIENCE
        pause = 0.0
        while True:
            try:
                with self._server.errors():
                    subscriber = self._connected()
                    given_up_at = float("inf")
                    return self._listen(subscriber, deadline)
            except ConnectionLost:
                self._hang_up()
                if self._found:
                    return self._take_found()
                now = time.monotonic()
                given_up_at = min(given_up_at, now + _PATIENCE)
                if now + pause >= min(deadline, given_up_at):
                    raise
                if self._is_woken_within(pause):
                    return []
                pause = min(_LONGEST_PAUSE, 2 * pause) or _PAUSE
            except BaseException:
                self._hang_up()
                raise

    def _connected(self) -> Subscriber:
        if self._subscriber is None:
            self._subscriber = self._subscribers.take()
            with self._changed:
                self._fresh = list(self._watched)
                self._left = self._subscriber.left - self._watched
        return self._subscriber

    def _hang_up(self) -> None:
        subscriber, self._subscriber = self._subscriber, None
        with self._changed:
            self._blocked = None
        self._asked.clear()
        if subscriber is not None:
            self._was_lost = True
            subscriber.line.close()

    def _is_woken_within(self, pause: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._woken, pause)
            woken, self._woken = self._woken, False
        return woken

    def _listen(self, subscriber: Subscriber, deadline: float) -> Sequence[Record]:
        """Until there is a record, or somebody woke us, or the `deadline` (monotonic) and all replies came."""
        heard_at = time.monotonic()
        while True:
            woken = self._take_orders(subscriber)
            now = time.monotonic()
            if self._found or woken or (now >= deadline and not self._asked):
                return self._take_found()
            if self._asked and now >= self._answer_due:
                raise redis.TimeoutError(f"no answer for {self._server.timeout:.2g} s")
            if not self._asked and now >= heard_at + _SILENCE:
                self._ask(subscriber, [("PING",)], [])
            until = self._answer_due if self._asked else min(deadline, heard_at + _SILENCE)
            items = subscriber.line.receive(until - now)
            self._blocked = None
            if items:
                heard_at = time.monotonic()
            for item in items:
                self._take_in(subscriber, item)

    def _take_orders(self, subscriber: Subscriber) -> bool:
        """Tell the server what is wanted since the last time. True if somebody called `wake`."""
        with self._changed:
            woken, self._woken = self._woken, False
            fresh, self._fresh = [id for id in self._fresh if id in self._watched], []
            left: set[str] = set()
            if self._left and (fresh or len(self._left) >= _BAGGAGE):
                left, self._left = self._left, left
            self._blocked = subscriber.line
        if fresh or left:
            self._subscribe(subscriber, fresh, left)
        return woken

    def _subscribe(self, subscriber: Subscriber, ids: list[str], left: Collection[str]) -> None:
        commands: list[tuple[str, ...]] = [("UNSUBSCRIBE", *map(self._results.key, left))] if left else []
        keys = [self._results.key(id) for id in ids]
        commands += (("SUBSCRIBE", *keys[at : at + _CHANNELS]) for at in range(0, len(keys), _CHANNELS))
        if not ids:
            subscriber.line.send(*commands)
        elif len(ids) <= _FEW and subscriber.protocol == 3 and not self._was_lost:
            self._ask(subscriber, [*commands, ("MGET", *keys)], ids)
        else:
            # The reply says that we are subscribed, so that they can be asked for elsewhere.
            self._ask(subscriber, [*commands, ("PING",)], ids)

    def _ask(self, subscriber: Subscriber, commands: Sequence[tuple[str, ...]], ids: list[str]) -> None:
        """Send commands of which the last gives one reply, about these tasks."""
        if not self._asked:
            self._answer_due = time.monotonic() + self._server.timeout
        self._asked.append(ids)
        subscriber.line.send(*commands)

    def _take_in(self, subscriber: Subscriber, item: Any) -> None:
        if isinstance(item, Exception):
            raise item
        if subscriber.is_push(item):
            if item[0] == b"message":
                self._hear(self._results.task_id(item[1]), item[2])
            return
        ids = self._asked.popleft()
        self._answer_due = time.monotonic() + self._server.timeout
        if subscriber.protocol == 2 or not isinstance(item, list):  # the answer to PING
            item = self._read(ids)
        documents: Sequence[bytes | None] = cast("list[bytes | None]", item)
        for id, document in zip(ids, documents, strict=True):
            if document is not None:
                self._hear(id, document)

    def _read(self, ids: list[str]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for at in range(0, len(ids), _DOCUMENTS):
            [some] = self._links.ask(("MGET", *map(self._results.key, ids[at : at + _DOCUMENTS])))
            found += some
        return found

    def _hear(self, id: str, document: bytes) -> None:
        if id not in self._watched:
            return
        record = self._results.read(id, document)
        if record.state in READY_STATES:
            with self._changed:
                self._left.add(id)
                if id in self._watched:
                    self._watched.discard(id)
                    self._found.append(record)

    def _take_found(self) -> Sequence[Record]:
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is None:
            return
        if self._asked or not subscriber.line.is_ours:
            subscriber.line.close()
            return
        with self._changed:
            subscriber.left = self._left | self._watched
        self._subscribers.give_back(subscriber)
