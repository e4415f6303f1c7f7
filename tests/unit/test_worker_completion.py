"""Outcomes are carried out in batches, tried until they succeed, and dropped where the lease is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from celeriac.backends.base import BackendOptions
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers.base import BrokerOptions, Completion, Delivery, Settlement, Unit
from celeriac.brokers.memory import MemoryBroker, MemoryConsumer
from celeriac.clock import SystemClock
from celeriac.errors import ConnectionLost, OperationalError
from celeriac.topology import Queue
from celeriac.wire.disposition import ACK, DeadLetter, Defer, Disposition, Return
from celeriac.wire.envelope import Envelope, Outgoing
from celeriac.wire.frames import TaskInfo
from celeriac.wire.record import Record
from celeriac.worker.completion import Completer, completion_of
from celeriac.worker.work import Work
from support import eventually


def envelope(id: str) -> Envelope:
    return Envelope(b"[]", "application/json", "utf-8", {"task": "t", "id": id}, {})


def record(id: str) -> Record:
    return Record(task_id=id, state="SUCCESS", result=b"1", date_done=datetime.now(UTC))


class Bench:
    """A completer over memory, and what it reported."""

    def __init__(self) -> None:
        self.broker = MemoryBroker("memory://", BrokerOptions())
        self.backend = MemoryBackend("memory://", BackendOptions())
        self.consumer: MemoryConsumer = self.broker.consumer([Queue("q")], name="w")
        self.crash: list[BaseException] = []

    def borrow(self, *ids: str) -> list[Delivery]:
        self.broker.publish([Outgoing(envelope(id), "", "q") for id in ids])
        return list(self.consumer.fetch(len(ids), 5))

    def completer(self, unit: Unit | None = None) -> Completer:
        return Completer(
            unit or self.consumer.unit(self.backend),
            self.consumer,
            call=lambda report: report(),
            crashed=self.crash.append,
        )


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    yield one
    one.consumer.close()
    assert one.crash == []


def run(completer: Completer, completions: Sequence[Completion]) -> list[bool]:
    """Carry out completions; what was reported for each."""
    reported: list[bool] = []
    for each in completions:
        completer.submit(each, reported.append)
    completer.start()
    assert completer.stop(timeout=20)
    return reported


def test_outcomes_are_recorded_and_settled(bench: Bench) -> None:
    deliveries = bench.borrow("a", "b")
    completions = [Completion(Settlement(each, ACK), record(each.envelope.task_id)) for each in deliveries]
    assert run(bench.completer(), completions) == [True, True]
    assert [each and each.state for each in bench.backend.get(["a", "b"])] == ["SUCCESS", "SUCCESS"]
    assert bench.broker.size("q").unsettled == 0


def test_what_piles_up_is_one_unit(bench: Bench) -> None:
    sizes: list[int] = []

    class Counting(Unit):
        def complete(self, batch: Sequence[Completion]) -> Sequence[Delivery]:
            sizes.append(len(batch))
            return super().complete(batch)

    deliveries = bench.borrow(*map(str, range(300)))
    completer = bench.completer(Counting(bench.consumer, bench.backend))
    assert run(completer, [Completion(Settlement(each, ACK)) for each in deliveries]) == [True] * 300
    assert sizes == [300]


def test_a_lost_server_is_tried_again(bench: Bench) -> None:
    failures = iter([ConnectionLost("gone"), ConnectionLost("still gone")])

    class Flaky(Unit):
        def complete(self, batch: Sequence[Completion]) -> Sequence[Delivery]:
            for failure in failures:
                raise failure
            return super().complete(batch)

    (delivery,) = bench.borrow("a")
    completer = bench.completer(Flaky(bench.consumer, bench.backend))
    assert run(completer, [Completion(Settlement(delivery, ACK), record("a"))]) == [True]
    assert bench.backend.get(["a"])[0] is not None


def test_a_lost_lease_is_reported_and_nothing_is_stored(bench: Bench) -> None:
    (delivery,) = bench.borrow("a")
    bench.consumer.settle([Settlement(delivery, Return())])
    assert run(bench.completer(), [Completion(Settlement(delivery, ACK), record("a"))]) == [False]
    assert bench.backend.get(["a"]) == [None]


def test_what_no_queue_takes_is_dead_lettered_and_the_rest_carried_out(bench: Bench) -> None:
    first, second = bench.borrow("a", "b")
    nowhere = Outgoing(envelope("next"), "no-such-exchange", "key")
    reported = run(
        bench.completer(),
        [
            Completion(Settlement(first, ACK), record("a"), [nowhere]),
            Completion(Settlement(second, ACK), record("b")),
        ],
    )
    assert reported == [True, True]
    assert bench.broker.size("q.dead").ready == 1
    assert bench.backend.get(["b"])[0] is not None


def test_forgotten_deliveries_are_not_tried_for_ever(bench: Bench) -> None:
    (delivery,) = bench.borrow("a")
    blocked = threading.Event()

    class Down(Unit):
        def complete(self, batch: Sequence[Completion]) -> Sequence[Delivery]:
            blocked.set()
            raise ConnectionLost("gone")

    reported: list[bool] = []
    completer = bench.completer(Down(bench.consumer, bench.backend))
    completer.submit(Completion(Settlement(delivery, ACK)), reported.append)
    completer.start()
    assert blocked.wait(20)
    completer.forget([delivery])
    assert completer.stop(timeout=20)
    assert reported == [False]


@pytest.mark.parametrize(
    ("disposition", "queue", "size"),
    [
        (Return(), "q", "ready"),
        (Defer(datetime.now(UTC) + timedelta(hours=1), envelope("again")), "q", "scheduled"),
        (DeadLetter("why"), "q.dead", "ready"),
    ],
)
def test_a_delivery_that_was_settled_first_is_published_anew(
    bench: Bench, disposition: Disposition, queue: str, size: str
) -> None:
    (delivery,) = bench.borrow("a")
    bench.consumer.settle([Settlement(delivery, ACK)])
    work = Work(delivery, "t", TaskInfo(acks_late=False))
    work.settled = True
    completion = completion_of(work, disposition, SystemClock())
    assert completion.settlement is None
    assert run(bench.completer(), [completion]) == [True]
    assert getattr(bench.broker.size(queue), size) == 1


class Picky(Unit):
    """Takes everything but the SUCCESS of the task `big`."""

    def __init__(self, inner: Unit) -> None:
        super().__init__(inner.consumer, inner.backend)
        self._inner = inner

    def complete(self, batch: Sequence[Completion]) -> Sequence[Delivery]:
        for each in batch:
            if each.record is not None and (each.record.task_id, each.record.state) == ("big", "SUCCESS"):
                raise OperationalError("too big")
        return self._inner.complete(batch)


def test_what_the_servers_refuse_holds_up_nothing_and_is_given_up_at_last(bench: Bench) -> None:
    names = ["big", *"abcdefg"]
    completer = bench.completer(Picky(bench.consumer.unit(bench.backend)))
    for each in bench.borrow(*names):
        completer.submit(Completion(Settlement(each, ACK), record(each.envelope.task_id)))
    completer.start()
    eventually(lambda: None not in bench.backend.get(list("abcdefg")))
    assert list(bench.backend.get(["big"])) == [None]

    def is_given_up() -> bool:
        (later,) = bench.borrow("later")
        completer.submit(Completion(Settlement(later, ACK), record("later")))
        return bench.backend.get(["big"]) != [None]

    eventually(is_given_up)
    assert completer.stop(timeout=20)
    (given_up,) = bench.backend.get(["big"])
    assert (
        given_up is not None
        and given_up.state == "FAILURE"
        and b"cannot be stored: too big" in given_up.result
    )
    assert bench.broker.size("q.dead").ready == 1
    assert bench.broker.size("q").unsettled == 0
