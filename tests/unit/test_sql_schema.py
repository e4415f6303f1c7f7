"""The tables: made once, by whoever comes first, and those of Celery as Celery makes them."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions
from celeriac.brokers import open_broker
from celeriac.brokers.base import BrokerOptions
from celeriac.errors import ImproperlyConfigured
from celeriac.testing.conformance.harness import outgoing
from celeriac.topology import Queue
from celeriac.wire.record import Group, Record
from sql_support import Program

#: What Celery 5.7 makes (wire-protocol §8.1).
TASK_COLUMNS = {
    "id": "INTEGER",
    "task_id": "VARCHAR(155)",
    "status": "VARCHAR(50)",
    "result": "BLOB",
    "date_done": "DATETIME",
    "traceback": "TEXT",
    "children": "BLOB",
    "name": "VARCHAR(155)",
    "args": "BLOB",
    "kwargs": "BLOB",
    "worker": "VARCHAR(155)",
    "retries": "INTEGER",
    "queue": "VARCHAR(155)",
    "stamps": "BLOB",
}
GROUP_COLUMNS = {"id": "INTEGER", "taskset_id": "VARCHAR(155)", "result": "BLOB", "date_done": "DATETIME"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "celeriac.db"


def tables(file: Path) -> set[str]:
    with sqlite3.connect(file) as connection:
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.close()
    return {name for (name,) in found if not name.startswith("sqlite_")}


def columns(file: Path, table: str) -> dict[str, str]:
    engine = sqlalchemy.create_engine(f"sqlite:///{file}")
    found = {each["name"]: str(each["type"]) for each in sqlalchemy.inspect(engine).get_columns(table)}
    engine.dispose()
    return found


def test_broker_and_backend_make_what_they_need_and_no_more(tmp_path: Path) -> None:
    broker = open_broker(f"sqlite:///{tmp_path}/broker.db", BrokerOptions())
    broker.size("q")
    broker.close()
    backend = open_backend(f"sqlite:///{tmp_path}/results.db", BackendOptions())
    backend.get(["a"])
    backend.close()
    common = {"celeriac_schema"}
    assert tables(tmp_path / "broker.db") == common | {
        "celeriac_queue", "celeriac_consumer", "celeriac_message"
    }  # fmt: skip
    assert tables(tmp_path / "results.db") == common | {
        "celery_taskmeta", "celery_tasksetmeta", "celeriac_chord", "celeriac_chord_part", "celeriac_revoked"
    }  # fmt: skip


def test_the_result_tables_are_celerys(file: Path) -> None:
    backend = open_backend(f"sqlite:///{file}", BackendOptions())
    backend.get(["a"])
    backend.close()
    assert columns(file, "celery_taskmeta") == TASK_COLUMNS
    assert columns(file, "celery_tasksetmeta") == GROUP_COLUMNS


def test_tables_of_an_older_celery_get_the_columns_they_lack(file: Path) -> None:
    with sqlite3.connect(file) as older:
        older.execute(
            "CREATE TABLE celery_taskmeta (id INTEGER NOT NULL, task_id VARCHAR(155), status VARCHAR(50), "
            "result BLOB, date_done DATETIME, traceback TEXT, PRIMARY KEY (id), UNIQUE (task_id))"
        )
        older.execute(
            "INSERT INTO celery_taskmeta (task_id, status, result) VALUES ('old', 'SUCCESS', x'31')"
        )
    older.close()
    backend = open_backend(f"sqlite:///{file}", BackendOptions())
    backend.put([Record(task_id="new", state="SUCCESS", result=b"2", children=[])])
    assert [record and record.result for record in backend.get(["old", "new"])] == [b"1", b"2"]
    backend.close()
    assert columns(file, "celery_taskmeta").keys() == TASK_COLUMNS.keys()


def test_the_result_tables_can_have_other_names(file: Path) -> None:
    options = BackendOptions(transport={"database_table_names": {"task": "My tasks", "group": "my_groups"}})
    backend = open_backend(f"sqlite:///{file}", options)
    backend.put([Record(task_id="a", state="SUCCESS", result=b"1")])
    backend.save_group(Group(group_id="g", result=[["g", None], []]))
    assert [record and record.task_id for record in backend.get(["a"])] == ["a"]
    assert backend.load_group("g") is not None
    usual = open_backend(f"sqlite:///{file}", BackendOptions())
    assert list(usual.get(["a"])) == [None]
    backend.close()
    assert {"My tasks", "my_groups", "celery_taskmeta"} <= tables(file)


def test_unknown_tables_are_a_mistake_in_the_configuration(file: Path) -> None:
    options = BackendOptions(transport={"database_table_names": {"tasks": "my_tasks"}})
    with pytest.raises(ImproperlyConfigured, match="database_table_names has task and group, not tasks"):
        open_backend(f"sqlite:///{file}", options)


def test_processes_that_come_first_at_once_make_one_schema(file: Path) -> None:
    url = f"sqlite:///{file}"
    code = """
say('ready')
listen()
broker.publish([outgoing(queue)])
backend.put([Record(task_id=str(os.getpid()), state='SUCCESS', result=b'1')])
"""
    for _ in range(3):
        programs = [Program(url, code) for _ in range(3)]
        for each in programs:
            assert each.hear() == "ready"
        for each in programs:
            each.tell("go")
        for each in programs:
            with each:
                pass
        broker, backend = open_broker(url, BrokerOptions()), open_backend(url, BackendOptions())
        assert broker.size("q").ready == 3
        assert None not in backend.get([str(each.process.pid) for each in programs])
        broker.close()
        file.unlink()


@pytest.mark.parametrize("part", ["messages", "results"])
def test_a_database_of_a_newer_celeriac_is_left_alone(file: Path, part: str) -> None:
    url = f"sqlite:///{file}"
    broker, backend = open_broker(url, BrokerOptions()), open_backend(url, BackendOptions())
    broker.publish([outgoing(Queue("q"))])
    backend.get(["a"])
    broker.close()
    with sqlite3.connect(file) as newer:
        newer.execute("UPDATE celeriac_schema SET version = 7 WHERE part = ?", [part])
    newer.close()
    use_it = partial(broker.size, "q") if part == "messages" else partial(backend.get, ["a"])
    with pytest.raises(
        ImproperlyConfigured, match=f"newer celeriac: its {part} are of version 7, this one knows 1"
    ):
        use_it()
    broker.close()
