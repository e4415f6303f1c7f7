"""The rows of messages, of the queues they are in and of the consumers who hold them.

Functions on a transaction; who calls them when, and what it means, is said in `celeriac.brokers.sql`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from celeriac.sql.database import Transaction
from celeriac.topology import Queue, queues_for
from celeriac.wire.envelope import Envelope, Outgoing

__all__ = [
    "Counts",
    "Message",
    "add",
    "beat",
    "beats",
    "bury",
    "claim",
    "count",
    "declare",
    "defer",
    "delete",
    "held",
    "held_by",
    "is_registered",
    "last_id",
    "leave",
    "next_due",
    "purge",
    "put_back",
    "ready_in",
    "register",
    "replace",
    "route",
    "seconds",
]

#: Bytes of messages after which a claim takes no more.
_CLAIM_BYTES = 4 << 20
#: Messages that become ready, or are purged, by one statement.
_SLICE = 1000


class Message(NamedTuple):
    """A row, in the order in which messages go: the smallest first."""

    place: int
    id: int
    queue: str
    #: Hand-outs that were counted, without the present one.
    attempts: int
    redelivered: bool
    #: Encoded: it is read once the transaction is over.
    envelope: bytes


# -- queues ------------------------------------------------------------------------------------------------------

_QUEUE = "SELECT definitions FROM celeriac_queue WHERE name = ?"
_QUEUES = "SELECT definitions FROM celeriac_queue"
_ADD_QUEUE = "INSERT INTO celeriac_queue (definitions, name) VALUES (?, ?)"
_CHANGE_QUEUE = "UPDATE celeriac_queue SET definitions = ? WHERE name = ?"

_encode = msgspec.msgpack.Encoder().encode
_decode_queues = msgspec.msgpack.Decoder(list[Queue]).decode
_decode_names = msgspec.msgpack.Decoder(list[str]).decode


def declare(transaction: Transaction, queues: Collection[Queue]) -> None:
    """Make queues known. One that was declared with other bindings keeps those too, as everywhere in AMQP."""
    for queue in queues:
        found = transaction.rows(_QUEUE, queue.name)
        known = _decode_queues(found[0][0]) if found else []
        if queue not in known:
            transaction.run(_CHANGE_QUEUE if found else _ADD_QUEUE, _encode([*known, queue]), queue.name)


def route(transaction: Transaction, batch: Sequence[Outgoing]) -> list[list[str]]:
    """The queues that each message reaches, by what is declared."""
    if not any(each.exchange for each in batch):
        return [[each.routing_key] for each in batch]
    declared = [queue for (known,) in transaction.rows(_QUEUES) for queue in _decode_queues(known)]
    routes = (
        queues_for(each.exchange, each.routing_key, declared, headers=each.envelope.headers) for each in batch
    )
    return [list(dict.fromkeys(queues)) for queues in routes]


# -- messages that wait ------------------------------------------------------------------------------------------

_ADD = """
    INSERT INTO celeriac_message (queue, due, place, attempts, redelivered, envelope)
    VALUES [(?, ?, ?, 0, 0, ?)]
"""
_COUNT = """
    SELECT (SELECT count(*) FROM celeriac_message WHERE queue = ? AND due >= 0 AND due <= ?),
           (SELECT count(*) FROM celeriac_message WHERE queue = ? AND due > ?),
           (SELECT count(*) FROM celeriac_message WHERE queue = ? AND due IS NULL)
"""
_LAST = "SELECT max(id) FROM celeriac_message"
_PURGE = f"""
    DELETE FROM celeriac_message
    WHERE id IN (SELECT id FROM celeriac_message WHERE queue = ? AND due >= 0 AND id <= ? LIMIT {_SLICE})
"""
_NEXT = "SELECT due FROM celeriac_message WHERE queue = ? AND due >= 0 ORDER BY due LIMIT 1"


class Counts(NamedTuple):
    ready: int
    scheduled: int
    held: int


def add(transaction: Transaction, batch: Sequence[Outgoing], routes: Sequence[Sequence[str]]) -> None:
    """Insert each message, once for each queue of its route."""
    transaction.insert(
        _ADD,
        [
            (queue, seconds(each.due), -each.priority, _encode(each.envelope))
            for each, queues in zip(batch, routes, strict=True)
            for queue in queues
        ],
    )


def ready_in(batch: Sequence[Outgoing], routes: Sequence[Sequence[str]]) -> Counter[str]:
    """How many of these messages can be had at once, by queue."""
    pairs = zip(batch, routes, strict=True)
    return Counter(queue for each, queues in pairs if each.due is None for queue in queues)


def count(transaction: Transaction, queue: str, now: float) -> Counts:
    return Counts(*transaction.rows(_COUNT, queue, now, queue, now, queue)[0])


def next_due(transaction: Transaction, queue: str) -> float | None:
    """When the next message of a queue becomes ready, 0 if one is; None where none waits."""
    found = transaction.rows(_NEXT, queue)
    return found[0][0] if found else None


def last_id(transaction: Transaction) -> int:
    return transaction.rows(_LAST)[0][0] or 0


def purge(transaction: Transaction, queue: str, last: int) -> int:
    """Delete a slice of what waits in a queue, up to the id `last`; returns how many, 0 when all are gone."""
    return transaction.run(_PURGE, queue, last)


def seconds(instant: datetime | None) -> float:
    """An instant as the column ``due`` holds it; None is at once."""
    return 0.0 if instant is None else max(0.0, instant.timestamp())


# -- messages that are held --------------------------------------------------------------------------------------

_PROMOTE = f"""
    UPDATE celeriac_message SET due = 0
    WHERE id IN (
        SELECT id FROM celeriac_message WHERE queue = ? AND due > 0 AND due <= ? ORDER BY due LIMIT {_SLICE}
        FOR UPDATE SKIP LOCKED
    )
"""
_HEADS = "SELECT place, id FROM celeriac_message WHERE queue = ? AND due = 0 ORDER BY place, id LIMIT ?"
_READY = """
    SELECT place, id, queue, attempts, redelivered, envelope FROM celeriac_message
    WHERE queue = ? AND due = 0 ORDER BY place, id LIMIT ? FOR UPDATE SKIP LOCKED
"""
_HOLD = "UPDATE celeriac_message SET due = NULL, holder = ?, attempts = attempts + 1 WHERE id IN ([?])"
_HELD = """
    SELECT place, id, queue, attempts - 1, redelivered, envelope FROM celeriac_message
    WHERE queue = ? AND due IS NULL AND holder = ? ORDER BY place, id
"""
_HELD_BY = "SELECT id FROM celeriac_message WHERE holder = ? AND id IN ([?]) FOR UPDATE"
_DELETE = "DELETE FROM celeriac_message WHERE id IN ([?])"
_PUT_BACK = """
    UPDATE celeriac_message SET due = 0, holder = NULL, redelivered = 1, attempts = attempts - ?
    WHERE id IN ([?])
"""
_PUT_BACK_ALL = """
    UPDATE celeriac_message SET due = 0, holder = NULL, redelivered = 1, attempts = attempts - ?
    WHERE queue = ? AND due IS NULL AND holder = ?
"""
_DEFER = """
    UPDATE celeriac_message SET due = ?, holder = NULL, redelivered = 1, attempts = attempts - 1 WHERE id = ?
"""
_REPLACE = """
    UPDATE celeriac_message SET due = ?, holder = NULL, redelivered = 0, attempts = 0, envelope = ? WHERE id = ?
"""


def claim(
    transaction: Transaction, queues: Sequence[str], holder: int, limit: int, now: float
) -> list[Message]:
    """Give `holder` up to `limit` ready messages, the best of all `queues`."""
    for queue in queues:
        transaction.run(_PROMOTE, queue, now)
    messages: list[Message] = []
    size = 0
    for queue, share in _shares(transaction, queues, limit).items():
        for row in transaction.each(_READY, queue, share):
            message = Message(*row)
            messages.append(message)
            size += len(message.envelope)
            if size >= _CLAIM_BYTES:
                break
    transaction.run_in(_HOLD, [each.id for each in messages], holder)
    return sorted(messages)


def _shares(transaction: Transaction, queues: Sequence[str], limit: int) -> dict[str, int]:
    """How many of the best `limit` messages are in each queue."""
    if len(queues) == 1:
        return {queues[0]: limit}
    heads = sorted((*row, queue) for queue in queues for row in transaction.rows(_HEADS, queue, limit))
    return Counter(queue for *_, queue in heads[:limit])


def held(transaction: Transaction, queues: Sequence[str], holder: int) -> list[Message]:
    """All that `holder` has."""
    return sorted(Message(*row) for queue in queues for row in transaction.rows(_HELD, queue, holder))


def held_by(transaction: Transaction, holder: int, ids: Sequence[int]) -> set[int]:
    """Those of `ids` that `holder` has."""
    return {id for (id,) in transaction.rows_in(_HELD_BY, ids, holder)}


def delete(transaction: Transaction, ids: Sequence[int]) -> None:
    transaction.run_in(_DELETE, ids)


def put_back(transaction: Transaction, ids: Sequence[int], *, counted: bool) -> None:
    """To the front of their queues; `counted`: the hand-out was an attempt."""
    transaction.run_in(_PUT_BACK, ids, int(not counted))


def put_back_all(
    transaction: Transaction, queues: Sequence[str], holder: int, *, counted: bool
) -> Counter[str]:
    """All that `holder` has; returns how many came back to each queue."""
    uncounted = int(not counted)
    return +Counter({queue: transaction.run(_PUT_BACK_ALL, uncounted, queue, holder) for queue in queues})


def defer(transaction: Transaction, id: int, until: datetime) -> None:
    """The same message, later; the hand-out was no attempt."""
    transaction.run(_DEFER, seconds(until), id)


def replace(transaction: Transaction, id: int, until: datetime, envelope: Envelope) -> None:
    """Another message in its place, later, which starts over."""
    transaction.run(_REPLACE, seconds(until), _encode(envelope), id)


# -- consumers ---------------------------------------------------------------------------------------------------

_REGISTER = "INSERT INTO celeriac_consumer (id, name, queues, beat) VALUES (?, ?, ?, 0)"
_REGISTERED = "SELECT queues FROM celeriac_consumer WHERE id = ? FOR SHARE"
_BEAT = "UPDATE celeriac_consumer SET beat = beat + 1 WHERE id = ?"
_BEATS = "SELECT id, beat FROM celeriac_consumer"
_LEAVE = "DELETE FROM celeriac_consumer WHERE id = ?"
_BURY = "DELETE FROM celeriac_consumer WHERE id = ? AND beat = ?"


def register(transaction: Transaction, holder: int, name: str, queues: Sequence[str]) -> None:
    transaction.run(_REGISTER, holder, name, _encode(queues))


def is_registered(transaction: Transaction, holder: int) -> bool:
    """Whether nobody took `holder` for dead."""
    return bool(transaction.rows(_REGISTERED, holder))


def beat(transaction: Transaction, holder: int) -> bool:
    """Add a heartbeat; False where somebody took `holder` for dead."""
    return bool(transaction.run(_BEAT, holder))


def beats(transaction: Transaction) -> dict[int, int]:
    """Everyone's heartbeats."""
    return dict(transaction.rows(_BEATS))


def leave(transaction: Transaction, holder: int, queues: Sequence[str]) -> Counter[str]:
    """`holder` goes: what it has is put back, which was no attempt."""
    transaction.run(_LEAVE, holder)
    return put_back_all(transaction, queues, holder, counted=False)


def bury(transaction: Transaction, holder: int, beat: int) -> Counter[str] | None:
    """`holder` died, if its heart stopped at `beat`, else None: what it had was an attempt, and is put back."""
    found = transaction.rows(_REGISTERED, holder)
    if not found or not transaction.run(_BURY, holder, beat):
        return None
    return put_back_all(transaction, _decode_names(found[0][0]), holder, counted=True)
