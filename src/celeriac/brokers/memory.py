"""The broker that lives in this process: the reference implementation of the seam, to be read first.

`Server` keeps the queues and knows which consumer holds what; elsewhere it would be another process.
`MemoryBroker` and `MemoryConsumer` are its clients: the one knows nothing, the other what it gave to its
caller. Each of their methods is a step or two at the server, done under the one lock.

Every hand-out has a number of its own, the *claim*. A delivery is held as long as its claim is among those
of its consumer; once it left, whatever happened to the message since, nothing can be done with it any more.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import ClassVar

from celeriac.backends.base import ResultBackend
from celeriac.backends.disabled import DisabledBackend
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers.base import (
    Broker,
    BrokerOptions,
    BrokerTraits,
    Completion,
    Consumer,
    Delivery,
    QueueSize,
    Settlement,
    Unit,
)
from celeriac.brokers.dead import dead_letter
from celeriac.brokers.lease import LeaseWatch
from celeriac.brokers.memory_bus import MemoryBus
from celeriac.clock import Clock
from celeriac.errors import PublishFailed
from celeriac.topology import Queue, queues_for
from celeriac.wire.disposition import Ack, DeadLetter, Defer, Return
from celeriac.wire.envelope import Envelope, Outgoing

__all__ = ["MemoryBroker", "MemoryConsumer"]


@dataclass(slots=True, eq=False)
class Message:
    """One message in one queue, waiting or held."""

    envelope: Envelope
    queue: str
    #: Where it stands in the line. It keeps its place, so what comes back is at the front.
    place: int
    priority: int = 0
    due: datetime | None = None
    #: Hand-outs that count as an attempt, and all of them.
    attempts: int = 0
    handouts: int = 0


class Line:
    """The messages of one queue that wait: those that may go, best first, and those not yet due."""

    def __init__(self) -> None:
        self._ready: list[tuple[int, int, Message]] = []
        self._scheduled: list[tuple[datetime, int, Message]] = []

    def add(self, message: Message) -> None:
        if message.due is None:
            heapq.heappush(self._ready, (-message.priority, message.place, message))
        else:
            heapq.heappush(self._scheduled, (message.due, message.place, message))

    def promote(self, now: datetime) -> None:
        """What is due may go."""
        while self._scheduled and self._scheduled[0][0] <= now:
            message = heapq.heappop(self._scheduled)[2]
            message.due = None
            self.add(message)

    def head(self) -> tuple[int, int] | None:
        """How the best message compares with those of other lines: the smallest goes first."""
        return self._ready[0][:2] if self._ready else None

    def pop(self) -> Message:
        return heapq.heappop(self._ready)[2]

    def next_due(self) -> datetime | None:
        return self._scheduled[0][0] if self._scheduled else None

    def lengths(self) -> tuple[int, int]:
        return len(self._ready), len(self._scheduled)

    def clear(self) -> None:
        self._ready.clear()
        self._scheduled.clear()


@dataclass(slots=True, eq=False)
class Holder:
    """What the server knows of a consumer."""

    name: str
    #: Heartbeats so far.
    beat: int = 0
    #: The messages it holds, by claim.
    held: dict[int, Message] = field(default_factory=dict[int, Message])


class Server:
    """Queues, bindings and consumers. Whoever calls a method holds the lock of `changed`."""

    def __init__(self, clock: Clock) -> None:
        #: The lock, and the bell for those who wait for messages. Reentrant, because a signal handler may
        #: call `Consumer.wake` while its thread is in here.
        self.changed = threading.Condition(threading.RLock())
        self._clock = clock
        self._declared: list[Queue] = []
        self._lines: dict[str, Line] = {}
        self._holders: set[Holder] = set()
        self._places = count()
        self._claims = count(1)

    def declare(self, queues: Collection[Queue]) -> None:
        for queue in queues:
            if queue not in self._declared:
                self._declared.append(queue)

    def route(self, batch: Sequence[Outgoing]) -> list[list[str]]:
        """The queues that each message reaches."""
        self.declare([each.queue for each in batch if each.queue is not None])
        routes = (
            queues_for(each.exchange, each.routing_key, self._declared, headers=each.envelope.headers)
            for each in batch
        )
        # A queue that was declared twice, with different bindings, is still one queue.
        return [list(dict.fromkeys(queues)) for queues in routes]

    def publish(self, batch: Sequence[Outgoing], routes: Sequence[Sequence[str]]) -> None:
        for outgoing, queues in zip(batch, routes, strict=True):
            for queue in queues:
                self._add(outgoing, queue)
        self.changed.notify_all()

    def size(self, queue: str) -> QueueSize:
        line = self._line(queue)
        line.promote(self._clock.now())
        held = sum(each.queue == queue for holder in self._holders for each in holder.held.values())
        return QueueSize(*line.lengths(), held)

    def purge(self, queue: str) -> int:
        line = self._line(queue)
        found = sum(line.lengths())
        line.clear()
        return found

    def beat(self, holder: Holder) -> Mapping[Holder, int]:
        """`holder` is alive; returns the counters of all that may hold something."""
        holder.beat += 1
        return {each: each.beat for each in self._holders}

    def claim(self, holder: Holder, queues: Sequence[str], limit: int) -> None:
        """Give `holder` up to `limit` messages, the best of all `queues` first."""
        self._holders.add(holder)
        now = self._clock.now()
        lines = [self._line(queue) for queue in queues]
        for line in lines:
            line.promote(now)
        for _ in range(limit):
            heads = [(head, line) for line in lines if (head := line.head()) is not None]
            if not heads:
                return
            message = min(heads, key=lambda each: each[0])[1].pop()
            message.attempts += 1
            message.handouts += 1
            holder.held[next(self._claims)] = message

    def seconds_to_next(self, queues: Sequence[str]) -> float:
        """Until a scheduled message of `queues` becomes due; infinite where none is."""
        dues = [due for queue in queues if (due := self._line(queue).next_due()) is not None]
        return (min(dues) - self._clock.now()).total_seconds() if dues else math.inf

    def settle(self, holder: Holder, settlement: Settlement) -> bool:
        """Carry out a disposition; False if `holder` does not hold that delivery any more."""
        message = holder.held.pop(settlement.delivery.tag, None)
        if message is None:
            return False
        match settlement.disposition:
            case Ack():
                pass
            case Return(counted=counted):
                self._put_back(message, counted=counted)
            case Defer(until=until, envelope=Envelope() as envelope):
                self._add(Outgoing(envelope, priority=message.priority, due=until), message.queue)
            case Defer(until=until):
                message.due = until
                self._put_back(message, counted=False)
            case DeadLetter(reason=reason):
                dead = dead_letter(settlement.delivery, reason, self._clock.now())
                self._add(dead, dead.routing_key)
        self.changed.notify_all()
        return True

    def remove(self, holder: Holder, *, died: bool) -> None:
        """`holder` left or `died`: what it held goes back, which costs an attempt in the latter case."""
        self._holders.discard(holder)
        for message in holder.held.values():
            self._put_back(message, counted=died)
        holder.held.clear()
        self.changed.notify_all()

    def _add(self, outgoing: Outgoing, queue: str) -> None:
        place = next(self._places)
        self._line(queue).add(Message(outgoing.envelope, queue, place, outgoing.priority, outgoing.due))

    def _put_back(self, message: Message, *, counted: bool) -> None:
        message.attempts -= not counted
        self._line(message.queue).add(message)

    def _line(self, queue: str) -> Line:
        return self._lines.setdefault(queue, Line())


class MemoryBroker(Broker):
    """Queues in the memory of this process, gone with it.

    Every broker object has a server of its own; a forked child gets a copy.
    """

    schemes: ClassVar[tuple[str, ...]] = ("memory",)
    traits: ClassVar[BrokerTraits] = BrokerTraits(persistent=False)

    def __init__(self, url: str, options: BrokerOptions) -> None:
        super().__init__(url, options)
        self.server = Server(options.clock)
        self._bus = MemoryBus()

    def declare(self, queues: Collection[Queue]) -> None:
        with self.server.changed:
            self.server.declare(queues)

    def publish(self, batch: Sequence[Outgoing]) -> None:
        with self.server.changed:
            routes = self.server.route(batch)
            self.server.publish(batch, routes)
        check_routes(batch, routes)

    def consumer(self, queues: Collection[Queue], *, name: str) -> MemoryConsumer:
        self.declare(queues)
        return MemoryConsumer(self, [queue.name for queue in queues], name)

    def size(self, queue: str) -> QueueSize:
        with self.server.changed:
            return self.server.size(queue)

    def purge(self, queue: str) -> int:
        with self.server.changed:
            return self.server.purge(queue)

    def bus(self) -> MemoryBus:
        return self._bus

    def close(self) -> None:
        """There is nothing to release: the messages live as long as this object."""


def check_routes(batch: Sequence[Outgoing], routes: Sequence[Sequence[object]]) -> None:
    """Raise `PublishFailed` for the messages of `batch` that reach no queue."""
    lost = [outgoing for outgoing, queues in zip(batch, routes, strict=True) if not queues]
    if lost:
        where = ", ".join(sorted({f"{each.exchange!r} with key {each.routing_key!r}" for each in lost}))
        ids = [each.envelope.task_id for each in lost]
        raise PublishFailed(f"no queue is bound to exchange {where}", ids=ids, unroutable=True)


class MemoryConsumer(Consumer):
    """What one worker has borrowed from a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, queues: Sequence[str], name: str) -> None:
        self.broker = broker
        self._server = broker.server
        self._clock = broker.options.clock
        self._queues = queues
        #: Our entry at the server. One that was reaped is empty, and registered again by the next claim.
        self._holder = Holder(name)
        #: What our caller was given and did not settle, by claim.
        self._given: dict[int, Delivery] = {}
        self._watch = LeaseWatch[Holder](broker.options.lease)
        self._woken = False
        self._closed = False

    def fetch(self, limit: int, timeout: float) -> Sequence[Delivery]:
        # Waiting takes real time, whatever the broker's clock is.
        deadline = time.monotonic() + timeout
        with self._server.changed:
            while not (deliveries := self._take(limit)) and not self._woken:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._server.changed.wait(min(left, self._server.seconds_to_next(self._queues)))
            self._woken = False
            return deliveries

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Delivery]:
        with self._server.changed:
            for each in settlements:
                self._given.pop(each.delivery.tag, None)
            return [each.delivery for each in settlements if not self._server.settle(self._holder, each)]

    def renew(self) -> Sequence[Delivery]:
        with self._server.changed:
            if not self._closed:
                now = self._clock.monotonic()
                for dead in self._watch.look(self._server.beat(self._holder), now, now):
                    self._server.remove(dead, died=True)
            lost = [claim for claim in self._given if claim not in self._holder.held]
            return [self._given.pop(claim) for claim in lost]

    def held(self) -> Sequence[Delivery]:
        with self._server.changed:
            return [self._give(claim) for claim in self._not_given()]

    def still_holds(self, delivery: Delivery) -> bool:
        """Whether the server knows `delivery` as ours."""
        with self._server.changed:
            return delivery.tag in self._holder.held

    def wake(self) -> None:
        with self._server.changed:
            self._woken = True
            self._server.changed.notify_all()

    def close(self) -> None:
        with self._server.changed:
            self._closed = self._woken = True
            self._given.clear()
            self._server.remove(self._holder, died=False)

    def unit(self, backend: ResultBackend) -> Unit:
        # Backends in this process cannot fail, so holding the lock is all it takes to do all or nothing.
        local = isinstance(backend, MemoryBackend | DisabledBackend)
        return AtomicUnit(self, backend, self._server) if local else FencedUnit(self, backend)

    def _take(self, limit: int) -> list[Delivery]:
        """Claim what is missing to `limit`, and give what was not: also what a failed fetch had claimed."""
        if self._closed:
            return []
        self._server.claim(self._holder, self._queues, limit - len(self._not_given()))
        return [self._give(claim) for claim in self._not_given()[:limit]]

    def _not_given(self) -> list[int]:
        return [claim for claim in self._holder.held if claim not in self._given]

    def _give(self, claim: int) -> Delivery:
        message = self._holder.held[claim]
        delivery = Delivery(message.envelope, message.queue, claim, message.attempts, message.handouts > 1)
        self._given[claim] = delivery
        return delivery


class FencedUnit(Unit):
    """Step by step, for a backend elsewhere."""

    def __init__(self, consumer: MemoryConsumer, backend: ResultBackend) -> None:
        super().__init__(consumer, backend)
        self._holds = consumer.still_holds

    def fence(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        return [each for each in deliveries if not self._holds(each)]


class AtomicUnit(FencedUnit):
    """The same steps under the server's lock, after a look whether they will succeed."""

    def __init__(self, consumer: MemoryConsumer, backend: ResultBackend, server: Server) -> None:
        super().__init__(consumer, backend)
        self._server = server

    def complete(self, batch: Sequence[Completion]) -> Sequence[Delivery]:
        with self._server.changed:
            held = [each for each in batch if each.delivery is None or self._holds(each.delivery)]
            follow = [outgoing for each in held for outgoing in each.follow]
            check_routes(follow, self._server.route(follow))
            return super().complete(batch)
