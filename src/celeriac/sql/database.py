"""One database as this process sees it: transactions, plain reads, and waiting until something changed.

Statements are written once, in the SQL that every database to come speaks: ``?`` for a value, ``[…]`` around what
is repeated for each of several (``IN ([?])``, ``VALUES [(?, ?)]``), ``FOR UPDATE`` where rows are locked one by one.
How a database writes that, and what else differs, is in its subclass (`celeriac.sql.sqlite`).

They go to the driver as they are. SQLAlchemy would add 12 µs to a statement of 2, 0.17 s to the start of every
program that publishes, and 17 MB to every process; it is met in `Database.borrow` only, where users bring a
transaction of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, ClassVar, TypeVar

__all__ = ["Database", "Transaction", "Waiter", "bounded", "repeated"]

T = TypeVar("T")

#: What one transaction writes at most: others wait for it.
_ITEMS = 1000
_BYTES = 1 << 20
#: Rows of one INSERT, ids of one list. SQLite once took no more than 999 values in a statement.
_ROWS = 64
_IDS = 512


def bounded(batch: Sequence[T], bytes_of: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """`batch` in parts that one transaction may write; each has at least one item."""
    start = size = 0
    for at, each in enumerate(batch):
        more = bytes_of(each)
        if at > start and (at - start >= _ITEMS or size + more > _BYTES):
            yield batch[start:at]
            start, size = at, 0
        size += more
    if start < len(batch):
        yield batch[start:]


def repeated(sql: str, times: int) -> str:
    """`sql` with what is in brackets written so many times."""
    before, _, rest = sql.partition("[")
    item, _, after = rest.partition("]")
    return before + ", ".join([item] * times) + after


class Transaction:
    """Statements: those of one transaction, or each by itself (`Database.reading`).

    `execute` is the driver's; `written` turns a statement, and how often its brackets are repeated, into what the
    database understands.
    """

    __slots__ = ("_execute", "_written")

    def __init__(
        self, execute: Callable[[str, Sequence[Any]], Any], written: Callable[[str, int], str]
    ) -> None:
        self._execute = execute
        self._written = written

    def run(self, sql: str, *values: Any) -> int:
        """Run a statement; returns how many rows it touched."""
        return self._execute(self._written(sql, 1), values).rowcount

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._execute(self._written(sql, 1), values).fetchall()

    def each(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Rows one at a time, for who may not want all."""
        cursor = self._execute(self._written(sql, 1), values)
        try:
            yield from cursor
        finally:
            cursor.close()

    def insert(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Run ``INSERT … VALUES [(?, …)]`` for all `rows`.

        In powers of two: so the driver finds its statements prepared, and several rows in one statement cost
        half of what ``executemany`` does.
        """
        at, left = 0, len(rows)
        while left:
            size = min(_ROWS, 1 << (left.bit_length() - 1))
            values = [value for row in rows[at : at + size] for value in row]
            self._execute(self._written(sql, size), tuple(values))
            at, left = at + size, left - size

    def run_in(self, sql: str, ids: Sequence[Any], *values: Any) -> int:
        """Run ``… IN ([?])``, which holds the last values of the statement, for all `ids`; returns the rows touched."""
        return sum(self._execute(part, given).rowcount for part, given in self._lists(sql, ids, values))

    def rows_in(self, sql: str, ids: Sequence[Any], *values: Any) -> list[tuple[Any, ...]]:
        lists = self._lists(sql, ids, values)
        return [row for part, given in lists for row in self._execute(part, given).fetchall()]

    def _lists(
        self, sql: str, ids: Sequence[Any], values: tuple[Any, ...]
    ) -> Iterator[tuple[str, tuple[Any, ...]]]:
        for at in range(0, len(ids), _IDS):
            part = ids[at : at + _IDS]
            size = 1 << (len(part) - 1).bit_length()
            # Filled up with the last one, which changes nothing.
            yield (
                self._written(sql, size),
                (*values, *part, *[part[-1]] * (size - len(part))),
            )


class Waiter(ABC):
    """Waits for changes, for one thread::

        with waiter:
            while not (found := look()):
                if waiter.wait(timeout):
                    break

    What changes after the ``with`` was entered ends the next `wait`, so nothing is missed between look and wait.
    """

    @abstractmethod
    def __enter__(self) -> Waiter: ...

    @abstractmethod
    def __exit__(self, *exc: object) -> None: ...

    @abstractmethod
    def wait(self, timeout: float) -> bool:
        """Wait until something may have changed, at most `timeout` seconds. True if somebody called `wake`."""

    @abstractmethod
    def wake(self) -> None:
        """End the present `wait`, or the next one. From any thread, and from a signal handler."""

    @abstractmethod
    def close(self) -> None:
        """Release what it waits on, once it does not wait any more; wakes it."""


class Database(ABC):
    """1. Runs transactions that write, and reads outside of them.
    2. Tells whoever waits that something changed.
    3. Turns the driver's errors into ours, in one place.

    Thread-safe, usable after a fork; connects when it is first used, and again after `close`. There is one per
    database and process (`celeriac.sql.open_database`).
    """

    #: What the database is called in messages to people: no secrets.
    name: str
    #: How it calls the column types of `celeriac.sql.schema`.
    types: ClassVar[Mapping[str, str]]

    @abstractmethod
    def incarnation(self) -> int:
        """Changes when another database took the place of the one we knew: its tables are to be looked at anew."""

    @abstractmethod
    def transaction(self, timeout: float) -> AbstractContextManager[Transaction]:
        """A transaction that writes: committed at the end, rolled back by an exception.

        Waits up to `timeout` seconds for other writers. Raises `ConnectionLost` where trying again later may help
        (it is locked, full, away), `OperationalError` where somebody has to repair something first, and
        `ImproperlyConfigured` where the URL leads nowhere.
        """

    @abstractmethod
    def reading(self) -> AbstractContextManager[Transaction]:
        """Statements that only read, each seeing the latest that was committed. Errors as in `transaction`."""

    @abstractmethod
    def borrow(self, transaction: Any) -> Transaction:
        """Statements within a SQLAlchemy ``Connection`` or ``Session`` on this very database.

        Raises `TypeError` where it is none or on another database; errors of the database are SQLAlchemy's.
        """

    @abstractmethod
    def columns(self, transaction: Transaction, table: str) -> Collection[str]:
        """Names of a table's columns; empty where there is no such table."""

    @abstractmethod
    def waiter(self, topics: Collection[str]) -> Waiter:
        """Someone who waits for changes, above all for those that are rung for under one of `topics`."""

    @abstractmethod
    def ring(self, topics: Collection[str], number: int) -> None:
        """Wake up to `number` of those who wait for one of `topics`. Never blocks, never fails."""

    @abstractmethod
    def appear(self, holder: int) -> None:
        """Let others see when the process of the consumer `holder` ends, which is about to register."""

    @abstractmethod
    def disappear(self, holder: int) -> None:
        """`holder` is not registered any more."""

    @abstractmethod
    def has_ended(self, holder: int) -> bool:
        """Whether the process of `holder` has ended for certain; False where that cannot be told."""

    @abstractmethod
    def from_instant(self, instant: datetime) -> Any:
        """An aware instant as Celery's tables keep it: UTC, without saying so."""

    @abstractmethod
    def to_instant(self, value: Any) -> datetime | None:
        """What such a column holds, as an aware instant."""

    @abstractmethod
    def close(self) -> None:
        """Close connections; those in use close as soon as they are not."""
