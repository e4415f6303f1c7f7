"""Messages that came a little early: the server delays by whole seconds, the rest is waited for here."""

from __future__ import annotations

import time

import msgspec

from celeriac.brokers.amqp_message import Letter
from celeriac.brokers.amqp_session import Parcel
from celeriac.clock import Clock

__all__ = ["Early"]

#: Seconds that a message is kept back at most, whatever the clocks say.
_LONGEST = 1.0


class _Waiting(msgspec.Struct, frozen=True, eq=False):
    parcel: Parcel
    letter: Letter
    due: float
    #: When it is handed out at the latest, on the monotonic clock.
    latest: float


class Early:
    """Keeps them until they are due. Used under the lock of their session."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: list[_Waiting] = []

    def keeps(self, parcel: Parcel, letter: Letter) -> bool:
        """Whether it has to wait, and does so here. What has to wait for longer is for the worker to defer."""
        if letter.due is None or not 0 < letter.due - self._now() <= _LONGEST:
            return False
        self._waiting.append(_Waiting(parcel, letter, letter.due, time.monotonic() + _LONGEST))
        return True

    def take(self, limit: int) -> list[tuple[Parcel, Letter]]:
        """At most so many that are due now."""
        if not self._waiting:
            return []
        now, latest = self._now(), time.monotonic()
        due = [each for each in self._waiting if each.due <= now or each.latest <= latest][:limit]
        if due:
            taken = set(due)
            self._waiting = [each for each in self._waiting if each not in taken]
        return [(each.parcel, each.letter) for each in due]

    def seconds_to_next(self) -> float:
        """Until one is due; a minute if none waits."""
        if not self._waiting:
            return 60.0
        now, latest = self._now(), time.monotonic()
        return max(0.0, min(min(each.due - now, each.latest - latest) for each in self._waiting))

    def clear(self) -> list[int]:
        """Keep none; returns their tags."""
        tags = [each.parcel.tag for each in self._waiting]
        self._waiting = []
        return tags

    def _now(self) -> float:
        return self._clock.now().timestamp()
