"""Outcomes that wait for their message to come back."""

from __future__ import annotations

from celeriac.wire.disposition import ACK
from celeriac.wire.frames import Outcome
from celeriac.worker.orphans import Orphans


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def outcome(number: int = 1) -> Outcome:
    return Outcome(number, "SUCCESS", ACK)


def test_an_outcome_is_kept_for_its_call_and_given_once() -> None:
    orphans = Orphans(Clock())
    kept = outcome()
    orphans.keep(("a", 0), kept)
    assert orphans.take(("a", 1)) is None
    assert orphans.take(None) is None
    assert orphans.take(("a", 0)) is kept
    assert orphans.take(("a", 0)) is None


def test_the_latest_of_a_call_counts() -> None:
    orphans = Orphans(Clock())
    orphans.keep(("a", 0), outcome(1))
    latest = outcome(2)
    orphans.keep(("a", 0), latest)
    assert orphans.take(("a", 0)) is latest


def test_it_is_not_kept_for_ever() -> None:
    clock = Clock()
    orphans = Orphans(clock)
    orphans.keep(("a", 0), outcome())
    clock.now += 61
    assert orphans.take(("a", 0)) is None


def test_what_is_too_old_makes_room() -> None:
    clock = Clock()
    orphans = Orphans(clock)
    for number in range(6000):
        orphans.keep((str(number), 0), outcome())
    assert orphans.take(("0", 0)) is None
    assert orphans.take(("5999", 0)) is not None
    clock.now += 61
    orphans.keep(("new", 0), outcome())
    assert orphans.take(("5000", 0)) is None
