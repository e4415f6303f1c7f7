"""Hold queues: where a consumer keeps messages whose attempts are counted, or which it holds for long.

RabbitMQ neither counts hand-outs nor lets a consumer hold a message for longer than its ``consumer_timeout``. So such
a message is exchanged for a copy in a queue of the consumer's own, which carries the count and starts the server's
clock anew. A hold queue keeps what nobody holds for one second, and then passes it back to the queue it came from: that
is what happens to the copies of a worker that dies. The original is given up when the copy is here and safe, so a crash
between any two steps leaves one message too many, and never one too few.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from celeriac.amqp.connection import wait_for
from celeriac.brokers.amqp_message import ATTEMPTS, TOKEN, Letter, Sending, read_letter
from celeriac.brokers.amqp_session import Parcel, Session
from celeriac.errors import ConnectionLost, OperationalError, PublishFailed
from celeriac.topology import Exchange, Queue
from celeriac.wire.envelope import Outgoing

if TYPE_CHECKING:
    from celeriac.brokers.amqp_publishing import Mail

__all__ = ["Hold", "Original"]

logger = logging.getLogger("celeriac.broker")

#: Seconds that a copy waits when nobody holds it.
_TTL = 1.0
#: Seconds that a hold queue outlives its consumer.
_EXPIRES = 300.0
#: Seconds that a copy may take to arrive.
_PATIENCE = 5.0
#: Seconds until the next try after one that failed and took more than `_SLOW` seconds to do so.
_PAUSE = 30.0
_SLOW = 1.0


class Original(msgspec.Struct, frozen=True, eq=False):
    """A message that is to be exchanged for a copy."""

    tag: int
    letter: Letter
    queue: Queue
    #: Which hand-out this is.
    attempts: int
    #: What the copy counts, for who gets it after us.
    mark: int


class Hold:
    """The hold queues of one session. `exchange` may be called by several threads."""

    def __init__(self, session: Session, mail: Mail, name: str) -> None:
        self._session = session
        self._mail = mail
        #: Unique: two consumers must not get each other's copies.
        self._name = f"{name}.{secrets.token_hex(4)}"
        self._queues: dict[str, Queue] = {}
        #: Copies that are to come, by token, and those that came.
        self._awaited: dict[str, Parcel | None] = {}
        #: Nothing is exchanged before, on the monotonic clock: it did not work a moment ago.
        self._not_before = 0.0

    def queue_for(self, queue: Queue) -> Queue:
        """The hold queue for messages of `queue`."""
        found = self._queues.get(queue.name)
        if found is None:
            tail = f".held.{self._name}"
            head = queue.name.encode()[: 250 - len(tail.encode())].decode("utf-8", "ignore")
            found = self._queues[queue.name] = Queue(
                head + tail,
                Exchange(""),
                message_ttl=_TTL,
                expires=_EXPIRES,
                queue_arguments={
                    "x-queue-type": "classic",
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": queue.name,
                },
            )
        return found

    def exchange(self, originals: Sequence[Original]) -> Mapping[Original, Parcel]:
        """Exchange messages for copies. Returns the copies; the originals of these are still to be acked.

        Without a copy is left what could not be published, or did not come in time: the server may have
        blocked all who publish, and work must go on. Raises `ConnectionLost`.
        """
        if not originals or time.monotonic() < self._not_before:
            return {}
        tokens = {secrets.token_hex(8): each for each in originals}
        self._awaited.update(dict.fromkeys(tokens))
        try:
            came = self._collect(self._publish(tokens))
        except ConnectionLost:
            raise
        except OperationalError as exc:
            self._give_up(exc, 0.0)
            came = {}
        finally:
            # What comes of these from now on comes too late.
            late = [parcel for token in tokens if (parcel := self._awaited.pop(token, None)) is not None]
        self._drop(late)
        return {tokens[token]: found for token, found in came.items()}

    def _publish(self, tokens: Mapping[str, Original]) -> list[str]:
        """Publish the copies; returns the tokens of those that the server has."""
        with self._session.lock:
            for queue in {each.queue.name: each.queue for each in tokens.values()}.values():
                self._session.own_queue(self.queue_for(queue))
        began = time.monotonic()
        left, failed, tries = dict(tokens), OperationalError(), 0
        # A connection that broke is tried anew once, at once. What arrives twice is known by its token.
        while time.monotonic() - began < _SLOW and tries < 2:
            tries += 1
            try:
                self._mail.send([self._copy(each, token) for token, each in left.items()])
            except PublishFailed as exc:
                failed = exc
                left = {
                    token: each for token, each in left.items() if each.letter.envelope.task_id in exc.ids
                }
            else:
                return list(tokens)
        self._give_up(failed, time.monotonic() - began)
        return [token for token in tokens if token not in left]

    def _copy(self, original: Original, token: str) -> Sending:
        envelope = original.letter.envelope
        queue = self.queue_for(original.queue)
        marks = {ATTEMPTS: original.mark, TOKEN: token}
        return Sending(Outgoing(envelope, "", queue.name), marks)

    def _collect(self, tokens: list[str]) -> dict[str, Parcel]:
        deadline = time.monotonic() + _PATIENCE
        found: dict[str, Parcel] = {}
        while len(found) < len(tokens):
            with self._session.lock:
                self._session.receive()
                self.sort()
            for token in tokens:
                parcel = self._awaited.get(token)
                if parcel is not None:
                    del self._awaited[token]
                    found[token] = parcel
            if time.monotonic() > deadline:
                break
            if len(found) < len(tokens):
                # Another thread may read what we wait for.
                wait_for([self._session.connection.fileno()], None, 0.02)
        return found

    def sort(self) -> None:
        """Take in the copies that came. Those that came too late are not needed any more. Under the lock."""
        session = self._session
        late: list[int] = []
        while session.hold:
            parcel = session.hold.popleft()
            token = read_letter(parcel.arrival).token or ""
            if token in self._awaited and self._awaited[token] is None:
                self._awaited[token] = parcel
            else:
                late.append(parcel.tag)
        session.settle(late)

    def _drop(self, parcels: Sequence[Parcel]) -> None:
        if parcels:
            with self._session.lock:
                self._session.settle([each.tag for each in parcels])

    def close(self) -> None:
        """Delete the queues, if they are empty. Under the lock."""
        for queue in self._queues.values():
            self._session.delete_own(queue)

    def _give_up(self, exc: OperationalError, seconds: float) -> None:
        logger.warning("attempts are not counted now, work goes on without: %s", exc)
        if seconds > _SLOW:
            self._not_before = time.monotonic() + _PAUSE
