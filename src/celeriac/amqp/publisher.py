"""Publishing with confirms: connections to publish on, each used by one thread at a time.

They hold nothing, so the server need not notice when one dies: they have no heartbeats. One that the server has
closed meanwhile is found out before it is used.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from celeriac.amqp import methods
from celeriac.amqp.channel import Channel, Refused
from celeriac.amqp.connection import Connection
from celeriac.amqp.declaring import declare, exchange_exists, is_fanout
from celeriac.amqp.properties import read_correlation_id
from celeriac.amqp.server import AMQPServer
from celeriac.errors import OperationalError, PublishFailed
from celeriac.topology import Queue

__all__ = ["Failures", "Line", "Post", "Publisher"]

#: Bytes that are put together before they are written.
_CHUNK = 1 << 17


class Post(NamedTuple):
    """A message as it is published. `properties` as `encode_properties` makes them."""

    exchange: str
    routing_key: str
    properties: bytes
    body: bytes
    #: The server says so if no queue takes it.
    mandatory: bool = True


class Failures:
    """Which messages of a batch the server does not have, by their place in it, and why."""

    def __init__(self) -> None:
        #: No queue takes them.
        self.unroutable: list[int] = []
        #: A queue refused them: it is full, or in trouble.
        self.rejected: list[int] = []
        #: Nothing is known of them.
        self.unconfirmed: list[int] = []
        #: What went wrong, for people.
        self.reason = ""

    def __bool__(self) -> bool:
        return bool(self.unroutable or self.rejected or self.unconfirmed)


class Line:
    """One connection to publish on, and what is known to be declared. Not thread-safe."""

    def __init__(self, connection: Connection, *, confirm: bool) -> None:
        self.connection = connection
        self._confirm = confirm
        self._channel: Channel | None = None
        #: The number that the server gives to the next message on the channel.
        self._next = 1
        self._queues: dict[str, list[Queue]] = {}
        #: Exchanges that exist, and whether they are fanouts where that was asked.
        self._exchanges: dict[str, bool | None] = {"": False}
        #: Celery's exchanges for later are declared, and these queues bound to where messages come out.
        self.has_delays = False
        self.bound: set[str] = set()

    def is_alive(self) -> bool:
        """Whether it can be used, as far as can be seen without a round trip."""
        try:
            self.connection.read()
        except OperationalError:
            return False
        return self.connection.is_usable

    # -- what is declared ------------------------------------------------------------------------------------

    def knows(self, queue: Queue) -> bool:
        """Whether it is declared."""
        return any(each is queue or each == queue for each in self._queues.get(queue.name, ()))

    def declare(self, queues: Iterable[Queue], *, timeout: float) -> None:
        """Declare those that are not known to be."""
        new: dict[int, Queue] = {id(each): each for each in queues if not self.knows(each)}
        if not new:
            return
        with self.channel(timeout) as channel:
            declare(channel, new.values(), timeout=timeout)
        for each in new.values():
            self._queues.setdefault(each.name, []).append(each)
            for binding in each.all_bindings():
                self._exchanges[binding.exchange.name] = binding.exchange.type == "fanout"

    def forget(self, queues: Iterable[Queue]) -> None:
        """They seem to be gone: the next `declare` makes them anew."""
        for each in queues:
            self._queues.pop(each.name, None)
            self.bound.discard(each.name)

    def has_exchange(self, name: str, *, timeout: float) -> bool:
        """Whether there is such an exchange. Publishing to one that is not there would end the channel."""
        if name not in self._exchanges:
            with self.channel(timeout) as channel:
                if not exchange_exists(channel, name, timeout=timeout):
                    return False
            self._exchanges[name] = None
        return True

    def is_fanout(self, name: str, queue: Queue | None, *, timeout: float) -> bool:
        """Whether an exchange that exists is a fanout, whose messages may reach nobody. `queue`: the one that
        the message brings along, whose exchange it may be."""
        if queue is not None and queue.exchange is not None and queue.exchange.name == name:
            return queue.is_fanout
        found = self._exchanges.get(name)
        if found is None:
            with self.channel(timeout) as channel:
                found = self._exchanges[name] = is_fanout(channel, name, timeout=timeout)
        return found

    @contextmanager
    def channel(self, timeout: float) -> Generator[Channel]:
        """A channel for something that the server may refuse."""
        channel = self.connection.channel(timeout=timeout)
        try:
            yield channel
        finally:
            channel.close()

    # -- publishing ------------------------------------------------------------------------------------------

    def publish(self, posts: Sequence[Post], deadline: float) -> Failures:
        """Publish a batch, and wait until the server has it. `deadline`: on the monotonic clock.

        Raises nothing: after the loss of the connection or the deadline the rest is `unconfirmed`.
        """
        failures = Failures()
        tracker = _Tracker(posts, failures, confirm=self._confirm)
        try:
            self._wait_until_unblocked(deadline)
            channel = self._publishing(deadline)
            tracker.first = self._next
            channel.on_confirm, channel.on_refused = tracker.confirmed, tracker.refused
            tracker.was_sent = True
            self._send(channel, posts, deadline)
            while tracker.waits and channel.closed is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise OperationalError(self._why_not_confirmed())
                self.connection.pump(left)
            if channel.closed is not None:
                # Something that was there is not any more.
                self._queues, self._exchanges = {}, {"": False}
                self.has_delays, self.bound = False, set()
                raise channel.closed
        except OperationalError as exc:
            failures.reason = str(exc)
            failures.unconfirmed += tracker.left()
        if failures.unconfirmed and self.connection.is_usable and tracker.was_sent:
            # What it may still say would be taken for an answer to the next batch.
            self.connection.drop()
        return failures

    def _publishing(self, deadline: float) -> Channel:
        """The channel that messages go through."""
        if self._channel is None or self._channel.closed is not None:
            left = max(0.0, deadline - time.monotonic())
            channel = self.connection.channel(timeout=left)
            if self._confirm:
                select = methods.confirm_select(channel.number)
                channel.call(select, methods.CONFIRM_SELECT_OK, timeout=left)
            self._channel, self._next = channel, 1
        return self._channel

    def _send(self, channel: Channel, posts: Sequence[Post], deadline: float) -> None:
        number, frame_max = channel.number, self.connection.frame_max
        parts: list[bytes] = []
        size = 0
        for post in posts:
            parts.append(methods.basic_publish(number, post.exchange, post.routing_key, post.mandatory))
            parts += methods.content(number, post.properties, post.body, frame_max)
            size += len(post.properties) + len(post.body) + 100
            if size > _CHUNK:
                self._write(channel, parts, deadline)
                self.connection.read()
                parts, size = [], 0
        self._write(channel, parts, deadline)
        self._next += len(posts)

    def _write(self, channel: Channel, parts: list[bytes], deadline: float) -> None:
        left = max(0.1, deadline - time.monotonic())
        if channel.closed is None and parts:
            self.connection.send(b"".join(parts), timeout=left)

    def _wait_until_unblocked(self, deadline: float) -> None:
        """What is sent to a server that takes nothing would be published when it does, long after we said no."""
        while self.connection.blocked is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise OperationalError(self._why_not_confirmed())
            self.connection.pump(left)

    def _why_not_confirmed(self) -> str:
        where, blocked = self.connection.where, self.connection.blocked
        if blocked is not None:
            return f"{where} has blocked all who publish: {blocked}"
        return f"{where} did not confirm in time"


class _Tracker:
    """What the server says of the messages of one batch."""

    def __init__(self, posts: Sequence[Post], failures: Failures, *, confirm: bool) -> None:
        #: The server's number of the first message.
        self.first = 0
        self._posts = posts
        self._failures = failures
        self._open = dict.fromkeys(range(len(posts)))
        self._confirm = confirm
        self._lowest = 0
        #: Where the next one that comes back is looked for: they come back in order.
        self._next_refused = 0
        self.was_sent = False

    @property
    def waits(self) -> bool:
        """Something is to come that was not said yet."""
        return self._confirm and bool(self._open)

    def left(self) -> list[int]:
        """Of which nothing was said."""
        return list(self._open)

    def confirmed(self, tag: int, multiple: bool, taken: bool) -> None:
        place = tag - self.first
        if multiple:
            places = range(self._lowest, place + 1)
            self._lowest = place + 1
        else:
            places = range(place, place + 1)
        for each in places:
            if each in self._open:
                del self._open[each]
                if not taken:
                    self._failures.rejected.append(each)

    def refused(self, message: Refused) -> None:
        """A message came back; its confirm follows."""
        correlation_id = read_correlation_id(message.properties)
        for place in range(self._next_refused, len(self._posts)):
            post = self._posts[place]
            if (
                post.routing_key == message.routing_key
                and post.exchange == message.exchange
                and post.mandatory
                and read_correlation_id(post.properties) == correlation_id
            ):
                self._failures.unroutable.append(place)
                self._next_refused = place + 1
                return


class _Pool:
    """The lines of one process."""

    def __init__(self, limit: int | None) -> None:
        self.places = threading.BoundedSemaphore(limit) if limit else None
        self.idle: list[Line] = []


class Publisher:
    """Lends out `Line`s, and opens as many as are used at once, up to `limit` (None: no limit).

    `name`: for people, in the server's list of connections. `confirm`: wait until the server has a message;
    without, it is fast, and what is lost is lost unnoticed. Thread-safe; usable again after a fork.
    """

    def __init__(self, server: AMQPServer, *, name: str, limit: int | None, confirm: bool = True) -> None:
        self.server = server
        self.confirm = confirm
        self._name = name
        self._limit = limit
        #: By process id.
        self._pools: dict[int, _Pool] = {}
        # A program that ends without `close`: what was sent and is not confirmed must not be lost with its socket.
        weakref.finalize(self, _part, self._pools)

    @contextmanager
    def line(self, deadline: float) -> Generator[Line]:
        """Borrow a line, with a connection that lived a moment ago. `deadline`: on the monotonic clock.

        Raises `PublishFailed` if none is free in time, `ConnectionLost` and `OperationalError` as
        `AMQPServer.connect`.
        """
        pool = self._pool()
        if pool.places is not None and not pool.places.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise PublishFailed(f"all {self._limit} connections to publish on are in use (broker_pool_limit)")
        try:
            line = self._living(pool, deadline)
            try:
                yield line
            except BaseException:
                line.connection.drop()
                raise
            if line.connection.is_usable:
                pool.idle.append(line)
        finally:
            if pool.places is not None:
                pool.places.release()

    def close(self) -> None:
        """Close the idle lines; it may be used again."""
        _part(self._pools)

    def _living(self, pool: _Pool, deadline: float) -> Line:
        while pool.idle:
            try:
                line = pool.idle.pop()
            except IndexError:
                break
            if line.is_alive():
                return line
        left = max(0.1, deadline - time.monotonic())
        connection = self.server.connect(name=self._name, timeout=left)
        return Line(connection, confirm=self.confirm)

    def _pool(self) -> _Pool:
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:
            for stale in [each for each in self._pools if each != pid]:
                for line in self._pools.pop(stale).idle:
                    line.connection.drop()
            # No lock: one that another thread held at the fork would stay locked for ever.
            pool = self._pools.setdefault(pid, _Pool(self._limit))
        return pool


def _part(pools: dict[int, _Pool]) -> None:
    """Say goodbye on the idle lines of this process."""
    pool = pools.pop(os.getpid(), None)
    while pool is not None and pool.idle:
        pool.idle.pop().connection.close()
