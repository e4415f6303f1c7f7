"""A clock that moves when a test says so."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

__all__ = ["MovableClock"]


class MovableClock:
    """A `Clock` that stands still until it is moved. Thread-safe.

    >>> clock = MovableClock(datetime(2026, 1, 1, tzinfo=UTC))
    >>> clock.advance(60)
    >>> clock.now()
    datetime.datetime(2026, 1, 1, 0, 1, tzinfo=datetime.timezone.utc)
    """

    def __init__(self, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._monotonic = 1000.0

    def now(self) -> datetime:
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        with self._lock:
            return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let `seconds` >= 0 pass."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}; use jump() for a clock that was set wrong")
        with self._lock:
            self._now += timedelta(seconds=seconds)
            self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator or NTP does: no time passes."""
        with self._lock:
            self._now += timedelta(seconds=seconds)
