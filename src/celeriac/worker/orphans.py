"""Outcomes whose delivery went with the broker's connection: the message may come back to this very worker."""

from __future__ import annotations

import time
from collections.abc import Callable

from celeriac.wire.frames import Outcome

__all__ = ["Orphans"]

#: Seconds that an outcome is kept, and how many are: a message that does not come back soon went elsewhere.
_PATIENCE = 60.0
_MOST = 5000


class Orphans:
    """Keeps the outcome of a call, by its id and number of retries, until the same message is here again.

    Only where ownership ends with a connection. Where it is a lease, somebody else has the message by then.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._kept: dict[tuple[str, int], tuple[float, Outcome]] = {}

    def keep(self, key: tuple[str, int], outcome: Outcome) -> None:
        now = self._monotonic()
        for old, (until, _) in list(self._kept.items()):
            if until > now and len(self._kept) < _MOST:
                break
            del self._kept[old]
        self._kept.pop(key, None)  # so that the latest is the last
        self._kept[key] = (now + _PATIENCE, outcome)

    def take(self, key: tuple[str, int] | None) -> Outcome | None:
        """The outcome of that call, if it is kept; it is not any more."""
        until, outcome = self._kept.pop(key, (0.0, None)) if key else (0.0, None)
        return outcome if until > self._monotonic() else None
