"""SQL databases as brokers and result backends: what both stand on.

`database` is the seam to a kind of database, with SQLite in `sqlite`; `schema` has the tables, `doorbell` the wake-up
between the processes of one host. The messages themselves are in `celeriac.brokers.sql`, the records in
`celeriac.backends.sql`.
"""

from __future__ import annotations

import os
import threading
import weakref

from celeriac.errors import ImproperlyConfigured
from celeriac.sql.database import Database
from celeriac.sql.sqlite import SQLite, file_of

__all__ = ["open_database"]

#: The databases of this process: a broker and a result backend on the same file share one, so that what a task
#: leads to can be one transaction, and writers wait for each other at a lock of the process and not at the file's.
_databases: weakref.WeakValueDictionary[str, SQLite] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def open_database(url: str) -> Database:
    """The database of a URL, the same object for the same database; nothing is connected yet.

    Raises `ImproperlyConfigured`.
    """
    kind = url.partition(":")[0].partition("+")[0].lower()
    if kind != "sqlite":
        raise ImproperlyConfigured(f"no database of the kind {kind}:// is supported yet; sqlite:// is")
    path, mode = file_of(url)
    with _opening:
        database = _databases.get(path)
        if database is None:
            database = _databases[path] = SQLite(path)
        if mode is not None:
            database.synchronize(mode)
        return database


def _after_fork() -> None:
    global _opening  # noqa: PLW0603 another thread of the parent may hold the old one for ever
    _opening = threading.Lock()
    for database in list(_databases.values()):
        database.after_fork()


os.register_at_fork(after_in_child=_after_fork)
