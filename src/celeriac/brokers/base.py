"""The seam to message servers: named queues of messages, each delivered at least once.

A *broker* publishes; a *consumer* is what one worker has borrowed. Ownership of a delivery is a *lease* of
its consumer, kept alive by `Consumer.renew`, not an age. A dead consumer is found by observation: its
heartbeat counter has not moved for one lease on the observer's own clock (see `brokers.lease`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from celeriac.backends.base import ResultBackend
from celeriac.brokers.bus import Bus
from celeriac.clock import Clock, SystemClock
from celeriac.errors import PublishFailed
from celeriac.topology import Queue
from celeriac.wire.disposition import Disposition
from celeriac.wire.envelope import Envelope, Outgoing
from celeriac.wire.record import Record

__all__ = [
    "Broker",
    "BrokerOptions",
    "BrokerTraits",
    "Completion",
    "Consumer",
    "Delivery",
    "QueueSize",
    "Settlement",
    "Unit",
]


def _no_options() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerOptions:
    """What every broker is told beside its URL."""

    #: Seconds from the call of `Broker.publish` to success or `PublishFailed`.
    publish_timeout: float = 5.0
    #: Seconds after which the messages of a silent consumer are handed out again.
    lease: float = 10.0
    #: ``broker_transport_options``.
    transport: Mapping[str, Any] = field(default_factory=_no_options)
    #: Seconds that opening a connection may take; None: as the driver has it.
    connect_timeout: float | None = 4.0
    #: ``broker_use_ssl``: False: as the URL says; True, or a mapping of certificates and how to verify.
    ssl: bool | Mapping[str, Any] = False
    #: Seconds between heartbeats on connections that have them; None: none.
    heartbeat: float | None = 6.0
    #: SASL mechanism, where the server knows several; None: the usual one.
    login_method: str | None = None
    #: Which of several servers is next: ``round-robin`` or ``shuffle``.
    failover: str = "round-robin"
    #: Connections that may be open to publish at once; None: as many as there are threads that do.
    pool_limit: int | None = 10
    #: Type of the queues in which messages for later wait, where the server has several types.
    delayed_queue_type: str = "quorum"
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerTraits:
    """What a broker can do, read by code and by the conformance suite."""

    #: Messages survive the process that published them.
    persistent: bool
    #: `Outgoing.due` and `Defer` are kept by the server; a due message needs no worker to hold it.
    delay: bool = True
    #: A higher priority is handed out first.
    priorities: bool = True
    #: Priorities count the other way here: `Outgoing.priority` 0 is the first to be handed out.
    smaller_first: bool = False
    #: Priorities between two of these are one; (): each number is a priority of its own.
    priority_steps: tuple[int, ...] = ()
    #: Messages of one queue and priority come in the order they were published.
    ordered: bool = True
    #: `Delivery.attempts` counts hand-outs, also those whose worker died.
    counts_attempts: bool = True
    #: Exchange types that `publish` resolves.
    exchanges: frozenset[str] = frozenset({"direct", "topic", "fanout", "headers"})
    #: Queues bound to a fanout exchange keep its messages; otherwise they reach whoever listens at that moment.
    stores_fanout: bool = True
    #: Ownership is a lease by heartbeat counter; otherwise it lasts as long as the consumer's connection.
    leases: bool = True
    #: What waits for its due instant is counted by `size` and deleted by `purge`.
    counts_scheduled: bool = True
    #: `Broker.publish_in` can use the caller's own transaction.
    transactional: bool = False


class Delivery(msgspec.Struct, frozen=True, eq=False):
    """A message that a consumer holds. Compared by identity: one object per hand-out."""

    envelope: Envelope
    #: Name of the queue it came from.
    queue: str
    #: The broker's own handle, with the claim token that fences it.
    tag: Any
    #: Which hand-out this is, 1 for the first; returns that are not counted do not add to it.
    attempts: int = 1
    #: Some consumer had it before.
    redelivered: bool = False


class Settlement(msgspec.Struct, frozen=True, eq=False):
    """Which delivery, and what becomes of it."""

    delivery: Delivery
    disposition: Disposition


class Completion(msgspec.Struct, frozen=True, eq=False):
    """One outcome to carry out: publish what follows, store the record, settle the delivery.

    Without a settlement it is a state on the way, whose delivery is the `fence`, or belongs to a delivery that
    was settled before it ran: then there is nothing to fence.
    """

    settlement: Settlement | None
    record: Record | None = None
    follow: Sequence[Outgoing] = ()
    #: A delivery that must still be held, although it is not settled now.
    fence: Delivery | None = None

    @property
    def delivery(self) -> Delivery | None:
        """The delivery that must still be held."""
        return self.fence if self.settlement is None else self.settlement.delivery


class QueueSize(msgspec.Struct, frozen=True):
    """Messages of one queue."""

    #: Could be handed out now.
    ready: int
    #: Wait for their due instant.
    scheduled: int
    #: Held by consumers.
    unsettled: int


class Broker(ABC):
    """Named queues of messages, each delivered at least once.

    Thread-safe; usable again after a fork; constructing does no I/O. Methods raise `ConnectionLost` when the
    server cannot be reached and `OperationalError` for what it refuses; nothing else that is not a bug.
    """

    schemes: ClassVar[tuple[str, ...]]
    traits: ClassVar[BrokerTraits]

    def __init__(self, url: str, options: BrokerOptions) -> None:
        self.url = url
        self.options = options

    @abstractmethod
    def declare(self, queues: Collection[Queue]) -> None:
        """Make these queues, their exchanges and bindings known; repeating it changes nothing."""

    @abstractmethod
    def publish(self, batch: Sequence[Outgoing]) -> None:
        """Hand over messages; returns when the server has every one.

        Raises `PublishFailed` naming those it does not have: unroutable (a named exchange, not fanout, with
        no matching binding), or not confirmed within ``publish_timeout``.
        """

    def publish_in(self, transaction: Any, batch: Sequence[Outgoing]) -> None:
        """Publish as part of the caller's own transaction (``traits.transactional``): a SQLAlchemy
        ``Connection`` or ``Session`` on the same database. Nothing is visible before the caller commits.

        Raises `TypeError` where this broker has no transactions to share.
        """
        raise TypeError(
            f"{type(self).__name__} cannot publish in a transaction of {type(transaction).__name__}"
        )

    @abstractmethod
    def consumer(self, queues: Collection[Queue], *, name: str) -> Consumer:
        """Register a consumer (declares its queues). `name` is for people: the worker's node name."""

    @abstractmethod
    def size(self, queue: str) -> QueueSize:
        """Count the messages of a queue; zeros for one that does not exist."""

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Delete what waits in a queue, scheduled messages too, and say how many. Held ones stay."""

    def bus(self) -> Bus | None:
        """What broadcasts through the same server; None where it cannot."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release connections; the object may be used again afterwards."""


class Consumer(ABC):
    """What one worker has borrowed.

    `settle`, `renew`, `wake` and a `unit` may be used beside a blocked `fetch`, each from one thread at a
    time; `wake` from any thread and from a signal handler. After `ConnectionLost` the consumer may be used
    again: the next `fetch` also hands out what the server says this consumer holds and the caller never got.
    """

    broker: Broker

    @abstractmethod
    def fetch(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Wait for at least one message, return at most `limit` >= 1; nothing after `timeout` or a wake.

        Highest priority first, then oldest; due messages only. Raises `ConnectionLost`.
        """

    @abstractmethod
    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Delivery]:
        """Carry out dispositions; returns the deliveries whose lease was lost meanwhile (nothing is done for them)."""

    @abstractmethod
    def renew(self) -> Sequence[Delivery]:
        """Heartbeat of every lease of this consumer, and a look for consumers that died.

        To be called every ``lease / 5`` seconds. Returns the deliveries it no longer holds (its own lease was
        lost): their work must be given up. Must not wait for a stuck fetch.
        """

    @abstractmethod
    def held(self) -> Sequence[Delivery]:
        """What the server says this consumer holds and no caller was given: claims whose reply was lost."""

    @abstractmethod
    def wake(self) -> None:
        """Make a blocked `fetch` return now."""

    @abstractmethod
    def close(self) -> None:
        """Leave: what is unsettled goes back to the front of its queue at once, not counted as an attempt."""

    def unit(self, backend: ResultBackend) -> Unit:
        """How completions are carried out against this backend: in one transaction where both share a server."""
        return Unit(self, backend)


class Unit:
    """Carries out completions: publish what follows → store the records → settle, in this order.

    This one is for a broker and a backend that share nothing: each step is done for the whole batch before
    the next, so that a crash between two of them repeats work and never loses it. A consumer on the same
    server as the backend returns a subclass that does it in one transaction.
    """

    def __init__(self, consumer: Consumer, backend: ResultBackend) -> None:
        self.consumer = consumer
        self.backend = backend
        #: What a batch that failed had published: when it is tried again, that is not published again.
        self._published: list[Outgoing] = []

    def complete(self, batch: Sequence[Completion]) -> Sequence[Delivery]:
        """Carry out a batch. Returns the deliveries that were no longer held: for those, nothing was done
        (no record, no follow-up), or nothing that the next holder does not repeat."""
        fenced = dict.fromkeys(c.delivery for c in batch if c.delivery is not None)
        lost = set(self.fence(list(fenced)))
        kept = [c for c in batch if c.delivery not in lost]
        self._publish([outgoing for c in kept for outgoing in c.follow])
        records = [c.record for c in kept if c.record]
        if records:
            self.backend.put(records)
        settlements = [c.settlement for c in kept if c.settlement]
        late = self.consumer.settle(settlements) if settlements else ()
        self._published.clear()
        return [*lost, *late]

    def _publish(self, follow: Sequence[Outgoing]) -> None:
        done = {id(each) for each in self._published}
        left = [each for each in follow if id(each) not in done]
        if not left:
            return
        try:
            self.consumer.broker.publish(left)
        except PublishFailed as exc:
            self._published += [each for each in left if each.envelope.task_id not in exc.ids]
            raise
        self._published += left

    def fence(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Those of `deliveries` that are no longer held, by one cheap round trip; [] where none can be had."""
        return ()
