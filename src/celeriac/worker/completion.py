"""The thread that carries out outcomes: join → publish what follows → store the record → settle, in batches."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from celeriac.brokers.base import Completion, Consumer, Delivery, Settlement, Unit
from celeriac.brokers.dead import dead_letter
from celeriac.clock import Clock
from celeriac.errors import OperationalError, PublishFailed
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


class _Item(msgspec.Struct, frozen=True):
    completion: Completion
    #: Called on the loop with whether the lease still held.
    done: Callable[[bool], None] | None
    size: int
    #: A try whose answer was lost may have settled it.
    in_doubt: bool = False


class Completer:
    """1. `submit` takes completions from the loop; those that pile up while one unit runs are the next unit.
    2. Each unit is tried until the broker and the backend took it, or until its leases are lost.
    3. `done` of each is called through `call`, in order, once it is carried out.

    A completion that can never be carried out (it publishes to where no queue is) is dead-lettered instead.
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
        self._items.put(_Item(completion, done, _size(completion), in_doubt))

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
            while batch := self._next():
                self._carry_out(batch)
        except BaseException as exc:  # noqa: BLE001 boundary: a bug here must end the worker, not hang it
            self._crashed(exc)

    def _next(self) -> list[_Item]:
        """Wait for one item, take what else is there up to the bounds of a unit; [] at the end."""
        first = self._take()
        if first is None:
            return []
        batch, size = [first], first.size
        while len(batch) < _UNIT and size < _UNIT_BYTES:
            try:
                item = self._items.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._items.put(None)
                break
            batch.append(item)
            size += item.size
        return batch

    def _take(self) -> _Item | None:
        """Wait for an item."""
        try:
            return self._items.get_nowait()
        except queue.Empty:
            # Nothing is under way that could have to be forgotten.
            self._gone.clear()
            return self._items.get()

    def _carry_out(self, batch: list[_Item]) -> None:
        backoff = Backoff()
        tried = False
        while True:
            batch = [each for each in batch if not self._is_gone(each)]
            if not batch:
                return
            try:
                lost = set(self._unit.complete([each.completion for each in batch]))
            except OperationalError as exc:
                if isinstance(exc, PublishFailed) and exc.unroutable:
                    batch = [_undeliverable(each, exc) for each in batch]
                    continue
                tried = True
                delay = backoff.next()
                logger.error("cannot settle %d tasks: %s; next try in %.1fs", len(batch), exc, delay)
                if self._giving_up.wait(delay):
                    return
            else:
                if tried:
                    lost -= {d for each in batch if each.in_doubt and (d := each.completion.delivery)}
                self._report(batch, lost)
                return

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


def _undeliverable(item: _Item, exc: PublishFailed) -> _Item:
    """The item without the follow-ups that no queue takes; its delivery goes to the dead letters."""
    completion = item.completion
    failed = [each for each in completion.follow if each.envelope.task_id in exc.ids]
    if not failed:
        return item
    names = ", ".join(str(each.envelope.headers.get("task")) for each in failed)
    logger.error("cannot publish what follows a task (%s): %s", names, exc)
    settlement = completion.settlement
    return _Item(
        Completion(
            Settlement(settlement.delivery, DeadLetter(f"cannot publish {names}: {exc}"))
            if settlement
            else None,
            completion.record,
            [each for each in completion.follow if each not in failed],
        ),
        item.done,
        item.size,
    )


def _size(completion: Completion) -> int:
    """Bytes that a completion moves, roughly."""
    size = 200 + (len(completion.record.result) if completion.record else 0)
    return size + sum(400 + len(each.envelope.body) for each in completion.follow)
