"""Which tasks must not run, known in every worker without asking: a position that the server tells us has moved."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import redis

from celeriac.clock import Clock
from celeriac.errors import ConnectionLost
from celeriac.redis.line import Line
from celeriac.redis.links import Links
from celeriac.redis.scripts import Script

__all__ = ["Revocations"]

_REVOKE = Script("revoke.lua")
_REVOKED = Script("revoked.lua")
#: Ids that are revoked in one step.
_AT_ONCE = 1000

#: Seconds after which to ask all the same, and where the server does not tell.
_TRUST, _TRUST_ALONE = 5.0, 0.5
#: Seconds between attempts to reach a server that is away: each may take as long as its timeout.
_PAUSE = 1.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class _Known(NamedTuple):
    position: int
    until: datetime


class Revocations:
    """Thread-safe; usable after a fork. One connection of its own, opened when `revoked` is first called.

    ``CLIENT TRACKING`` has the server push a message on it when the position changes, before whoever revoked learns
    that it is done. As long as nothing was pushed, what we know is all there is.
    """

    def __init__(self, links: Links, clock: Clock) -> None:
        self._links = links
        self._server = links.server
        self._clock = clock
        self._keys = [self._server.key(f"celeriac-revoked{end}") for end in ("", "-until", "-position")]
        self._tracks = True
        #: Tells that the position moved; None: nobody does.
        self._line: Line | None = None
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._hang_up()
        self._position = 0
        self._known: dict[str, _Known] = {}
        #: Monotonic instants: until when what we know holds, and before which not to try to connect again.
        self._current_until = 0.0
        self._away_until = 0.0
        self._why_away = ""

    def revoke(self, ids: Sequence[str], until: datetime) -> None:
        """Write these down. All that asks from now on, anywhere, is told."""
        now = _microseconds(self._clock.now())
        for at in range(0, len(ids), _AT_ONCE):
            self._links.run(_REVOKE, self._keys, [now, _microseconds(until), *ids[at : at + _AT_ONCE]])
        # The server writes a push and our answer in the same turn, and may begin with ours. This is its next turn.
        self._links.ask(("PING",))
        self._current_until = 0.0

    def revoked(self, after: int) -> tuple[int, Mapping[str, datetime]]:
        """What was revoked later than the position `after`, and holds; and the last position."""
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            if not self._is_current():
                self._refresh()
            if after == self._position:
                return after, {}
            now = self._clock.now()
            return self._position, {
                id: each.until
                for id, each in self._known.items()
                if each.position > after and each.until > now
            }

    def close(self) -> None:
        """Hang up, and know nothing."""
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            self._forget()

    # -- whether what we know is all ------------------------------------------------------------------------------

    def _is_current(self) -> bool:
        if time.monotonic() >= self._current_until:
            return False
        if self._line is None:
            return True
        try:
            return not self._line.receive(0)
        except (redis.RedisError, OSError):
            self._hang_up()
            return False

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _refresh(self) -> None:
        began = time.monotonic()
        if began < self._away_until:
            raise ConnectionLost(self._why_away)
        self._current_until = 0.0
        try:
            with self._server.errors():
                position = self._ask_position()
                if position != self._position:
                    self._fetch(position)
        except ConnectionLost as exc:
            self._hang_up()
            self._away_until = time.monotonic() + _PAUSE
            self._why_away = str(exc)
            raise
        except BaseException:
            self._hang_up()  # something may be under way on it
            raise
        self._current_until = began + (_TRUST if self._line is not None else _TRUST_ALONE)

    def _ask_position(self) -> int:
        """The last position; on the line it is asked for, any later one is announced."""
        line = self._line = self._line or self._tracking_line()
        if line is None:
            [position] = self._links.ask(("GET", self._keys[2]))
        else:
            [position] = line.ask(("GET", self._keys[2]))
        return int(position or 0)

    def _tracking_line(self) -> Line | None:
        """None where the server cannot track, or will not."""
        if not self._tracks:
            return None
        try:
            line = Line(self._server, timeout=self._server.timeout)
        except redis.ResponseError:
            self._tracks = False
            return None
        try:
            line.ask(("CLIENT", "TRACKING", "ON"))
        except redis.ResponseError:
            line.close()
            self._tracks = False
            return None
        except BaseException:
            line.close()
            raise
        return line

    def _fetch(self, position: int) -> None:
        # Positions that went back: the database was emptied, or is that of a replica which had not got all.
        after = self._position if position > self._position else 0
        last, *found = self._links.run(_REVOKED, self._keys, [after])
        now = self._clock.now()
        known = {id: each for id, each in self._known.items() if each.until > now} if after else {}
        for id, position_, until in zip(found[::3], found[1::3], found[2::3], strict=True):
            known[id.decode()] = _Known(int(position_), _EPOCH + int(float(until)) * _MICROSECOND)
        self._known = known
        self._position = int(last)


def _microseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND
