"""What SQLite itself can do here and now: the least that a queue with results has to ask of it, by hand.

No encoding, no leases, no priorities, one process. The figures of a shared machine move by a factor of two
within minutes; their ratio to these hardly does.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

BATCH = 64
#: A message as it lies in the database: headers and body of a call without arguments.
ENVELOPE = b"x" * 700

SCHEMA = """
CREATE TABLE message (id INTEGER PRIMARY KEY, queue TEXT NOT NULL, holder INTEGER, envelope BLOB NOT NULL);
CREATE TABLE result (id INTEGER PRIMARY KEY, task_id VARCHAR(155) UNIQUE, status VARCHAR(50), result BLOB,
                     date_done DATETIME, traceback TEXT, children BLOB, retries INTEGER);
CREATE INDEX result_date_done ON result (date_done);
"""


def measure(folder: Path, count: int) -> dict[str, float]:
    """Messages a second: inserted one commit each, claimed and deleted, and the same with a result stored."""
    database = sqlite3.connect(folder / "limits.db", isolation_level=None)
    database.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + SCHEMA)
    ids = [str(uuid4()) for _ in range(count)]
    rates = {
        "insert": count / _timed(_insert, database, count),
        "take": count / _timed(_take, database, None),
    }
    _insert(database, count)
    rates["take, store result"] = count / _timed(_take, database, ids)
    database.close()
    return rates


def _timed(work: Callable[..., None], *args: Any) -> float:
    started = time.perf_counter()
    work(*args)
    return time.perf_counter() - started


def _insert(database: sqlite3.Connection, count: int) -> None:
    for _ in range(count):
        database.execute("INSERT INTO message (queue, envelope) VALUES ('celery', ?)", (ENVELOPE,))


def _take(database: sqlite3.Connection, task_ids: list[str] | None) -> None:
    """Claim a batch in one transaction, delete it (and store results under these ids) in another, until none
    is left."""
    claim = """UPDATE message SET holder = 1 WHERE id IN
               (SELECT id FROM message WHERE queue = 'celery' AND holder IS NULL ORDER BY id LIMIT ?)
               RETURNING id, envelope"""
    store = """INSERT INTO result (task_id, status, result, date_done, children, retries)
               VALUES (?, 'SUCCESS', '1', '2026-11-21 00:00:00.000000', '[]', 0)"""
    while claimed := database.execute(claim, (BATCH,)).fetchall():
        database.execute("BEGIN IMMEDIATE")
        if task_ids is not None:
            database.executemany(store, [(task_ids.pop(),) for _ in claimed])
        database.executemany("DELETE FROM message WHERE id = ?", [(id,) for id, _ in claimed])
        database.execute("COMMIT")
