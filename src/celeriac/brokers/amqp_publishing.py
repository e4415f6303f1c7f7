"""The story of one batch on its way to RabbitMQ: encode, declare, publish, and say what did not arrive."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from celeriac.amqp import delayed
from celeriac.amqp.publisher import Failures, Line, Post, Publisher
from celeriac.amqp.tables import Unencodable
from celeriac.brokers.amqp_message import Sending, due_marks, properties_of
from celeriac.clock import Clock
from celeriac.errors import OperationalError, PublishFailed
from celeriac.topology import Queue
from celeriac.wire.envelope import Outgoing

__all__ = ["Mail"]


class Mail:
    """1. `send` borrows a line and declares what the messages need; those whose exchange is missing fail.
    2. It encodes them; those that AMQP cannot carry fail.
    3. It publishes the others, and makes queues that were deleted meanwhile anew, once.
    4. It raises `PublishFailed` for what the server does not have.

    Thread-safe. `timeout`: seconds from the call to success or failure. `delayed_type`: of the queues in
    which messages for later wait.
    """

    def __init__(self, publisher: Publisher, *, clock: Clock, timeout: float, delayed_type: str) -> None:
        self._publisher = publisher
        self._clock = clock
        self._timeout = timeout
        self._delayed_type = delayed_type

    def send(self, batch: Sequence[Sending]) -> None:
        """Publish. Raises `PublishFailed` naming the messages that the server does not have."""
        deadline = time.monotonic() + self._timeout
        now = self._clock.now()
        letters = [_addressed(each, now) for each in batch]
        ledger = _Ledger([each.outgoing for each in batch])
        try:
            with self._publisher.line(deadline) as line:
                self._declare(line, letters, ledger, deadline)
                posts: dict[int, Post] = {}
                for place in ledger.open():
                    try:
                        posts[place] = self._post(line, letters[place], deadline)
                    except Unencodable as exc:
                        ledger.fails(place, f"AMQP cannot carry it: {exc}", for_ever=True)
                self._publish(line, posts, ledger, deadline)
        except OperationalError as exc:
            ledger.rest_fails(str(exc))
        ledger.check()

    # -- what must be there ----------------------------------------------------------------------------------

    def _declare(self, line: Line, letters: Sequence[_Addressed], ledger: _Ledger, deadline: float) -> None:
        line.declare(_queues(each.outgoing for each in letters), timeout=_left(deadline))
        for exchange in {each.outgoing.exchange for each in letters}:
            if not line.has_exchange(exchange, timeout=_left(deadline)):
                for place, each in enumerate(letters):
                    if each.outgoing.exchange == exchange:
                        ledger.fails(place, f"there is no exchange {exchange!r}", for_ever=True)
        for place in ledger.open():
            each = letters[place]
            if each.seconds:
                try:
                    self._prepare_delay(line, each, deadline)
                except OperationalError as exc:
                    ledger.fails(place, str(exc))

    def _prepare_delay(self, line: Line, letter: _Addressed, deadline: float) -> None:
        """Make sure that what comes out of the delay finds its queue: nobody would tell us if it did not."""
        if not line.has_delays:
            with line.channel(_left(deadline)) as channel:
                delayed.declare_delays(channel, self._delayed_type, timeout=_left(deadline))
            line.has_delays = True
        if letter.target in line.bound:
            return
        queue = letter.outgoing.queue
        if queue is not None and queue.exclusive and not letter.outgoing.exchange:
            return  # only its own connection may bind it, and has
        if letter.outgoing.exchange:
            relay = delayed.relay(letter.outgoing.exchange, letter.outgoing.routing_key)
            line.declare([relay], timeout=_left(deadline))
        with line.channel(_left(deadline)) as channel:
            delayed.bind(channel, letter.target, letter.target, timeout=_left(deadline))
        line.bound.add(letter.target)

    # -- publishing ------------------------------------------------------------------------------------------

    def _post(self, line: Line, letter: _Addressed, deadline: float) -> Post:
        properties = properties_of(letter.sending)
        room = line.connection.frame_max - 64
        if len(properties) > room:
            raise Unencodable(f"headers and properties have {len(properties)} bytes, and {room} is the most")
        outgoing = letter.outgoing
        body = outgoing.envelope.body
        if letter.seconds:
            exchange, key = delayed.delayed(letter.seconds, letter.target)
            return Post(exchange, key, properties, body, self._publisher.confirm)
        mandatory = self._publisher.confirm and not line.is_fanout(
            outgoing.exchange, outgoing.queue, timeout=_left(deadline)
        )
        return Post(outgoing.exchange, outgoing.routing_key, properties, body, mandatory)

    def _publish(self, line: Line, posts: Mapping[int, Post], ledger: _Ledger, deadline: float) -> None:
        places = list(posts)
        if not places:
            return
        missed = self._try(line, posts, places, ledger, deadline)
        if missed and line.connection.is_usable:
            queues = _queues(ledger.batch[place] for place in missed)
            line.forget(queues)
            line.declare(queues, timeout=_left(deadline))
            missed = self._try(line, posts, missed, ledger, deadline)
        for place in missed:
            ledger.fails(place, _no_route(ledger.batch[place]), for_ever=True)

    def _try(
        self,
        line: Line,
        posts: Mapping[int, Post],
        places: Sequence[int],
        ledger: _Ledger,
        deadline: float,
    ) -> list[int]:
        """Publish once. Returns those that found no queue, although they brought one along."""
        failures: Failures = line.publish([posts[place] for place in places], deadline)
        for at in failures.rejected:
            ledger.fails(places[at], "its queue refused it: it is full, or in trouble")
        for at in failures.unconfirmed:
            ledger.fails(places[at], failures.reason)
        missed: list[int] = []
        for at in failures.unroutable:
            place = places[at]
            if ledger.batch[place].queue is not None:
                missed.append(place)
            else:
                ledger.fails(place, _no_route(ledger.batch[place]), for_ever=True)
        return missed


class _Addressed(NamedTuple):
    """A message, and how it gets there."""

    sending: Sending
    #: Whole seconds that it waits at the server; what is left of its delay is waited by the consumer.
    seconds: int
    #: The queue that a delayed message comes out in.
    target: str

    @property
    def outgoing(self) -> Outgoing:
        return self.sending.outgoing


def _addressed(sending: Sending, now: datetime) -> _Addressed:
    outgoing = sending.outgoing
    delay = 0.0 if outgoing.due is None else (outgoing.due - now).total_seconds()
    if outgoing.due is None or delay <= 0:
        return _Addressed(sending, 0, "")
    marked = Sending(outgoing, {**sending.marks, **due_marks(outgoing)})
    target = outgoing.routing_key
    if outgoing.exchange:
        target = delayed.relay(outgoing.exchange, outgoing.routing_key).name
    return _Addressed(marked, min(int(delay), delayed.MAX_DELAY), target)


class _Ledger:
    """Which messages of a batch failed, and why."""

    def __init__(self, batch: Sequence[Outgoing]) -> None:
        self.batch = batch
        self._reasons: dict[int, str] = {}
        #: Those that may succeed another time.
        self._passing: set[int] = set()

    def open(self) -> list[int]:
        """Places of those that did not fail."""
        return [place for place in range(len(self.batch)) if place not in self._reasons]

    def fails(self, place: int, reason: str, *, for_ever: bool = False) -> None:
        self._reasons.setdefault(place, reason)
        if not for_ever:
            self._passing.add(place)

    def rest_fails(self, reason: str) -> None:
        for place in self.open():
            self.fails(place, reason)

    def check(self) -> None:
        """Raise `PublishFailed` if any did."""
        if not self._reasons:
            return
        reasons = list(dict.fromkeys(self._reasons[place] for place in sorted(self._reasons)))
        more = f" (and {len(reasons) - 3} more reasons)" if len(reasons) > 3 else ""
        raise PublishFailed(
            "; ".join(reasons[:3]) + more,
            ids=[self.batch[place].envelope.task_id for place in sorted(self._reasons)],
            unroutable=not self._passing,
        )


def _queues(batch: Iterable[Outgoing]) -> list[Queue]:
    return list({id(each.queue): each.queue for each in batch if each.queue is not None}.values())


def _left(deadline: float) -> float:
    return max(0.05, deadline - time.monotonic())


def _no_route(outgoing: Outgoing) -> str:
    if not outgoing.exchange:
        return f"there is no queue {outgoing.routing_key!r}"
    return f"no queue is bound to exchange {outgoing.exchange!r} with key {outgoing.routing_key!r}"
