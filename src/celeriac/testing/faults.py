"""Servers that fail on demand: wrappers around any broker and any result backend.

::

    broker = FaultyBroker(MemoryBroker("memory://", BrokerOptions()))
    broker.faults.fail("publish")                        # the next one does not reach the server
    broker.faults.fail("fetch", "after")                 # the next claim succeeds, its reply is lost
    broker.faults.fail("settle", "before", None, "after")  # the first and the third from now on
    broker.faults.fail("renew", forever=True)            # until heal()
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any, ClassVar, Literal

from celeriac.backends.base import ResultBackend, Watcher
from celeriac.brokers.base import Broker, Completion, Consumer, Delivery, QueueSize, Settlement, Unit
from celeriac.brokers.bus import Bus
from celeriac.errors import CeleriacError, ConnectionLost, OperationalError, PublishFailed
from celeriac.topology import Queue
from celeriac.wire.envelope import Outgoing
from celeriac.wire.record import Group, Record

__all__ = ["Faults", "FaultyBackend", "FaultyBroker", "Moment"]

#: When a call fails: before it reached the server, or after the server did it, when the reply is lost.
Moment = Literal["before", "after"]


class Faults:
    """Which calls fail, and when. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plans: defaultdict[str, deque[Moment | None]] = defaultdict(deque)
        self._forever: dict[str, Moment] = {}

    def fail(self, method: str, *moments: Moment | None, forever: bool = False) -> None:
        """Let the next calls of `method` fail, one for each of `moments`; None lets one pass.

        Without any it is the next call, ``"before"``. `forever`: all that follow too, like the last.
        """
        moments = moments or ("before",)
        with self._lock:
            self._plans[method].extend(moments)
            if forever and moments[-1]:
                self._forever[method] = moments[-1]

    def heal(self) -> None:
        """From now on all goes well."""
        with self._lock:
            self._plans.clear()
            self._forever.clear()

    @contextmanager
    def around(self, method: str, error: CeleriacError | None = None) -> Generator[None]:
        """Run one call of `method`, or let it fail as planned with `error` (default: `ConnectionLost`)."""
        with self._lock:
            plan = self._plans[method]
            moment = plan.popleft() if plan else self._forever.get(method)
        error = error or ConnectionLost(f"{method} was made to fail {moment} it was done")
        if moment == "before":
            raise error
        yield
        if moment == "after":
            raise error


class FaultyBroker(Broker):
    """A broker in front of another, which fails as `faults` says.

    Methods that can fail: ``publish``, ``declare``, ``consumer``, ``size``, ``purge``, and of its consumers ``fetch``,
    ``settle``, ``renew``, ``held``, ``complete`` (of a unit).
    """

    schemes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, inner: Broker, faults: Faults | None = None) -> None:
        super().__init__(inner.url, inner.options)
        self.inner = inner
        self.faults = faults or Faults()
        self.traits = inner.traits  # pyright: ignore[reportAttributeAccessIssue] as the wrapped one's class

    def declare(self, queues: Collection[Queue]) -> None:
        with self.faults.around("declare"):
            self.inner.declare(queues)

    def publish(self, batch: Sequence[Outgoing]) -> None:
        ids = [each.envelope.task_id for each in batch]
        with self.faults.around("publish", PublishFailed("publish was made to fail", ids=ids)):
            self.inner.publish(batch)

    def publish_in(self, transaction: Any, batch: Sequence[Outgoing]) -> None:
        with self.faults.around("publish_in"):
            self.inner.publish_in(transaction, batch)

    def consumer(self, queues: Collection[Queue], *, name: str) -> FaultyConsumer:
        with self.faults.around("consumer"):
            return FaultyConsumer(self, self.inner.consumer(queues, name=name))

    def size(self, queue: str) -> QueueSize:
        with self.faults.around("size"):
            return self.inner.size(queue)

    def purge(self, queue: str) -> int:
        with self.faults.around("purge"):
            return self.inner.purge(queue)

    def bus(self) -> Bus | None:
        return self.inner.bus()

    def close(self) -> None:
        self.inner.close()


class FaultyConsumer(Consumer):
    """A consumer whose replies can be lost. It does what every consumer must: what a lost reply would have
    brought is handed out by the next `fetch`, or by `held`."""

    def __init__(self, broker: FaultyBroker, inner: Consumer) -> None:
        self.broker = broker
        self.inner = inner
        self._faults = broker.faults
        self._lock = threading.Lock()
        #: Claimed, and the reply was lost.
        self._unheard: list[Delivery] = []

    def fetch(self, limit: int, timeout: float) -> Sequence[Delivery]:
        with self._lock:
            heard, self._unheard = self._unheard[:limit], self._unheard[limit:]
        if heard:
            return heard
        deliveries: Sequence[Delivery] = ()
        try:
            with self._faults.around("fetch"):
                deliveries = self.inner.fetch(limit, timeout)
        except ConnectionLost:
            with self._lock:
                self._unheard += deliveries
            raise
        return deliveries

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Delivery]:
        with self._faults.around("settle"):
            return self.inner.settle(settlements)

    def renew(self) -> Sequence[Delivery]:
        with self._faults.around("renew"):
            lost = self.inner.renew()
            with self._lock:
                never_given = [each for each in self._unheard if each in lost]
                self._unheard = [each for each in self._unheard if each not in lost]
            return [each for each in lost if each not in never_given]

    def held(self) -> Sequence[Delivery]:
        with self._faults.around("held"):
            with self._lock:
                heard, self._unheard = self._unheard, []
            return [*heard, *self.inner.held()]

    def wake(self) -> None:
        self.inner.wake()

    def close(self) -> None:
        self.inner.close()

    def unit(self, backend: ResultBackend) -> Unit:
        """Beside a `FaultyBackend` the steps are done one by one, so that each can fail; beside any other
        backend the unit is the inner consumer's, and fails as a whole (``complete``)."""
        if isinstance(backend, FaultyBackend):
            return Unit(self, backend)
        return FaultyUnit(self, backend, self._faults)


class FaultyUnit(Unit):
    """The unit of another consumer."""

    def __init__(self, consumer: FaultyConsumer, backend: ResultBackend, faults: Faults) -> None:
        super().__init__(consumer, backend)
        self._inner = consumer.inner.unit(backend)
        self._faults = faults

    def complete(self, batch: Sequence[Completion]) -> Sequence[Delivery]:
        with self._faults.around("complete"):
            return self._inner.complete(batch)

    def fence(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        return self._inner.fence(deliveries)


class FaultyBackend(ResultBackend):
    """A result backend in front of another, which fails as `faults` says. Every method but `close` can fail,
    by its name, with `OperationalError`; of its watchers ``wait``."""

    schemes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, inner: ResultBackend, faults: Faults | None = None) -> None:
        super().__init__(inner.url, inner.options)
        self.inner = inner
        self.faults = faults or Faults()
        self.traits = inner.traits  # pyright: ignore[reportAttributeAccessIssue] as the wrapped one's class

    def put(self, records: Sequence[Record]) -> None:
        with self._around("put"):
            self.inner.put(records)

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        with self._around("get"):
            return self.inner.get(ids)

    def watch(self, ids: Collection[str], timeout: float | None) -> Iterator[Record]:
        with self._around("watch"):
            return self.inner.watch(ids, timeout)

    def watcher(self) -> FaultyWatcher:
        with self._around("watcher"):
            return FaultyWatcher(self, self.inner.watcher())

    def forget(self, ids: Sequence[str]) -> None:
        with self._around("forget"):
            self.inner.forget(ids)

    def save_group(self, group: Group) -> None:
        with self._around("save_group"):
            self.inner.save_group(group)

    def load_group(self, group_id: str) -> Group | None:
        with self._around("load_group"):
            return self.inner.load_group(group_id)

    def forget_group(self, group_id: str) -> None:
        with self._around("forget_group"):
            self.inner.forget_group(group_id)

    def join(self, chord: str, index: int, record: Record, size: int) -> Sequence[Record] | None:
        with self._around("join"):
            return self.inner.join(chord, index, record, size)

    def finish_chord(self, chord: str) -> bool:
        with self._around("finish_chord"):
            return self.inner.finish_chord(chord)

    def revoke(self, ids: Sequence[str], *, until: datetime) -> None:
        with self._around("revoke"):
            self.inner.revoke(ids, until=until)

    def revoked(self, after: int) -> tuple[int, Mapping[str, datetime]]:
        with self._around("revoked"):
            return self.inner.revoked(after)

    def close(self) -> None:
        self.inner.close()

    def _around(self, method: str) -> AbstractContextManager[None]:
        return self.faults.around(method, OperationalError(f"{method} was made to fail"))


class FaultyWatcher(Watcher):
    """A watcher whose waits can fail. Records that came in vain come again, as every watcher has it."""

    def __init__(self, backend: FaultyBackend, inner: Watcher) -> None:
        self._backend = backend
        self._inner = inner

    def add(self, ids: Collection[str]) -> None:
        self._inner.add(ids)

    def discard(self, ids: Collection[str]) -> None:
        self._inner.discard(ids)

    def wait(self, timeout: float | None) -> Sequence[Record]:
        found: Sequence[Record] = ()
        try:
            with self._backend.faults.around("wait", OperationalError("wait was made to fail")):
                found = self._inner.wait(timeout)
        except OperationalError:
            self._inner.add([each.task_id for each in found])
            raise
        return found

    def wake(self) -> None:
        self._inner.wake()

    def close(self) -> None:
        self._inner.close()
