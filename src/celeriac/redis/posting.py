"""Publishing to Redis: where each message goes, and the commands that put it there."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple, TypeVar

from redis.exceptions import NoScriptError

from celeriac.brokers.memory import check_routes
from celeriac.errors import OperationalError, PublishFailed
from celeriac.redis import letters
from celeriac.redis.bindings import Bindings, expires_of
from celeriac.redis.layout import Layout
from celeriac.redis.links import Argument, Links, pack
from celeriac.redis.scripts import Script
from celeriac.wire.envelope import Outgoing

__all__ = [
    "Broadcast",
    "Later",
    "Posting",
    "Posts",
    "Ready",
    "bounded",
    "is_hopeless",
    "schedule_id",
    "seconds",
]

T = TypeVar("T")

_PUBLISH = Script("queues.lua", "publish.lua")
_AGAIN = Script("again.lua")
#: Messages of which it is remembered that they may have been published.
_DOUBTS = 1000
#: Bytes of a message that is too large to be remembered.
_LARGE = 1 << 16
#: Messages, and roughly bytes, that one command puts somewhere at most.
_COUNT = 1000
_BYTES = 1 << 20


class Ready(NamedTuple):
    """A message that goes into a list."""

    key: str
    data: bytes


class Later(NamedTuple):
    """A message that goes into the schedule of a queue."""

    queue: str
    due: float
    id: str
    data: bytes


class Broadcast(NamedTuple):
    """A message for whoever listens."""

    channel: str
    data: bytes


class Again(NamedTuple):
    """A message that goes into a list, unless it is there."""

    key: str
    data: bytes


Posting = Ready | Later | Broadcast | Again


class _Command(NamedTuple):
    what: str
    packed: bytes
    #: Numbers of the messages that it is for.
    messages: Sequence[int]
    #: Where it runs a script: which, with what keys and arguments.
    script: tuple[Script, list[str], list[Argument]] | None = None


def _running(
    what: str, messages: Sequence[int], script: Script, keys: list[str], args: list[Argument]
) -> _Command:
    packed = pack(("EVALSHA", script.sha, len(keys), *keys, *args))
    return _Command(what, packed, messages, (script, keys, args))


def schedule_id(step: int) -> str:
    """A new name for a message in a schedule: later ones sort behind earlier ones."""
    return f"{time.time_ns():016x}{os.urandom(4).hex()}:{step}"


class Posts:
    """Publishes batches. Any thread.

    `timeout`: seconds from the call to success or `PublishFailed`; `unroutable`: the queue that takes what no other
    does, "" for none.
    """

    def __init__(
        self, links: Links, layout: Layout, bindings: Bindings, *, timeout: float, unroutable: str
    ) -> None:
        self._links = links
        self._layout = layout
        self._bindings = bindings
        self._timeout = timeout
        self._unroutable = unroutable
        #: What was published and not answered, by the message's identity: who tries again may not publish it twice.
        self._doubtful: dict[int, tuple[Outgoing, Sequence[Posting]]] = {}

    # -- one message: what `delay` does ------------------------------------------------------------------------

    def publish(self, batch: Sequence[Outgoing]) -> None:
        """See `Broker.publish`."""
        if len(batch) == 1 and self._is_plain(batch[0]):
            self._publish_one(batch[0])
        elif batch:
            self._publish_all(batch)

    def _is_plain(self, outgoing: Outgoing) -> bool:
        queue = outgoing.queue
        return (
            not outgoing.exchange
            and outgoing.due is None
            and id(outgoing) not in self._doubtful
            and (queue is None or (expires_of(queue) is None and self._bindings.knows(queue)))
        )

    def _publish_one(self, outgoing: Outgoing) -> None:
        name = outgoing.routing_key
        key = self._layout.ready(name, self._layout.step(outgoing.priority))
        data = letters.write(outgoing.envelope, "", name)
        try:
            [reply] = self._links.exchange(pack(("LPUSH", key, data)), 1, self._timeout)
        except OperationalError as exc:
            self._doubt(outgoing, [Ready(key, data)])
            raise PublishFailed(str(exc), ids=[outgoing.envelope.task_id]) from exc
        if isinstance(reply, Exception):
            ids = [outgoing.envelope.task_id]
            text = f"{reply} (LPUSH {key})"
            raise PublishFailed(text, ids=ids, unroutable=is_hopeless(text)) from reply

    # -- many --------------------------------------------------------------------------------------------------

    def _publish_all(self, batch: Sequence[Outgoing]) -> None:
        deadline = time.monotonic() + self._timeout
        done: set[int] = set()
        try:
            batch = self._not_heard(batch, deadline)
            postings = [
                self._again(outgoing, posting)
                for outgoing, posting in zip(batch, self.plan(batch, _left(deadline)), strict=True)
            ]
            self._send(batch, postings, deadline, done)
        except OperationalError as exc:
            ids = [each.envelope.task_id for n, each in enumerate(batch) if n not in done]
            raise PublishFailed(str(exc), ids=ids, unroutable=is_hopeless(str(exc))) from exc
        check_routes(batch, postings)

    def _doubt(self, outgoing: Outgoing, postings: Sequence[Posting]) -> None:
        """Remember that this may have been published."""
        if len(outgoing.envelope.body) > _LARGE:
            return
        self._doubtful.setdefault(id(outgoing), (outgoing, postings))
        while len(self._doubtful) > _DOUBTS:
            self._doubtful.pop(next(iter(self._doubtful)), None)

    def _again(self, outgoing: Outgoing, postings: list[Posting]) -> Sequence[Posting]:
        """What publishes `outgoing` without doing it twice, where that may have been done."""
        before = self._doubtful.get(id(outgoing))
        if before is None:
            return postings
        again: list[Posting] = []
        for posting in before[1]:
            match posting:
                case Ready(key, data):
                    again.append(Again(key, data))
                case Later(queue, due, id_, data):
                    again.append(Later(queue, due, id_, letters.marked(data, 0)))
                case Again() | Broadcast():
                    again.append(posting)
        return again

    def prepare(self, batch: Sequence[Outgoing]) -> list[list[Posting]]:
        """Where each message goes; raises `PublishFailed` where one goes nowhere."""
        postings = self.plan(batch)
        check_routes(batch, postings)
        return postings

    def plan(self, batch: Sequence[Outgoing], timeout: float | None = None) -> list[list[Posting]]:
        """Where each message goes, once the queues that they bring along are declared; [] where no queue takes it."""
        bindings = self._bindings
        bindings.learn(batch)
        routed = [n for n, each in enumerate(batch) if not self._is_broadcast(each)]
        while True:
            bindings.declare((each.queue for each in batch if each.queue), timeout)
            routes = bindings.routes([batch[n] for n in routed], timeout)
            if not bindings.is_outdated:
                break
        postings: list[list[Posting]] = [
            [self._broadcast(each)] if self._is_broadcast(each) else [] for each in batch
        ]
        for n, queues in zip(routed, routes, strict=True):
            if not queues and self._unroutable:
                queues = [self._unroutable]
            postings[n] = [self._posting(batch[n], queue) for queue in queues]
        return postings

    def _is_broadcast(self, outgoing: Outgoing) -> bool:
        return bool(outgoing.exchange) and self._bindings.type_of(outgoing.exchange) == "fanout"

    def _posting(self, outgoing: Outgoing, queue: str) -> Posting:
        data = letters.write(outgoing.envelope, outgoing.exchange, outgoing.routing_key)
        step = self._layout.step(outgoing.priority)
        if outgoing.due is not None:
            return Later(queue, seconds(outgoing.due), schedule_id(step), data)
        return Ready(self._layout.ready(queue, step), data)

    def _broadcast(self, outgoing: Outgoing) -> Broadcast:
        channel = self._layout.channel(outgoing.exchange, outgoing.routing_key)
        return Broadcast(channel, letters.write(outgoing.envelope, outgoing.exchange, outgoing.routing_key))

    def _not_heard(self, batch: Sequence[Outgoing], deadline: float) -> Sequence[Outgoing]:
        """Broadcast what goes to exchanges whose type nobody told us: if somebody hears it, it is a fanout exchange.
        Returns the others."""
        self._bindings.learn(batch)
        unknown = [each for each in batch if each.exchange and self._bindings.type_of(each.exchange) is None]
        if not unknown:
            return batch
        told = [self._broadcast(each) for each in unknown]
        heard = self._links.ask(*(("PUBLISH", *each) for each in told), timeout=_left(deadline))
        gone = {id(each) for each, listeners in zip(unknown, heard, strict=True) if listeners}
        return [each for each in batch if id(each) not in gone]

    def _commands(
        self, batch: Sequence[Outgoing], postings: Sequence[Sequence[Posting]]
    ) -> Iterable[_Command]:
        ready: defaultdict[str, list[tuple[int, bytes]]] = defaultdict(list)
        later: defaultdict[str, list[tuple[int, Later]]] = defaultdict(list)
        for n, each in enumerate(postings):
            for posting in each:
                match posting:
                    case Ready(key, data):
                        ready[key].append((n, data))
                    case Later(queue=queue):
                        later[queue].append((n, posting))
                    case Again(key, data):
                        args: list[Argument] = [data, letters.marked(data, 0)]
                        yield _running(f"LPUSH {key}", [n], _AGAIN, [key], args)
                    case Broadcast(channel, data):
                        yield _Command(f"PUBLISH {channel}", pack(("PUBLISH", channel, data)), [n])
        for key, messages in ready.items():
            for part in bounded(messages, lambda each: len(each[1])):
                packed = pack(("LPUSH", key, *(data for _, data in part)))
                yield _Command(f"LPUSH {key}", packed, [n for n, _ in part])
        for queue, messages in later.items():
            for part in bounded(messages, lambda each: len(each[1].data)):
                yield self._scheduling(queue, part)
        for queue in {each.queue.name: each.queue for each in batch if each.queue}.values():
            if (expires := expires_of(queue)) is not None:
                for key in self._layout.all_ready(queue.name):
                    yield _Command(f"PEXPIRE {key}", pack(("PEXPIRE", key, expires)), [])

    def _scheduling(self, queue: str, messages: Sequence[tuple[int, Later]]) -> _Command:
        args: list[Argument] = [self._layout.sep]
        for _, each in messages:
            args += (repr(each.due), each.id, each.data)
        numbers = [n for n, _ in messages]
        return _running(f"schedule of {queue}", numbers, _PUBLISH, self._layout.block(queue), args)

    def _send(
        self,
        batch: Sequence[Outgoing],
        postings: Sequence[Sequence[Posting]],
        deadline: float,
        done: set[int],
    ) -> None:
        """Publish; adds to `done` the numbers of the messages that the server has. Raises what failed, at the end."""
        commands = list(self._commands(batch, postings))
        failures: list[tuple[_Command, Exception]] = []
        sent = 0
        try:
            for part in bounded(commands, lambda each: len(each.packed)):
                failures += self._send_part(part, deadline, done)
                sent += len(part)
        except OperationalError:
            # A message that goes to several places is there when it is in all of them.
            for command in [*commands[sent:], *(command for command, _ in failures)]:
                done.difference_update(command.messages)
            for n, each in enumerate(batch):
                if n not in done:
                    self._doubt(each, postings[n])
            raise
        for command, _ in failures:
            done.difference_update(command.messages)
        for n in done if self._doubtful else ():
            self._doubtful.pop(id(batch[n]), None)
        if failures:
            # What may be tried again comes before what may not.
            command, reply = min(failures, key=lambda each: is_hopeless(str(each[1])))
            with self._links.server.errors():
                raise type(reply)(f"{reply} ({command.what})")

    def _send_part(
        self, commands: Sequence[_Command], deadline: float, done: set[int]
    ) -> list[tuple[_Command, Exception]]:
        data = b"".join(each.packed for each in commands)
        failures: list[tuple[_Command, Exception]] = []
        for command, reply in zip(
            commands, self._links.exchange(data, len(commands), _left(deadline)), strict=True
        ):
            if isinstance(reply, NoScriptError) and command.script is not None:
                self._links.run(*command.script, timeout=_left(deadline))
            elif isinstance(reply, Exception):
                failures.append((command, reply))
                continue
            done.update(command.messages)
        return failures


def is_hopeless(error: str) -> bool:
    """Whether a failure stays one, however often it is tried: a key that is no list takes no message."""
    return "WRONGTYPE" in error


def seconds(instant: datetime) -> float:
    """Seconds since 1970, as schedules have it."""
    return instant.timestamp()


def bounded(items: Sequence[T], bytes_of: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """`items` in parts that one command may take; each has at least one."""
    start = size = 0
    for at, each in enumerate(items):
        more = bytes_of(each)
        if at > start and (at - start >= _COUNT or size + more > _BYTES):
            yield items[start:at]
            start, size = at, 0
        size += more
    if start < len(items):
        yield items[start:]


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())
