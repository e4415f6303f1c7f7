"""One connection of a consumer: what it subscribed to, what came, and what it holds.

When the connection ends, so does the session, and everything it held is the server's again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from celeriac.amqp import delayed, methods
from celeriac.amqp.channel import Arrival, Call, Channel, ChannelClosed
from celeriac.amqp.connection import Connection
from celeriac.amqp.declaring import declare, exchange_exists
from celeriac.errors import ConnectionLost
from celeriac.topology import Queue

__all__ = ["Parcel", "Session"]

#: Consumers of one queue at most; beyond, they are replaced by one.
_MOST_TAGS = 6
#: Seconds that an answer may take.
_TIMEOUT = 5.0
#: Seconds that each step of the goodbye may take.
_GOODBYE = 2.0
#: Seconds that more may be on its way than is asked for.
_SHRINK_AFTER = 1.0


class _Tag:
    """One consumer, as the server calls it."""

    __slots__ = ("cancel", "name", "prefetch", "subscription", "unsettled")

    def __init__(self, name: str, subscription: _Subscription, prefetch: int) -> None:
        self.name = name
        self.subscription = subscription
        #: Messages that the server lets it hold.
        self.prefetch = prefetch
        self.unsettled = 0
        #: What was asked for its end, if it was.
        self.cancel: Call | None = None

    @property
    def is_over(self) -> bool:
        """Nothing more comes for it, and nothing is left of what came."""
        return self.cancel is not None and self.cancel.done and not self.unsettled


def _is_private(queue: Queue) -> bool:
    """Nobody else consumes it, or it goes with its last consumer."""
    return queue.auto_delete or queue.exclusive


class _Subscription:
    """What we take from one queue."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.tags: list[_Tag] = []
        self.is_private = _is_private(queue)
        #: The server ended it: the queue was deleted.
        self.is_gone = False

    @property
    def credit(self) -> int:
        """How many messages the server may still send."""
        return sum(max(0, tag.prefetch - tag.unsettled) for tag in self.tags)


class Parcel(NamedTuple):
    """A message that came and is ours, not opened yet."""

    arrival: Arrival
    #: The queue it came from.
    queue: Queue

    @property
    def tag(self) -> int:
        return self.arrival.tag


class Session:
    """1. `ask` has the server send messages, about as many as are wanted; `pause` has it send none.
    2. `receive` takes in what came; it is in `inbox` and `hold` until somebody takes it out.
    3. `settle` gives tags back to the server: done with, or to be handed out again.

    Whoever calls a method holds `lock`. Methods raise `ConnectionLost` once the session is over.
    """

    def __init__(self, connection: Connection, queues: Collection[Queue], *, delayed_type: str) -> None:
        self.connection = connection
        self.lock = connection.lock
        self.channel: Channel = connection.channel()
        #: What came from the queues that were subscribed to.
        self.inbox: deque[Parcel] = deque()
        #: What came from a queue of our own (`own_queue`).
        self.hold: deque[Parcel] = deque()
        self._delayed_type = delayed_type
        self._subscriptions = {queue.name: _Subscription(queue) for queue in queues}
        self._own: dict[str, _Subscription] = {}
        self._tags: dict[str, _Tag] = {}
        self._number = 0
        #: The channel's outstanding tags, in the order they came.
        self._unsettled: dict[int, _Tag] = {}
        self._prefetch = 0
        self._paused = True
        #: Since when more may come than is asked for.
        self._excess_since: float | None = None
        self._declare(queues)

    def _declare(self, queues: Collection[Queue]) -> None:
        channel = self.connection.channel()
        declare(channel, queues, own=True)
        channel.close()
        self._bind_delayed(queues)

    def _bind_delayed(self, queues: Collection[Queue]) -> None:
        """What others delayed for these queues is to arrive, also after a queue was deleted and made anew."""
        # Celery delays at the server where a queue is a quorum queue, and relies on workers to declare it.
        needed = any(each.queue_arguments.get("x-queue-type") == "quorum" for each in queues)
        channel = self.connection.channel()
        # Nobody but us may bind what is exclusive.
        if needed or any(each.exclusive for each in queues):
            delayed.declare_delays(channel, self._delayed_type, timeout=30.0)
        elif not exchange_exists(channel, delayed.DELIVERY):
            return
        for queue in queues:
            delayed.bind(channel, queue.name, queue.name, timeout=10.0)
            delayed.bind_exchange(channel, queue, timeout=10.0)
        channel.close()

    # -- subscribing -----------------------------------------------------------------------------------------

    def ask(self, number: int) -> None:
        """Let the server send about `number` messages of each queue, beyond those that are held."""
        self._paused = False
        wanted = number - len(self.inbox)
        frames: list[bytes] = []
        for subscription in self._subscriptions.values():
            if subscription.is_gone:
                self._declare([subscription.queue])
                subscription.is_gone = False
            credit = subscription.credit
            if 2 * credit < wanted:
                frames += self._grow(subscription, wanted - credit)
        if self._is_excessive(number):
            frames += self._shrink(number)
        if frames:
            self._send(frames)

    def _grow(self, subscription: _Subscription, number: int) -> list[bytes]:
        # One more consumer adds to what there is. To change the limit of one, it would have to be cancelled.
        held = sum(tag.unsettled for tag in subscription.tags)
        if subscription.queue.queue_arguments.get("x-single-active-consumer"):
            # Only one of them gets anything, and the next one does when it has left.
            left = self._cancel(subscription, subscription.tags)
            return left + self._consume(subscription, number + held)
        if len(subscription.tags) >= _MOST_TAGS:
            return self._replace(subscription, number)
        # A little more than is asked for where much is held, so that a slow growth takes few steps.
        return self._consume(subscription, number + held // 8)

    def _replace(self, subscription: _Subscription, prefetch: int) -> list[bytes]:
        """One consumer in place of those there are. It comes first: an auto-delete queue goes with its last."""
        old = list(subscription.tags)
        return [*self._consume(subscription, prefetch), *self._cancel(subscription, old)]

    def _consume(self, subscription: _Subscription, prefetch: int) -> list[bytes]:
        self._tags = {name: tag for name, tag in self._tags.items() if not tag.is_over}
        self._number += 1
        tag = _Tag(f"{self._number}", subscription, min(prefetch, 65535))
        subscription.tags.append(tag)
        self._tags[tag.name] = tag
        number = self.channel.number
        frames: list[bytes] = []
        if tag.prefetch != self._prefetch:
            self._prefetch = tag.prefetch
            frames.append(methods.basic_qos(number, tag.prefetch))
            self.channel.expect(methods.BASIC_QOS_OK)
        queue = subscription.queue
        frames.append(methods.basic_consume(number, queue.name, tag.name, arguments=queue.consumer_arguments))
        self.channel.expect(methods.BASIC_CONSUME_OK)
        return frames

    def _cancel(self, subscription: _Subscription, tags: Iterable[_Tag]) -> list[bytes]:
        frames: list[bytes] = []
        for tag in list(tags):
            frames.append(methods.basic_cancel(self.channel.number, tag.name))
            tag.cancel = self.channel.expect(methods.BASIC_CANCEL_OK)
            subscription.tags.remove(tag)
        return frames

    def _is_excessive(self, number: int) -> bool:
        """For a while, much more has been on its way than is asked for."""
        credit = max((each.credit for each in self._subscriptions.values()), default=0)
        if credit + len(self.inbox) <= 2 * number + 8:
            self._excess_since = None
            return False
        now = time.monotonic()
        if self._excess_since is None:
            self._excess_since = now
        return now - self._excess_since > _SHRINK_AFTER

    def _shrink(self, number: int) -> list[bytes]:
        self._excess_since = None
        frames: list[bytes] = []
        for subscription in self._subscriptions.values():
            frames += self._replace(subscription, number)
        excess: list[int] = []
        while len(self.inbox) > number:
            excess.append(self.inbox.pop().tag)
        return frames + self._give_back(excess)

    def pause(self) -> None:
        """Have the server send nothing more; what came and nobody took goes back.

        Queues that are nobody else's go on: what they have is for us, and some would not outlive it.
        """
        self._paused = True
        frames: list[bytes] = []
        for subscription in self._subscriptions.values():
            if not subscription.is_private:
                frames += self._cancel(subscription, subscription.tags)
        kept = [each for each in self.inbox if _is_private(each.queue)]
        frames += self._give_back([each.tag for each in self.inbox if not _is_private(each.queue)])
        self.inbox = deque(kept)
        if frames:
            self._send(frames)

    def own_queue(self, queue: Queue) -> None:
        """Make a queue of this consumer's own, whose messages come to `hold`, however many."""
        declared = self._own.get(queue.name)
        if declared is not None and not declared.is_gone:
            return
        channel = self.connection.channel()
        declare(channel, [queue])
        channel.close()
        subscription = self._own[queue.name] = _Subscription(queue)
        self._send(self._consume(subscription, 0))
        self.round_trip()

    def delete_own(self, queue: Queue) -> None:
        """Make an end of a queue of our own, if nothing is in it."""
        subscription = self._own.pop(queue.name, None)
        if subscription is not None and not subscription.is_gone:
            self._send(self._cancel(subscription, subscription.tags))
            delete = methods.queue_delete(self.channel.number, queue.name, if_empty=True)
            self.channel.start(delete, methods.QUEUE_DELETE_OK)

    # -- receiving -------------------------------------------------------------------------------------------

    def receive(self) -> None:
        """Take in what came, without waiting, and keep the connection alive."""
        self.connection.read()
        self.connection.tick()
        self.sort()

    def sort(self) -> None:
        """What was read is put where it belongs."""
        channel = self.channel
        stray: list[int] = []
        while channel.arrivals:
            arrival = channel.arrivals.popleft()
            tag = self._tags.get(arrival.consumer_tag)
            if tag is None:
                continue
            tag.unsettled += 1
            self._unsettled[arrival.tag] = tag
            subscription = tag.subscription
            parcel = Parcel(arrival, subscription.queue)
            if subscription.queue.name in self._own:
                self.hold.append(parcel)
            elif self._paused and not subscription.is_private:
                stray.append(arrival.tag)
            else:
                self.inbox.append(parcel)
        if channel.cancelled:
            for name in channel.cancelled:
                self._cancelled(name)
            channel.cancelled.clear()
        self._check()
        if stray:
            self._send(self._give_back(stray))

    def _cancelled(self, name: str) -> None:
        tag = self._tags.get(name)
        if tag is not None and tag in tag.subscription.tags:
            tag.subscription.tags.remove(tag)
            tag.subscription.is_gone = True

    def look(self) -> None:
        """Ask each queue, so that what it has for us is here when this returns."""
        number = self.channel.number
        for each in self._subscriptions.values():
            self._call(methods.queue_declare(number, each.queue.name, passive=True), methods.QUEUE_DECLARE_OK)
        self.sort()

    def round_trip(self, *, timeout: float = _TIMEOUT) -> None:
        """Be told by the server that it knows this channel, and has done what it was sent."""
        qos = methods.basic_qos(self.channel.number, self._prefetch)
        self._call(qos, methods.BASIC_QOS_OK, timeout)
        self.sort()

    def _send(self, frames: Iterable[bytes]) -> None:
        self._check()
        self.channel.send(b"".join(frames))

    def _call(self, method: bytes, answer: bytes, timeout: float = _TIMEOUT) -> None:
        self._check()
        try:
            self.channel.call(method, answer, timeout=timeout)
        except ChannelClosed:
            self._check()
            raise

    def _check(self) -> None:
        """The channel holds what we hold: without it, the session is over."""
        if self.channel.closed is not None:
            raise ConnectionLost(str(self.channel.closed)) from self.channel.closed

    # -- settling --------------------------------------------------------------------------------------------

    def settle(self, done: Iterable[int], again: Sequence[int] = ()) -> None:
        """Give tags back: done with, or to be handed out again at the front of their queue."""
        frames = self._ack(done)
        if again:
            frames += self._give_back(again)
        if frames:
            self._send(frames)

    def _ack(self, tags: Iterable[int]) -> list[bytes]:
        number = self.channel.number
        left = {tag for tag in tags if tag in self._unsettled}
        frames: list[bytes] = []
        # All up to one of them in one go, if nothing else is below.
        last = 0
        for tag in self._unsettled:
            if tag not in left:
                break
            last = tag
        if last:
            frames.append(methods.basic_ack(number, last, multiple=True))
        frames += [methods.basic_ack(number, tag) for tag in left if tag > last]
        for tag in left:
            self._unsettled.pop(tag).unsettled -= 1
        return frames

    def _give_back(self, tags: Sequence[int]) -> list[bytes]:
        number = self.channel.number
        known = [tag for tag in tags if tag in self._unsettled]
        for tag in known:
            self._unsettled.pop(tag).unsettled -= 1
        return [methods.basic_nack(number, tag) for tag in known]

    def count(self, queue: str) -> int:
        """Messages of a queue that we have."""
        return sum(tag.subscription.queue.name == queue for tag in list(self._unsettled.values()))

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave: what is unsettled goes back, at once and in its order."""
        self.pause()
        self.settle((), list(self._unsettled))
        # What goes back with the end of a connection is not there at once.
        self.round_trip(timeout=_GOODBYE)
        self.connection.close(timeout=_GOODBYE)
