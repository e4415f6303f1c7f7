"""What a running task knows of itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from celeriac.request import (
    Request,
    allow_join_result,
    assert_may_wait,
    current,
    denied_join_result,
    running,
)
from celeriac.result import AsyncResult
from celeriac.wire.envelope import Envelope
from celeriac.wire.frames import Call
from celeriac.wire.message import Message, encode

#: Attributes of Celery's ``Context`` and their defaults (inventory §2.4).
DEFAULTS: dict[str, Any] = {
    "id": None,
    "root_id": None,
    "parent_id": None,
    "correlation_id": None,
    "args": None,
    "kwargs": None,
    "group": None,
    "group_index": None,
    "taskset": None,
    "chord": None,
    "chain": None,
    "callbacks": None,
    "errbacks": None,
    "children": None,
    "retries": 0,
    "eta": None,
    "expires": None,
    "time_limit": None,
    "soft_time_limit": None,
    "timelimit": [None, None],
    "is_eager": False,
    "ignore_result": False,
    "called_directly": True,
    "delivery_info": None,
    "reply_to": None,
    "origin": None,
    "hostname": None,
    "properties": None,
    "headers": None,
    "loglevel": None,
    "logfile": None,
    "shadow": None,
    "replaced_task_nesting": 0,
    "stamps": None,
    "stamped_headers": None,
}

MESSAGE = Message(
    task="tasks.add",
    id="i1",
    args=(1, 2),
    kwargs={"x": 3},
    eta=datetime(2026, 1, 2, tzinfo=UTC),
    expires=datetime(2026, 1, 3, tzinfo=UTC),
    group="g",
    group_index=2,
    retries=1,
    time_limit=30,
    soft_time_limit=20,
    parent_id="p",
    origin="gen1@here",
    reply_to="oid",
    priority=5,
    callbacks=[{"task": "tasks.cb"}],
    headers={"tenant": 7, "redelivered": True, "x-death": [], "x-first-death-queue": "web"},
)


def call_of(message: Message, **properties: Any) -> Call:
    envelope = encode(message)
    whole = Envelope(
        envelope.body,
        envelope.content_type,
        envelope.content_encoding,
        envelope.headers,
        {**envelope.properties, **properties},
    )
    return Call(1, whole, "web", attempts=2, redelivered=True)


def test_every_field_of_celery_has_its_default() -> None:
    request = Request()
    assert {name: getattr(request, name) for name in DEFAULTS} == DEFAULTS


def test_a_message_fills_the_request() -> None:
    request = Request.of(MESSAGE, call=call_of(MESSAGE), hostname="w1@here")
    assert (request.task, request.id, request.correlation_id) == ("tasks.add", "i1", "i1")
    assert (request.args, request.kwargs, request.retries) == ((1, 2), {"x": 3}, 1)
    assert (request.root_id, request.parent_id) == ("i1", "p")
    assert (request.group, request.taskset, request.group_index) == ("g", "g", 2)
    assert (request.eta, request.expires) == ("2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00")
    assert request.timelimit == [30, 20]
    assert request.callbacks == [{"task": "tasks.cb"}]
    assert (request.hostname, request.origin, request.reply_to) == ("w1@here", "gen1@here", "oid")
    assert (request.called_directly, request.is_eager) == (False, False)
    assert (request.queue, request.attempts) == ("web", 2)


def test_delivery_info_says_how_the_message_came() -> None:
    plain = Request.of(MESSAGE, call=call_of(MESSAGE))
    assert plain.delivery_info == {"exchange": "", "routing_key": "web", "priority": 5, "redelivered": True}
    target = {"exchange": "media", "routing_key": "video"}
    through = Request.of(MESSAGE, call=call_of(MESSAGE, delivery_info=target))
    assert through.delivery_info == {**target, "priority": 5, "redelivered": True}


def test_eager_is_without_a_call() -> None:
    request = Request.of(MESSAGE)
    assert (request.is_eager, request.called_directly, request.queue) == (True, False, None)


def test_headers_of_the_caller_are_attributes_too() -> None:
    request = Request.of(MESSAGE)
    assert (request.tenant, request.get("tenant"), request.get("nothing", 3)) == (7, 7, 3)
    with pytest.raises(AttributeError, match="no 'nothing'"):
        request.nothing


def test_attributes_can_be_set_updated_and_cleared() -> None:
    request = Request(id="x")
    request.update({"retries": 2}, mine="own")
    assert (request.retries, request.mine) == (2, "own")
    request.clear()
    assert (request.id, request.retries) == (None, 0)


def test_execution_options_repeat_the_call() -> None:
    options = Request.of(MESSAGE, call=call_of(MESSAGE)).as_execution_options()
    kept = {key: value for key, value in options.items() if value is not None}
    assert kept == {
        "task_id": "i1",
        "root_id": "i1",
        "parent_id": "p",
        "group_id": "g",
        "group_index": 2,
        "link": [{"task": "tasks.cb"}],
        "expires": "2026-01-03T00:00:00+00:00",
        "soft_time_limit": 20,
        "time_limit": 30,
        "headers": {"tenant": 7},
        "retries": 1,
        "reply_to": "oid",
        "replaced_task_nesting": 0,
        "origin": "gen1@here",
        "priority": 5,
        "ignore_result": False,
        "stamps": {},
    }


def test_children_are_kept_as_tuples() -> None:
    request = Request()
    assert request.children_tuples() == []
    request.add_child(AsyncResult("c1", parent=AsyncResult("c0")))
    assert request.children_tuples() == [[["c1", [["c0", None], None]], None]]


def test_running_is_the_request_beneath_direct_calls() -> None:
    outer = Request.of(MESSAGE)
    token = current.set(Request(task="inner", outer=Request(task="middle", outer=outer)))
    try:
        assert running() is outer
    finally:
        current.reset(token)
    assert running() is None


def test_a_task_must_not_wait_unless_allowed() -> None:
    assert_may_wait()
    token = current.set(Request.of(MESSAGE))
    try:
        with pytest.raises(RuntimeError, match="must not wait"):
            assert_may_wait()
        with allow_join_result():
            assert_may_wait()
    finally:
        current.reset(token)
    with denied_join_result(), pytest.raises(RuntimeError, match="must not wait"):
        assert_may_wait()
