"""When to try again."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.retry import backoff, intervals


@pytest.mark.parametrize(("retries", "delay"), [(0, 2.0), (1, 4.0), (3, 16.0), (9, 600.0), (5000, 600.0)])
def test_backoff_doubles_up_to_its_maximum(retries: int, delay: float) -> None:
    assert backoff(retries, factor=2, maximum=600, jitter=False) == delay


@given(st.integers(0, 100), st.floats(0, 1e6), st.floats(0, 1e6))
def test_jitter_spreads_between_nothing_and_the_full_delay(
    retries: int, factor: float, maximum: float
) -> None:
    full = backoff(retries, factor=factor, maximum=maximum, jitter=False)
    assert 0 <= backoff(retries, factor=factor, maximum=maximum, jitter=True) <= full


def test_jitter_takes_its_share_from_the_random_number() -> None:
    assert backoff(2, factor=1, maximum=600, jitter=True, rng=lambda: 0.25) == 1.0


def test_intervals_grow_by_a_step_up_to_the_longest() -> None:
    policy = {"max_retries": 5, "interval_start": 0, "interval_step": 0.4, "interval_max": 1}
    assert list(intervals(policy)) == pytest.approx([0, 0.4, 0.8, 1, 1])


def test_intervals_without_a_limit_never_end() -> None:
    policy = {"max_retries": None, "interval_start": 1, "interval_step": 1, "interval_max": 3}
    assert list(islice(intervals(policy), 6)) == [1, 2, 3, 3, 3, 3]


def test_no_retries_are_no_intervals() -> None:
    assert list(intervals({"max_retries": 0})) == []
