"""Results in Celery's tables: read as Celery reads them, watched in great numbers, gone when their time is over."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.errors import ConnectionLost
from celeriac.testing.clock import MovableClock
from celeriac.testing.conformance.harness import PATIENCE, InThread
from celeriac.wire.record import Group, Record

DONE = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def backend(file: Path, clock: MovableClock) -> Iterator[ResultBackend]:
    backend = open_backend(f"sqlite:///{file}", BackendOptions(expires=100, clock=clock))
    yield backend
    backend.close()


def record(id: str, **fields: Any) -> Record:
    return Record(**{"task_id": id, "state": "SUCCESS", "result": b"1", **fields})


def rows(file: Path, table: str = "celery_taskmeta") -> list[dict[str, Any]]:
    """What SQLAlchemy, and so Celery, finds in a table."""
    engine = sqlalchemy.create_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        found = connection.execute(
            sqlalchemy.select(sqlalchemy.Table(table, sqlalchemy.MetaData(), autoload_with=engine))
        )
        result = [dict(each) for each in found.mappings()]
    engine.dispose()
    return result


def insert(file: Path, **values: Any) -> None:
    """A row as another program writes it."""
    with sqlite3.connect(file) as other:
        other.execute(
            f"INSERT INTO celery_taskmeta ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
            list(values.values()),
        )
    other.close()


def test_a_record_is_a_row_as_celery_writes_it(file: Path, backend: ResultBackend) -> None:
    backend.put([record("a", result=b'{"a": 1}', children=[], date_done=DONE.astimezone())])
    assert rows(file) == [
        {
            "id": 1,
            "task_id": "a",
            "status": "SUCCESS",
            "result": b'{"a": 1}',
            "date_done": DONE.replace(tzinfo=None),
            "traceback": None,
            "children": b"[]",
            "retries": 0,
            **dict.fromkeys(["name", "args", "kwargs", "worker", "queue", "stamps"]),
        }
    ]


def test_extended_fields_are_columns(file: Path, backend: ResultBackend) -> None:
    extended = {
        "name": "tasks.add",
        "args": b"[1]",
        "kwargs": b"{}",
        "worker": "w@h",
        "queue": "q",
        "retries": 2,
    }
    backend.put([record("a", **extended, stamps={"k": ["v"]})])
    [row] = rows(file)
    assert extended.items() <= row.items()
    assert row["stamps"] == b'{"stamped_headers": ["k"], "stamps": {"k": ["v"]}}'


def test_a_group_is_a_row_as_celery_writes_it(file: Path, backend: ResultBackend) -> None:
    backend.save_group(Group(group_id="g", result=[["g", None], [[["a", None], None]]], date_done=DONE))
    assert rows(file, "celery_tasksetmeta") == [
        {
            "id": 1,
            "taskset_id": "g",
            "result": b'[["g", null], [[["a", null], null]]]',
            "date_done": DONE.replace(tzinfo=None),
        }
    ]


def test_rows_of_celery_are_records(file: Path, backend: ResultBackend) -> None:
    backend.revoked(0)
    insert(
        file,
        task_id="a",
        status="FAILURE",
        result=b'{"exc_type": "ValueError", "exc_message": ["x"], "exc_module": "builtins"}',
        date_done="2026-01-02 03:04:05.000678",
        traceback="Traceback",
        children=b'[[["child", null], null]]',
    )
    [found] = backend.get(["a"])
    assert found == record(
        "a",
        state="FAILURE",
        result=b'{"exc_type": "ValueError", "exc_message": ["x"], "exc_module": "builtins"}',
        date_done=DONE,
        traceback="Traceback",
        children=[[["child", None], None]],
    )


def test_a_retry_of_celery_without_a_number_can_be_followed(file: Path, backend: ResultBackend) -> None:
    backend.revoked(0)
    insert(file, task_id="a", status="RETRY", result=b"null")
    backend.put([record("a", state="STARTED")])
    [found] = backend.get(["a"])
    assert found is not None
    assert found.state == "STARTED"


def test_pickles_of_an_older_celery_are_named_and_not_opened(file: Path, backend: ResultBackend) -> None:
    backend.revoked(0)
    old = pickle.dumps({"a": 1}, protocol=4)
    insert(file, task_id="a", status="SUCCESS", result=old, children=pickle.dumps([Exploding()]))
    [found] = backend.get(["a"])
    assert found is not None
    assert (found.codec, found.result, found.children) == ("pickle", old, None)


class Exploding:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("codec", ["json", "pickle", "yaml", "msgpack"])
def test_the_serializer_of_the_app_is_used(file: Path, codec: str) -> None:
    backend = open_backend(f"sqlite:///{file}", BackendOptions(transport={"result_serializer": codec}))
    sent = record(
        "a", codec=codec, result=b"\x81", children=[[["child", None], None]], name="t", stamps={"k": 1}
    )
    backend.put([sent, record("b", codec=codec, children=[])])
    group = Group(group_id="g", result=[["g", None], []], date_done=datetime.now(UTC))
    backend.save_group(group)
    first, second = backend.get(["a", "b"])
    assert first is not None
    assert (first.codec, first.children, first.stamps) == (codec, sent.children, sent.stamps)
    assert second is not None
    assert second.children == []
    assert backend.load_group("g") == group
    backend.close()


def test_an_unfinished_task_has_no_date_and_expires_all_the_same(
    file: Path, backend: ResultBackend, clock: MovableClock
) -> None:
    backend.put([record("a", state="STARTED")])
    [found] = backend.get(["a"])
    assert found is not None
    assert found.date_done is None
    clock.advance(101)
    backend.put([record("b")])
    assert list(backend.get(["a"])) == [None]


def test_what_has_expired_goes_twice_as_fast_as_what_comes(
    file: Path, backend: ResultBackend, clock: MovableClock
) -> None:
    backend.put([record(f"old-{n}", date_done=clock.now()) for n in range(100)])
    backend.save_group(Group(group_id="old", result=[["old", None], []]))
    backend.join("old", 0, record("part"), 2)
    clock.advance(101)
    for n in range(10):
        backend.put([record(f"new-{n}", date_done=clock.now())])
        assert len(rows(file)) == 100 - 2 * (n + 1) + n + 1
    backend.put([record(f"newer-{n}", date_done=clock.now()) for n in range(40)])
    assert len(rows(file)) == 50
    assert backend.load_group("old") is None
    assert backend.join("old", 1, record("part"), 1) is not None  # begins anew: the other part is gone


def test_nothing_expires_where_nothing_should(file: Path, clock: MovableClock) -> None:
    backend = open_backend(f"sqlite:///{file}", BackendOptions(expires=None, clock=clock))
    backend.put([record("a", date_done=clock.now())])
    clock.advance(timedelta(days=10_000).total_seconds())
    backend.put([record("b", date_done=clock.now())])
    assert None not in backend.get(["a", "b"])
    backend.close()


def test_thousands_are_watched_at_once(backend: ResultBackend) -> None:
    ids = [f"{n}" for n in range(3000)]
    backend.put([record(id, state="STARTED") for id in ids[:1000]])  # those rows change, the others are new
    waiting = InThread(lambda: {each.task_id for each in backend.watch(ids, PATIENCE)})
    for at in range(0, 3000, 100):
        backend.put([record(id) for id in ids[at : at + 100]])
    assert waiting.result() == set(ids)


def test_a_watch_goes_on_with_a_file_that_took_the_place_of_another(
    file: Path, backend: ResultBackend
) -> None:
    backend.put([record("a")])
    watch = backend.watch(["a", "b"], PATIENCE)
    assert next(watch).task_id == "a"
    for each in file.parent.glob("results.db*"):
        if each.is_file():
            each.unlink()
    waiting = InThread(lambda: [each.task_id for each in watch])
    backend.put([record("b")])
    assert waiting.result() == ["b"]


def test_a_watch_of_a_file_that_is_damaged_meanwhile_ends_with_an_error(
    file: Path, backend: ResultBackend
) -> None:
    backend.put([record("a")])
    watch = backend.watch(["a", "b"], PATIENCE)
    assert next(watch).task_id == "a"
    file.parent.rename(file.parent.with_name("away"))
    with pytest.raises(ConnectionLost, match="no directory"):
        next(watch)


def test_a_chord_of_thousands_does_not_slow_down(backend: ResultBackend) -> None:
    for n in range(2000):
        assert backend.join("c", n, record(f"{n}"), 2001) is None
    parts = backend.join("c", 2000, record("2000"), 2001)
    assert parts is not None
    assert [each.task_id for each in parts] == [f"{n}" for n in range(2001)]
