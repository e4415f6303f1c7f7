"""The tables, in parts of which each has its version: ours for messages, and for results those of Celery.

A part is created when it is first used; processes that do so at once wait for each other. Its version stands in
``celeriac_schema``, so that one day a newer celeriac can change it, and an older one does not touch what it does
not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from celeriac.errors import ImproperlyConfigured
from celeriac.sql.database import Database, Transaction

__all__ = ["MESSAGES", "Part", "Tables", "create", "prepare", "results"]


def _no_columns() -> dict[str, Mapping[str, str]]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tables that belong together. Column types in braces are what each database calls them."""

    name: str
    version: int
    #: What makes it; each statement does nothing where its table is already there.
    statements: tuple[str, ...]
    #: Columns to add to tables that others may have made without them: table → column → type.
    added: Mapping[str, Mapping[str, str]] = field(default_factory=_no_columns)


MESSAGES = Part(
    name="messages",
    version=1,
    statements=(
        """CREATE TABLE IF NOT EXISTS celeriac_queue (
            name VARCHAR(255) NOT NULL PRIMARY KEY,
            definitions {bytes} NOT NULL
        )""",
        # A number drawn at random when it registers, its heartbeats so far.
        """CREATE TABLE IF NOT EXISTS celeriac_consumer (
            id {id},
            name VARCHAR(255) NOT NULL,
            queues {bytes} NOT NULL,
            beat INTEGER NOT NULL
        )""",
        # `due`: 0 ready; > 0 the instant at which it will be (seconds since 1970), until a consumer that claims
        # finds that it is; NULL held by `holder`. `place`: minus the priority.
        """CREATE TABLE IF NOT EXISTS celeriac_message (
            id {id},
            queue VARCHAR(255) NOT NULL,
            due {real},
            place INTEGER NOT NULL,
            holder BIGINT,
            attempts INTEGER NOT NULL,
            redelivered INTEGER NOT NULL,
            envelope {bytes} NOT NULL
        )""",
        # Answers every question: what comes next, what is due, and what is held, of one queue.
        "CREATE INDEX IF NOT EXISTS celeriac_message_line ON celeriac_message (queue, due, place, id)",
    ),
)


@dataclass(frozen=True, slots=True)
class Tables:
    """The names of Celery's two tables, as statements write them."""

    task: str = "celery_taskmeta"
    group: str = "celery_tasksetmeta"

    @classmethod
    def named(cls, names: Mapping[str, str], schemas: Mapping[str, str]) -> Tables:
        """From ``database_table_names`` and ``database_table_schemas``; raises `ImproperlyConfigured`."""
        for setting, value in (("database_table_names", names), ("database_table_schemas", schemas)):
            if wrong := value.keys() - {"task", "group"}:
                raise ImproperlyConfigured(f"{setting} has task and group, not {', '.join(sorted(wrong))}")
        default = cls()
        task, group = names.get("task", default.task), names.get("group", default.group)
        return cls(_qualified(schemas.get("task"), task), _qualified(schemas.get("group"), group))


_TASK_COLUMNS = {
    "task_id": "VARCHAR(155) UNIQUE",
    "status": "VARCHAR(50)",
    "result": "{bytes}",
    "date_done": "{instant}",
    "traceback": "TEXT",
    "children": "{bytes}",
    "name": "VARCHAR(155)",
    "args": "{bytes}",
    "kwargs": "{bytes}",
    "worker": "VARCHAR(155)",
    "retries": "INTEGER",
    "queue": "VARCHAR(155)",
    "stamps": "{bytes}",
}
_GROUP_COLUMNS = {"taskset_id": "VARCHAR(155) UNIQUE", "result": "{bytes}", "date_done": "{instant}"}
#: Those that not every version of Celery made.
_LATER_COLUMNS = ("children", "name", "args", "kwargs", "worker", "retries", "queue", "stamps")

_BOOKKEEPING = (
    # `parts`: how many of them there are. `touched`: seconds since 1970.
    """CREATE TABLE IF NOT EXISTS celeriac_chord (
        id VARCHAR(155) NOT NULL PRIMARY KEY,
        parts INTEGER NOT NULL,
        finished INTEGER NOT NULL,
        touched {real} NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS celeriac_chord_touched ON celeriac_chord (touched)",
    """CREATE TABLE IF NOT EXISTS celeriac_chord_part (
        chord VARCHAR(155) NOT NULL,
        place INTEGER NOT NULL,
        record {bytes} NOT NULL,
        PRIMARY KEY (chord, place)
    )""",
    # Positions are never used twice.
    """CREATE TABLE IF NOT EXISTS celeriac_revoked (
        position {count},
        task_id VARCHAR(155) NOT NULL UNIQUE,
        until {real} NOT NULL
    )""",
)


def results(tables: Tables) -> Part:
    """The tables of Celery's database backend under these names (wire-protocol §8.1), and ours beside them."""
    default = tables == Tables()
    return Part(
        name="results" if default else f"results in {tables.task} and {tables.group}",
        version=1,
        statements=(
            *_dated(tables.task, _TASK_COLUMNS),
            *_dated(tables.group, _GROUP_COLUMNS),
            *_BOOKKEEPING,
        ),
        added={tables.task: {column: _TASK_COLUMNS[column] for column in _LATER_COLUMNS}},
    )


def _dated(table: str, columns: Mapping[str, str]) -> tuple[str, str]:
    """A table of Celery's, and the index of its dates under Celery's name."""
    written = ", ".join(f"{column} {type}" for column, type in columns.items())
    plain = table.rpartition(".")[2].strip('"')
    return (
        f"CREATE TABLE IF NOT EXISTS {table} (id {{id}}, {written})",
        f"CREATE INDEX IF NOT EXISTS {_quoted(f'ix_{plain}_date_done')} ON {table} (date_done)",
    )


def prepare(database: Database, part: Part, timeout: float) -> None:
    """See to it that the tables of `part` are there.

    Raises `ImproperlyConfigured` where a newer celeriac made them, and errors as `Database.transaction`.
    """
    with database.reading() as read:
        if _is_current(database, read, part):
            return
    with database.transaction(timeout) as transaction:
        create(database, transaction, part)


def create(database: Database, transaction: Transaction, part: Part) -> None:
    """Make what is missing of `part`, within a transaction."""
    if _is_current(database, transaction, part):
        return
    transaction.run(
        "CREATE TABLE IF NOT EXISTS celeriac_schema (part VARCHAR(255) NOT NULL PRIMARY KEY, version INTEGER NOT NULL)"
    )
    for statement in part.statements:
        transaction.run(statement.format_map(database.types))
    for table, columns in part.added.items():
        there = database.columns(transaction, table)
        for column, type in columns.items():
            if column not in there:
                transaction.run(f"ALTER TABLE {table} ADD COLUMN {column} {type.format_map(database.types)}")
    transaction.run("INSERT INTO celeriac_schema (part, version) VALUES (?, ?)", part.name, part.version)


def _is_current(database: Database, transaction: Transaction, part: Part) -> bool:
    if not database.columns(transaction, "celeriac_schema"):
        return False
    for (version,) in transaction.rows("SELECT version FROM celeriac_schema WHERE part = ?", part.name):
        if version > part.version:
            raise ImproperlyConfigured(
                f"{database.name} belongs to a newer celeriac: its {part.name} are of version {version}, this one "
                f"knows {part.version}; upgrade celeriac here, or name another database"
            )
        return True
    return False


def _qualified(schema: str | None, name: str) -> str:
    return f"{_quoted(schema)}.{_quoted(name)}" if schema else _quoted(name)


def _quoted(name: str) -> str:
    return name if re.fullmatch("[a-z_][a-z0-9_]*", name) else '"{}"'.format(name.replace('"', '""'))
