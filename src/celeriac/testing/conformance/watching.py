"""Waiting for results: what a watcher has to do, and `watch` on top of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import msgspec
import pytest

from celeriac.backends.base import ResultBackend, Watcher
from celeriac.states import FAILURE, RETRY, REVOKED, STARTED, SUCCESS
from celeriac.testing.conformance.harness import MOMENT, PATIENCE, InThread, in_fork
from celeriac.testing.conformance.results import BackendHarness, ids, record

__all__ = ["WatchTests"]


class WatchTests(BackendHarness):
    # -- watch --------------------------------------------------------------------------------------------

    def test_watch_yields_what_is_there(self, backend: ResultBackend) -> None:
        ends = [record(state=state) for state in (SUCCESS, FAILURE, REVOKED)]
        backend.put(ends)
        found = list(backend.watch([each.task_id for each in ends], PATIENCE))
        assert len(found) == 3
        assert {each.task_id for each in found} == {each.task_id for each in ends}

    def test_watch_yields_what_comes_once(self, backend: ResultBackend, other: ResultBackend) -> None:
        there, early, late = record(), record(), record()
        backend.put([there])
        watch = backend.watch([there.task_id, early.task_id, late.task_id], PATIENCE)
        assert next(watch).task_id == there.task_id
        waiting = InThread(lambda: next(watch))
        other.put([early])
        assert waiting.result().task_id == early.task_id
        waiting = InThread(lambda: list(watch))
        other.put([early, there, record()])
        other.put([late])
        assert ids(waiting.result()) == [late.task_id]

    def test_an_end_that_is_replaced_is_yielded_once(
        self, backend: ResultBackend, other: ResultBackend
    ) -> None:
        there, twice, last = record(), record(), record()
        backend.put([there])
        watch = backend.watch([there.task_id, twice.task_id, last.task_id], PATIENCE)
        assert next(watch).task_id == there.task_id
        other.put([msgspec.structs.replace(twice, state=FAILURE)])
        other.put([twice])
        other.put([last])
        assert sorted(each.task_id for each in watch) == sorted([twice.task_id, last.task_id])

    def test_states_on_the_way_are_not_yielded(self, backend: ResultBackend, other: ResultBackend) -> None:
        id = str(uuid4())
        backend.put([record(id, state=STARTED)])
        waiting = InThread(lambda: list(backend.watch([id], PATIENCE)))
        other.put([record(id, state=RETRY, retries=1)])
        other.put([record(id, state="CUSTOM", retries=1)])
        other.put([record(id, state=FAILURE, retries=1)])
        assert [each.state for each in waiting.result()] == [FAILURE]

    def test_watch_ends_at_the_timeout_counted_from_the_call(self, backend: ResultBackend) -> None:
        there = record()
        backend.put([there])
        began = time.monotonic()
        watch = backend.watch([there.task_id, "never"], MOMENT)
        assert ids(watch) == [there.task_id]
        assert MOMENT * 0.9 <= time.monotonic() - began < PATIENCE / 2
        late = backend.watch(["never"], 10 * MOMENT)
        assert list(backend.watch(["never"], 11 * MOMENT)) == []
        began = time.monotonic()
        assert list(late) == []
        assert time.monotonic() - began < 5 * MOMENT

    def test_watching_nothing_ends_at_once(self, backend: ResultBackend) -> None:
        assert list(backend.watch([], None)) == []

    def test_watch_without_timeout_waits_for_all(self, backend: ResultBackend, other: ResultBackend) -> None:
        records = [record() for _ in range(100)]
        wanted = {each.task_id for each in records}
        waiting = InThread(lambda: {each.task_id for each in backend.watch(wanted, None)})
        for at in range(0, 100, 10):
            other.put(records[at : at + 10])
        assert waiting.result() == wanted

    def test_several_watch_the_same(self, backend: ResultBackend, other: ResultBackend) -> None:
        one = record()
        waiting = [InThread(lambda: ids(backend.watch([one.task_id], PATIENCE))) for _ in range(5)]
        other.put([one])
        assert [each.result() for each in waiting] == [[one.task_id]] * 5

    def test_close_wakes_watchers(self, backend: ResultBackend) -> None:
        there = record()
        backend.put([there])
        watch = backend.watch([there.task_id, "never"], 10 * PATIENCE)
        assert next(watch) is not None
        waiting = InThread(lambda: list(watch))
        backend.close()
        assert waiting.result() == []

    # -- watcher ------------------------------------------------------------------------------------------

    @pytest.fixture
    def watcher(self, backend: ResultBackend) -> Iterator[Watcher]:
        with closing(backend.watcher()) as watcher:
            yield watcher

    def test_a_watcher_tells_what_is_there_and_what_comes(
        self, backend: ResultBackend, other: ResultBackend, watcher: Watcher
    ) -> None:
        there, later = record(), record(state=FAILURE)
        other.put([there, record()])
        watcher.add([there.task_id, later.task_id])
        assert ids(watcher.wait(PATIENCE)) == [there.task_id]
        waiting = InThread(lambda: watcher.wait(PATIENCE))
        other.put([msgspec.structs.replace(later, state=STARTED), record()])
        other.put([later])
        [found] = waiting.result()
        assert (found.task_id, found.state) == (later.task_id, FAILURE)
        assert list(watcher.wait(0)) == []

    def test_ids_can_be_added_while_somebody_waits(
        self, backend: ResultBackend, other: ResultBackend, watcher: Watcher
    ) -> None:
        first, there, later = record(), record(), record()
        other.put([there])
        watcher.add([first.task_id])
        waiting = InThread(lambda: watcher.wait(PATIENCE))
        watcher.add([there.task_id])
        assert ids(waiting.result()) == [there.task_id]
        waiting = InThread(lambda: watcher.wait(PATIENCE))
        watcher.add([later.task_id])
        other.put([later])
        assert ids(waiting.result()) == [later.task_id]

    def test_a_watcher_of_nothing_waits_to_be_given_something(
        self, other: ResultBackend, watcher: Watcher
    ) -> None:
        waiting = InThread(lambda: watcher.wait(PATIENCE))
        one = record()
        other.put([one])
        watcher.add([one.task_id])
        assert ids(waiting.result()) == [one.task_id]

    def test_what_was_discarded_does_not_come(self, other: ResultBackend, watcher: Watcher) -> None:
        there, later, last = record(), record(), record()
        other.put([there])
        watcher.add([there.task_id, later.task_id, last.task_id])
        watcher.discard([there.task_id, "unknown"])
        assert list(watcher.wait(0)) == []
        watcher.discard([later.task_id])
        waiting = InThread(lambda: watcher.wait(PATIENCE))
        other.put([later])
        other.put([last])
        assert ids(waiting.result()) == [last.task_id]

    def test_what_came_is_watched_no_longer_but_can_be_again(
        self, other: ResultBackend, watcher: Watcher
    ) -> None:
        failed = record(state=FAILURE)
        other.put([failed])
        watcher.add([failed.task_id, "never"])
        assert ids(watcher.wait(PATIENCE)) == [failed.task_id]
        other.put([msgspec.structs.replace(failed, state=REVOKED)])
        assert list(watcher.wait(MOMENT)) == []
        watcher.add([failed.task_id])
        assert [each.state for each in watcher.wait(PATIENCE)] == [REVOKED]

    def test_a_watcher_returns_at_the_timeout(self, watcher: Watcher) -> None:
        watcher.add(["never"])
        began = time.monotonic()
        assert list(watcher.wait(MOMENT)) == []
        assert MOMENT * 0.9 <= time.monotonic() - began < PATIENCE / 2

    def test_wake_ends_the_present_wait_or_the_next_one(self, other: ResultBackend, watcher: Watcher) -> None:
        one = record()
        watcher.add([one.task_id])
        watcher.wake()
        assert list(watcher.wait(None)) == []
        waiting = InThread(lambda: watcher.wait(None))
        watcher.wake()
        assert list(waiting.result()) == []
        other.put([one])
        assert ids(watcher.wait(PATIENCE)) == [one.task_id]

    def test_two_watchers_do_not_disturb_each_other(
        self, backend: ResultBackend, other: ResultBackend, watcher: Watcher
    ) -> None:
        both, mine, yours = record(), record(), record()
        with closing(backend.watcher()) as another:
            watcher.add([both.task_id, mine.task_id])
            another.add([both.task_id, yours.task_id])
            another.discard([yours.task_id])
            other.put([both, yours, mine])
            assert collect(watcher, 2) == {both.task_id, mine.task_id}
            assert collect(another, 1) == {both.task_id}
            another.wake()
            assert list(watcher.wait(MOMENT)) == []

    def test_close_of_the_backend_ends_waits_and_they_can_begin_anew(
        self, backend: ResultBackend, other: ResultBackend, watcher: Watcher
    ) -> None:
        one = record()
        watcher.add([one.task_id])
        waiting = InThread(lambda: watcher.wait(None))
        backend.close()
        assert list(waiting.result()) == []
        other.put([one])
        assert ids(watcher.wait(PATIENCE)) == [one.task_id]

    def test_a_forked_child_has_watchers_of_its_own(
        self, backend: ResultBackend, other: ResultBackend, watcher: Watcher
    ) -> None:
        if not backend.traits.persistent:
            pytest.skip("there is nothing to share with a child")
        first, second = record(), record()
        watcher.add([second.task_id])
        assert list(watcher.wait(0)) == []

        def child() -> None:
            watcher.close()
            with closing(backend.watcher()) as mine:
                mine.add([first.task_id])
                assert list(mine.wait(0)) == []
                backend.put([first])
                assert ids(mine.wait(PATIENCE)) == [first.task_id]

        in_fork(child)
        waiting = InThread(lambda: watcher.wait(PATIENCE))
        other.put([second])
        assert ids(waiting.result()) == [second.task_id]

    def test_a_watcher_takes_thousands(self, other: ResultBackend, watcher: Watcher) -> None:
        records = [record() for _ in range(5000)]
        wanted = [each.task_id for each in records]
        other.put(records[:1000])
        watcher.add(wanted[:3000])
        waiting = InThread(lambda: collect(watcher, 4000))
        watcher.add(wanted[3000:])
        watcher.discard(wanted[4000:])
        for at in range(1000, 5000, 500):
            other.put(records[at : at + 500])
        assert waiting.result() == set(wanted[:4000])
        assert list(watcher.wait(0)) == []

    def test_nothing_slips_between_adding_and_ending(self, other: ResultBackend, watcher: Watcher) -> None:
        records = [record() for _ in range(200)]
        waiting = InThread(lambda: collect(watcher, len(records)))

        def end_them() -> None:
            for each in records:
                other.put([each])

        ending = InThread(end_them)
        for each in records:
            watcher.add([each.task_id])
        ending.result()
        assert waiting.result() == {each.task_id for each in records}


def collect(watcher: Watcher, number: int) -> set[str]:
    """The ids of that many records; each came once."""
    found: list[str] = []
    while len(found) < number:
        records = watcher.wait(PATIENCE)
        assert records, f"only {len(found)} of {number} came"
        found += [each.task_id for each in records]
    assert len(set(found)) == len(found)
    return set(found)
