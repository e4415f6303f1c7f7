"""The thread that carries out outcomes: join → publish what follows → store the record → settle, in batches."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime

from celeriac.brokers.base import Completion, Consumer, Delivery, Settlement, Unit
from celeriac.brokers.dead import dead_letter
from celeriac.clock import Clock
from celeriac.errors import OperationalError, PublishFailed
from celeriac.states import FAILURE
from celeriac.wire import codecs
from celeriac.wire import errors as wire_errors
from celeriac.wire.disposition import Ack, DeadLetter, Defer, Disposition, Return
from celeriac.wire.envelope import Envelope, Outgoing
from celeriac.wire.record import Record
from celeriac.worker.fetching import Backoff
from celeriac.worker.work import Work

__all__ = ["Completer", "completion_of"]

logger = logging.getLogger("celeriac.worker")

#: Completions carried out as one unit at most, and their bytes: a server is not to be blocked for long.
_UNIT = 500
_UNIT_BYTES = 1 << 20
#: How often an outcome may be refused while others are not.
_REFUSALS = 5


def completion_of(
    work: Work,
    disposition: Disposition,
    clock: Clock,
    *,
    record: Record | None = None,
    follow: Sequence[Outgoing] = (),
) -> Completion:
    """What the end of a delivery's stay asks of the broker and the backend.

    One that was settled before it ran has no settlement left: what would put it back is published.
    """
    if not work.settled:
        return Completion(Settlement(work.delivery, disposition), record, follow)
    return Completion(None, record, [*follow, *_anew(work.delivery, disposition, clock)])


def _anew(delivery: Delivery, disposition: Disposition, clock: Clock) -> list[Outgoing]:
    match disposition:
        case Ack():
            return []
        case Defer(until=until, envelope=envelope):
            return [_to_queue_of(delivery, envelope or delivery.envelope, until)]
        case Return():
            return [_to_queue_of(delivery, delivery.envelope, None)]
        case DeadLetter(reason=reason):
            return [dead_letter(delivery, reason, clock.now())]


def _to_queue_of(delivery: Delivery, envelope: Envelope, due: datetime | None) -> Outgoing:
    priority = envelope.properties.get("priority")
    return Outgoing(envelope, "", delivery.queue, priority if isinstance(priority, int) else 0, due)


class _Item:
    """A completion on its way."""

    __slots__ = ("completion", "done", "in_doubt", "progress", "refused", "size", "tried")

    def __init__(
        self, completion: Completion, done: Callable[[bool], None] | None, *, in_doubt: bool = False
    ) -> None:
        self.completion = completion
        #: Called on the loop with whether the lease still held.
        self.done = done
        #: A try whose answer was lost may have settled it.
        self.in_doubt = in_doubt
        self.size = _size(completion)
        #: It was in a unit that failed.
        self.tried = False
        #: How often it failed by itself while others were carried out, and how many had been at that time.
        self.refused = self.progress = 0


class Completer:
    """1. `submit` takes completions from the loop; those that pile up while one unit runs are the next unit.
    2. Each unit is tried until the broker and the backend took it, or until its leases are lost; again and again in
       smaller parts, so that what they do not take holds up nothing else.
    3. `done` of each is called through `call`, once it is carried out.

    A completion that can never be carried out (it publishes to where no queue is, its result is refused) is
    dead-lettered instead.
    """

    def __init__(
        self,
        unit: Unit,
        consumer: Consumer,
        *,
        call: Callable[[Callable[[], None]], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        self._unit = unit
        self._consumer = consumer
        self._call = call
        self._crashed = crashed
        self._items: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._gone: set[Delivery] = set()
        #: Units that failed, the one that waits longest first.
        self._failed: deque[list[_Item]] = deque()
        #: How many units were carried out.
        self._progress = 0
        self._ending = False
        self._giving_up = threading.Event()
        self._thread = threading.Thread(target=self._main, name="celeriac-settle", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(
        self,
        completion: Completion,
        done: Callable[[bool], None] | None = None,
        *,
        in_doubt: bool = False,
    ) -> None:
        """Have a completion carried out. Any thread.

        `in_doubt`: a delivery that is not held any more when this is tried again was settled by the try whose answer
        was lost, and counts as held, unless its lease is known to be lost.
        """
        self._items.put(_Item(completion, done, in_doubt=in_doubt))

    def forget(self, deliveries: Sequence[Delivery]) -> None:
        """These leases are lost: nothing is to be done for them any more."""
        self._gone.update(deliveries)

    def stop(self, *, timeout: float | None = None) -> bool:
        """Carry out what was submitted and end. False if that took longer than `timeout` seconds."""
        self._items.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._giving_up.set()
            return False
        return True

    def _main(self) -> None:
        try:
            backoff = Backoff()
            while batch := self._next():
                if self._carry_out(batch):
                    backoff.reset()
                elif self._giving_up.wait(backoff.next()):
                    return
        except BaseException as exc:  # noqa: BLE001 boundary: a bug here must end the worker, not hang it
            self._crashed(exc)

    def _next(self) -> list[_Item]:
        """What is to be carried out next: what was submitted since, up to the bounds of a unit, then what failed
        before. Waits where there is neither; [] at the end."""
        batch, size = list[_Item](), 0
        while not self._ending and len(batch) < _UNIT and size < _UNIT_BYTES:
            try:
                item = self._items.get_nowait()
            except queue.Empty:
                if batch or self._failed:
                    break
                # Nothing is under way that could have to be forgotten.
                self._gone.clear()
                item = self._items.get()
            if item is None:
                self._ending = True
                break
            batch.append(item)
            size += item.size
        return batch or (self._failed.popleft() if self._failed else [])

    def _carry_out(self, batch: list[_Item]) -> bool:
        """Try a unit; False if it failed, and is to be tried again later."""
        batch = [each for each in batch if not self._is_gone(each)]
        if not batch:
            return True
        try:
            lost = set(self._unit.complete([each.completion for each in batch]))
        except PublishFailed as exc:
            if not exc.unroutable:
                self._put_off(batch, exc)
                return False
            for each in batch:
                each.completion = _undeliverable(each.completion, exc)
            return self._carry_out(batch)
        except OperationalError as exc:
            self._put_off(batch, exc)
            return False
        self._progress += 1
        lost -= {d for each in batch if each.tried and each.in_doubt and (d := each.completion.delivery)}
        self._report(batch, lost)
        return True

    def _put_off(self, batch: list[_Item], exc: OperationalError) -> None:
        """What failed again is tried in smaller parts: one that the servers do not take must not hold up the others."""
        logger.error("cannot settle %d tasks: %s", len(batch), exc)
        parts = [batch]
        if len(batch) == 1:
            self._suspect(batch[0], exc)
        elif batch[0].tried:
            parts = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        for each in batch:
            each.tried = True
        self._failed.extend(parts)

    def _suspect(self, item: _Item, exc: OperationalError) -> None:
        """Give an outcome up that is refused again and again, while others are carried out."""
        if item.tried and self._progress > item.progress:
            item.refused += 1
        item.progress = self._progress
        if item.refused == _REFUSALS:
            logger.error("an outcome is refused for good: %s", exc)
            item.completion = _refused(item.completion, exc)

    def _is_gone(self, item: _Item) -> bool:
        delivery = item.completion.delivery
        if delivery is None or delivery not in self._gone:
            return False
        self._report([item], {delivery})
        return True

    def _report(self, batch: list[_Item], lost: set[Delivery]) -> None:
        def report() -> None:
            for each in batch:
                if each.done is not None:
                    each.done(each.completion.delivery not in lost)

        self._call(report)


def _undeliverable(completion: Completion, exc: PublishFailed) -> Completion:
    """The completion without the follow-ups that no queue takes; its delivery goes to the dead letters."""
    failed = [each for each in completion.follow if each.envelope.task_id in exc.ids]
    if not failed:
        return completion
    names = ", ".join(str(each.envelope.headers.get("task")) for each in failed)
    logger.error("cannot publish what follows a task (%s): %s", names, exc)
    left = [each for each in completion.follow if each not in failed]
    return _dead(completion, f"cannot publish {names}: {exc}", completion.record, left)


def _refused(completion: Completion, exc: OperationalError) -> Completion:
    """The completion of a task whose outcome the servers do not take: it failed for that, and is a dead letter."""
    reason = f"its outcome cannot be stored: {exc}"
    record = completion.record
    if record is not None:
        meta = codecs.dumps(wire_errors.to_meta(OperationalError(reason), "json"), "json")
        record = Record(
            task_id=record.task_id,
            state=FAILURE,
            result=meta,
            date_done=record.date_done,
            reply_to=record.reply_to,
        )
    return _dead(completion, reason, record, [])


def _dead(
    completion: Completion, reason: str, record: Record | None, follow: Sequence[Outgoing]
) -> Completion:
    settlement = completion.settlement
    if settlement is not None:
        settlement = Settlement(settlement.delivery, DeadLetter(reason))
    return Completion(settlement, record, follow, completion.fence)


def _size(completion: Completion) -> int:
    """Bytes that a completion moves, roughly."""
    size = 200 + (len(completion.record.result) if completion.record else 0)
    if completion.settlement and isinstance(completion.settlement.disposition, Defer):
        envelope = completion.settlement.disposition.envelope
        size += len(envelope.body) if envelope else 0
    return size + sum(400 + len(each.envelope.body) for each in completion.follow)
