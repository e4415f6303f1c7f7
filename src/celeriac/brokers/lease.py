"""Who has died: found by observation, without comparing two clocks.

Every consumer that holds messages keeps a *heartbeat counter* at the server and adds to it each time it
renews. A time stamp would be simpler and wrong: after the server stalled or its clock jumped, all stamps are
old at once, and the first consumer to come back would take the messages of all the others, which live.

So each consumer watches the counters of the others. A holder is dead when its counter has not moved for one
lease on the *observer's own* monotonic clock, during which the observer itself got through all the time. An
observer that could not renew, or did not look for half a lease (it was suspended, the server stalled), knows
nothing of the others and starts anew: that only costs time, the other error would run tasks twice.

With a look every fifth of a lease, a holder is named at most 1.4 leases after its last renewal.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

__all__ = ["LeaseWatch"]

H = TypeVar("H", bound=Hashable)


class LeaseWatch(Generic[H]):
    """What one observer knows of the other holders' heartbeats. No I/O, no clock; not thread-safe.

    ::

        asked = clock.monotonic()
        try:
            beats = ...  # add one to our own counter, read everyone's
        except ConnectionLost:
            watch.restart()
            raise
        dead = watch.look(beats, asked, clock.monotonic())
    """

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._longest_gap = lease / 2
        self._asked: float | None = None
        #: Each holder's counter, and the instant since which we know it to be still.
        self._still: dict[H, tuple[int, float]] = {}

    def look(self, beats: Mapping[H, int], asked: float, answered: float) -> dict[H, int]:
        """Take in everyone's counters, read somewhen between the monotonic instants `asked` and `answered`
        by an observer whose own renewal just succeeded; returns the dead holders and where they stopped.

        Whoever reaps one checks that its counter still stands there. A dead holder is named again at the next
        look while it is among `beats`.
        """
        # From question to answer, so that a stall of the server lies within one gap and not half in two.
        if self._asked is None or answered - self._asked > self._longest_gap:
            self._still.clear()
        self._asked = asked
        seen, self._still = self._still, {}
        dead: dict[H, int] = {}
        for holder, beat in beats.items():
            before, since = seen.get(holder, (None, answered))
            if beat != before:
                since = answered
            self._still[holder] = (beat, since)
            if asked - since >= self._lease:
                dead[holder] = beat
        return dead

    def restart(self) -> None:
        """Our own renewal failed: what stood still meanwhile says nothing."""
        self._asked = None
