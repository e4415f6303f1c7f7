"""Which executor gets which call, how far ahead, and what happens when one stalls."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from celeriac.brokers.base import Delivery
from celeriac.wire.envelope import Envelope
from celeriac.wire.frames import TaskInfo
from celeriac.worker.dispatch import AHEAD, Dispatcher, RunTimes
from celeriac.worker.executor import Executor
from celeriac.worker.limits import Limits
from celeriac.worker.work import Work


def work(task: str = "short", id: str = "x", size: int = 0) -> Work:
    envelope = Envelope(b"x" * size, "application/json", "utf-8", {"task": task, "id": id}, {})
    return Work(Delivery(envelope, "celery", None), task, TaskInfo())


@asynccontextmanager
async def dispatcher(
    executors: int,
    kept: list[socket.socket] | None = None,
    given_back: list[Work] | None = None,
) -> AsyncIterator[Dispatcher]:
    """A dispatcher with executors whose calls nobody takes out of their inboxes (`kept`: inbox, line, …)."""
    limits = Limits(soft=None, hard=None, end=lambda *_: None)
    one = Dispatcher(
        limits,
        give_back=([] if given_back is None else given_back).extend,
        settle_first=lambda work, then: then(True),
    )
    kept = [] if kept is None else kept
    made: list[Executor] = []
    for index in range(executors):
        executor = Executor(
            index,
            on_ready=lambda _: None,
            on_outcome=lambda *_: None,
            on_update=lambda *_: None,
            on_batch=lambda: None,
            on_silent=lambda _: None,
        )
        await executor.open(lambda _, inbox, line: kept.extend((inbox.dup(), line.dup())))
        made.append(executor)
        one.join(executor)
    try:
        yield one
    finally:
        one.close()
        for each in made:
            each.close()
        for each in kept:
            each.close()
        await asyncio.sleep(0)


def with_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())  # pyright: ignore[reportArgumentType]

    run.__name__ = test.__name__  # type: ignore[attr-defined]
    return run


def handed(one: Dispatcher) -> list[int]:
    return [len(each.handed) for each in one.executors]


@with_loop
async def test_unknown_tasks_are_handed_out_one_per_slot() -> None:
    async with dispatcher(2) as one:
        one.add(work() for _ in range(5))
        assert handed(one) == [1, 1]
        assert len(one.backlog) == 3


@with_loop
async def test_short_tasks_are_handed_ahead_and_spread() -> None:
    async with dispatcher(2) as one:
        one.run_times.add("short", 100e-6)
        one.add(work() for _ in range(20))
        assert handed(one) == [10, 10]


@with_loop
async def test_no_more_than_ten_milliseconds_of_work_are_handed_ahead() -> None:
    async with dispatcher(1) as one:
        one.run_times.add("short", 0.002)
        one.add(work() for _ in range(50))
        ahead = handed(one)[0] - 1
        assert ahead * 0.002 <= AHEAD
        assert ahead >= 3


@with_loop
async def test_a_long_task_never_waits_behind_another() -> None:
    async with dispatcher(2) as one:
        one.run_times.add("short", 100e-6)
        one.run_times.add("long", 5.0)
        one.add([work("short"), work("short"), work("long"), work("long")])
        assert handed(one) == [1, 1]


@with_loop
async def test_calls_that_are_settled_first_are_never_handed_ahead() -> None:
    async with dispatcher(1) as one:
        one.run_times.add("short", 100e-6)
        early = [work(id=str(number)) for number in range(3)]
        for each in early:
            each.info = TaskInfo(acks_late=False)
        one.add(early)
        assert [each.settled for each in early] == [True, False, False]
        assert handed(one) == [1]


@with_loop
async def test_an_answer_makes_room_and_starts_the_next_call() -> None:
    async with dispatcher(1) as one:
        one.run_times.add("short", 100e-6)
        first, second = work(id="1"), work(id="2")
        one.add([first, second])
        assert first.started
        assert not second.started
        executor = one.executors[0]
        assert one.answered(executor, first.number, 0.0001) is first
        assert second.started
        assert one.answered(executor, first.number, 0.0001) is None


@with_loop
async def test_a_stalled_slot_is_relieved_of_what_waits_behind_it() -> None:
    ends: list[socket.socket] = []
    async with dispatcher(2, ends) as one:
        one.run_times.add("short", 100e-6)
        works = [work(id=str(number)) for number in range(8)]
        one.add(works)
        slow, quick = one.executors
        stuck = next(iter(slow.handed.values()))
        ends[0].recv(65536)  # the slow one has started its first call
        while len(slow.handed) > 1 or quick.handed:  # the quick one answers everything, the slow one nothing
            for number in list(quick.handed):
                one.answered(quick, number, 100e-6)
            one.pump()
            await asyncio.sleep(AHEAD / 2)  # the dispatcher's own timer has to come round
        assert list(slow.handed.values()) == [stuck]
        assert not one.backlog


@with_loop
async def test_work_goes_back_to_the_broker_when_all_slots_are_held_up() -> None:
    given_back: list[Work] = []
    async with dispatcher(1, given_back=given_back) as one:
        one.add(work(id=str(number)) for number in range(5))
        while not given_back:
            await asyncio.sleep(AHEAD)  # the dispatcher's own timer has to come round
        assert [each.task_id for each in given_back] == list("1234")
        assert not one.backlog
        assert one.room() == 0


@with_loop
async def test_work_comes_back_in_its_old_order() -> None:
    async with dispatcher(1) as one:
        one.run_times.add("short", 100e-6)
        works = [work(id=str(number)) for number in range(6)]
        one.add(works)
        back = one.take_back(one.executors[0])
        # Nobody took even the first one out of the inbox here.
        assert [each.task_id for each in back] == list("012345")
        assert all(not each.started and each.number == 0 for each in back)


@with_loop
async def test_large_calls_are_bounded_by_bytes() -> None:
    async with dispatcher(1) as one:
        one.run_times.add("short", 1e-6)
        one.add(work(size=30_000) for _ in range(100))
        assert sum(each.size for each in one.executors[0].handed.values()) < 2_000_000
        assert one.backlog


@with_loop
async def test_room_is_what_the_executors_can_use() -> None:
    async with dispatcher(2) as one:
        assert one.room() == 2
        one.add([work(), work()])
        assert one.room() == 0
        executor = one.executors[0]
        one.answered(executor, next(iter(executor.handed)), 100e-6)
        assert one.room() > 50, "after a short task, more of the kind are expected"


def test_run_times_follow_what_happens() -> None:
    times = RunTimes(weight=0.5)
    assert times.of("new") > AHEAD
    times.add("t", 1.0)
    times.add("t", 0.0)
    assert times.of("t") == pytest.approx(0.5, abs=1e-3)
