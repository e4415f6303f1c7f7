"""What becomes of a delivery: the four ways a borrowed message leaves a consumer."""

from __future__ import annotations

from datetime import datetime

import msgspec

from celeriac.wire.envelope import Envelope

__all__ = ["ACK", "Ack", "DeadLetter", "Defer", "Disposition", "Return"]


class Ack(msgspec.Struct, frozen=True, tag="ack", array_like=True):
    """Done: the message is gone."""


class Return(msgspec.Struct, frozen=True, tag="return", array_like=True):
    """Back to the front of its queue. `counted`: this hand-out was an attempt (its executor died)."""

    counted: bool = False


class Defer(msgspec.Struct, frozen=True, tag="defer", array_like=True):
    """Back into the broker, not to be handed out before `until` (aware, UTC).

    With an `envelope` the message is replaced by it and starts over with no attempts (a retry);
    without, it is the same message and this hand-out was not an attempt (eta, rate limit).
    """

    until: datetime
    envelope: Envelope | None = None


class DeadLetter(msgspec.Struct, frozen=True, tag="dead", array_like=True):
    """To ``<queue>.dead``, with `reason`, attempts and time in its headers."""

    reason: str


Disposition = Ack | Return | Defer | DeadLetter

ACK = Ack()
