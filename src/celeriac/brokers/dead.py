"""Dead letters: what is told about a message that nobody could carry out, the same on every broker."""

from __future__ import annotations

from datetime import datetime

import msgspec

from celeriac.brokers.base import Delivery
from celeriac.topology import Queue
from celeriac.wire.envelope import Outgoing

__all__ = ["DEAD_AT", "DEAD_ATTEMPTS", "DEAD_QUEUE", "DEAD_REASON", "dead_letter"]

#: Why the message died, for people.
DEAD_REASON = "x-celeriac-dead-reason"
#: How often it had been handed out.
DEAD_ATTEMPTS = "x-celeriac-dead-attempts"
#: When: an ISO 8601 instant in UTC.
DEAD_AT = "x-celeriac-dead-at"
#: The queue it came from: where a replay puts it back.
DEAD_QUEUE = "x-celeriac-dead-queue"


def dead_letter(delivery: Delivery, reason: str, now: datetime) -> Outgoing:
    """The message of `delivery`, addressed to its queue's dead letters and with its story in the headers."""
    dead = Queue(Queue(delivery.queue).dead)
    headers = {
        **delivery.envelope.headers,
        DEAD_REASON: reason,
        DEAD_ATTEMPTS: delivery.attempts,
        DEAD_AT: now.isoformat(),
        DEAD_QUEUE: delivery.queue,
    }
    return Outgoing(
        msgspec.structs.replace(delivery.envelope, headers=headers), routing_key=dead.name, queue=dead
    )
