"""Messages in an SQL database: the embedded default, on SQLite.

A message is a row from publish to settlement and keeps its id, so what comes back is at the front again. Whoever
claims it writes a number of his into ``holder``, drawn at random when he registered; a consumer that was taken for
dead registers anew, under another number. So ``holder`` is the fence: what is settled must be held under the number it
was claimed with, in the very transaction that settles it.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import zip_longest
from typing import Any, ClassVar, NamedTuple

import msgspec

from celeriac.backends.base import ResultBackend
from celeriac.backends.sql import SQLBackend
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
from celeriac.brokers.memory import check_routes
from celeriac.errors import OperationalError, PublishFailed
from celeriac.sql import messages, open_database, schema
from celeriac.sql.database import Database, Transaction, bounded
from celeriac.topology import Queue
from celeriac.wire.disposition import Ack, DeadLetter, Defer, Return
from celeriac.wire.envelope import Envelope, Outgoing

__all__ = ["SQLBroker", "SQLConsumer"]

#: Seconds that a fetch waits before it looks by itself.
_PATIENCE = 1.0

_decode = msgspec.msgpack.Decoder(Envelope).decode


class SQLBroker(Broker):
    """Queues in a database, shared with the result backend where that has the same URL.

    What is published wakes a waiting worker of this host at once. A worker on another one, or one that waits for the
    commit of a transaction of yours (`publish_in`), finds it within 40 ms.
    """

    schemes: ClassVar[tuple[str, ...]] = ("sqlite",)
    traits: ClassVar[BrokerTraits] = BrokerTraits(persistent=True, transactional=True)

    def __init__(self, url: str, options: BrokerOptions) -> None:
        super().__init__(url, options)
        self.database = open_database(url)
        #: The incarnation of the database that has our tables, and these queues.
        self._prepared: int | None = None
        self._declared: dict[str, list[Queue]] = {}

    def prepare(self) -> Database:
        """The database with our tables in it. To be called before each use, outside of transactions."""
        database = self.database
        if database.incarnation() != self._prepared:
            schema.prepare(database, schema.MESSAGES, self.options.publish_timeout)
            self._declared = {}
            self._prepared = database.incarnation()
        return database

    def transaction(self) -> AbstractContextManager[Transaction]:
        """A transaction that does not take longer than it may."""
        return self.prepare().transaction(self.options.publish_timeout)

    def declare(self, queues: Collection[Queue]) -> None:
        self.prepare()
        if new := self._unknown(queues):
            with self.transaction() as transaction:
                messages.declare(transaction, new)
            self._remember(new)

    def publish(self, batch: Sequence[Outgoing]) -> None:
        deadline = time.monotonic() + self.options.publish_timeout
        routes: list[list[str]] = []
        try:
            database = self.prepare()
            for part in bounded(batch, _bytes_of):
                with database.transaction(max(0.0, deadline - time.monotonic())) as transaction:
                    new = self._unknown(_queues_of(part))
                    messages.declare(transaction, new)
                    found = messages.route(transaction, part)
                    messages.add(transaction, part, found)
                self._remember(new)
                routes += found
                self.ring(messages.ready_in(part, found))
        except OperationalError as exc:
            missing = [each for each, queues in zip_longest(batch, routes) if not queues]
            raise PublishFailed(str(exc), ids=[each.envelope.task_id for each in missing]) from exc
        check_routes(batch, routes)

    def publish_in(self, transaction: Any, batch: Sequence[Outgoing]) -> None:
        borrowed = self.database.borrow(transaction)
        from sqlalchemy.exc import DBAPIError  # who has such a transaction has imported it

        try:
            # Whatever is missing is made in their transaction: it may hold the lock that ours would wait for.
            if self.database.incarnation() != self._prepared:
                schema.create(self.database, borrowed, schema.MESSAGES)
            self.add(borrowed, batch)
        except DBAPIError as exc:
            raise OperationalError(f"cannot publish within the transaction: {exc.orig}") from exc

    def consumer(self, queues: Collection[Queue], *, name: str) -> SQLConsumer:
        self.declare(queues)
        return SQLConsumer(self, list(dict.fromkeys(queue.name for queue in queues)), name)

    def size(self, queue: str) -> QueueSize:
        now = messages.seconds(self.options.clock.now())
        with self.prepare().reading() as read:
            return QueueSize(*messages.count(read, queue, now))

    def purge(self, queue: str) -> int:
        with self.prepare().reading() as read:
            last = messages.last_id(read)
        purged = 0
        while True:
            with self.transaction() as transaction:
                found = messages.purge(transaction, queue, last)
            if not found:
                return purged
            purged += found

    def close(self) -> None:
        self.database.close()

    def add(self, transaction: Transaction, batch: Sequence[Outgoing]) -> Counter[str]:
        """Publish within a transaction that may yet be rolled back; returns how many will be ready, by queue.

        Raises `PublishFailed` for what no queue takes; the rest is added.
        """
        messages.declare(transaction, self._unknown(_queues_of(batch)))
        routes = messages.route(transaction, batch)
        messages.add(transaction, batch, routes)
        check_routes(batch, routes)
        return messages.ready_in(batch, routes)

    def added(self, batch: Sequence[Outgoing]) -> None:
        """That transaction was committed: the queues need not be declared again."""
        self._remember(self._unknown(_queues_of(batch)))

    def ring(self, ready: Counter[str]) -> None:
        """Wake as many of those who wait for these queues as there are messages for them."""
        if ready:
            self.database.ring([topic_of(queue) for queue in ready], ready.total())

    def _unknown(self, queues: Iterable[Queue]) -> list[Queue]:
        new: list[Queue] = []
        for queue in queues:
            if queue not in self._declared.get(queue.name, ()) and queue not in new:
                new.append(queue)
        return new

    def _remember(self, queues: Iterable[Queue]) -> None:
        for queue in queues:
            self._declared[queue.name] = [*self._declared.get(queue.name, ()), queue]


def _queues_of(batch: Sequence[Outgoing]) -> Iterator[Queue]:
    return (each.queue for each in batch if each.queue is not None)


def topic_of(queue: str) -> str:
    """What is rung for the messages of a queue."""
    return f"queue {queue}"


def _bytes_of(outgoing: Outgoing) -> int:
    return 500 + len(outgoing.envelope.body)


class Claim(NamedTuple):
    """The tag of a delivery: the row, and under which number it was claimed."""

    id: int
    holder: int


class SQLConsumer(Consumer):
    """What one worker has borrowed from a `SQLBroker`."""

    def __init__(self, broker: SQLBroker, queues: Sequence[str], name: str) -> None:
        self.broker = self._broker = broker
        self._name = name
        self._queues = queues
        self._clock = broker.options.clock
        #: The number under which we are registered and hold messages.
        self._holder = 0
        self._registering = threading.Lock()
        #: What our caller was given and did not settle.
        self._given: dict[Claim, Delivery] = {}
        #: Held while messages change hands: who looks for claims whose reply was lost must see none on its way.
        self._claiming = threading.Lock()
        #: The server may have given us what we do not know of.
        self._in_doubt = False
        #: When there will be a message, in seconds since 1970; 0 if there is one.
        self._next_due = math.inf
        self._watch = LeaseWatch[int](broker.options.lease)
        self._closed = False
        self._register(0)
        self.renew()  # a worker that died, and is started again, finds what it held
        self._waiter = broker.database.waiter([topic_of(queue) for queue in queues])

    # -- fetching ---------------------------------------------------------------------------------------------

    def fetch(self, limit: int, timeout: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + timeout
        deliveries = self._take(limit)
        if not deliveries:
            with self._waiter as waiter:
                while not (deliveries := self._take(limit)):
                    left = max(0.0, deadline - time.monotonic())
                    if waiter.wait(min(left, self._seconds_to_next())) or not left:
                        break
        return deliveries

    def held(self) -> Sequence[Delivery]:
        self._broker.prepare()
        with self._claiming:
            return self._not_given(None)

    def wake(self) -> None:
        self._waiter.wake()

    def _take(self, limit: int) -> Sequence[Delivery]:
        """What can be had without waiting."""
        if self._closed:
            return ()
        self._broker.prepare()
        with self._claiming:
            if self._in_doubt and (found := self._not_given(limit)):
                return found
            self._in_doubt = False
            return self._claim(limit) if self._look() <= self._now() else ()

    def _look(self) -> float:
        """Whether a claim is worth it: it would hold up every writer of the database."""
        with self._broker.database.reading() as read:
            dues = [due for queue in self._queues if (due := messages.next_due(read, queue)) is not None]
        self._next_due = min(dues, default=math.inf)
        return self._next_due

    def _claim(self, limit: int) -> list[Delivery]:
        holder = self._holder
        self._in_doubt = True
        with self._broker.transaction() as transaction:
            if registered := messages.is_registered(transaction, holder):
                claimed = messages.claim(transaction, self._queues, holder, limit, self._now())
            else:
                claimed = []
        self._in_doubt = False
        if not registered:
            self._register(holder)
            return self._claim(limit)
        if len(claimed) == limit:  # there may be more, for others who wait
            self._broker.ring(Counter(self._queues))
        return [self._give(each, holder) for each in claimed]

    def _not_given(self, limit: int | None) -> list[Delivery]:
        """What we hold and our caller does not know of."""
        holder = self._holder
        with self._broker.database.reading() as read:
            held = messages.held(read, self._queues, holder)
        unknown = [each for each in held if Claim(each.id, holder) not in self._given]
        return [self._give(each, holder) for each in unknown[:limit]]

    def _give(self, message: messages.Message, holder: int) -> Delivery:
        _, id, queue, attempts, redelivered, data = message
        claim = Claim(id, holder)
        delivery = Delivery(_decode(data), queue, claim, attempts + 1, bool(redelivered))
        self._given[claim] = delivery
        return delivery

    def _now(self) -> float:
        return messages.seconds(self._clock.now())

    def _seconds_to_next(self) -> float:
        """Until the next look: when a message becomes due (one that is may be about to be taken by somebody
        else), and soon enough to notice that the file is another one."""
        return min(max(0.001, self._next_due - self._now()), _PATIENCE)

    # -- settling ---------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Delivery]:
        if not settlements:
            return ()
        deliveries = [each.delivery for each in settlements]
        with self._broker.transaction() as transaction:
            held = self.still_held(transaction, deliveries)
            ready = self.carry_out(transaction, [each for each in settlements if each.delivery in held])
        self.let_go(deliveries)
        self._broker.ring(ready)
        return [each for each in deliveries if each not in held]

    def still_held(self, transaction: Transaction, deliveries: Sequence[Delivery]) -> set[Delivery]:
        """Those of `deliveries` that are ours still."""
        holder, given = self._holder, self._given
        ours = {
            each.tag.id: each
            for each in deliveries
            if each.tag.holder == holder and given.get(each.tag) is each
        }
        return {ours[id] for id in messages.held_by(transaction, holder, list(ours))}

    def carry_out(self, transaction: Transaction, settlements: Sequence[Settlement]) -> Counter[str]:
        """Carry out dispositions of deliveries that are ours; returns how many messages are ready now, by queue."""
        gone: list[int] = []
        returned: dict[bool, list[int]] = {True: [], False: []}
        dead: list[Outgoing] = []
        ready: Counter[str] = Counter()
        for each in settlements:
            delivery = each.delivery
            id: int = delivery.tag.id
            match each.disposition:
                case Ack():
                    gone.append(id)
                case Return(counted=counted):
                    returned[counted].append(id)
                    ready[delivery.queue] += 1
                case Defer(until=until, envelope=envelope):
                    if envelope is None:
                        messages.defer(transaction, id, until)
                    else:
                        messages.replace(transaction, id, until, envelope)
                case DeadLetter(reason=reason):
                    dead.append(dead_letter(delivery, reason, self._clock.now()))
                    gone.append(id)
        messages.delete(transaction, gone)
        for counted, ids in returned.items():
            messages.put_back(transaction, ids, counted=counted)
        return ready + self._broker.add(transaction, dead)

    def let_go(self, deliveries: Iterable[Delivery]) -> None:
        """These are settled, or lost."""
        for each in deliveries:
            if self._given.get(each.tag) is each:
                del self._given[each.tag]

    def unit(self, backend: ResultBackend) -> Unit:
        if isinstance(backend, SQLBackend) and backend.database is self._broker.database:
            return OneTransaction(self, self._broker, backend)
        return FencedUnit(self, self._broker, backend)

    # -- leases -----------------------------------------------------------------------------------------------

    def renew(self) -> Sequence[Delivery]:
        if not self._closed:
            asked = self._clock.monotonic()
            try:
                beats = self._beat()
            except OperationalError:
                self._watch.restart()
                raise
            dead = self._watch.look(beats, asked, self._clock.monotonic())
            ended = (holder for holder in beats if self._broker.database.has_ended(holder))
            for holder in dead.keys() | ended:
                self._bury(holder, beats[holder])
        lost = [each for each in list(self._given.values()) if each.tag.holder != self._holder]
        self.let_go(lost)
        return lost

    def _beat(self) -> dict[int, int]:
        """Add a heartbeat; returns everyone's."""
        while True:
            holder = self._holder
            with self._broker.transaction() as transaction:
                if messages.beat(transaction, holder):
                    return messages.beats(transaction)
            self._register(holder)

    def _bury(self, holder: int, beat: int) -> None:
        with self._broker.transaction() as transaction:
            ready = messages.bury(transaction, holder, beat)
        if ready is not None:
            self._broker.database.disappear(holder)
            self._broker.ring(ready)

    def _register(self, before: int) -> None:
        """Be known under a new number. Of the threads that find the one `before` gone, the first does it."""
        with self._registering:
            if self._holder == before:
                database = self._broker.prepare()
                holder = secrets.randbits(62) + 1
                database.appear(holder)
                try:
                    with self._broker.transaction() as transaction:
                        messages.register(transaction, holder, self._name, self._queues)
                except BaseException:
                    database.disappear(holder)
                    raise
                self._holder = holder
                database.disappear(before)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._waiter.close()
        # A fetch that is under way ends first: what it claims goes back too.
        with self._claiming, self._broker.transaction() as transaction:
            ready = messages.leave(transaction, self._holder, self._queues)
        self._given.clear()
        self._broker.database.disappear(self._holder)
        self._broker.ring(ready)


class FencedUnit(Unit):
    """Step by step, for a backend elsewhere."""

    def __init__(self, consumer: SQLConsumer, broker: SQLBroker, backend: ResultBackend) -> None:
        super().__init__(consumer, backend)
        self._broker = broker
        self._still_held = consumer.still_held

    def fence(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        with self._broker.prepare().reading() as read:
            held = self._still_held(read, deliveries)
        return [each for each in deliveries if each not in held]


class OneTransaction(Unit):
    """The same steps in one transaction, for a backend in the same database."""

    def __init__(self, consumer: SQLConsumer, broker: SQLBroker, backend: SQLBackend) -> None:
        super().__init__(consumer, backend)
        self._consumer = consumer
        self._broker = broker
        self._backend = backend

    def complete(self, batch: Sequence[Completion]) -> Sequence[Delivery]:
        # One transaction, however large: what is tried again after an error must not be half done.
        consumer, broker, backend = self._consumer, self._broker, self._backend
        deliveries = list(dict.fromkeys(each.delivery for each in batch if each.delivery is not None))
        settled = [each.settlement for each in batch if each.settlement]
        backend.prepare()
        with broker.transaction() as transaction:
            held = consumer.still_held(transaction, deliveries)
            kept = [each for each in batch if each.delivery is None or each.delivery in held]
            records = [each.record for each in kept if each.record]
            follow = [outgoing for each in kept for outgoing in each.follow]
            ready = broker.add(transaction, follow)
            backend.put_in(transaction, records)
            ready += consumer.carry_out(transaction, [each for each in settled if each.delivery in held])
        broker.added(follow)
        consumer.let_go([each.delivery for each in settled])
        broker.ring(ready)
        backend.ring(records)
        return [each for each in deliveries if each not in held]
