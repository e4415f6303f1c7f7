"""What a consumer of RabbitMQ knows of a message that it gave away, and how each disposition is carried out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime

from celeriac.brokers.amqp_message import ATTEMPTS, Letter, Sending
from celeriac.brokers.amqp_session import Parcel
from celeriac.brokers.base import Delivery, Settlement
from celeriac.brokers.dead import dead_letter
from celeriac.topology import Queue
from celeriac.wire.disposition import Ack, DeadLetter, Defer, Return
from celeriac.wire.envelope import Envelope, Outgoing

__all__ = ["Claim", "goes_to_the_front", "sending_of", "uncounted"]


class Claim:
    """Where a delivery stands: the tag of `Delivery`. It changes when the message is exchanged for a copy."""

    __slots__ = ("is_copy", "is_settling", "letter", "queue", "since", "tag")

    def __init__(self, parcel: Parcel, queue: Queue, letter: Letter, *, is_copy: bool) -> None:
        #: The queue it came from, also where it is a copy.
        self.queue = queue
        self.letter = letter
        #: The server's number; None: settled already, for a queue that wants no acknowledgement.
        self.tag: int | None = parcel.tag
        #: It is a copy in a hold queue.
        self.is_copy = is_copy
        #: Somebody is about to give it up: it is not exchanged any more.
        self.is_settling = False
        #: When the server began to count how long we hold it, on the monotonic clock.
        self.since = time.monotonic()

    def becomes(self, copy: Parcel) -> None:
        """It was exchanged."""
        self.tag, self.is_copy, self.since = copy.tag, True, time.monotonic()


def goes_to_the_front(settlement: Settlement) -> bool:
    """The server can put it back where it was. What it would not remember has to be published anew."""
    claim: Claim = settlement.delivery.tag
    match settlement.disposition:
        case Return(counted=counted):
            return not counted and not claim.is_copy and claim.tag is not None
        case _:
            return False


def sending_of(settlement: Settlement, now: datetime) -> Sending | None:
    """What has to be published before the delivery is given up; None where the server's own means will do."""
    delivery = settlement.delivery
    before = delivery.attempts - 1
    match settlement.disposition:
        case Ack():
            return None
        case Return(counted=counted):
            return (
                None if goes_to_the_front(settlement) else _put_back(delivery, {ATTEMPTS: before + counted})
            )
        case Defer(until=until, envelope=None):
            marks = {ATTEMPTS: before} if delivery.redelivered else {}
            return _put_back(delivery, marks, until=until)
        case Defer(until=until, envelope=envelope):
            return _put_back(delivery, {}, envelope=envelope, until=until)
        case DeadLetter(reason=reason):
            return Sending(dead_letter(delivery, reason, now))


def _put_back(
    delivery: Delivery,
    marks: Mapping[str, int],
    *,
    envelope: Envelope | None = None,
    until: datetime | None = None,
) -> Sending:
    """The message of a delivery, or another in its place, for the queue that it came from."""
    claim: Claim = delivery.tag
    priority = delivery.envelope.properties.get("priority") or 0
    outgoing = Outgoing(envelope or delivery.envelope, "", claim.queue.name, priority, until, claim.queue)
    return Sending(outgoing, marks)


def uncounted(delivery: Delivery) -> Sending:
    """A delivery that goes back as if it had not been handed out."""
    return _put_back(delivery, {ATTEMPTS: delivery.attempts - 1})
