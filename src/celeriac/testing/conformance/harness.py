"""What the parts of `BrokerConformance` share: how to open the broker under test, and words for tests."""

from __future__ import annotations

import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, ClassVar, Generic, Protocol, TypeVar
from uuid import uuid4

import pytest

from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers.base import Broker, BrokerOptions, Consumer, Delivery
from celeriac.testing.clock import MovableClock
from celeriac.topology import Queue
from celeriac.wire.envelope import Envelope, Outgoing

__all__ = [
    "LEASE",
    "MOMENT",
    "PATIENCE",
    "BrokerHarness",
    "Consume",
    "InThread",
    "assert_nothing",
    "await_ready",
    "envelope",
    "ids",
    "in_fork",
    "let_pass",
    "outgoing",
    "priority_of",
    "take",
]

T = TypeVar("T")

#: The lease of the brokers under test, seconds of the movable clock.
LEASE = 10.0
#: Real seconds a test waits for what has to come; only a failing test waits so long.
PATIENCE = 20.0
#: Real seconds a test waits for what must not come.
MOMENT = 0.05


class Consume(Protocol):
    """Makes a consumer that the test's end closes."""

    def __call__(self, *queues: Queue, on: Broker | None = None, name: str = "worker@test") -> Consumer: ...


class BrokerHarness:
    """The hooks that a subclass fills in, and the fixtures that tests take."""

    #: A unit with the backend of `open_backend` is one transaction.
    atomic: ClassVar[bool] = False
    #: The server keeps the schedule by a clock of its own: tests of it take their time.
    real_time: ClassVar[bool] = False

    @property
    def soon(self) -> float:
        """Seconds that a message for later waits in a test."""
        return 1.4 if self.real_time else 30.0

    def pass_time(self, clock: MovableClock, seconds: float) -> None:
        """Let time pass, for the broker and for its server."""
        if self.real_time:
            time.sleep(seconds)
        clock.advance(seconds)

    def scheduled(self, broker: Broker, number: int) -> int:
        """How many of `number` messages for later `Broker.size` counts."""
        return number if broker.traits.counts_scheduled else 0

    def needs_leases(self, broker: Broker) -> None:
        if not broker.traits.leases:
            pytest.skip("what a consumer holds lasts as long as its connection")

    @pytest.fixture
    def server(self) -> Any:
        """A fresh place for one test, in whatever form `open` takes it: a path, a URL, nothing. Override."""
        return None

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        """A broker on `server`. Called again by tests that want a second one on the same."""
        raise NotImplementedError

    def open_backend(self, server: Any, options: BackendOptions) -> ResultBackend:
        """A result backend, on the same server where it can be."""
        return MemoryBackend("memory://", options)

    def lose_reply(self, consumer: Consumer) -> AbstractContextManager[None]:
        """While it lasts, a fetch claims messages at the server and raises `ConnectionLost`: break the way
        back, below the consumer."""
        pytest.skip("override lose_reply() to test claims whose reply is lost")

    def transaction(self, server: Any) -> AbstractContextManager[Any]:
        """A transaction for `Broker.publish_in`, committed at the end, rolled back by an exception."""
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> MovableClock:
        return MovableClock()

    @pytest.fixture
    def broker(self, server: Any, clock: MovableClock) -> Iterator[Broker]:
        broker = self.open(server, BrokerOptions(lease=LEASE, clock=clock))
        yield broker
        broker.close()

    @pytest.fixture
    def other(self, server: Any, broker: Broker) -> Iterator[Broker]:
        """What another process would open; the same object where messages do not leave the process."""
        if not broker.traits.persistent:
            yield broker
            return
        other = self.open(server, broker.options)
        yield other
        other.close()

    @pytest.fixture
    def backend(self, server: Any, clock: MovableClock) -> Iterator[ResultBackend]:
        backend = self.open_backend(server, BackendOptions(clock=clock))
        yield backend
        backend.close()

    @pytest.fixture
    def queue(self) -> Queue:
        return Queue(f"q-{uuid4().hex[:12]}")

    @pytest.fixture
    def consume(self, broker: Broker) -> Iterator[Consume]:
        opened: list[Consumer] = []

        def consume(*queues: Queue, on: Broker | None = None, name: str = "worker@test") -> Consumer:
            consumer = (on or broker).consumer(queues, name=name)
            opened.append(consumer)
            return consumer

        yield consume
        for each in opened:
            each.close()


def envelope(id: str = "", body: bytes = b"[[], {}, {}]", *, priority: int = 0, **headers: Any) -> Envelope:
    """A message as a client would send it."""
    id = id or str(uuid4())
    return Envelope(
        body,
        "application/json",
        "utf-8",
        {"lang": "py", "task": "tasks.add", "id": id, **headers},
        {"correlation_id": id, "reply_to": "", "delivery_mode": 2, "priority": priority},
    )


def priority_of(broker: Broker, rank: int) -> int:
    """A priority on this broker: the larger the rank, 0 to 3, the sooner a message is handed out."""
    traits = broker.traits
    steps = traits.priority_steps or (0, 3, 6, 9)
    return steps[3 - rank] if traits.smaller_first else steps[rank]


def outgoing(queue: Queue, id: str = "", *, priority: int = 0, due: datetime | None = None) -> Outgoing:
    """A message for one queue, which it brings along."""
    return Outgoing(envelope(id, priority=priority), "", queue.name, priority, due, queue)


def ids(deliveries: Iterable[Delivery]) -> list[str]:
    return [each.envelope.task_id for each in deliveries]


def take(consumer: Consumer, number: int) -> list[Delivery]:
    """Fetch until `number` deliveries are there; a fetch may bring fewer than it could."""
    taken: list[Delivery] = []
    while len(taken) < number:
        fetched = consumer.fetch(number - len(taken), PATIENCE)
        assert fetched, f"only {len(taken)} of {number} messages came"
        taken += fetched
    return taken


def await_ready(broker: Broker, queue: Queue, number: int) -> None:
    """Wait until that many messages of a queue can be handed out."""
    deadline = time.monotonic() + PATIENCE
    while broker.size(queue.name).ready != number:
        assert time.monotonic() < deadline, f"{broker.size(queue.name)}"
        time.sleep(0.01)


def assert_nothing(consumer: Consumer) -> None:
    """Nothing can be fetched now."""
    assert ids(consumer.fetch(10, MOMENT)) == []


def let_pass(clock: MovableClock, seconds: float, *alive: Consumer) -> Sequence[Delivery]:
    """Move the clock while those `alive` renew as often as they should; returns what they lost."""
    lost: list[Delivery] = []
    step = LEASE / 5
    for _ in range(round(seconds / step)):
        clock.advance(step)
        for consumer in alive:
            lost += consumer.renew()
    return lost


def in_fork(function: Callable[[], object]) -> None:
    """Run a function in a forked child, and wait for it to succeed."""
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: threads and fork
        child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:  # noqa: BLE001 the child must not run on as a second pytest
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class InThread(Generic[T]):
    """Runs a function on a thread of its own; `result` waits for what it returns or raises.

    Returns when the thread is about to call it: a function that waits very likely does so then.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._about_to_call = threading.Event()
        self._thread.start()
        self._about_to_call.wait()

    def _run(self) -> None:
        self._about_to_call.set()
        try:
            self._outcome.append(self._function())
        except BaseException as exc:  # noqa: BLE001 raised again by result()
            self._error = exc

    def is_running(self) -> bool:
        """Whether the function has not ended yet."""
        return self._thread.is_alive()

    def result(self) -> T:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it does not end"
        if self._error is not None:
            raise self._error
        return self._outcome[0]
