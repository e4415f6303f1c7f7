"""A worker inside the test's process, over memory: the worker's own code, without processes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from celeriac import Celeriac
from celeriac.backends.base import BackendOptions
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers.base import BrokerOptions, QueueSize
from celeriac.brokers.dead import DEAD_REASON
from celeriac.brokers.memory import MemoryBroker
from celeriac.errors import (
    ConnectionLost,
    Ignore,
    ImproperlyConfigured,
    NotRegistered,
    Reject,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    TimeoutError,
)
from celeriac.inprocess import InProcessWorker
from celeriac.testing.faults import FaultyBackend, FaultyBroker
from celeriac.testing.worker import running_worker
from celeriac.topology import Queue
from celeriac.worker.admission import UNKNOWN_HEADER, UNKNOWN_TRIES
from celeriac.worker.options import WorkerOptions
from celeriac.worker.worker import Shutdown
from support import dead_letters, eventually

NOTHING = QueueSize(0, 0, 0)


@pytest.fixture
def app() -> Iterator[Celeriac]:
    with in_memory() as app:
        yield app


def in_memory(**settings: Any) -> Celeriac:
    return Celeriac("tests", broker="memory://", backend="memory://", set_as_current=False, **settings)


class Gate:
    """Holds a task until the test opens it; says when the task is there."""

    def __init__(self) -> None:
        self.reached = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self) -> None:
        self.reached.release()
        assert self.open.wait(20)

    def wait(self) -> None:
        """Until a task waits at the gate."""
        assert self.reached.acquire(timeout=20)


def gated(app: Celeriac, gate: Gate) -> Any:
    @app.task(name="wait")
    def wait(number: int = 0) -> int:
        gate()
        return number

    return wait


def adder(app: Celeriac) -> Any:
    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    return add


# -- what becomes of tasks -----------------------------------------------------------------------------------


def test_a_task_runs_and_its_value_comes_back(app: Celeriac) -> None:
    add = adder(app)
    with running_worker(app):
        assert add.delay(2, 3).get(timeout=5) == 5
        with pytest.raises(TypeError, match="unsupported operand"):
            add.delay(2, "x").get(timeout=5)
    assert app.broker.size("celery") == NOTHING


def test_slots_work_at_the_same_time(app: Celeriac) -> None:
    meet = threading.Barrier(3)

    @app.task(name="meeting")
    def meeting() -> int:
        return meet.wait(10)

    with running_worker(app, concurrency=3):
        results = [meeting.delay() for _ in range(3)]
        assert sorted(each.get(timeout=10) for each in results) == [0, 1, 2]


def test_a_retry_goes_through_the_broker(app: Celeriac) -> None:
    seen: list[int] = []

    @app.task(name="flaky", bind=True, max_retries=2)
    def flaky(self: Any) -> int:
        seen.append(self.request.retries)
        if self.request.retries < 2:
            raise self.retry(countdown=0.01)
        return self.request.retries

    with running_worker(app):
        assert flaky.delay().get(timeout=5) == 2
    assert seen == [0, 1, 2]


def test_an_eta_is_kept(app: Celeriac) -> None:
    @app.task(name="clock")
    def clock() -> float:
        return time.time()

    with running_worker(app):
        begun = time.time()
        assert 0.2 <= clock.apply_async(countdown=0.2).get(timeout=5) - begun < 2


def test_ignore_and_reject_store_no_success(app: Celeriac) -> None:
    @app.task(name="ignored")
    def ignored() -> None:
        raise Ignore

    @app.task(name="rejected")
    def rejected() -> None:
        raise Reject("not for me")

    with running_worker(app):
        nothing, refused = ignored.delay(), rejected.delay()
        assert isinstance(refused.get(timeout=5, propagate=False), Reject)
        with pytest.raises(TimeoutError):
            nothing.get(timeout=0.05)
    assert [each.task_id for each in dead_letters(app)] == [refused.id]
    assert app.broker.size("celery") == NOTHING


def test_a_task_that_is_put_back_comes_again(app: Celeriac) -> None:
    tries: list[int] = []

    @app.task(name="reluctant")
    def reluctant() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise Reject("not now", requeue=True)
        return len(tries)

    with running_worker(app):
        assert reluctant.delay().get(timeout=5) == 3


def test_chains_links_and_states_work_as_with_processes(app: Celeriac) -> None:
    add = adder(app)
    gate = Gate()

    @app.task(name="slow", bind=True)
    def slow(self: Any) -> str:
        self.update_state(state="HALFWAY", meta=1)
        gate()
        return "done"

    with running_worker(app):
        assert (add.s(1, 2) | add.s(3)).apply_async().get(timeout=5) == 6
        result = slow.delay()
        gate.wait()
        eventually(lambda: (result.state, result.info) == ("HALFWAY", 1))
        gate.open.set()
        assert result.get(timeout=5) == "done"


def test_revoked_and_expired_tasks_do_not_run(app: Celeriac) -> None:
    ran: list[int] = []

    @app.task(name="note")
    def note(number: int) -> None:
        ran.append(number)

    revoked = note.delay(1)
    revoked.revoke()
    expired = note.apply_async((2,), countdown=0.05, expires=0.01)
    with running_worker(app):
        assert note.delay(3).get(timeout=5) is None
        expired.get(timeout=5, propagate=False)
    assert (revoked.state, expired.state, ran) == ("REVOKED", "REVOKED", [3])


def test_a_large_call_and_a_large_result_pass(app: Celeriac) -> None:
    @app.task(name="twice")
    def twice(data: str) -> str:
        return data + data

    with running_worker(app):
        assert len(twice.delay("x" * 1_000_000).get(timeout=10)) == 2_000_000


# -- limits --------------------------------------------------------------------------------------------------


def busy() -> None:
    while True:
        pass


def test_limits_are_raised_inside_threads(app: Celeriac) -> None:
    @app.task(name="soft", soft_time_limit=0.05)
    def soft() -> str:
        try:
            busy()
        except SoftTimeLimitExceeded:
            return "cleaned up"
        return ""

    @app.task(name="hard", time_limit=0.05)
    def hard() -> None:
        busy()

    add = adder(app)
    with running_worker(app):
        assert soft.delay().get(timeout=5) == "cleaned up"
        with pytest.raises(TimeLimitExceeded):
            hard.delay().get(timeout=5)
        assert add.delay(1, 2).get(timeout=5) == 3


# -- hand-out ------------------------------------------------------------------------------------------------


def test_priorities_are_kept(app: Celeriac) -> None:
    order: list[int] = []

    @app.task(name="note")
    def note(priority: int) -> None:
        order.append(priority)

    results = [note.apply_async((priority,), priority=priority) for priority in (0, 9, 3, 5)]
    with running_worker(app):
        for each in results:
            each.get(timeout=5)
    assert order == [9, 5, 3, 0]


def test_only_its_own_queues_are_consumed(app: Celeriac) -> None:
    add = adder(app)
    with running_worker(app, queues=("a", "b")):
        there = add.apply_async((1, 2), queue="b")
        add.apply_async((1, 2), queue="c")
        assert there.get(timeout=5) == 3
    assert app.broker.size("c").ready == 1


def test_an_unknown_task_is_put_off_and_at_last_dead_lettered(app: Celeriac) -> None:
    fresh = app.send_task("no.such")
    stale = app.send_task("no.such", headers={UNKNOWN_HEADER: UNKNOWN_TRIES})
    with running_worker(app):
        with pytest.raises(NotRegistered):
            stale.get(timeout=5)
        eventually(lambda: app.broker.size("celery").scheduled == 1)
    (dead,) = dead_letters(app)
    assert dead.task_id == stale.id
    assert "no.such" in dead.headers[DEAD_REASON]
    assert fresh.state == "PENDING"


def test_two_apps_have_two_workers_in_one_process(app: Celeriac) -> None:
    with in_memory() as other:
        where, there = whereabouts(app, threading.Barrier(1)), whereabouts(other, threading.Barrier(1))
        with running_worker(app, hostname="one@x"), running_worker(other, hostname="two@x"):
            assert [where.delay().get(timeout=5), there.delay().get(timeout=5)] == ["one@x", "two@x"]


def test_two_workers_of_one_app_share_the_work(app: Celeriac) -> None:
    where = whereabouts(app, threading.Barrier(2))
    with running_worker(app, hostname="one@x"), running_worker(app, hostname="two@x"):
        results = [where.delay() for _ in range(2)]
        assert sorted(each.get(timeout=5) for each in results) == ["one@x", "two@x"]


def whereabouts(app: Celeriac, together: threading.Barrier) -> Any:
    @app.task(name="where", bind=True)
    def where(self: Any) -> str:
        together.wait(20)
        return self.request.hostname

    return where


# -- the end -------------------------------------------------------------------------------------------------


def test_leaving_lets_the_running_end_and_gives_the_rest_back(app: Celeriac) -> None:
    gate = Gate()
    wait = gated(app, gate)
    with running_worker(app) as worker:
        running, waiting = wait.delay(1), [wait.delay(number) for number in range(2, 5)]
        gate.wait()
        worker.shut_down()
        eventually(lambda: "celeriac-fetch" not in [each.name for each in threading.enumerate()])
        gate.open.set()
    assert running.get(timeout=1) == 1
    assert app.broker.size("celery") == QueueSize(3, 0, 0)
    assert not any(each.ready() for each in waiting)


def test_it_may_be_stopped_twice(app: Celeriac) -> None:
    worker = InProcessWorker(
        app, WorkerOptions(app="tests", concurrency=1), servers=(app.broker, app.backend), quiet=True
    )
    executor = threading.Thread(target=worker.execute)
    executor.start()
    worker.start()
    worker.stop()
    worker.stop()
    executor.join(10)
    assert not executor.is_alive()


def test_a_worker_that_cannot_start_says_why() -> None:
    with Celeriac("tests", broker="gopher://there", set_as_current=False) as app:
        worker = InProcessWorker(app, WorkerOptions(app="tests", concurrency=1), quiet=True)
        executor = threading.Thread(target=worker.execute)
        executor.start()
        with pytest.raises(ImproperlyConfigured, match="gopher"):
            worker.start()
        executor.join(10)
        assert not executor.is_alive()


# -- servers that fail ---------------------------------------------------------------------------------------


@pytest.fixture
def servers() -> tuple[FaultyBroker, FaultyBackend]:
    options = BrokerOptions(lease=0.5)
    return (
        FaultyBroker(MemoryBroker("memory://", options)),
        FaultyBackend(MemoryBackend("memory://", BackendOptions())),
    )


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("method", ["fetch", "settle", "publish", "renew", "held", "complete"])
def test_a_broker_that_fails_three_times_costs_nothing(
    servers: tuple[FaultyBroker, FaultyBackend], method: str, moment: Any
) -> None:
    broker, backend = servers
    # Beside another kind of backend the unit is one call; beside a faulty one each step can fail.
    plain = method == "complete"
    with Celeriac(
        "tests",
        broker=broker,
        backend=backend.inner if plain else backend,
        set_as_current=False,
        worker_lease=0.5,
    ) as app:
        add = adder(app)
        results = [add.apply_async((number, 1), link=add.s(1)) for number in range(20)]
        broker.faults.fail(method, moment, moment, moment)
        with running_worker(app):
            assert [each.get(timeout=20) for each in results] == list(range(1, 21))
        assert broker.inner.size("celery").unsettled == 0


def test_a_worker_waits_for_a_broker_that_is_away_when_it_starts(
    servers: tuple[FaultyBroker, FaultyBackend],
) -> None:
    broker, backend = servers
    with Celeriac("tests", broker=broker, backend=backend, set_as_current=False) as app:
        add = adder(app)
        broker.faults.fail("consumer", *["before"] * 3)
        with running_worker(app):
            assert add.delay(1, 2).get(timeout=10) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"broker_connection_retry": False},
        {"broker_connection_retry_on_startup": False},
        {"broker_connection_max_retries": 1},
    ],
)
def test_a_worker_that_may_not_wait_for_its_broker_ends(
    servers: tuple[FaultyBroker, FaultyBackend], settings: dict[str, Any]
) -> None:
    broker, backend = servers
    broker.faults.fail("consumer", forever=True)
    with Celeriac("tests", broker=broker, backend=backend, set_as_current=False, **settings) as app:
        with pytest.raises(ConnectionLost), running_worker(app):
            pytest.fail("it started")


def test_a_worker_can_be_stopped_while_it_looks_for_its_broker(
    servers: tuple[FaultyBroker, FaultyBackend],
) -> None:
    broker, backend = servers
    broker.faults.fail("consumer", forever=True)
    with Celeriac("tests", broker=broker, backend=backend, set_as_current=False) as app:
        worker = InProcessWorker(
            app, WorkerOptions(app="tests", concurrency=1), servers=(broker, backend), quiet=True
        )
        starting = threading.Thread(target=worker.start)
        starting.start()
        eventually(lambda: worker.worker is not None)
        worker.stop()
        starting.join(10)
        assert not starting.is_alive()


def test_beside_what_may_have_killed_a_worker_nothing_is_held_in_wait(app: Celeriac) -> None:
    """A worker died of one message, nobody knows which: those that wait for it must not be counted again."""
    gate = Gate()
    wait = gated(app, gate)
    results = [wait.delay(number) for number in range(20)]
    broker = app.broker
    assert isinstance(broker, MemoryBroker)
    dead = broker.consumer([Queue("celery")], name="dead")
    assert len(dead.fetch(20, 0)) == 20
    with broker.server.changed:
        broker.server.remove(dead._holder, died=True)  # pyright: ignore[reportPrivateUsage]
    with running_worker(app, concurrency=2):
        gate.wait()
        gate.wait()
        eventually(lambda: broker.size("celery") == QueueSize(18, 0, 2))
        gate.open.set()
        assert [each.get(timeout=10) for each in results] == list(range(20))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("method", ["put", "get", "revoked"])
def test_a_backend_that_fails_three_times_costs_nothing(
    servers: tuple[FaultyBroker, FaultyBackend], method: str, moment: Any
) -> None:
    broker, backend = servers
    with Celeriac("tests", broker=broker, backend=backend, set_as_current=False) as app:
        add = adder(app)
        results = [add.delay(number, 1) for number in range(20)]
        backend.faults.fail(method, moment, moment, moment)
        with running_worker(app):
            eventually(lambda: all(map(stored, results)))
    assert broker.inner.size("celery") == NOTHING


def stored(result: Any) -> bool:
    """Whether the backend itself has it, whatever fails."""
    (record,) = result.backend.inner.get([result.id])
    return record is not None and record.state == "SUCCESS"


@pytest.mark.parametrize("method", ["settle", "complete"])
def test_an_early_acknowledgement_whose_answer_is_lost_loses_no_task(
    servers: tuple[FaultyBroker, FaultyBackend], method: str
) -> None:
    broker, backend = servers
    plain = backend.inner if method == "complete" else backend
    with Celeriac("tests", broker=broker, backend=plain, set_as_current=False) as app:

        @app.task(name="early", acks_late=False)
        def early(number: int) -> int:
            return number

        results = [early.delay(number) for number in range(5)]
        broker.faults.fail(method, "after", "after")
        with running_worker(app):
            assert [each.get(timeout=20) for each in results] == list(range(5))


@pytest.mark.parametrize("how", [Shutdown.WARM, Shutdown.COLD])
def test_a_worker_whose_broker_does_not_answer_an_early_acknowledgement_can_be_stopped(
    servers: tuple[FaultyBroker, FaultyBackend], how: Shutdown
) -> None:
    broker, backend = servers
    settings = {"worker_lease": 0.5}
    with Celeriac("tests", broker=broker, backend=backend, set_as_current=False, **settings) as app:

        @app.task(name="early", acks_late=False)
        def early() -> None: ...

        broker.faults.fail("settle", forever=True)
        with running_worker(app) as worker:
            early.delay()
            eventually(lambda: broker.inner.size("celery").unsettled == 1)
            worker.shut_down(how)


@pytest.mark.parametrize("moment", ["running", "ended"])
def test_where_ownership_is_a_connection_what_comes_back_is_not_run_again(
    servers: tuple[FaultyBroker, FaultyBackend], moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection breaks while a task runs; its message comes back to this worker before or after the task ended."""
    broker, backend = servers
    broker.traits = replace(broker.traits, leases=False)  # pyright: ignore[reportAttributeAccessIssue]
    gate, runs = Gate(), Counter[int]()
    with Celeriac("tests", broker=broker, backend=backend, set_as_current=False, worker_lease=0.5) as app:

        @app.task(name="once")
        def once(number: int) -> int:
            runs[number] += 1
            gate()
            return number

        with running_worker(app, concurrency=2) as worker:
            result = once.delay(1)
            gate.wait()
            broker.faults.fail("fetch", forever=True)
            worker._consumer.wake()  # pyright: ignore[reportPrivateUsage]
            eventually(lambda: "fetch was made to fail" in caplog.text)
            server = broker.inner.server  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
            with server.changed:
                (holder,) = [each for each in server._holders if each.held]
                server.remove(holder, died=False)
            if moment == "running":
                broker.faults.heal()
                eventually(lambda: broker.inner.size("celery").unsettled == 1)
            gate.open.set()
            if moment == "ended":
                eventually(lambda: worker._orphans._kept)  # pyright: ignore[reportPrivateUsage]
                broker.faults.heal()
            assert result.get(timeout=20) == 1
            eventually(lambda: broker.inner.size("celery") == NOTHING)
    assert runs == {1: 1}


def test_a_lost_lease_drops_the_outcome(servers: tuple[FaultyBroker, FaultyBackend]) -> None:
    """Somebody else has the message, and ends it, while the first worker, cut off from the broker, still runs it."""
    broker, backend = servers
    gate = Gate()
    first = threading.Event()
    with Celeriac("tests", broker=broker, backend=backend, set_as_current=False, worker_lease=0.5) as app:

        @app.task(name="where")
        def where() -> str:
            if not first.is_set():
                first.set()
                gate()
                return "first"
            return "second"

        with running_worker(app):
            result = where.delay()
            gate.wait()
            broker.faults.fail("renew", forever=True)
            with Celeriac(
                "tests", broker=broker.inner, backend=backend, set_as_current=False, worker_lease=0.5
            ) as twin:
                twin.tasks.register(app.tasks["where"])
                with running_worker(twin):
                    assert result.get(timeout=10) == "second"
            broker.faults.heal()
            gate.open.set()
    assert app.AsyncResult(result.id).get(timeout=1) == "second"
    assert broker.inner.size("celery") == NOTHING
