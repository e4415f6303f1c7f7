"""What the memory backend does beyond the contract (tests/conformance/test_memory.py)."""

from __future__ import annotations

from celeriac.backends.base import BackendOptions
from celeriac.backends.memory import MemoryBackend
from celeriac.testing import MovableClock
from celeriac.wire.record import Group, Record


def record(id: str, state: str = "SUCCESS") -> Record:
    return Record(task_id=id, state=state, result=b"1")


def test_two_backends_share_nothing() -> None:
    MemoryBackend("memory://", BackendOptions()).put([record("a")])
    assert MemoryBackend("memory://", BackendOptions()).get(["a"]) == [None]


def test_what_expired_is_dropped_by_the_next_that_comes() -> None:
    clock = MovableClock()
    backend = MemoryBackend("memory://", BackendOptions(expires=60, clock=clock))
    backend.put([record("rewritten", "STARTED"), record("old")])
    backend.save_group(Group(group_id="old", result=[]))
    backend.finish_chord("old")
    clock.advance(50)
    backend.put([record("rewritten")])
    clock.advance(11)
    backend.put([record("new")])
    backend.save_group(Group(group_id="new", result=[]))
    backend.finish_chord("new")
    assert backend.get(["rewritten", "old", "new"]) == [record("rewritten"), None, record("new")]
    assert backend.load_group("old") is None
    assert (backend.finish_chord("old"), backend.finish_chord("new")) == (True, False)


def test_a_watch_that_is_given_up_does_not_disturb_the_others() -> None:
    backend = MemoryBackend("memory://", BackendOptions())
    backend.put([record("a")])
    given_up, kept = (backend.watch(["a", "b"], 20) for _ in range(2))
    assert (next(given_up), next(kept)) == (record("a"), record("a"))
    del given_up
    backend.put([record("b")])
    assert list(kept) == [record("b")]
