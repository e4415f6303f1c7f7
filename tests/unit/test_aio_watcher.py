"""Awaiting results: what a blocking `get` returns and raises, for thousands at once, in whatever event loop."""

from __future__ import annotations

import asyncio
import builtins
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import pytest

from celeriac import AsyncResult, Celeriac
from celeriac.aio import watcher as watching
from celeriac.backends.base import BackendOptions
from celeriac.backends.memory import MemoryBackend
from celeriac.errors import ImproperlyConfigured, OperationalError, TaskError, TaskRevokedError, TimeoutError
from celeriac.request import Request, allow_join_result, current
from celeriac.result import RemoteTraceback
from celeriac.testing.conformance.harness import in_fork
from celeriac.testing.faults import FaultyBackend, FaultyWatcher
from celeriac.wire import codecs
from celeriac.wire import errors as wire_errors
from celeriac.wire.message import Message
from celeriac.wire.record import Record
from support import eventually

T = TypeVar("T")


class Observed(FaultyBackend):
    """Counts its watchers, and knows what they watch."""

    def __init__(self) -> None:
        super().__init__(MemoryBackend("memory://", BackendOptions()))
        self.watchers: list[ObservedWatcher] = []
        #: What the next `wait` or `get` raises.
        self.bug: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def watcher(self) -> FaultyWatcher:
        super().watcher()  # which may fail
        self.watchers.append(ObservedWatcher(self, self.inner.watcher()))
        return self.watchers[-1]

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        assert self.gate.wait(20)
        return super().get(ids)

    @property
    def watched(self) -> set[str]:
        return {id for each in self.watchers for id in each.watched}


class ObservedWatcher(FaultyWatcher):
    def __init__(self, backend: Observed, inner: Any) -> None:
        super().__init__(backend, inner)
        self.backend = backend
        self.watched: set[str] = set()
        self.closed = False

    def add(self, ids: Collection[str]) -> None:
        self.watched |= set(ids)
        super().add(ids)

    def discard(self, ids: Collection[str]) -> None:
        self.watched -= set(ids)
        super().discard(ids)

    def wait(self, timeout: float | None) -> Sequence[Record]:
        if self.backend.bug is not None:
            raise self.backend.bug
        found = super().wait(timeout)
        self.watched -= {each.task_id for each in found}
        return found

    def close(self) -> None:
        self.closed = True
        super().close()


@pytest.fixture
def backend() -> Observed:
    return Observed()


@pytest.fixture
def app(backend: Observed) -> Iterator[Celeriac]:
    with app_on(backend) as app:
        yield app
    assert threads() == []
    assert [each.closed for each in backend.watchers] == [True] * len(backend.watchers)


def app_on(backend: Any, **settings: Any) -> Celeriac:
    return Celeriac("t", broker="memory://", backend=backend, set_as_current=False, **settings)


def record(id: str, state: str = "SUCCESS", value: Any = None, **fields: Any) -> Record:
    if isinstance(value, BaseException):
        value = wire_errors.to_meta(value, "json")
    return Record(task_id=id, state=state, result=codecs.dumps(value, "json"), **fields)


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "celeriac-results"]


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it in an event loop that nobody complains to."""
    complaints: list[dict[str, Any]] = []

    async def main() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        return await coroutine

    try:
        return asyncio.run(main())
    finally:
        gc.collect()  # a future with an exception that nobody looked at complains when it goes
        assert complaints == []


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    return await asyncio.to_thread(function, *args)


async def until(condition: Callable[[], object]) -> None:
    await in_thread(eventually, condition)


async def failure_of(awaitable: Awaitable[Any]) -> BaseException:
    [failure] = await asyncio.gather(awaitable, return_exceptions=True)
    assert isinstance(failure, BaseException)
    return failure


async def waiting(backend: Observed, *results: AsyncResult[Any], **options: Any) -> list[asyncio.Task[Any]]:
    """Tasks that wait for these results, once they do."""
    tasks = [asyncio.create_task(each.aget(**options)) for each in results]
    await until(lambda: {each.id for each in results} <= backend.watched)
    return tasks


# -- values and failures ---------------------------------------------------------------------------------------


def test_a_result_that_is_there(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        backend.put([record("i", value={"n": [1, 2]})])
        result = app.AsyncResult("i")
        assert await result == {"n": [1, 2]}
        backend.forget(["i"])
        assert (await result, result.state) == ({"n": [1, 2]}, "SUCCESS")  # it is known now

    run(main())


def test_a_result_to_come(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        [task] = await waiting(backend, app.AsyncResult("i"))
        backend.put([record("i", "STARTED")])
        backend.put([record("i", value=7)])
        assert await task == 7

    run(main())


def test_a_failure_is_raised_with_the_traceback_of_the_worker(app: Celeriac, backend: Observed) -> None:
    async def main() -> BaseException:
        [task] = await waiting(backend, app.AsyncResult("i"))
        backend.put([record("i", "FAILURE", KeyError("k", 3), traceback="Traceback: there")])
        return await failure_of(task)

    failure = run(main())
    assert isinstance(failure, KeyError)
    assert failure.args == ("k", 3)
    assert isinstance(failure.__cause__, RemoteTraceback)
    assert "Traceback: there" in str(failure.__cause__)


def test_without_propagate_the_exception_is_returned(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        backend.put([record("i", "REVOKED", TaskRevokedError("expired"))])
        found = await app.AsyncResult("i").aget(propagate=False)
        assert isinstance(found, TaskRevokedError)

    run(main())


def test_the_callback_is_given_id_and_value(app: Celeriac, backend: Observed) -> None:
    given: list[tuple[str, Any]] = []

    async def main() -> None:
        backend.put([record("i", value=7)])
        assert await app.AsyncResult("i").aget(callback=lambda id, value: given.append((id, value))) == 7

    run(main())
    assert given == [("i", 7)]


def test_an_ignored_result_is_an_error_at_once(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        result = await app.asend_task("t.any", ignore_result=True)
        with pytest.raises(TaskError, match="keeps no result"):
            await result

    run(main())
    assert backend.watchers == []


def test_a_task_must_not_wait_unless_it_says_so(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        backend.put([record("i", value=7)])
        current.set(Request.of(Message(task="t.any", id="parent", args=(), kwargs={})))
        with pytest.raises(RuntimeError, match="must not wait"):
            await app.AsyncResult("i")
        assert await app.AsyncResult("i").aget(disable_sync_subtasks=False) == 7
        with allow_join_result():
            assert await app.AsyncResult("i") == 7

    run(main())


def test_the_failure_of_an_earlier_task_of_the_chain_is_raised(app: Celeriac, backend: Observed) -> None:
    def last() -> AsyncResult[Any]:
        second = AsyncResult("second", app=app, parent=AsyncResult("first", app=app))
        return AsyncResult("third", app=app, parent=second)

    async def main() -> None:
        tasks = await waiting(backend, last(), last())
        own = asyncio.create_task(last().aget(follow_parents=False))
        backend.put([record("first", value=1)])
        backend.put([record("second", "FAILURE", KeyError("second"))])
        for each in tasks:
            with pytest.raises(KeyError, match="second"):
                await each
        with pytest.raises(KeyError, match="second"):
            await last().aget(timeout=0)
        backend.put([record("third", value=3)])
        assert await own == 3

    run(main())


def test_a_chain_that_succeeds(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        [task] = await waiting(backend, AsyncResult("two", app=app, parent=AsyncResult("one", app=app)))
        backend.put([record("one", value=1), record("two", value=2)])
        assert await task == 2
        await until(lambda: not backend.watched)

    run(main())


# -- many ------------------------------------------------------------------------------------------------------


def test_thousands_share_one_watcher(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        tasks = await waiting(backend, *[app.AsyncResult(f"i{n}") for n in range(5000)])
        await in_thread(backend.put, [record(f"i{n}", value=n) for n in range(5000)])
        assert await asyncio.gather(*tasks) == list(range(5000))

    run(main())
    assert len(backend.watchers) == 1


def test_many_wait_for_one(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        result = app.AsyncResult("i")
        tasks = await waiting(backend, *[result] * 3, app.AsyncResult("i"))
        tasks[0].cancel()
        await asyncio.sleep(0)
        assert backend.watched == {"i"}
        backend.put([record("i", value=7)])
        assert await asyncio.gather(*tasks[1:]) == [7, 7, 7]

    run(main())


def test_many_loops_in_many_threads(app: Celeriac, backend: Observed) -> None:
    values: list[Any] = []

    async def main() -> None:
        values.extend(await asyncio.gather(*[app.AsyncResult(f"i{n}") for n in range(50)]))

    loops = [threading.Thread(target=run, args=(main(),)) for _ in range(6)]
    for each in loops:
        each.start()
    for n in range(50):
        backend.put([record(f"i{n}", value=n)])
    for each in loops:
        each.join()
    assert values == list(range(50)) * 6
    assert len(backend.watchers) == 1


def test_what_came_can_be_awaited_again(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        backend.put([record("i", value=7)])
        for _ in range(20):
            assert await app.AsyncResult("i") == 7

    run(main())


# -- time ------------------------------------------------------------------------------------------------------


def test_a_timeout_names_the_id_and_what_it_may_mean(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError, match=r"task nobody did not end within 0 s.*no such task"):
            await app.AsyncResult("nobody").aget(timeout=0)
        backend.put([record("i", "STARTED")])
        with pytest.raises(TimeoutError, match=r"within 0.02 s \(its state is STARTED\)"):
            await app.AsyncResult("i").aget(timeout=0.02)
        await until(lambda: not backend.watched)

    run(main())


def test_a_result_that_is_there_needs_no_time(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        backend.put([record(f"i{n}", value=n) for n in range(50)])
        results = [app.AsyncResult(f"i{n}") for n in range(50)]
        assert await asyncio.gather(*[each.aget(timeout=0) for each in results]) == list(range(50))

    run(main())


def test_the_default_timeout_is_a_setting(app: Celeriac) -> None:
    app.conf.result_get_timeout = 0.01
    with pytest.raises(TimeoutError, match=r"within 0.01 s"):
        run(failing(app.AsyncResult("nobody")))


async def failing(awaitable: Awaitable[Any]) -> None:
    await awaitable


def test_asyncios_own_timeouts(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        with pytest.raises(builtins.TimeoutError):
            await asyncio.wait_for(app.AsyncResult("nobody"), 0.02)
        with pytest.raises(builtins.TimeoutError):
            async with asyncio.timeout(0.02):
                await app.AsyncResult("nobody")
        await until(lambda: not backend.watched)

    run(main())


def test_cancelling_gives_up_the_wait(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        one, two = await waiting(backend, app.AsyncResult("one"), app.AsyncResult("two"))
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        await until(lambda: backend.watched == {"two"})
        backend.put([record("one", value=1), record("two", value=2)])
        assert await two == 2
        assert await app.AsyncResult("one") == 1

    run(main())


# -- a backend in trouble --------------------------------------------------------------------------------------


def test_a_backend_that_comes_back_is_heard(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        backend.faults.fail("wait", "after", "before")
        tasks = [asyncio.create_task(app.AsyncResult(id).aget(timeout=20)) for id in ("one", "two")]
        backend.put([record("one", value=1), record("two", value=2)])
        assert await asyncio.gather(*tasks) == [1, 2]

    run(main())


def test_a_backend_that_stays_away_is_a_timeout_that_says_so(app: Celeriac, backend: Observed) -> None:
    backend.faults.fail("wait", forever=True)
    backend.faults.fail("get", forever=True)

    async def main() -> list[BaseException]:
        waits = [app.AsyncResult(f"i{n}").aget(timeout=0.01 * n) for n in range(40)]
        return await asyncio.gather(*[failure_of(each) for each in waits])

    started = time.monotonic()
    failures = run(main())
    assert time.monotonic() - started < 2.0
    assert {type(each) for each in failures} == {TimeoutError}
    assert "task i39 was not seen to end within 0.39 s: " in str(failures[39])
    assert isinstance(failures[39].__cause__, OperationalError)


def test_a_backend_that_does_not_answer_costs_a_moment_more(
    app: Celeriac, backend: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_GRACE", 0.05)
    backend.gate.clear()
    with pytest.raises(TimeoutError, match=r"within 0.01 s: the result backend did not answer within 0.05 s"):
        run(failing(app.AsyncResult("i").aget(timeout=0.01)))
    backend.gate.set()


def test_a_backend_that_keeps_nothing_says_so_at_once() -> None:
    async def main() -> list[BaseException]:
        return await asyncio.gather(*[failure_of(app.AsyncResult(f"i{n}")) for n in range(3)])

    with app_on("disabled://") as app:
        failures = run(main())
    assert all(isinstance(each, ImproperlyConfigured) for each in failures)
    assert "no result backend is configured" in str(failures[0])
    assert len(set(map(id, failures))) == 3


def test_a_bug_leaves_nobody_waiting(app: Celeriac, backend: Observed) -> None:
    async def main() -> list[BaseException]:
        backend.bug = ZeroDivisionError("bug")
        failures = await asyncio.gather(*[failure_of(app.AsyncResult(f"i{n}")) for n in range(3)])
        backend.bug = None
        backend.put([record("i", value=7)])
        assert await app.AsyncResult("i") == 7
        return failures

    assert {repr(each) for each in run(main())} == {"ZeroDivisionError('bug')"}


# -- the thread ------------------------------------------------------------------------------------------------


def test_close_ends_the_wait(app: Celeriac, backend: Observed) -> None:
    async def main() -> None:
        tasks = await waiting(backend, app.AsyncResult("one"), app.AsyncResult("two"))
        app.close()
        assert threads() == []
        for each in tasks:
            with pytest.raises(OperationalError, match="closed"):
                await each
        backend.put([record("i", value=7)])
        assert await app.AsyncResult("i") == 7

    run(main())


def test_without_waits_the_thread_ends(
    app: Celeriac, backend: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_IDLE", 0.05)

    async def main() -> None:
        backend.put([record("i", value=7)])
        for _ in range(3):
            assert await app.AsyncResult("i") == 7
            await until(lambda: not threads())
        [task] = await waiting(backend, app.AsyncResult("later"))
        await asyncio.sleep(0.2)  # longer than idle: but somebody waits
        backend.put([record("later", value=8)])
        assert await task == 8

    run(main())
    assert len(backend.watchers) == 4


def test_an_app_that_nobody_has_any_more_ends_its_thread() -> None:
    async def main() -> weakref.ref[Celeriac]:
        app = app_on("memory://")
        app.backend.put([record("i", value=7)])
        assert await app.AsyncResult("i") == 7
        return weakref.ref(app)

    gone = run(main())
    gc.collect()
    assert gone() is None
    assert threads() == []


def test_a_loop_that_is_closed_meanwhile_troubles_nobody(app: Celeriac, backend: Observed) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(app.AsyncResult("i").aget())
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    eventually(lambda: "i" in backend.watched)
    loop.close()
    backend.put([record("i", value=7)])
    assert run(app.AsyncResult("i").aget()) == 7
    task.get_coro().close()  # pyright: ignore
    del task
    gc.collect()


def test_a_forked_child_has_a_watcher_of_its_own(app: Celeriac, backend: Observed) -> None:
    def child() -> None:
        assert threads() == []
        backend.put([record("child", value=1)])
        assert run(app.AsyncResult("child").aget()) == 1
        assert len(threads()) == 1
        app.close()
        assert threads() == []

    async def main() -> None:
        [task] = await waiting(backend, app.AsyncResult("i"))
        await in_thread(in_fork, child)
        backend.put([record("i", value=7)])
        assert await task == 7

    run(main())
