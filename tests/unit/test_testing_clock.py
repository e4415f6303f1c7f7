"""The clock that moves when a test says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from celeriac.testing import MovableClock

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_it_stands_still_until_it_is_moved() -> None:
    clock = MovableClock(START)
    instant = clock.monotonic()
    assert (clock.now(), clock.now(), clock.monotonic()) == (START, START, instant)
    clock.advance(1.5)
    assert (clock.now(), clock.monotonic()) == (START + timedelta(seconds=1.5), instant + 1.5)


def test_a_jump_moves_the_wall_clock_only() -> None:
    clock = MovableClock(START)
    instant = clock.monotonic()
    clock.jump(-3600)
    assert (clock.now(), clock.monotonic()) == (START - timedelta(hours=1), instant)


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="jump"):
        MovableClock(START).advance(-1)
