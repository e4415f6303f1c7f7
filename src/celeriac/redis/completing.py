"""What became of deliveries, as the arguments of one script: publish what follows, store the record, settle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from celeriac.brokers.base import Completion, Delivery, Settlement
from celeriac.brokers.dead import dead_letter
from celeriac.clock import Clock
from celeriac.redis import letters
from celeriac.redis.layout import Layout
from celeriac.redis.links import Argument, Links
from celeriac.redis.posting import (
    Again,
    Broadcast,
    Later,
    Posting,
    Posts,
    Ready,
    bounded,
    schedule_id,
    seconds,
)
from celeriac.redis.results import Put
from celeriac.redis.scripts import Script
from celeriac.wire.disposition import Ack, DeadLetter, Defer, Disposition, Return
from celeriac.wire.envelope import Outgoing
from celeriac.wire.record import Record

__all__ = ["Claim", "Completing", "Failure"]

_COMPLETE = Script("queues.lua", "put.lua", "complete.lua")
_STAYS: tuple[Argument, ...] = ("K",)
_GONE: tuple[Argument, ...] = ("A",)


class Claim(NamedTuple):
    """The tag of a delivery."""

    queue: str
    #: Number of the claim and step of the message, "12:0".
    id: str
    #: The name under which our consumer was registered; "" where it came by broadcast, and nobody holds it.
    holder: str

    @property
    def number(self) -> int:
        return int(self.id.partition(":")[0])

    @property
    def step(self) -> int:
        return int(self.id.partition(":")[2])


class Failure(NamedTuple):
    """A completion that was not carried out."""

    completion: Completion
    #: "lost": its delivery is not held any more; else the step that failed: "publish", "store" or "settle".
    step: str
    reason: str


class _Item(NamedTuple):
    completion: Completion
    claim: Claim | None
    #: What becomes of the message, and what that takes.
    settlement: tuple[Argument, ...]
    messages: Sequence[Posting]
    put: Put | None
    size: int


class Completing:
    """Carries out completions of one consumer's deliveries, each whole or not at all (``complete.lua``). Any thread."""

    def __init__(self, links: Links, layout: Layout, posts: Posts, clock: Clock) -> None:
        self._links = links
        self._layout = layout
        self._posts = posts
        self._clock = clock

    def complete(
        self, batch: Iterable[Completion], put: Callable[[Record], Put] | None = None
    ) -> list[Failure]:
        """Carry out `batch`; `put`: how records are stored here, None: they are not. Returns what was not carried out.

        Raises `PublishFailed` for what no queue takes: then nothing was done.
        """
        # What is returned last lies foremost: the oldest.
        ordered = sorted(batch, key=_place)
        outgoing = [[*each.follow, *self._dead(each)] for each in ordered]
        planned = iter(self._posts.prepare([each for some in outgoing for each in some]))
        items = [
            self._item(each, [posting for _ in some for posting in next(planned)], put)
            for each, some in zip(ordered, outgoing, strict=True)
        ]
        failures: list[Failure] = []
        for part in bounded(items, _size_of):
            parcel = _Parcel(self._layout)
            for item in part:
                parcel.add(item)
            failed: list[tuple[int, bytes, bytes]] = self._links.run(_COMPLETE, parcel.keys, parcel.args)
            failures += [
                Failure(part[number].completion, step.decode(), reason.decode(errors="replace"))
                for number, step, reason in failed
            ]
        return failures

    def lost(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those that are not held any more."""
        failures = self.complete([Completion(None, fence=each) for each in deliveries])
        return [each.completion.fence for each in failures if each.completion.fence is not None]

    def _dead(self, completion: Completion) -> list[Outgoing]:
        settlement = completion.settlement
        if settlement is None or not isinstance(settlement.disposition, DeadLetter):
            return []
        return [dead_letter(settlement.delivery, settlement.disposition.reason, self._clock.now())]

    def _item(
        self, completion: Completion, messages: list[Posting], put: Callable[[Record], Put] | None
    ) -> _Item:
        delivery = completion.delivery
        claim: Claim | None = None if delivery is None else delivery.tag
        settlement = _STAYS
        if completion.settlement is not None and claim is not None:
            if claim.holder:
                settlement = self._settlement(claim, completion.settlement.disposition)
            else:
                messages = [*messages, *self._anew(completion.settlement)]
        record = None if put is None or completion.record is None else put(completion.record)
        size = 100 + sum(len(each.data) for each in messages) + (len(record.document) if record else 0)
        size += _moved(completion.settlement)
        return _Item(completion, claim, settlement, messages, record, size)

    def _settlement(self, claim: Claim, disposition: Disposition) -> tuple[Argument, ...]:
        match disposition:
            case Return(counted=counted):
                return ("C" if counted else "R",)
            case Defer(until=until, envelope=envelope):
                later = repr(seconds(until)), schedule_id(claim.step)
                if envelope is None:
                    return "D", *later
                return "E", *later, letters.write(envelope, "", claim.queue)
            case Ack() | DeadLetter():
                return _GONE

    def _anew(self, settlement: Settlement) -> list[Posting]:
        """What came by broadcast lies nowhere: what would put it back is published, for its queue alone."""
        delivery = settlement.delivery
        claim: Claim = delivery.tag
        match settlement.disposition:
            case Return(counted=counted):
                data = letters.write(delivery.envelope, "", claim.queue)
                attempts = delivery.attempts - (not counted)
                return [Ready(self._layout.ready(claim.queue), letters.marked(data, attempts))]
            case Defer(until=until, envelope=envelope):
                data = letters.write(envelope or delivery.envelope, "", claim.queue)
                if envelope is None:
                    data = letters.marked(data, delivery.attempts - 1)
                return [Later(claim.queue, seconds(until), schedule_id(0), data)]
            case Ack() | DeadLetter():
                return []


def _moved(settlement: Settlement | None) -> int:
    """Bytes of a message that is put elsewhere, roughly."""
    match settlement:
        case Settlement(delivery, Return() | Defer(envelope=None)):
            return len(delivery.envelope.body)
        case Settlement(_, Defer(envelope=envelope)) if envelope is not None:
            return len(envelope.body)
        case _:
            return 0


def _size_of(item: _Item) -> int:
    return item.size


def _place(completion: Completion) -> int:
    settlement = completion.settlement
    if settlement is None or not isinstance(settlement.disposition, Return):
        return -1 << 62
    return -settlement.delivery.tag.number


class _Parcel:
    """Keys and arguments of ``complete.lua``."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.keys: list[str] = []
        self.args: list[Argument] = [layout.sep]
        self._blocks: dict[tuple[str, str], int] = {}
        self._lists: dict[str, int] = {}

    def add(self, item: _Item) -> None:
        args, claim = self.args, item.claim
        if claim is None or not claim.holder:
            args += (0, "", *item.settlement, len(item.messages))
        else:
            args += (self._block(claim.queue, claim.holder), claim.id, *item.settlement, len(item.messages))
        for each in item.messages:
            match each:
                case Ready(key, data):
                    args += ("L", self._list(key), data)
                case Later(queue, due, id, data):
                    args += ("S", self._block(queue, ""), repr(due), id, data)
                case Broadcast(channel, data):
                    args += ("P", channel, data)
                case Again(key, data):
                    args += ("L", self._list(key), data)
        args += (1, *item.put) if item.put is not None else (0,)

    def _block(self, queue: str, holder: str) -> int:
        """Where in KEYS the keys of a queue begin."""
        number = self._blocks.get((queue, holder))
        if number is None:
            number = self._blocks[queue, holder] = len(self.keys) + 1
            self.keys += self._layout.block(queue, holder)
        return number

    def _list(self, key: str) -> int:
        number = self._lists.get(key)
        if number is None:
            self.keys.append(key)
            number = self._lists[key] = len(self.keys)
        return number
