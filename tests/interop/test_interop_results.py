"""Results in Redis: what one side stores the other reads, and both store the same documents."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import msgpack
import pytest
import yaml

from interop.documents import lines
from interop.fleet import KINDS, LIBRARY, Fleet, Kind
from support import eventually

KEY = "celery-task-meta-"

#: Value (or arguments of the exception), state, exception, traceback.
STORED: dict[str, tuple[Any, str, str | None, str | None]] = {
    "nothing": (None, "SUCCESS", None, None),
    "text": ("ünï\u2028\U0001f600", "SUCCESS", None, None),
    "nested": ({"a": [1, 1.5, None, True, {"b": []}]}, "SUCCESS", None, None),
    "dates": ([datetime(2026, 1, 1, tzinfo=UTC), date(2026, 1, 1)], "SUCCESS", None, None),
    "bytes": (b"\xff", "SUCCESS", None, None),
    "progress": ({"done": 3}, "PROGRESS", None, None),
    "failure": (["k", 1], "FAILURE", "KeyError", "Traceback (most recent call last):\n  …\nKeyError: 'k'\n"),
    "failure without arguments": ([], "FAILURE", "ZeroDivisionError", "TB"),
    "failure of the user's": (["x", {"a": [1]}], "FAILURE", "OwnError", "TB"),
    "argument that cannot be stored": ([{1, 2}, "x"], "FAILURE", "OwnError", "TB"),
    "retry": (["later"], "RETRY", "OwnError", "TB"),
}


def opened(document: bytes, serializer: str) -> Any:
    """A document, with anything that varies by call made the same."""
    readers = {"json": json.loads, "yaml": yaml.safe_load, "msgpack": msgpack.unpackb}
    meta = readers[serializer](document)
    if meta["date_done"] is not None:
        assert datetime.fromisoformat(meta["date_done"]).tzinfo is not None
        meta["date_done"] = "then"
    return meta


@pytest.mark.parametrize("case", STORED)
def test_stored_by_both_is_the_same_document(on_redis: Fleet, case: str) -> None:
    documents = []
    for kind in KINDS:
        task_id = str(uuid4())
        on_redis.client(kind).store(task_id, *STORED[case])
        meta = opened(on_redis.redis.get(KEY + task_id), "json")
        assert meta.pop("task_id") == task_id
        documents.append(lines(meta))
    assert documents[0] == documents[1]
    assert [on_redis.redis.ttl(KEY + task_id) > 800 for task_id in (task_id,)] == [True]


@pytest.fixture(scope="module", params=["json", "yaml", "msgpack", "pickle"])
def clients(request: pytest.FixtureRequest, on_redis: Fleet) -> Any:
    """Clients of both kinds with the same result serializer."""
    with on_redis.extra_client("celery", result_serializer=request.param) as one:
        with on_redis.extra_client("celeriac", result_serializer=request.param) as other:
            yield {"celery": one, "celeriac": other, "serializer": request.param}


@pytest.mark.parametrize("case", STORED)
@pytest.mark.parametrize("writer", KINDS)
def test_read_by_both(clients: dict[str, Any], writer: Kind, case: str) -> None:
    task_id = str(uuid4())
    value, state, error, traceback = STORED[case]
    if case == "dates" and clients["serializer"] == "msgpack":
        with pytest.raises(AssertionError, match="EncodeError"):
            clients[writer].store(task_id, value)
        return
    clients[writer].store(task_id, *STORED[case])
    one, other = (clients[kind].look(task_id) for kind in KINDS)
    for each in (one, other):
        each.pop("children")
    assert one == other
    assert (one["state"], one["traceback"]) == (state, traceback)
    if error is None:
        assert one["result"] == value
    else:
        assert one["result"]["class"].rpartition(".")[2] == error


@pytest.mark.parametrize("method", ["zlib", "bzip2", "lzma", "brotli", "zstd"])
def test_compressed_by_celery(on_redis: Fleet, method: str) -> None:
    task_id = str(uuid4())
    with on_redis.extra_client("celery", result_compression=method) as writer:
        writer.store(task_id, ["x" * 3000])
    assert on_redis.redis.get(KEY + task_id).startswith(b"\0celery-compressed\0")
    assert on_redis.value(task_id) == ["x" * 3000]


@pytest.mark.parametrize("writer", KINDS)
@pytest.mark.parametrize("waiter", KINDS)
def test_success_stays(on_redis: Fleet, writer: Kind, waiter: Kind) -> None:
    """Whoever stored it, nobody overwrites it."""
    task_id = str(uuid4())
    on_redis.client(writer).store(task_id, 5)
    on_redis.client(waiter).store(task_id, [], "FAILURE", "KeyError")
    assert on_redis.value(task_id) == 5


@pytest.mark.parametrize("forgetter", KINDS)
def test_forgotten_by_both(on_redis: Fleet, forgetter: Kind) -> None:
    task_id = str(uuid4())
    on_redis.client("celery").store(task_id, 5)
    assert on_redis.value(task_id) == 5
    on_redis.client(forgetter).forget(task_id)
    assert not on_redis.redis.exists(KEY + task_id)
    assert [on_redis.client(kind).look(task_id)["state"] for kind in KINDS] == ["PENDING", "PENDING"]


# -- as workers store them -----------------------------------------------------------------------------------------

RUN: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "success": ("add", (2, 3), {}),
    "no value": ("nothing", (), {}),
    "keywords": ("echo", (1, "ünï"), {"kwargs": {"k": [None]}}),
    "extension types": ("echo", (datetime(2026, 1, 1, tzinfo=UTC), Decimal("1.5"), b"\xff"), {}),
    "failure": ("fail", ("OwnError", "x", 1), {}),
    "workflow": ("add", (1, 1), {"root_id": "r", "parent_id": "p", "group_id": "g", "group_index": 1}),
    "stamped": ("add", (1, 1), {"stamped_headers": ["tag", "n"], "tag": "blue", "n": [1, 2]}),
    "retried": ("retry_by_itself", (), {}),
    "retried in vain": ("retry_in_vain", (), {}),
    "expired": ("add", (1, 1), {"countdown": 0.5, "expires": 0.2}),
    "rejected": ("reject", ("rejected",), {}),
    "soft limit": ("linger", (5,), {"soft_time_limit": 0.3}),
    "hard limit": ("linger", (5,), {"time_limit": 0.5}),
    "child": ("spawn_for_nobody", (), {}),
}


@pytest.mark.parametrize("case", RUN)
def test_workers_store_the_same(fleet: Fleet, case: str) -> None:
    """With `result_extended` on RabbitMQ, without on Redis."""
    task, args, options = RUN[case]
    kwargs = options.get("kwargs", {})
    documents = []
    for kind in KINDS:
        fleet.worker(kind)
        call = {k: v for k, v in options.items() if k != "kwargs"}
        task_id = fleet.client("celery").call(task, args, kwargs, queue=fleet.queue(kind), **call)
        fleet.read(task_id)
        meta = opened(fleet.redis.get(KEY + task_id), "json")
        text = json.dumps(meta).replace(task_id, "<id>").replace(fleet.worker(kind).name, "<node>")
        meta = json.loads(text.replace(json.dumps(fleet.queue(kind)), '"<queue>"'))
        meta["traceback"] = meta["traceback"] and meta["traceback"].splitlines()[-1]
        if case == "soft limit":  # ours tells the seconds
            assert meta["result"].pop("exc_message") == ([] if LIBRARY[kind] == "celery" else [0.3])
            meta["traceback"] = meta["traceback"].partition(":")[0].rpartition(".")[2]
        if kind == "celeriac" and fleet.on_redis:
            meta.pop("retries", None)  # ours says it once there was a retry, for its store to compare
        for child in meta["children"] or ():
            child[0][0] = "<child>"
        documents.append(lines(meta))
    assert documents[1] == documents[0]


def test_started_is_stored_by_both(on_redis: Fleet) -> None:
    documents = []
    for kind in KINDS:
        with on_redis.extra_worker(
            kind, [f"started.{kind}"], concurrency=1, task_track_started=True
        ) as worker:
            gate = uuid4().hex
            task_id = on_redis.client("celery").call("hold", (gate,), queue=on_redis.queue(f"started.{kind}"))
            eventually(lambda: on_redis.client("celery").look(task_id)["state"] == "STARTED", what="STARTED")  # noqa: B023
            looks = [on_redis.client(each).look(task_id) for each in KINDS]
            assert looks[0] == looks[1]
            meta = opened(on_redis.redis.get(KEY + task_id), "json")
            assert meta["result"].pop("pid") > 0
            assert meta["result"].pop("hostname") == worker.name
            assert meta.pop("task_id") == task_id
            documents.append(lines(meta))
            on_redis.open_gate(gate)
            assert on_redis.value(task_id) == kind
    assert documents[1] == documents[0]
