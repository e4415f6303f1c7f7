"""Calls and results between Celery and celeriac: every producer with every worker, read by clients of both kinds."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from secrets import token_hex
from typing import Any
from uuid import UUID

import pytest

from interop.fleet import KINDS, Fleet, Kind
from support import eventually

pairs = pytest.mark.parametrize(
    ("producer", "worker"), [pytest.param(p, w, id=f"{p}-to-{w}") for p in KINDS for w in KINDS]
)
producers = pytest.mark.parametrize("producer", KINDS)


class Call:
    """Sends to the queue of one kind of worker, which runs."""

    def __init__(self, fleet: Fleet, producer: Kind, worker: Kind) -> None:
        fleet.worker(worker)
        self.client = fleet.client(producer)
        self.queue = fleet.queue(worker)

    def __call__(self, task: str, *args: Any, kwargs: Any = None, **options: Any) -> str:
        return self.client.call(task, args, kwargs, queue=self.queue, **options)


@pytest.fixture
def call(fleet: Fleet, producer: Kind, worker: Kind) -> Call:
    return Call(fleet, producer, worker)


# -- arguments, bodies ---------------------------------------------------------------------------------------------

PLAIN = (None, True, -1, 10**18, 1.5, 1e300, "", "ünï✓\U0001f600\n\x00", [], {}, {"a": [1, {"b": None}]})
EXTENDED = (
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5),
    date(2026, 1, 2),
    clock_time(3, 4, 5),
    Decimal("1.10"),
    UUID(int=7),
    b"text",
    b"\xff\x00",
)


@pairs
def test_plain_call(fleet: Fleet, call: Call) -> None:
    assert fleet.value(call("add", 2, 3)) == 5


@pairs
def test_keyword_arguments(fleet: Fleet, call: Call) -> None:
    assert fleet.value(call("add", kwargs={"x": 2, "y": 3})) == 5


@pairs
def test_arguments_of_every_plain_type(fleet: Fleet, call: Call) -> None:
    assert fleet.value(call("echo", *PLAIN, kwargs={"all": list(PLAIN)})) == [
        list(PLAIN),
        {"all": list(PLAIN)},
    ]


@pairs
def test_json_extension_types(fleet: Fleet, call: Call) -> None:
    assert fleet.value(call("echo", *EXTENDED)) == [list(EXTENDED), {}]


@pairs
def test_floats_that_json_does_not_have(fleet: Fleet, call: Call) -> None:
    assert fleet.value(call("echo", float("inf"), float("-inf"))) == [[float("inf"), float("-inf")], {}]


@pairs
def test_send_by_name(fleet: Fleet, call: Call) -> None:
    assert fleet.value(call.client.send("add", (2, 3), queue=call.queue)) == 5


@pairs
def test_large_arguments(fleet: Fleet, call: Call) -> None:
    text = "0123456789abcdef" * 40_000
    assert fleet.value(call("echo", text)) == [[text], {}]


OWN_TYPES: dict[str, tuple[tuple[Any, ...], list[str]]] = {
    "json": ((1, "a", (1,), None), ["int", "str", "list", "NoneType"]),
    "pickle": ((1, (1, 2), b"\xff", datetime(2026, 1, 1)), ["int", "tuple", "bytes", "datetime"]),
    "yaml": ((1, "a", 1.5, b"\xff", date(2026, 1, 1)), ["int", "str", "float", "bytes", "date"]),
    "msgpack": ((1, "a", b"\xff", [1.5], {"k": 2}), ["int", "str", "bytes", "list", "dict"]),
}


@pairs
@pytest.mark.parametrize("serializer", OWN_TYPES)
def test_serializer(fleet: Fleet, call: Call, serializer: str) -> None:
    args, types = OWN_TYPES[serializer]
    assert fleet.value(call("types_of", *args, serializer=serializer)) == types
    assert fleet.value(call("echo", "ünï", 1, kwargs={"k": [None]}, serializer=serializer)) == [
        ["ünï", 1],
        {"k": [None]},
    ]


@pairs
def test_pickle_takes_what_json_has_no_word_for(on_redis: Fleet, producer: Kind, worker: Kind) -> None:
    call = Call(on_redis, producer, worker)  # not where the arguments are stored with the result, as JSON
    assert on_redis.value(call("types_of", {1}, 2j, serializer="pickle")) == ["set", "complex"]


@pairs
@pytest.mark.parametrize("compression", ["zlib", "gzip", "bzip2", "lzma", "brotli", "zstd"])
def test_compression(fleet: Fleet, call: Call, compression: str) -> None:
    text = "ünï" * 5_000
    assert fleet.value(call("echo", text, compression=compression)) == [[text], {}]


@pairs
@pytest.mark.parametrize("serializer", ["pickle", "yaml", "msgpack"])
def test_serializer_and_compression(fleet: Fleet, call: Call, serializer: str) -> None:
    assert fleet.value(call("echo", "a" * 999, serializer=serializer, compression="zstd")) == [
        ["a" * 999],
        {},
    ]


@pairs
def test_protocol_1(fleet: Fleet, call: Call) -> None:
    call.client.configure(task_protocol=1)
    try:
        ids = [call("add", 2, 3), call("add", kwargs={"x": 2, "y": 3}, serializer="pickle", expires=60)]
        link = {"task": "add", "args": (10,), "options": {"queue": call.queue, "task_id": token_hex(8)}}
        ids.append(call("add", 2, 3, link=[link]))
    finally:
        call.client.configure(task_protocol=2)
    assert [fleet.value(each) for each in (*ids, link["options"]["task_id"])] == [5, 5, 5, 15]


# -- exceptions and states -----------------------------------------------------------------------------------------

EXCEPTIONS = [
    ("KeyError", ("k",), "builtins.KeyError"),
    ("ValueError", ("a", 1, None, [2.5]), "builtins.ValueError"),
    ("ZeroDivisionError", (), "builtins.ZeroDivisionError"),
    ("OSError", (2, "No such thing"), "builtins.FileNotFoundError"),
    ("UnicodeDecodeError", ("utf-8", b"\xff", 0, 1, "bad"), "builtins.UnicodeDecodeError"),
    ("OwnError", ("x", {"a": 1}, b"\xff", Decimal("1.5")), "interop_tasks.OwnError"),
    ("NestedError", ("n",), "interop_tasks.Outer.NestedError"),
]


@pairs
@pytest.mark.parametrize(("name", "args", "cls"), EXCEPTIONS)
def test_exception(fleet: Fleet, call: Call, name: str, args: tuple[Any, ...], cls: str) -> None:
    raised = fleet.read(call("fail", name, *args))["raised"]
    assert (raised["class"], raised["args"], raised["same"]) == (cls, list(args), True)


@pairs
def test_exception_that_cannot_be_made_again(fleet: Fleet, call: Call) -> None:
    task_id = call("fail", "PickyError", "one", "two")
    for kind in KINDS:
        raised = fleet.client(kind).get(task_id)["raised"]
        assert "one and two" in raised["text"]


@pairs
def test_failure_is_seen_without_waiting(fleet: Fleet, call: Call) -> None:
    task_id = call("fail", "OwnError", "x")
    fleet.read(task_id)
    for kind in KINDS:
        seen = fleet.client(kind).look(task_id)
        assert (seen["state"], seen["ready"], seen["failed"], seen["children"]) == ("FAILURE", True, True, [])
        assert seen["traceback"].startswith("Traceback (most recent call last):\n")
        assert seen["traceback"].rstrip().endswith("OwnError: x")


@pairs
def test_custom_state(fleet: Fleet, call: Call) -> None:
    gate, meta = token_hex(4), {"done": 3, "of": 10, "at": datetime(2026, 1, 1, tzinfo=UTC)}
    task_id = call("progress", gate, meta)
    clients = [fleet.client(kind) for kind in KINDS]
    eventually(lambda: clients[0].look(task_id)["state"] == "PROGRESS", what="PROGRESS")
    for client in clients:
        seen = client.look(task_id)
        assert (seen["state"], seen["result"], seen["ready"]) == ("PROGRESS", meta, False)
    fleet.open_gate(gate)
    assert fleet.value(task_id) == "through"


@pairs
def test_state_of_a_task_that_will_be_retried(fleet: Fleet, call: Call) -> None:
    task_id = call("retry_held")
    clients = [fleet.client(kind) for kind in KINDS]
    eventually(lambda: clients[0].look(task_id)["state"] == "RETRY", what="RETRY")
    for client in clients:
        seen = client.look(task_id)
        assert seen["result"]["class"] == "interop_tasks.OwnError"
        assert seen["result"]["args"] == ["later", 7]
        assert "OwnError" in seen["traceback"]


@pairs
def test_unknown_result_is_pending(fleet: Fleet, call: Call) -> None:
    for kind in KINDS:
        seen = fleet.client(kind).look("no-such-id")
        assert (seen["state"], seen["result"], seen["children"]) == ("PENDING", None, None)


@pairs
def test_ignored_by_the_task_itself(fleet: Fleet, call: Call) -> None:
    key = token_hex(4)
    task_id = call("ignore", key)
    fleet.wait_for_notes(key)
    fleet.value(call("add", 1, 1))
    assert not fleet.redis.exists(f"celery-task-meta-{task_id}")


# -- options -------------------------------------------------------------------------------------------------------


@pairs
def test_ignored_result_is_not_stored(fleet: Fleet, call: Call) -> None:
    key = token_hex(4)
    ids = [call("silent", key), call.client.send("silent", (key,), queue=call.queue)]
    ids.append(call("writes", key, ignore_result=True))
    fleet.wait_for_notes(key, 3)
    fleet.value(call("add", 1, 1))  # whatever they would have stored is there by now
    assert not fleet.redis.exists(*(f"celery-task-meta-{each}" for each in ids))


@pairs
def test_result_of_a_task_that_ignores_results_is_kept_where_the_call_asks_for_it(
    fleet: Fleet, call: Call
) -> None:
    key = token_hex(4)
    assert fleet.value(call("silent", key, ignore_result=False)) == key


@pairs
@pytest.mark.parametrize("how", ["countdown", "eta"])
def test_not_before_its_time(fleet: Fleet, call: Call, how: str) -> None:
    due = time.time() + 1.0
    later: dict[str, Any] = (
        {"countdown": 1.0} if how == "countdown" else {"eta": datetime.fromtimestamp(due, UTC)}
    )
    kind, ran = fleet.value(call("when", **later))
    assert kind == call.queue.rpartition(".")[2]
    assert due - 0.05 <= ran <= due + 2.0


@pairs
def test_expired_before_it_could_run(fleet: Fleet, call: Call) -> None:
    task_id = call("when", countdown=1.0, expires=0.5)
    raised = fleet.read(task_id)["raised"]
    assert raised["class"] == "library.TaskRevokedError"
    assert raised["args"] == ["expired"]
    assert [fleet.client(kind).look(task_id)["state"] for kind in KINDS] == ["REVOKED"] * 2


@pairs
def test_not_expired_yet(fleet: Fleet, call: Call) -> None:
    assert fleet.value(call("add", 1, 2, expires=60)) == 3
    assert fleet.value(call("add", 1, 2, expires=datetime.now(UTC) + timedelta(seconds=60))) == 3


@pairs
def test_link(fleet: Fleet, call: Call) -> None:
    """A callback gets the value, and is a child of the task that it belongs to."""
    key = token_hex(4)
    task_id = call("echo", key, link=[{"task": "writes", "options": {"queue": call.queue}}])
    value = fleet.value(task_id)
    children = [fleet.client(kind).look(task_id)["children"] for kind in KINDS]
    assert children[0] == children[1]
    (child,) = children[0]
    assert fleet.value(child) == value
    assert fleet.noted(str(value))


@pairs
def test_several_links(fleet: Fleet, call: Call) -> None:
    key = token_hex(4)
    links = [
        {"task": "writes", "args": (key,), "immutable": True, "options": {"queue": fleet.queue(kind)}}
        for kind in KINDS
    ]
    for kind in KINDS:
        fleet.worker(kind)
    assert fleet.value(call("add", 1, 2, link=links)) == 3
    assert sorted(fleet.wait_for_notes(key, 2)) == [["celeriac"], ["celery"]]


@pairs
def test_errbacks(fleet: Fleet, call: Call) -> None:
    options = {"queue": call.queue}
    task_id = call(
        "fail",
        "OwnError",
        "x",
        link=[{"task": "writes", "args": ("never",), "immutable": True, "options": options}],
        link_error=[{"task": "errback_old", "options": options}, {"task": "errback_new", "options": options}],
    )
    fleet.read(task_id)
    worker = call.queue.rpartition(".")[2]
    lines = fleet.wait_for_notes(f"errback.{task_id}", 2)
    assert sorted(lines) == [[worker, "new", "OwnError", "True"], [worker, "old"]]
    assert not fleet.noted("never")


@pairs
def test_errback_runs_on_the_other_side(fleet: Fleet, call: Call) -> None:
    other = KINDS[1 - KINDS.index(call.queue.rpartition(".")[2])]  # type: ignore[arg-type]
    task_id = call(
        "fail", "OwnError", link_error=[{"task": "errback_old", "options": {"queue": fleet.queue(other)}}]
    )
    fleet.worker(other)
    assert fleet.wait_for_notes(f"errback.{task_id}") == [[other, "old"]]
