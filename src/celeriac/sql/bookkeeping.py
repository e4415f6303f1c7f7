"""The rows of chords and of revocations: tables of ours beside Celery's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from celeriac.sql.database import Transaction
from celeriac.wire.record import Record

__all__ = ["expire", "finish", "join", "revoke", "revoked_after"]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode

# -- chords ------------------------------------------------------------------------------------------------------

_TOUCH = """
    INSERT INTO celeriac_chord (id, parts, finished, touched) VALUES (?, 0, 0, ?)
    ON CONFLICT (id) DO UPDATE SET touched = excluded.touched
"""
_CHORD = "SELECT parts, finished FROM celeriac_chord WHERE id = ?"
_ADD_PART = """
    INSERT INTO celeriac_chord_part (chord, place, record) VALUES (?, ?, ?) ON CONFLICT (chord, place) DO NOTHING
"""
_COUNT_PART = "UPDATE celeriac_chord SET parts = parts + 1 WHERE id = ?"
_PARTS = "SELECT record FROM celeriac_chord_part WHERE chord = ? ORDER BY place"
_FINISH = """
    INSERT INTO celeriac_chord (id, parts, finished, touched) VALUES (?, 0, 1, ?)
    ON CONFLICT (id) DO UPDATE SET finished = 1, touched = excluded.touched WHERE celeriac_chord.finished = 0
"""
_DROP_PARTS = "DELETE FROM celeriac_chord_part WHERE chord IN ([?])"
_OLD = "SELECT id FROM celeriac_chord WHERE touched < ? ORDER BY touched LIMIT ?"
_DROP = "DELETE FROM celeriac_chord WHERE id IN ([?])"


def join(
    transaction: Transaction, chord: str, index: int, record: Record, size: int, now: datetime
) -> list[Record] | None:
    """Add a part, unless it is there; all parts in order if they are `size`, and the chord is not finished."""
    transaction.run(_TOUCH, chord, now.timestamp())
    [[parts, finished]] = transaction.rows(_CHORD, chord)
    if finished:
        return None
    if transaction.run(_ADD_PART, chord, index, _encode(record)):
        transaction.run(_COUNT_PART, chord)  # counting them each time would cost the square of their number
        parts += 1
    if parts < size:
        return None
    return [_decode(data) for (data,) in transaction.rows(_PARTS, chord)]


def finish(transaction: Transaction, chord: str, now: datetime) -> bool:
    """Mark a chord as finished, drop its parts; False where it was."""
    if not transaction.run(_FINISH, chord, now.timestamp()):
        return False
    transaction.run_in(_DROP_PARTS, [chord])
    return True


def expire(transaction: Transaction, before: datetime, limit: int) -> None:
    """Delete up to `limit` chords that nobody touched since that instant."""
    if old := [chord for (chord,) in transaction.rows(_OLD, before.timestamp(), limit)]:
        transaction.run_in(_DROP_PARTS, old)
        transaction.run_in(_DROP, old)


# -- revocations -------------------------------------------------------------------------------------------------

_FORGET = "DELETE FROM celeriac_revoked WHERE until <= ?"
_KNOWN = "SELECT task_id, until FROM celeriac_revoked WHERE task_id IN ([?])"
_DROP_REVOKED = "DELETE FROM celeriac_revoked WHERE task_id IN ([?])"
_REVOKE = "INSERT INTO celeriac_revoked (task_id, until) VALUES [(?, ?)]"
_AFTER = "SELECT position, task_id, until FROM celeriac_revoked WHERE position > ? ORDER BY position"


def revoke(transaction: Transaction, ids: Sequence[str], until: datetime, now: datetime) -> None:
    """Write these down at new positions; one that holds longer already goes on to."""
    transaction.run(_FORGET, now.timestamp())
    holds = dict.fromkeys(ids, until.timestamp())
    for id, longer in transaction.rows_in(_KNOWN, list(holds)):
        holds[id] = max(holds[id], longer)
    transaction.run_in(_DROP_REVOKED, list(holds))
    transaction.insert(_REVOKE, list(holds.items()))


def revoked_after(
    transaction: Transaction, position: int, now: datetime
) -> tuple[int, Mapping[str, datetime]]:
    """What holds `now` of that which was written after a position, and the last position."""
    found = transaction.rows(_AFTER, position)
    news = {id: datetime.fromtimestamp(until, UTC) for _, id, until in found if until > now.timestamp()}
    return found[-1][0] if found else position, news
