"""Results: what is known of a task from outside, and waiting for it."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from celeriac import Celeriac
from celeriac.errors import ContentDisallowed, NotYetSupported, TaskError, TaskRevokedError, TimeoutError
from celeriac.request import Request, allow_join_result, current
from celeriac.result import AsyncResult, EagerResult, RemoteTraceback, result_from_tuple
from celeriac.wire import codecs
from celeriac.wire import errors as wire_errors
from celeriac.wire.record import Record

DONE = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def app() -> Iterator[Celeriac]:
    with Celeriac("t", broker="memory://", backend="memory://", set_as_current=False) as app:
        yield app


def record(id: str, state: str = "SUCCESS", value: Any = None, **fields: Any) -> Record:
    if isinstance(value, BaseException):
        value = wire_errors.to_meta(value, "json")
    return Record(task_id=id, state=state, result=codecs.dumps(value, "json"), **fields)


def test_an_unknown_id_is_pending(app: Celeriac) -> None:
    result = app.AsyncResult("nobody")
    assert (result.state, result.status, result.result, result.traceback) == (
        "PENDING",
        "PENDING",
        None,
        None,
    )
    assert (result.ready(), result.successful(), result.failed(), result.exists()) == (False,) * 4
    assert (result.children, result.date_done, result.name) == (None, None, None)


def test_a_success_has_its_value(app: Celeriac) -> None:
    app.backend.put([record("i", value={"n": [1, 2]}, date_done=DONE)])
    result = app.AsyncResult("i")
    assert (result.state, result.result, result.info) == ("SUCCESS", {"n": [1, 2]}, {"n": [1, 2]})
    assert (result.ready(), result.successful(), result.failed(), result.exists()) == (
        True,
        True,
        False,
        True,
    )
    assert result.date_done == DONE
    assert result.get(timeout=0) == {"n": [1, 2]}


def test_a_failure_is_raised_with_the_traceback_of_the_worker(app: Celeriac) -> None:
    app.backend.put([record("i", "FAILURE", KeyError("k", 3), traceback="Traceback: there")])
    result = app.AsyncResult("i")
    assert (result.failed(), result.traceback) == (True, "Traceback: there")
    with pytest.raises(KeyError) as caught:
        result.get(timeout=0)
    assert caught.value.args == ("k", 3)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "Traceback: there" in str(caught.value.__cause__)
    with pytest.raises(KeyError):
        result.maybe_throw()


def test_without_propagate_the_exception_is_returned(app: Celeriac) -> None:
    app.backend.put([record("i", "REVOKED", TaskRevokedError("expired"))])
    result = app.AsyncResult("i")
    found = result.get(timeout=0, propagate=False)
    assert isinstance(found, TaskRevokedError)
    assert str(found) == "expired"
    assert str(result.maybe_throw(propagate=False)) == "expired"


def test_a_retry_shows_what_went_wrong_so_far(app: Celeriac) -> None:
    app.backend.put([record("i", "RETRY", ValueError("again"))])
    result = app.AsyncResult("i")
    assert isinstance(result.result, ValueError)
    assert result.ready() is False
    assert isinstance(result.maybe_throw(), ValueError)


def test_a_custom_state_shows_its_meta(app: Celeriac) -> None:
    app.backend.put([record("i", "PROGRESS", {"done": 3})])
    assert (app.AsyncResult("i").state, app.AsyncResult("i").info) == ("PROGRESS", {"done": 3})


def test_the_final_state_is_read_once(app: Celeriac) -> None:
    result = app.AsyncResult("i")
    app.backend.put([record("i", "STARTED")])
    assert result.state == "STARTED"
    app.backend.put([record("i", value=1)])
    assert result.state == "SUCCESS"
    app.backend.forget(["i"])
    assert result.result == 1


def test_extended_fields(app: Celeriac) -> None:
    app.backend.put(
        [
            record(
                "i",
                name="tasks.add",
                args=b"[1, 2]",
                kwargs=b'{"x": 3}',
                worker="w@h",
                queue="web",
                retries=2,
            )
        ]
    )
    result = app.AsyncResult("i")
    assert (result.name, result.args, result.kwargs) == ("tasks.add", [1, 2], {"x": 3})
    assert (result.worker, result.queue, result.retries) == ("w@h", "web", 2)


def test_get_waits_for_another_thread(app: Celeriac) -> None:
    result, values = app.AsyncResult("i"), []
    waiter = threading.Thread(target=lambda: values.append(result.get(timeout=30)))
    waiter.start()
    app.backend.put([record("i", "STARTED")])
    app.backend.put([record("i", value=7)])
    waiter.join()
    assert values == [7]


def test_a_timeout_names_the_id_and_what_it_may_mean(app: Celeriac) -> None:
    with pytest.raises(TimeoutError, match=r"task nobody did not end within 0 s.*no such task"):
        app.AsyncResult("nobody").get(timeout=0)
    app.backend.put([record("i", "STARTED")])
    with pytest.raises(TimeoutError, match="its state is STARTED"):
        app.AsyncResult("i").get(timeout=0)


def test_the_default_timeout_is_a_setting(app: Celeriac) -> None:
    app.conf.result_get_timeout = 0
    with pytest.raises(TimeoutError, match="within 0 s"):
        app.AsyncResult("nobody").get()


def test_an_ignored_result_is_an_error_at_once() -> None:
    with pytest.raises(TaskError, match="task i keeps no result"):
        AsyncResult("i", ignored=True).get()


def test_waiting_inside_a_task_is_an_error(app: Celeriac) -> None:
    app.backend.put([record("i", value=1)])
    token = current.set(Request(task="t", called_directly=False))
    try:
        with pytest.raises(RuntimeError, match="disable_sync_subtasks"):
            app.AsyncResult("i").get()
        assert app.AsyncResult("i").get(disable_sync_subtasks=False) == 1
        with allow_join_result():
            assert app.AsyncResult("i").get() == 1
    finally:
        current.reset(token)


def test_callback_and_on_message(app: Celeriac) -> None:
    app.backend.put([record("i", value=1)])
    calls: list[Any] = []
    app.AsyncResult("i").get(
        timeout=0,
        callback=lambda id, value: calls.append((id, value)),
        on_message=lambda meta: calls.append(meta["status"]),
    )
    assert calls == ["SUCCESS", ("i", 1)]


def test_on_interval_and_on_message_hear_of_states_on_the_way(app: Celeriac) -> None:
    app.backend.put([record("i", "PROGRESS", 1)])
    heard: list[Any] = []
    steps = iter([record("i", "PROGRESS", 2), record("i", value="end")])

    def on_interval() -> None:
        heard.append("tick")
        app.backend.put([next(steps)])

    found = app.AsyncResult("i").get(
        timeout=30,
        interval=0.001,
        on_interval=on_interval,
        on_message=lambda meta: heard.append((meta["status"], meta["result"])),
    )
    assert found == "end"
    assert heard == ["tick", ("PROGRESS", 2), "tick", ("SUCCESS", "end")]


def chain_of(app: Celeriac, *ids: str) -> AsyncResult[Any]:
    result: AsyncResult[Any] | None = None
    for id in ids:
        result = AsyncResult(id, app=app, parent=result)
    assert result is not None
    return result


def test_the_failure_of_an_ancestor_is_raised(app: Celeriac) -> None:
    app.backend.put([record("a", value=1), record("b", "FAILURE", ValueError("b failed"))])
    with pytest.raises(ValueError, match="b failed"):
        chain_of(app, "a", "b", "c").get(timeout=30)
    with pytest.raises(TimeoutError):
        chain_of(app, "a", "b", "c").get(timeout=0, follow_parents=False)


def test_a_chain_ends_with_its_last_task(app: Celeriac) -> None:
    app.backend.put([record("a", value=1), record("c", value=3)])
    assert chain_of(app, "a", "b", "c").get(timeout=30) == 3


def test_forget_deletes_the_whole_line(app: Celeriac) -> None:
    app.backend.put([record("a"), record("b")])
    result = chain_of(app, "a", "b")
    assert result.ready()
    result.forget()
    assert list(app.backend.get(["a", "b"])) == [None, None]
    assert result.state == "PENDING"


def test_tuples_travel_and_come_back(app: Celeriac) -> None:
    result = chain_of(app, "a", "b", "c")
    travelled = result.as_tuple()
    assert travelled == [["c", [["b", [["a", None], None]], None]], None]
    back = result_from_tuple(travelled, app=app)
    assert (back.as_list(), back.app) == (["c", "b", "a"], app)
    assert result_from_tuple([["x", "parent"], None]).as_list() == ["x", "parent"]


def test_a_line_of_thousands_is_no_recursion(app: Celeriac) -> None:
    result = chain_of(app, *map(str, range(5000)))
    assert len(result_from_tuple(result.as_tuple()).as_list()) == 5000


def test_a_group_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="g is a group of 2"):
        result_from_tuple([["g", None], [[["a", None], None], [["b", None], None]]])


def test_children_and_what_follows(app: Celeriac) -> None:
    app.backend.put(
        [
            record("a", value=1, children=[[["b", None], None], [["c", None], None]]),
            record("b", value=2, children=[[["d", None], None]]),
            record("c", value=3, children=[]),
            record("d", value=4, children=[]),
        ]
    )
    result = app.AsyncResult("a")
    assert [child.id for child in result.children or ()] == ["b", "c"]
    assert [(parent and parent.id, node.id) for parent, node in result.iterdeps()] == [
        (None, "a"),
        ("a", "b"),
        ("a", "c"),
        ("b", "d"),
    ]
    assert [value for _, value in result.collect()] == [1, 2, 3, 4]
    assert result.get_leaf() == 4


def test_what_follows_is_not_known_before_the_end(app: Celeriac) -> None:
    with pytest.raises(TaskError, match="a has not ended"):
        list(app.AsyncResult("a").iterdeps())
    assert len(list(app.AsyncResult("a").iterdeps(intermediate=True))) == 1


def test_results_compare_by_id_and_survive_pickling() -> None:
    result = AsyncResult("a", parent=AsyncResult("b"))
    again = pickle.loads(pickle.dumps(result))
    assert again == result == "a"
    assert again.parent == AsyncResult("b")
    assert len({result, again}) == 1
    assert (str(result), repr(result)) == ("a", "<AsyncResult: a>")
    assert result != 3


def test_revoke_marks_what_has_not_ended(app: Celeriac) -> None:
    app.backend.put([record("done", value=1)])
    app.control.revoke(["done", "waiting"])
    app.AsyncResult("single").revoke()
    assert [app.AsyncResult(id).state for id in ("done", "waiting", "single")] == [
        "SUCCESS",
        "REVOKED",
        "REVOKED",
    ]
    with pytest.raises(TaskRevokedError, match="revoked"):
        app.AsyncResult("waiting").get(timeout=0)
    _, revoked = app.backend.revoked(0)
    assert set(revoked) == {"done", "waiting", "single"}


def test_terminating_says_that_it_does_not_yet(app: Celeriac) -> None:
    with pytest.warns(NotYetSupported, match="not terminated yet"):
        app.AsyncResult("i").revoke(terminate=True)
    assert app.AsyncResult("i").state == "REVOKED"


def test_without_expiry_a_revocation_holds_for_years(app: Celeriac) -> None:
    app.conf.result_expires = None
    app.control.revoke("i")
    _, revoked = app.backend.revoked(0)
    assert (revoked["i"] - datetime.now(UTC)).days > 3000


def test_eager_results_are_there_at_once() -> None:
    good = EagerResult("i", 7, "SUCCESS", name="tasks.add")
    assert (good.get(), good.state, good.result, good.ready(), good.exists()) == (7, "SUCCESS", 7, True, True)
    assert (good.children, good.name, good.successful()) == (None, "tasks.add", True)
    bad = EagerResult("i", ValueError("no"), "FAILURE", "Traceback")
    assert (bad.failed(), bad.traceback) == (True, "Traceback")
    assert isinstance(bad.get(propagate=False), ValueError)
    with pytest.raises(ValueError, match="no"):
        bad.get()
    with pytest.raises(ValueError, match="no"):
        bad.maybe_throw()
    good.revoke()
    assert good.state == "REVOKED"


def test_eager_results_call_back() -> None:
    heard: list[Any] = []
    EagerResult("i", 7, "SUCCESS").get(callback=lambda id, value: heard.append((id, value)))
    assert heard == [("i", 7)]


def test_a_pickled_result_is_not_opened_unless_it_is_allowed(app: Celeriac) -> None:
    for id, state, value in (("s", "SUCCESS", {1: 2}), ("f", "FAILURE", ValueError("x"))):
        app.backend.put([Record(task_id=id, state=state, result=pickle.dumps(value), codec="pickle")])
        with pytest.raises(ContentDisallowed, match="result_accept_content"):
            app.AsyncResult(id).get(timeout=1)
    app.conf.result_accept_content = ["json", "pickle"]
    assert app.AsyncResult("s").get(timeout=1) == {1: 2}
