"""How much a worker holds beside what may have killed one."""

from __future__ import annotations

import pytest

from celeriac.worker.caution import Caution


def after(*batches: list[int], free: int = 4, held: int = 0) -> Caution:
    caution = Caution()
    for each in batches:
        caution.sift(each, free=free, held=held, now=0.0)
    return caution


def test_a_worker_that_starts_takes_no_more_than_it_can_run() -> None:
    assert Caution().room(100, free=4, held=0, now=0.0) == 4


def test_without_suspects_it_takes_what_it_can_use() -> None:
    assert after([1, 1]).room(100, free=4, held=10, now=0.0) == 100
    assert after([2], [1]).room(100, free=4, held=10, now=0.0) == 100
    assert after([3], [1]).room(100, free=4, held=10, now=0.0) == 100


@pytest.mark.parametrize(
    ("attempts", "free", "held", "kept"),
    [
        ([1, 1, 1], 1, 5, 3),
        ([2, 2, 2], 2, 0, 2),
        ([2, 2], 4, 0, 2),
        ([3], 2, 2, 0),
        ([1, 2, 1], 2, 0, 2),
        ([2, 2], 0, 4, 0),
        ([2, 2], -3, 4, 0),
        ([3, 1, 1], 4, 0, 1),
        ([4, 3], 4, 0, 1),
        ([1, 2, 3, 1], 4, 0, 2),
        ([], 4, 0, 0),
    ],
)
def test_which_of_a_batch_stay(attempts: list[int], free: int, held: int, kept: int) -> None:
    assert Caution().sift(attempts, free=free, held=held, now=1.0) == kept


def test_of_suspects_it_takes_as_many_as_run_at_once() -> None:
    caution = after([2, 2])
    assert caution.room(100, free=2, held=2, now=0.0) == 2
    assert caution.room(100, free=0, held=4, now=0.0) == 0


def test_what_was_handed_out_more_than_twice_waits_until_it_can_run_alone() -> None:
    caution = after([1])
    assert caution.sift([3], free=2, held=2, now=0.0) == 0
    assert caution.room(100, free=2, held=2, now=5.0) == 0
    assert caution.room(100, free=3, held=1, now=5.0) == 0
    assert caution.room(100, free=4, held=0, now=5.0) == 1
    assert caution.sift([3, 1], free=4, held=0, now=5.0) == 1
    assert caution.room(100, free=3, held=1, now=5.0) == 0


def test_it_does_not_wait_for_ever() -> None:
    caution = after([1])
    assert caution.sift([3], free=2, held=2, now=0.0) == 0
    assert caution.waits(1.0) == 9.0
    assert caution.room(100, free=2, held=2, now=10.0) == 1
    assert caution.sift([3], free=2, held=2, now=10.0) == 1
    assert caution.room(100, free=0, held=4, now=25.0) == 0


def test_there_is_nothing_to_wait_for_without_suspects() -> None:
    assert Caution().waits(0.0) is None
    assert after([2]).waits(0.0) is None
