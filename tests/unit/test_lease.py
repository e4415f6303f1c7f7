"""Reaping by observation: the dead are found in time, and the living are never named."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from celeriac.brokers.lease import LeaseWatch

LEASE = 10.0
#: How often everyone renews and looks.
STEP = LEASE / 5


def looks(watch: LeaseWatch[str], beats: dict[str, int], times: list[float]) -> list[dict[str, int]]:
    return [watch.look(beats, at, at) for at in times]


def steps(start: float, end: float) -> list[float]:
    return [start + n * STEP for n in range(round((end - start) / STEP) + 1)]


def test_a_holder_that_stands_still_for_a_lease_is_dead() -> None:
    watch = LeaseWatch[str](LEASE)
    *before, last = looks(watch, {"w": 7}, steps(0, LEASE))
    assert before == [{}] * 5
    assert last == {"w": 7}


def test_it_is_named_again_while_it_is_there() -> None:
    watch = LeaseWatch[str](LEASE)
    assert looks(watch, {"w": 7}, steps(0, LEASE + STEP))[-2:] == [{"w": 7}, {"w": 7}]
    assert watch.look({}, LEASE + 2 * STEP, LEASE + 2 * STEP) == {}


def test_a_holder_that_comes_back_is_observed_anew() -> None:
    watch = LeaseWatch[str](LEASE)
    looks(watch, {"w": 7}, steps(0, LEASE - STEP))
    assert watch.look({}, LEASE, LEASE) == {}
    assert watch.look({"w": 7}, LEASE + STEP, LEASE + STEP) == {}


def test_any_other_counter_is_a_sign_of_life() -> None:
    watch = LeaseWatch[str](LEASE)
    looks(watch, {"w": 7}, steps(0, LEASE - STEP))
    assert watch.look({"w": 0}, LEASE, LEASE) == {}


def test_each_holder_is_judged_by_itself() -> None:
    watch = LeaseWatch[str](LEASE)
    found = [
        watch.look({"dead": 3, "alive": n, "new": 0} if n > 3 else {"dead": 3, "alive": n}, at, at)
        for n, at in enumerate(steps(0, LEASE))
    ]
    assert found[-1] == {"dead": 3}


def test_a_gap_in_the_own_looks_starts_anew() -> None:
    watch = LeaseWatch[str](LEASE)
    looks(watch, {"w": 7}, steps(0, LEASE - STEP))
    late = 100.0
    assert watch.look({"w": 7}, late, late) == {}
    assert looks(watch, {"w": 7}, steps(late + STEP, late + LEASE))[-2:] == [{}, {"w": 7}]


def test_a_late_answer_is_a_gap_too() -> None:
    watch = LeaseWatch[str](LEASE)
    looks(watch, {"w": 7}, steps(0, LEASE - STEP))
    assert watch.look({"w": 7}, LEASE, LEASE + STEP * 2) == {}


def test_a_slow_answer_does_not_count_as_silence() -> None:
    watch = LeaseWatch[str](LEASE)
    assert watch.look({"w": 7}, 0, 4) == {}
    assert looks(watch, {"w": 7}, [4, 6, 8, 10, 12, 13.9, 14])[-2:] == [{}, {"w": 7}]

    watch = LeaseWatch[str](LEASE)
    looks(watch, {"w": 7}, steps(0, LEASE - STEP))
    assert watch.look({"w": 7}, LEASE - 0.1, LEASE + STEP) == {}


def test_a_stall_is_not_cut_in_two_by_a_late_answer() -> None:
    watch = LeaseWatch[str](LEASE)
    looks(watch, {"w": 7}, [0, 2, 4, 6])
    assert watch.look({"w": 7}, 8, 10.5) == {}  # read at 8, then nobody got through until 14
    assert watch.look({"w": 7}, 10.5, 14) == {}


def test_a_failed_renewal_starts_anew() -> None:
    watch = LeaseWatch[str](LEASE)
    looks(watch, {"w": 7}, steps(0, LEASE - STEP))
    watch.restart()
    assert watch.look({"w": 7}, LEASE, LEASE) == {}
    assert looks(watch, {"w": 7}, steps(LEASE + STEP, 2 * LEASE))[-2:] == [{}, {"w": 7}]


seconds = st.floats(0, 3 * LEASE)
#: Pauses in which nobody gets through, and how long all goes well before each.
stalls = st.lists(st.tuples(st.floats(2 * STEP, 2 * LEASE), seconds), max_size=6)
lateness = st.lists(st.floats(0, STEP), min_size=1, max_size=40)
suspensions = st.lists(st.one_of(st.just(0.0), st.just(0.0), seconds), min_size=1, max_size=40)


class Server:
    """Answers at once, but for its stalls: then when they end."""

    def __init__(self, stalls: list[tuple[float, float]]) -> None:
        self.stalls: list[tuple[float, float]] = []
        at = 0.0
        for good, bad in stalls:
            self.stalls.append((at + good, at + good + bad))
            at += good + bad
        self.end = at + 3 * LEASE

    def when(self, asked: float) -> float:
        return next((end for start, end in self.stalls if start <= asked < end), asked)


@given(stalls, lateness, suspensions, suspensions)
def test_a_live_holder_is_never_named_whatever_stalls(
    stalls: list[tuple[float, float]], late: list[float], before: list[float], after: list[float]
) -> None:
    """`late`: how much later than possible the holder renews. `before`, `after`: how long the observer is
    suspended before it asks and before it sees the answer. When a stall ends, the observer is first."""
    server = Server(stalls)
    renewed = [0.0]
    while renewed[-1] < server.end:
        due = renewed[-1] + STEP
        done = server.when(due)
        renewed.append(done if done == due else done + late[len(renewed) % len(late)])
    watch = LeaseWatch[str](LEASE)
    asked, look = 0.0, 0
    while asked < server.end:
        read = server.when(asked)
        answered = read + after[look % len(after)]
        assert watch.look({"w": bisect_left(renewed, read)}, asked, answered) == {}
        asked = max(answered, asked + STEP) + before[look % len(before)]
        look += 1


@given(st.floats(0, 5 * LEASE), st.lists(st.floats(0.5, 1.5), min_size=5, max_size=20))
def test_a_dead_holder_is_named_within_a_lease_and_two_looks(died: float, intervals: list[float]) -> None:
    renewed = [n * STEP for n in range(int(died / STEP) + 1)]
    watch = LeaseWatch[str](LEASE)
    asked, times = 0.0, [0.0]
    while not watch.look({"w": bisect_left(renewed, asked)}, asked, asked):
        asked += STEP * intervals[len(times) % len(intervals)]
        times.append(asked)
        longest = max(later - sooner for sooner, later in pairwise(times))
        assert asked <= renewed[-1] + LEASE + 2 * longest
