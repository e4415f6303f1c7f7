"""Sending from coroutines: what is sent together is published together, and each call ends as a blocking one would."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from celeriac import AsyncResult, Celeriac, EagerResult, signals
from celeriac.aio import bridge
from celeriac.brokers.base import BrokerOptions
from celeriac.brokers.memory import MemoryBroker
from celeriac.errors import AlwaysEagerIgnored, ImproperlyConfigured, PublishFailed
from celeriac.request import Request, current
from celeriac.testing.conformance.harness import in_fork
from celeriac.testing.faults import FaultyBroker
from celeriac.wire.envelope import Outgoing
from celeriac.wire.message import Message
from support import eventually

T = TypeVar("T")


class Recording(FaultyBroker):
    """Notes what it is given, and publishes it when the gate is open."""

    def __init__(self) -> None:
        super().__init__(MemoryBroker("memory://", BrokerOptions()))
        self.batches: list[list[str]] = []
        self.reached = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def publish(self, batch: Sequence[Outgoing]) -> None:
        self.batches.append([each.envelope.task_id for each in batch])
        self.reached.release()
        assert self.gate.wait(20)
        super().publish(batch)

    @property
    def ids(self) -> list[str]:
        return [id for batch in self.batches for id in batch]

    def ready(self, queue: str = "celery") -> int:
        return self.inner.size(queue).ready


@pytest.fixture
def broker() -> Recording:
    return Recording()


@pytest.fixture
def app(broker: Recording) -> Iterator[Celeriac]:
    with app_on(broker) as app:
        yield app
    assert threads() == []


def app_on(broker: Any, **settings: Any) -> Celeriac:
    app = Celeriac("t", broker=broker, backend="memory://", set_as_current=False, **settings)

    @app.task(name="t.add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return app


def threads(name: str = "celeriac-publish") -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == name]


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it in an event loop that nobody complains to."""
    complaints: list[dict[str, Any]] = []

    async def main() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        try:
            return await coroutine
        finally:
            gc.collect()  # a future with an exception that nobody looked at complains when it goes

    try:
        return asyncio.run(main())
    finally:
        gc.collect()
        assert complaints == []


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    return await asyncio.to_thread(function, *args)


async def failure_of(awaitable: Awaitable[Any]) -> BaseException:
    [failure] = await asyncio.gather(awaitable, return_exceptions=True)
    assert isinstance(failure, BaseException)
    return failure


# -- batches ---------------------------------------------------------------------------------------------------


def test_a_call_gives_its_result_to_come(app: Celeriac, broker: Recording) -> None:
    result = run(app.tasks["t.add"].adelay(2, y=3))
    assert isinstance(result, AsyncResult)
    assert broker.batches == [[result.id]]
    assert (result.app, result.name, broker.ready()) == (app, "t.add", 1)


def test_five_thousand_calls_at_once_are_few_batches_in_order(app: Celeriac, broker: Recording) -> None:
    async def main() -> list[AsyncResult[Any]]:
        return await asyncio.gather(*[app.tasks["t.add"].adelay(number) for number in range(5000)])

    results = run(main())
    assert len(broker.batches) == 5000 / bridge.BATCH
    assert broker.ids == [each.id for each in results]
    assert broker.ready() == 5000


def test_what_comes_while_the_broker_is_busy_is_the_next_batch(app: Celeriac, broker: Recording) -> None:
    async def main() -> None:
        broker.gate.clear()
        tasks = [asyncio.create_task(app.tasks["t.add"].adelay(0))]
        await in_thread(broker.reached.acquire)
        for number in range(20):
            tasks.append(asyncio.create_task(app.tasks["t.add"].adelay(number)))
            for _ in range(3):
                await asyncio.sleep(0)  # each in a turn of its own
        broker.gate.set()
        assert [each.id for each in await asyncio.gather(*tasks)] == broker.ids

    run(main())
    assert [len(batch) for batch in broker.batches] == [1, 20]


def test_a_batch_is_bounded_in_bytes(app: Celeriac, broker: Recording) -> None:
    async def main() -> None:
        await asyncio.gather(*[app.asend_task("any", ["x" * 400_000]) for _ in range(5)])
        await app.asend_task("any", ["x" * 3_000_000])

    run(main())
    assert [len(batch) for batch in broker.batches] == [2, 2, 1, 1]


def test_many_loops_in_many_threads(app: Celeriac, broker: Recording) -> None:
    sent: list[str] = []

    async def main() -> None:
        for _ in range(10):
            results = await asyncio.gather(*[app.tasks["t.add"].adelay(1) for _ in range(20)])
            sent.extend(each.id for each in results)

    loops = [threading.Thread(target=run, args=(main(),)) for _ in range(8)]
    for each in loops:
        each.start()
    for each in loops:
        each.join()
    assert len(sent) == 8 * 200
    assert sorted(broker.ids) == sorted(sent)
    assert len(threads()) == 1


# -- failures --------------------------------------------------------------------------------------------------


def test_a_message_that_no_queue_takes_is_the_failure_of_its_call_only(
    app: Celeriac, broker: Recording
) -> None:
    async def main() -> list[Any]:
        unroutable: Any = {"exchange": "nowhere", "routing_key": "x", "retry": False}
        calls = [app.asend_task("any", [number], retry=False) for number in range(3)]
        calls[1:1] = [app.asend_task("any", task_id=f"lost{n}", **unroutable) for n in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    one, lost0, lost1, two, three = run(main())
    assert [len(batch) for batch in broker.batches] == [5]
    assert [type(each) for each in (one, two, three)] == [AsyncResult] * 3
    assert [type(each) for each in (lost0, lost1)] == [PublishFailed] * 2
    assert (lost0.ids, lost1.ids, lost0.unroutable) == (("lost0",), ("lost1",), True)
    assert "no queue is bound to exchange 'nowhere'" in str(lost0)
    assert broker.ready() == 3


def test_a_broker_that_fails_once_is_tried_again(app: Celeriac, broker: Recording) -> None:
    broker.faults.fail("publish")

    async def main() -> None:
        await asyncio.gather(*[app.tasks["t.add"].adelay(1) for _ in range(3)])

    run(main())
    assert [len(batch) for batch in broker.batches] == [3, 3]
    assert broker.ready() == 3


def test_without_retry_it_is_not_tried_again(app: Celeriac, broker: Recording) -> None:
    broker.faults.fail("publish")

    async def main() -> list[Any]:
        add = app.tasks["t.add"]
        return await asyncio.gather(
            add.aapply_async((1,), retry=False), add.adelay(2), add.adelay(3), return_exceptions=True
        )

    failed, *sent = run(main())
    assert isinstance(failed, PublishFailed)
    assert [type(each) for each in sent] == [AsyncResult] * 2
    assert [len(batch) for batch in broker.batches] == [1, 2]


def test_a_broker_that_stays_away_fails_every_call_in_time(broker: Recording) -> None:
    broker.faults.fail("publish", forever=True)

    async def main() -> tuple[list[Any], float]:
        started = time.monotonic()
        calls = [app.tasks["t.add"].adelay(number) for number in range(1500)]
        return await asyncio.gather(*calls, return_exceptions=True), time.monotonic() - started

    policy = {"max_retries": None, "interval_start": 0.05, "interval_max": 0.05}
    with app_on(broker, broker_publish_timeout=0.5, task_publish_retry_policy=policy) as app:
        failures, seconds = run(main())
    assert {type(each) for each in failures} == {PublishFailed}
    assert len(set(map(id, failures))) == 1500  # each call raises its own
    assert all(len(each.ids) == 1 for each in failures)
    assert seconds < 0.5 + 0.4
    assert broker.ready() == 0


def test_calls_behind_one_that_hangs_fail_within_their_own_time(app: Celeriac, broker: Recording) -> None:
    """A server that swallows everything takes the whole timeout of the first batch; the second has no time left."""
    app.conf.broker_publish_timeout = 0.3
    broker.faults.fail("publish", forever=True)

    async def main() -> None:
        broker.gate.clear()
        first = asyncio.create_task(failure_of(app.tasks["t.add"].adelay(1)))
        await in_thread(broker.reached.acquire)
        behind = [asyncio.create_task(failure_of(app.tasks["t.add"].adelay(n))) for n in range(3)]
        await asyncio.sleep(0.3)
        broker.gate.set()
        failures = await asyncio.gather(first, *behind)
        assert {type(each) for each in failures} == {PublishFailed}

    run(main())
    assert len(broker.batches) == 1


def test_a_database_that_another_program_has_locked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/celeriac.db"
    with app_on(url, broker_publish_timeout=0.3) as app:
        run(app.tasks["t.add"].adelay(1))
        with closing(sqlite3.connect(tmp_path / "celeriac.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            started = time.monotonic()
            failures = run(gather_failures(app, 1500))
            assert time.monotonic() - started < 1.5
        assert {type(each) for each in failures} == {PublishFailed}
        assert "locked" in str(failures[0])
        run(app.tasks["t.add"].adelay(1))
        assert app.broker.size("celery").ready == 2


def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    with app_on(f"sqlite:///{tmp_path}/missing/celeriac.db") as app:
        failure = run(failure_of(app.tasks["t.add"].adelay(1)))
    assert isinstance(failure, ImproperlyConfigured)
    assert "there is no directory" in str(failure)


def test_a_broker_that_is_configured_wrongly() -> None:
    with app_on("nonsense://") as app:
        failures = run(gather_failures(app, 3))
    assert {type(each) for each in failures} == {ImproperlyConfigured}


async def gather_failures(app: Celeriac, number: int) -> list[BaseException]:
    return await asyncio.gather(*[failure_of(app.tasks["t.add"].adelay(n)) for n in range(number)])


def test_the_mistake_of_one_call_is_not_that_of_the_others() -> None:
    class Choosy(MemoryBroker):
        def publish(self, batch: Sequence[Outgoing]) -> None:
            if any(each.envelope.task_id == "bad" for each in batch):
                raise ValueError("bad")
            super().publish(batch)

    async def main(app: Celeriac) -> list[Any]:
        calls = [app.asend_task("any", task_id=id) for id in ("good", "bad", "also good")]
        return await asyncio.gather(*calls, return_exceptions=True)

    broker = Choosy("memory://", BrokerOptions())
    with app_on(broker) as app:
        good, bad, also_good = run(main(app))
    assert (good.id, also_good.id, repr(bad)) == ("good", "also good", "ValueError('bad')")
    assert broker.size("celery").ready == 2


def test_wrong_arguments_and_options_are_raised_as_by_the_blocking_call(
    app: Celeriac, broker: Recording
) -> None:
    add = app.tasks["t.add"]
    assert "missing" in str(run(failure_of(add.adelay())))
    assert "did you mean 'countdown'" in str(run(failure_of(add.aapply_async((1,), countdwon=1))))  # pyright: ignore
    assert broker.batches == []


@pytest.mark.parametrize("option", ["connection", "session"])
def test_a_transaction_cannot_be_shared(app: Celeriac, broker: Recording, option: str) -> None:
    options: Any = {option: object()}
    failure = run(failure_of(app.tasks["t.add"].aapply_async((1,), **options)))
    assert isinstance(failure, TypeError)
    assert f"{option}= does not go with await" in str(failure)
    assert broker.batches == []


# -- cancellation ----------------------------------------------------------------------------------------------


def test_a_call_that_is_cancelled_at_once_is_not_sent(app: Celeriac, broker: Recording) -> None:
    async def main() -> None:
        cancelled = asyncio.create_task(app.tasks["t.add"].adelay(1))
        await asyncio.sleep(0)
        cancelled.cancel()
        await app.tasks["t.add"].adelay(2)
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    run(main())
    assert [len(batch) for batch in broker.batches] == [1]


@pytest.mark.parametrize("fails", [False, True])
def test_a_call_that_is_cancelled_on_its_way_troubles_nobody(
    app: Celeriac, broker: Recording, fails: bool
) -> None:
    if fails:
        broker.faults.fail("publish", forever=True)

    async def main() -> None:
        broker.gate.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await app.tasks["t.add"].adelay(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(app.tasks["t.add"].adelay(1), 0.02)
        broker.gate.set()

    run(main())
    app.close()
    assert broker.ready() == (0 if fails else 2)


def test_a_loop_that_is_closed_meanwhile_troubles_nobody(app: Celeriac, broker: Recording) -> None:
    broker.gate.clear()
    loop = asyncio.new_event_loop()
    call = loop.create_task(app.tasks["t.add"].adelay(1))
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert broker.reached.acquire(timeout=20)
    call.cancel()
    loop.run_until_complete(asyncio.gather(call, return_exceptions=True))
    loop.close()
    broker.gate.set()
    assert run(app.tasks["t.add"].adelay(2)).id in broker.ids
    assert broker.ready() == 2


# -- around the call -------------------------------------------------------------------------------------------


def test_signals_are_sent_where_the_caller_is(app: Celeriac, broker: Recording) -> None:
    seen: list[tuple[str, int, int]] = []

    def before(sender: str, **_: Any) -> None:
        seen.append((f"before {sender}", threading.get_ident(), broker.ready()))

    def after(sender: str, **_: Any) -> None:
        seen.append((f"after {sender}", threading.get_ident(), broker.ready()))

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        run(app.tasks["t.add"].adelay(1))
        broker.faults.fail("publish", forever=True)
        run(failure_of(app.tasks["t.add"].aapply_async((1,), retry=False)))
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
    here = threading.get_ident()
    assert seen == [("before t.add", here, 0), ("after t.add", here, 1), ("before t.add", here, 1)]


def test_a_call_from_inside_a_task_is_its_child(app: Celeriac) -> None:
    async def main() -> Request:
        request = Request.of(Message(task="t.add", id="parent", args=(), kwargs={}))
        current.set(request)
        result = await app.tasks["t.add"].adelay(1)
        assert request.children == [result]
        await app.tasks["t.add"].aapply_async((1,), add_to_parent=False)
        return request

    assert len(run(main()).children or ()) == 1


def test_in_eager_mode_the_task_runs_meanwhile(app: Celeriac, broker: Recording) -> None:
    app.conf.task_always_eager = True

    @app.task
    async def waits(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    async def main() -> None:
        result = await app.tasks["t.add"].adelay(2, 3)
        assert isinstance(result, EagerResult)
        assert (await result, await result.aget(timeout=0), result.get()) == (5, 5, 5)
        assert await (await waits.adelay(1)) == 2
        failed = await app.tasks["t.add"].adelay("x", 1)
        with pytest.raises(TypeError):
            await failed
        assert isinstance(await failed.aget(propagate=False), TypeError)
        with pytest.warns(AlwaysEagerIgnored, match=r"asend_task\('t.add'\)") as caught:
            await app.asend_task("t.add", (1,))
        assert caught[0].filename == __file__

    run(main())
    assert [len(batch) for batch in broker.batches] == [1]


# -- the thread ------------------------------------------------------------------------------------------------


def test_nothing_starts_before_it_is_needed(app: Celeriac) -> None:
    assert app.aio is app.aio
    assert threads() == []


def test_close_publishes_what_was_handed_over(app: Celeriac, broker: Recording) -> None:
    async def main() -> None:
        broker.gate.clear()
        sending = [asyncio.create_task(app.tasks["t.add"].adelay(1))]
        await in_thread(broker.reached.acquire)
        sending += [asyncio.create_task(app.tasks["t.add"].adelay(1)) for _ in range(3)]
        for _ in range(3):
            await asyncio.sleep(0)
        closing = asyncio.create_task(in_thread(app.close))
        await asyncio.sleep(0.01)
        broker.gate.set()
        await closing
        assert threads() == []
        assert broker.ready() == 4
        await asyncio.gather(*sending)
        await app.tasks["t.add"].adelay(2)  # it can be used again
        assert broker.ready() == 5

    run(main())


def test_without_work_the_thread_ends(
    app: Celeriac, broker: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "_IDLE", 0.05)

    async def main() -> None:
        for _ in range(3):
            await app.tasks["t.add"].adelay(1)
            await in_thread(lambda: eventually(lambda: not threads()))

    run(main())
    assert broker.ready() == 3


def test_an_app_that_nobody_has_any_more_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "_IDLE", 0.05)
    app = app_on("memory://")
    run(app.tasks["t.add"].adelay(1))
    gone = weakref.ref(app)
    del app
    eventually(lambda: not threads())
    gc.collect()
    assert gone() is None


def test_a_thread_that_cannot_be_started_fails_the_call(
    app: Celeriac, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> list[BaseException]:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            failures = await gather_failures(app, 3)
        await app.tasks["t.add"].adelay(1)
        return failures

    assert {str(each) for each in run(main())} == {"can't start new thread"}


def test_a_bug_leaves_nobody_waiting(app: Celeriac, broker: Recording) -> None:
    """Asking for the timeout, after a failure, is outside of what the thread expects to go wrong."""

    def broken() -> float:
        raise ZeroDivisionError

    app.aio._bridge._timeout = broken  # pyright: ignore[reportPrivateUsage]
    broker.faults.fail("publish", forever=True)
    failures = run(gather_failures(app, 3))
    assert {type(each) for each in failures} == {ZeroDivisionError}
    broker.faults.heal()
    run(app.tasks["t.add"].adelay(1))
    assert broker.ready() == 1


def test_a_forked_child_has_a_thread_of_its_own(app: Celeriac, broker: Recording) -> None:
    def child() -> None:
        assert threads() == []
        app.close()  # the parent's thread is not ours to wait for
        broker.gate.set()
        before = len(broker.ids)
        run(app.tasks["t.add"].adelay(2))
        assert len(threads()) == 1
        assert len(broker.ids) == before + 1
        app.close()

    async def main() -> None:
        broker.gate.clear()
        first = asyncio.create_task(app.tasks["t.add"].adelay(1))
        await in_thread(broker.reached.acquire)
        gathered = asyncio.create_task(app.tasks["t.add"].adelay(1))
        await asyncio.sleep(0)  # gathered, and not handed over
        await in_thread(in_fork, child)
        broker.gate.set()
        await asyncio.gather(first, gathered)

    run(main())
    assert (len(broker.ids), broker.ready()) == (2, 2)
