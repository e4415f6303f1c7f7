"""Waiting until tasks have run, by looking on from outside: nothing is needed of who runs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from rounds import Failed

#: Seconds between two looks.
LOOK = 0.02
#: Seconds without any progress after which a step is given up.
PATIENCE = 30.0


class Seen(NamedTuple):
    """What a look saw, and when, by `time.perf_counter`."""

    instant: float
    done: int


def reach(
    goal: int,
    progress: Callable[[], int],
    what: str,
    *,
    every: float = LOOK,
    alive: Callable[[], bool] = lambda: True,
) -> Seen:
    """Look until `progress` is `goal` or more. Raises `Failed` when it stands still, or who makes it is not `alive`."""
    done, moved = -1, time.perf_counter()
    while True:
        before, done = done, progress()
        now = time.perf_counter()
        if done >= goal:
            return Seen(now, done)
        if done != before:
            moved = now
        elif not alive():
            raise Failed(f"the worker ended: {done:,} of {goal:,} {what}")
        elif now - moved > PATIENCE:
            raise Failed(f"nothing happened for {PATIENCE:.0f} s: {done:,} of {goal:,} {what}")
        time.sleep(every)


def rate(first: Seen, last: Seen) -> float:
    """How much was done in a second between two looks."""
    return (last.done - first.done) / (last.instant - first.instant)
