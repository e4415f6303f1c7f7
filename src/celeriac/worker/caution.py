"""What a worker holds beside messages that may have killed one.

When a worker dies, everything it held has lost an attempt: nobody can tell which message was to blame. If all of it
came back to another worker at once, the culprit would kill that one too, and take its neighbours along, time after
time, until they are all dead-lettered. So what was handed out before is *suspect*, and of suspects only as many are
held as run at once; what was handed out more than twice runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

__all__ = ["Caution"]

#: Seconds for which a worker that is busy keeps slots empty for a message that is to run alone.
_PATIENCE = 10.0


class _Level(IntEnum):
    #: Nothing is suspect: take what can be used.
    NONE = 0
    #: Take no more than can run at once.
    FEW = 1
    #: Take one, when nothing else is here.
    ALONE = 2


class Caution:
    """Decides how much to fetch, and which of a batch to keep. No I/O, no clock; belongs to the loop."""

    def __init__(self) -> None:
        # A worker often starts because another died.
        self._level = _Level.FEW
        #: Monotonic instant until which a message that is to run alone waits for that; None while there is none.
        self._until: float | None = None

    def room(self, wanted: int, *, free: int, held: int, now: float) -> int:
        """How many to fetch, of the `wanted` ones: `free` slots are idle, `held` messages are here already."""
        if self._level is _Level.NONE:
            return wanted
        if self._level is _Level.FEW:
            return min(wanted, free)
        return min(1, wanted, free) if held == 0 or self._has_waited(now) else 0

    def sift(self, attempts: Sequence[int], *, free: int, held: int, now: float) -> int:
        """How many of a batch to keep, from the first on; the others go back, uncounted. `attempts`: which hand-out
        each is, 1 for what cannot be suspect."""
        worst = max(attempts, default=1)
        if worst <= 2:
            self._until = None
            self._level = _Level.NONE if worst <= 1 else _Level.FEW
            return len(attempts) if worst <= 1 else min(len(attempts), max(0, free))
        self._level = _Level.ALONE
        before = next(n for n, each in enumerate(attempts) if each > 2)
        kept = min(before, max(0, free)) if before else int(held == 0 or self._has_waited(now))
        if self._until is None or kept:
            self._until = now + _PATIENCE
        return kept

    def waits(self, now: float) -> float | None:
        """Seconds until `room` may say otherwise although nothing happened; None: it will not."""
        return None if self._until is None or self._until <= now else self._until - now

    def _has_waited(self, now: float) -> bool:
        return self._until is not None and now >= self._until
