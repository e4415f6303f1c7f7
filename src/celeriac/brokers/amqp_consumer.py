"""What one worker has borrowed from RabbitMQ: `AMQPConsumer`.

Its connection may be touched by one thread at a time, and is never kept while somebody waits: who waits for the socket
does so without the lock, who reads or writes has it. So a settlement goes out beside a blocked fetch at once.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from celeriac.amqp.connection import wait_for
from celeriac.backends.base import ResultBackend
from celeriac.brokers.amqp_claim import Claim, goes_to_the_front, sending_of, uncounted
from celeriac.brokers.amqp_early import Early
from celeriac.brokers.amqp_hold import Hold, Original
from celeriac.brokers.amqp_message import Letter, read_letter
from celeriac.brokers.amqp_session import Parcel, Session
from celeriac.brokers.base import Completion, Consumer, Delivery, Settlement, Unit
from celeriac.errors import ConnectionLost, OperationalError
from celeriac.topology import Queue
from celeriac.wire.disposition import Return

if TYPE_CHECKING:
    from celeriac.brokers.amqp import AMQPBroker

__all__ = ["AMQPConsumer"]

logger = logging.getLogger("celeriac.broker")

#: Seconds without a fetch after which the server is told to send nothing.
_IDLE = 1.0
#: The server's complaint about a message that was held for too long.
_TIMED_OUT = re.compile(r"timed out\. Timeout value used: (\d+) ms")


class AMQPConsumer(Consumer):
    """See `Consumer`. `renew` also keeps the connection alive when nobody fetches."""

    def __init__(self, broker: AMQPBroker, queues: Collection[Queue], name: str) -> None:
        self.broker = self._broker = broker
        self._name = name
        self._clock = broker.options.clock
        self._queues = {queue.name: queue for queue in queues}
        lease = broker.options.lease
        # Whoever calls `renew` does so every lease / 5: often enough for heartbeats of this length.
        self._heartbeat = max(broker.server.heartbeat, 0.3 * lease) if broker.server.heartbeat else 0.0
        self._patience = max(3.5 * lease, 35.0)
        #: Seconds after which a message that is held is exchanged for a copy.
        self._hold_for = broker.consumer_timeout * 2 / 3
        self._fetching = threading.Lock()
        self._last_fetch = time.monotonic()
        #: Held for moments only: which session there is, what it gave, what was lost.
        self._state = threading.Lock()
        self._session: Session | None = None
        self._hold: Hold | None = None
        self._given: dict[Delivery, Claim] = {}
        self._lost: dict[Delivery, None] = {}
        self._early = Early(self._clock)
        self._bell, self._ring = socket.socketpair()
        self._bell.setblocking(False)
        self._ring.setblocking(False)
        self._woken = False
        self._closed = False
        try:
            self._connect()
        except BaseException:
            self._hang_up()
            raise

    # -- the connection --------------------------------------------------------------------------------------

    def _connect(self) -> tuple[Session, Hold]:
        """The session there is, or a new one. Called by whoever fetches."""
        with self._state:
            session, hold = self._session, self._hold
        if session is not None and hold is not None and session.connection.is_usable:
            return session, hold
        if session is not None:
            self._lose(session)
        connection = self._broker.server.connect(
            name=f"celeriac worker {self._name}", heartbeat=self._heartbeat, patience=self._patience
        )
        try:
            with connection.lock:
                session = Session(
                    connection,
                    self._queues.values(),
                    delayed_type=self._broker.options.delayed_queue_type,
                )
        except BaseException:
            connection.drop()
            raise
        hold = Hold(session, self._broker.own_mail, self._name)
        with self._state:
            self._session, self._hold = session, hold
            self._early = Early(self._clock)
        return session, hold

    def _lose(self, session: Session) -> None:
        """The session is over: what it held is the server's again."""
        with self._state:
            if session is self._session:
                self._session = self._hold = None
                self._lost.update(dict.fromkeys(self._given))
                self._given.clear()
        with session.lock:
            session.connection.drop()
        timeout = _TIMED_OUT.search(str(session.channel.closed or ""))
        if timeout is not None:
            self._hold_for = min(self._hold_for, int(timeout[1]) / 1000 * 2 / 3)
            logger.error(
                "RabbitMQ takes back what a worker holds for %gs: say so in broker_transport_options "
                "(consumer_timeout)",
                int(timeout[1]) / 1000,
            )
        self._wake_fetch()

    # -- fetching --------------------------------------------------------------------------------------------

    def fetch(self, limit: int, timeout: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + timeout
        with self._fetching:
            if self._closed:
                return ()
            session, hold = self._connect()
            try:
                return self._fetch(session, hold, limit, deadline, look=timeout <= 0)
            except ConnectionLost:
                self._lose(session)
                raise
            finally:
                self._last_fetch = time.monotonic()

    def _fetch(
        self, session: Session, hold: Hold, limit: int, deadline: float, *, look: bool
    ) -> Sequence[Delivery]:
        with session.lock:
            session.receive()
            session.ask(limit)
            if look:
                session.look()
        while True:
            with session.lock:
                session.receive()
                hold.sort()
                taken = self._take(session, limit)
            if taken:
                return self._hand_out(session, hold, taken)
            left = deadline - time.monotonic()
            if self._was_woken() or left <= 0:
                return ()
            left = min(left, self._early.seconds_to_next(), session.connection.until_tick())
            wait_for([session.connection.fileno(), self._bell.fileno()], None, left)

    def _take(self, session: Session, limit: int) -> list[tuple[Parcel, Letter]]:
        """What may be handed out now: first what had to wait until it is due. Under the lock."""
        taken = self._early.take(limit)
        inbox = session.inbox
        while inbox and len(taken) < limit:
            parcel = inbox.popleft()
            letter = read_letter(parcel.arrival)
            if not self._early.keeps(parcel, letter):
                taken.append((parcel, letter))
        return taken

    def _hand_out(
        self, session: Session, hold: Hold, taken: Sequence[tuple[Parcel, Letter]]
    ) -> Sequence[Delivery]:
        """Give messages to the caller; those that somebody had before are exchanged for counted copies first."""
        originals = {
            parcel.tag: _original(parcel, letter)
            for parcel, letter in taken
            if parcel.arrival.redelivered or letter.attempts is not None
        }
        copies = hold.exchange(list(originals.values()))
        given: dict[Delivery, Claim] = {}
        done: list[int] = []
        for parcel, letter in taken:
            original = originals.get(parcel.tag)
            copy = copies.get(original) if original is not None else None
            if copy is not None:
                done.append(parcel.tag)
            claim = Claim(copy or parcel, parcel.queue, letter, is_copy=copy is not None)
            if parcel.queue.no_ack and claim.tag is not None:
                done.append(claim.tag)
                claim.tag = None
            attempts = original.attempts if original is not None else 1
            delivery = Delivery(letter.envelope, parcel.queue.name, claim, attempts, original is not None)
            given[delivery] = claim
        if done:
            with session.lock:
                session.settle(done)
                if copies:
                    # An original that came back now would be a second copy.
                    session.round_trip()
        with self._state:
            if session is not self._session:
                raise ConnectionLost("the connection was lost while messages were handed out")
            self._given.update(given)
        return list(given)

    def held(self) -> Sequence[Delivery]:
        """Nothing: what the server gave to a connection that was lost, it took back."""
        return ()

    def wake(self) -> None:
        self._woken = True
        self._wake_fetch()

    def _wake_fetch(self) -> None:
        try:
            self._ring.send(b"!")
        except (BlockingIOError, OSError):
            pass  # it is rung already, or nobody will wait for it again

    def _nudge(self, session: Session) -> None:
        """This thread may have read what the one that fetches waits for."""
        if session.inbox and self._fetching.locked():
            self._wake_fetch()

    def _was_woken(self) -> bool:
        try:
            self._bell.recv(4096)
        except BlockingIOError:
            pass
        woken, self._woken = self._woken, False
        return woken or self._closed

    # -- settling --------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Delivery]:
        kept: dict[Delivery, Settlement] = {}
        lost: list[Delivery] = []
        with self._state:
            session = self._session
            for each in settlements:
                claim = self._given.get(each.delivery)
                if claim is None or each.delivery in kept:
                    lost.append(each.delivery)
                    self._lost.pop(each.delivery, None)
                else:
                    kept[each.delivery] = each
                    claim.is_settling = True
        if kept and session is not None:
            lost += self._settle(session, list(kept.values()))
        return lost

    def _settle(self, session: Session, settlements: Sequence[Settlement]) -> list[Delivery]:
        """Settle what was held a moment ago: publish, then give the tags back. Returns what was lost meanwhile."""
        now = self._clock.now()
        sendings = [found for each in settlements if (found := sending_of(each, now)) is not None]
        self._step_aside(session, settlements)
        if sendings:
            try:
                self._broker.own_mail.send(sendings)
            except OperationalError:
                for each in settlements:
                    each.delivery.tag.is_settling = False
                raise
        lost: list[Delivery] | None = None
        try:
            with session.lock:
                self._release(session, settlements)
                # What was sent counts as done: if the connection ends now, the server may have read it or not.
                lost = self._forget(settlements)
                if any(goes_to_the_front(each) for each in settlements):
                    self._await_return(session)
            self._nudge(session)
        except ConnectionLost:
            self._lose(session)
        return self._forget(settlements) if lost is None else lost

    def _release(self, session: Session, settlements: Sequence[Settlement]) -> None:
        """Give the tags back to the server. Under its lock."""
        done: list[int] = []
        again: list[int] = []
        for each in settlements:
            claim: Claim = each.delivery.tag
            if claim.tag is not None:
                (again if goes_to_the_front(each) else done).append(claim.tag)
        session.settle(done, again)

    def _forget(self, settlements: Sequence[Settlement]) -> list[Delivery]:
        """They are settled. Returns those that were not, because they were lost before."""
        with self._state:
            lost = [each.delivery for each in settlements if self._given.pop(each.delivery, None) is None]
            for delivery in lost:
                self._lost.pop(delivery, None)
            return lost

    def _await_return(self, session: Session) -> None:
        """What was given back is in its queue when this returns, unless the server is slow. Under the lock."""
        try:
            session.round_trip()
        except ConnectionLost:
            raise
        except OperationalError as exc:
            logger.debug("%s", exc)

    def _step_aside(self, session: Session, settlements: Iterable[Settlement]) -> None:
        """What goes back to its queue while nobody fetches here is for others."""
        if not self._fetching.locked() and any(isinstance(each.disposition, Return) for each in settlements):
            try:
                with session.lock:
                    self._pause(session)
            except ConnectionLost:
                self._lose(session)

    # -- leases ----------------------------------------------------------------------------------------------

    def renew(self) -> Sequence[Delivery]:
        """There are no leases: this keeps the connection alive, and long work from being taken back."""
        with self._state:
            session, hold = self._session, self._hold
        if session is not None and hold is not None and not self._closed:
            try:
                self._keep_alive(session, hold)
            except ConnectionLost:
                self._lose(session)
        with self._state:
            lost = list(self._lost)
            self._lost.clear()
        return lost

    def _keep_alive(self, session: Session, hold: Hold) -> None:
        if session.lock.acquire(timeout=_IDLE):  # who has it for longer keeps the connection alive
            try:
                session.receive()
                hold.sort()
                idle = time.monotonic() - self._last_fetch > _IDLE
                if idle and not self._fetching.locked():
                    self._pause(session)
            finally:
                session.lock.release()
            self._nudge(session)
        if any(due <= time.monotonic() for due in self._exchange_dues()):
            self._exchange_old(session, hold)

    def _pause(self, session: Session) -> None:
        session.settle((), self._early.clear())
        session.pause()

    def _exchange_dues(self) -> list[float]:
        with self._state:
            return [claim.since + self._hold_for for claim in self._given.values() if claim.tag is not None]

    def _exchange_old(self, session: Session, hold: Hold) -> None:
        """Exchange what is held for long, before the server takes it back."""
        soon = time.monotonic() + self._hold_for / 10
        with self._state:
            old = {
                Original(
                    claim.tag,
                    claim.letter,
                    claim.queue,
                    delivery.attempts,
                    _mark(delivery.attempts, claim.letter, delivery.redelivered),
                ): (delivery, claim)
                for delivery, claim in self._given.items()
                if claim.tag is not None and not claim.is_settling and claim.since + self._hold_for <= soon
            }
        copies = hold.exchange(list(old))
        if not copies:
            return
        done: list[int] = []
        with session.lock:
            for original, parcel in copies.items():
                delivery, claim = old[original]
                with self._state:
                    if delivery in self._given and not claim.is_settling:
                        claim.becomes(parcel)
                        done.append(original.tag)
                    else:
                        done.append(parcel.tag)  # it was settled meanwhile
            session.settle(done)
            session.round_trip()
        self._nudge(session)

    # -- the end, and units ----------------------------------------------------------------------------------

    def holds(self, queue: str) -> int:
        """How many messages of a queue are here."""
        session = self._session
        if session is None:
            return 0
        with session.lock, self._state:
            copies = sum(claim.is_copy and claim.queue.name == queue for claim in self._given.values())
            return session.count(queue) + copies

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._wake_fetch()
        with self._fetching:
            with self._state:
                session, hold = self._session, self._hold
                given, self._given = self._given, {}
                self._session = self._hold = None
                self._lost.clear()
            if session is not None and hold is not None:
                self._leave(session, hold, given)
            self._hang_up()

    def _hang_up(self) -> None:
        self._bell.close()
        self._ring.close()

    def _leave(self, session: Session, hold: Hold, given: dict[Delivery, Claim]) -> None:
        copies = {delivery: claim for delivery, claim in given.items() if claim.is_copy}
        try:
            with session.lock:
                self._pause(session)
            if copies:
                self._broker.own_mail.send([uncounted(each) for each in copies])
            with session.lock:
                session.settle([claim.tag for claim in copies.values() if claim.tag is not None])
                hold.close()
                session.close()
        except ConnectionLost:
            pass  # then the server has everything back already
        except OperationalError as exc:
            # The server hands all of it out again, as if that had been attempts.
            logger.warning("left RabbitMQ without a word: %s", exc)
        finally:
            with session.lock:
                session.connection.drop()

    def fence(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Those that are no longer held, after the server confirmed that the connection lives."""
        with self._state:
            session = self._session
        if session is not None and deliveries:
            try:
                with session.lock:
                    session.round_trip()
                self._nudge(session)
            except ConnectionLost:
                self._lose(session)
        with self._state:
            return [each for each in deliveries if each not in self._given]

    def unit(self, backend: ResultBackend) -> Unit:
        return _FencedUnit(self, backend, self.fence)


class _FencedUnit(Unit):
    """Step by step, behind a round trip on the connection that holds the messages.

    A connection that is lost between the fence and the settlement leaves its work done twice: at least once is
    what RabbitMQ has to offer.
    """

    def __init__(
        self,
        consumer: AMQPConsumer,
        backend: ResultBackend,
        fence: Callable[[Sequence[Delivery]], Sequence[Delivery]],
    ) -> None:
        super().__init__(consumer, backend)
        self._fence = fence

    def complete(self, batch: Sequence[Completion]) -> Sequence[Delivery]:
        if any(each.record is not None or each.follow for each in batch):
            return super().complete(batch)
        # Nothing is to be kept from happening twice but the settlement, which knows by itself.
        return self.consumer.settle([each.settlement for each in batch if each.settlement is not None])

    def fence(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        return self._fence(deliveries)


def _original(parcel: Parcel, letter: Letter) -> Original:
    attempts = (letter.attempts or 0) + 1
    return Original(
        parcel.tag, letter, parcel.queue, attempts, _mark(attempts, letter, parcel.arrival.redelivered)
    )


def _mark(attempts: int, letter: Letter, redelivered: bool) -> int:
    """What the copy of a message counts. Of one that comes for the second time the server does not say whether it was
    lost or given back untouched. It gets the benefit of the doubt, until it is lost again."""
    return attempts + (redelivered and letter.attempts is None)
