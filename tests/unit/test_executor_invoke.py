"""One call to its outcome: every way it can end, what is recorded, and what follows."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celeriac import Celeriac, signals
from celeriac.errors import Ignore, Reject
from celeriac.executor.invoke import Finished, invoke
from celeriac.task import Task
from celeriac.wire import codecs
from celeriac.wire import message as messages
from celeriac.wire.disposition import ACK, DeadLetter, Defer, Return
from celeriac.wire.envelope import Envelope, Outgoing
from celeriac.wire.frames import Call, Update, Verdict


@pytest.fixture
def app() -> Iterator[Celeriac]:
    with Celeriac("t", broker="memory://", backend="memory://", set_as_current=False) as one:
        yield one


def run(
    app: Celeriac,
    task: Task[..., Any] | str,
    *args: Any,
    verdict: Verdict | None = None,
    updates: list[Update] | None = None,
    envelope: Envelope | None = None,
    **options: Any,
) -> Finished:
    """Publish, take the message off the queue, invoke it."""
    if envelope is None:
        if isinstance(task, str):
            app.send_task(task, args, **options)
        else:
            task.apply_async(args, **options)
        consumer = app.broker.consumer([app.publisher.router.queue("celery")], name="test")
        (delivery,) = consumer.fetch(1, 5)
        envelope = delivery.envelope
    call = Call(1, envelope, "celery", verdict=verdict)
    emitted: list[Update] = [] if updates is None else updates
    return invoke(app, call, hostname="w@h", guard=nullcontext, emit=emitted.append)


def result(finished: Finished) -> Any:
    assert finished.outcome.record is not None
    return codecs.loads(finished.outcome.record.result, "json")


def follow(finished: Finished) -> list[messages.Message]:
    accept = codecs.accepted(["json"])
    return [messages.decode(each.envelope, accept=accept) for each in finished.outcome.follow]


def test_success(app: Celeriac) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    finished = run(app, add, 2, 3)
    outcome = finished.outcome
    assert (outcome.state, outcome.disposition, outcome.follow) == ("SUCCESS", ACK, [])
    assert result(finished) == 5
    assert outcome.record is not None
    assert outcome.record.date_done is not None
    assert outcome.runtime > 0


def test_failure_is_recorded_as_celery_does(app: Celeriac) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("boom", 42)

    finished = run(app, fail)
    assert finished.outcome.state == "FAILURE"
    assert finished.outcome.disposition == ACK
    assert result(finished) == {
        "exc_type": "ValueError",
        "exc_message": ["boom", 42],
        "exc_module": "builtins",
    }
    assert finished.outcome.record is not None
    assert "ValueError: ('boom', 42)" in (finished.outcome.record.traceback or "")


def test_exit_is_a_failure_and_not_the_end_of_the_executor(app: Celeriac) -> None:
    @app.task
    def leave() -> None:
        raise SystemExit(3)

    assert run(app, leave).outcome.state == "FAILURE"


def test_a_failure_that_is_not_to_be_acked_goes_to_the_dead_letters(app: Celeriac) -> None:
    for option in ("acks_on_failure", "acks_on_failure_or_timeout"):

        @app.task(name=option, **{option: False})
        def fail() -> None:
            raise ValueError("boom")

        assert isinstance(run(app, fail).outcome.disposition, DeadLetter)


def test_retry_replaces_the_message(app: Celeriac) -> None:
    @app.task(bind=True, max_retries=3)
    def again(self: Task[..., Any], x: int) -> None:
        raise self.retry(exc=KeyError("x"), countdown=60)

    before = datetime.now(UTC)
    finished = run(app, again, 1)
    disposition = finished.outcome.disposition
    assert finished.outcome.state == "RETRY"
    assert isinstance(disposition, Defer)
    assert before + timedelta(seconds=59) < disposition.until < datetime.now(UTC) + timedelta(seconds=61)
    assert disposition.envelope is not None
    message = messages.decode(disposition.envelope, accept=codecs.accepted(["json"]))
    assert (message.retries, list(message.args)) == (1, [1])
    assert result(finished)["exc_type"] == "KeyError"


def test_retry_into_another_queue_is_published_there(app: Celeriac) -> None:
    @app.task(bind=True)
    def again(self: Task[..., Any]) -> None:
        raise self.retry(countdown=1, queue="slow")

    outcome = run(app, again).outcome
    assert outcome.disposition == ACK
    assert [(each.exchange, each.routing_key) for each in outcome.follow] == [("", "slow")]
    assert outcome.follow[0].due is not None


def test_retry_without_raising_is_published_when_the_call_ends(app: Celeriac) -> None:
    @app.task(bind=True)
    def again(self: Task[..., Any]) -> str:
        self.retry(throw=False, countdown=1)
        return "went on"

    finished = run(app, again)
    assert result(finished) == "went on"
    assert [each.retries for each in follow(finished)] == [1]


def test_too_many_retries_raise_the_reason(app: Celeriac) -> None:
    @app.task(bind=True, max_retries=0)
    def again(self: Task[..., Any]) -> None:
        raise self.retry(exc=KeyError("x"))

    finished = run(app, again)
    assert finished.outcome.state == "FAILURE"
    assert result(finished)["exc_type"] == "KeyError"


def test_ignore_records_nothing(app: Celeriac) -> None:
    @app.task
    def skip() -> None:
        raise Ignore

    outcome = run(app, skip).outcome
    assert (outcome.state, outcome.record, outcome.disposition) == ("IGNORED", None, ACK)


def test_reject(app: Celeriac) -> None:
    @app.task
    def refuse(requeue: bool) -> None:
        raise Reject("not mine", requeue=requeue)

    back = run(app, refuse, True).outcome
    assert back.disposition == Return()
    assert back.record is None
    finished = run(app, refuse, False)
    assert finished.outcome.disposition == DeadLetter("rejected: not mine")
    assert result(finished)["exc_type"] == "Reject"


def test_a_result_that_cannot_be_stored_is_a_failure_that_says_so(app: Celeriac) -> None:
    @app.task
    def bad() -> object:
        return object()

    finished = run(app, bad)
    assert finished.outcome.state == "FAILURE"
    assert "result of" in str(result(finished))


def test_lone_surrogates_do_not_break_the_record(app: Celeriac) -> None:
    @app.task
    def fail() -> None:
        raise ValueError("\ud800")

    record = run(app, fail).outcome.record
    assert record is not None
    assert (record.traceback or "").encode()


@pytest.mark.parametrize(
    ("verdict", "state", "exception"),
    [
        (Verdict("expired"), "REVOKED", "TaskRevokedError"),
        (Verdict("revoked"), "REVOKED", "TaskRevokedError"),
        (Verdict("timeout", "3.0"), "FAILURE", "TimeLimitExceeded"),
        (Verdict("lost", "killed"), "FAILURE", "WorkerLostError"),
    ],
)
def test_a_verdict_skips_the_function_and_does_the_rest(
    app: Celeriac, verdict: Verdict, state: str, exception: str
) -> None:
    ran: list[int] = []

    @app.task
    def never() -> None:
        ran.append(1)

    finished = run(app, never, verdict=verdict, link_error=app.signature("t.clean", immutable=True))
    assert ran == []
    assert finished.outcome.state == state
    assert result(finished)["exc_type"] == exception
    assert [each.task for each in follow(finished)] == ["t.clean"]
    assert isinstance(finished.outcome.disposition, DeadLetter) == (verdict.kind == "lost")


def test_callbacks_and_the_next_of_the_chain_follow(app: Celeriac) -> None:
    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    app.broker.purge("celery")
    chain = add.s(1, 2) | add.s(3) | add.s(4)
    chain.apply_async(link=app.signature("t.done"))
    consumer = app.broker.consumer([app.publisher.router.queue("celery")], name="test")
    (delivery,) = consumer.fetch(1, 5)
    finished = run(app, add, envelope=delivery.envelope)
    (second,) = follow(finished)
    assert list(second.args) == [3, 3]
    assert second.parent_id == finished.outcome.record.task_id  # type: ignore[union-attr]
    finished = run(app, add, envelope=finished.outcome.follow[0].envelope)
    (third,) = follow(finished)
    assert list(third.args) == [6, 4]
    assert third.chain == []
    finished = run(app, add, envelope=finished.outcome.follow[0].envelope)
    (callback,) = follow(finished)
    assert (callback.task, list(callback.args)) == ("t.done", [10])


def test_a_broken_chain_fails_the_tasks_that_never_run(app: Celeriac) -> None:
    @app.task
    def fail(*_: Any) -> None:
        raise ValueError("boom")

    chain = fail.s() | fail.s() | fail.s()
    last = chain.apply_async()
    consumer = app.broker.consumer([app.publisher.router.queue("celery")], name="test")
    (delivery,) = consumer.fetch(1, 5)
    updates: list[Update] = []
    run(app, fail, envelope=delivery.envelope, updates=updates)
    assert {each.record.task_id for each in updates} == {last.id, last.parent.id}  # type: ignore[union-attr]
    assert {each.record.state for each in updates} == {"FAILURE"}


def test_error_callbacks_of_both_kinds(app: Celeriac) -> None:
    seen: list[Any] = []

    @app.task
    def fail() -> None:
        raise ValueError("boom")

    @app.task
    def new_style(request: Any, exc: Any, traceback: Any) -> None:
        seen.append((request.id, str(exc), "ValueError" in traceback))

    @app.task
    def old_style(failed_id: str) -> None: ...

    finished = run(app, fail, link_error=[new_style.s(), old_style.s()])
    assert finished.outcome.record is not None
    task_id = finished.outcome.record.task_id
    assert seen == [(task_id, "boom", True)]
    assert [(each.task, list(each.args)) for each in follow(finished)] == [(old_style.name, [task_id])]


def test_states_on_the_way_are_reported(app: Celeriac) -> None:
    @app.task(bind=True, track_started=True)
    def slow(self: Task[..., Any]) -> None:
        self.update_state(state="PROGRESS", meta={"done": 1})

    updates: list[Update] = []
    run(app, slow, updates=updates)
    assert [each.record.state for each in updates] == ["STARTED", "PROGRESS"]
    assert codecs.loads(updates[1].record.result, "json") == {"done": 1}
    assert codecs.loads(updates[0].record.result, "json")["hostname"] == "w@h"


def test_ignored_results_are_not_recorded_but_errors_may_be(app: Celeriac) -> None:
    @app.task(ignore_result=True)
    def quiet(fail: bool) -> None:
        if fail:
            raise ValueError

    @app.task(ignore_result=True, store_errors_even_if_ignored=True)
    def noted(fail: bool) -> None:
        if fail:
            raise ValueError

    assert run(app, quiet, False).outcome.record is None
    assert run(app, quiet, True).outcome.record is None
    assert run(app, noted, False).outcome.record is None
    assert run(app, noted, True).outcome.record is not None


def test_extended_results(app: Celeriac) -> None:
    app.conf.result_extended = True

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    record = run(app, add, 1, 2).outcome.record
    assert record is not None
    assert (record.name, record.worker, record.queue) == (add.name, "w@h", "celery")
    assert (record.args, record.kwargs) == (b"[1, 2]", b"{}")


def test_hooks_and_signals_come_in_order(app: Celeriac) -> None:
    seen: list[str] = []

    class Noisy(Task[..., Any]):
        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            seen.append("before_start")

        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            seen.append(f"on_success {retval}")

        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            seen.append(f"on_failure {exc}")

        def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            seen.append("on_retry")

        def after_return(
            self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
        ) -> None:
            seen.append(f"after_return {status}")

    @app.task(base=Noisy, bind=True)
    def work(self: Task[..., Any], how: str) -> str:
        if how == "fail":
            raise ValueError("boom")
        if how == "retry":
            raise self.retry(countdown=1)
        return how

    def prerun(**_: Any) -> None:
        seen.append("prerun")

    def postrun(state: str, **_: Any) -> None:
        seen.append(f"postrun {state}")

    signals.task_prerun.connect(prerun, sender=work)
    signals.task_postrun.connect(postrun, sender=work)
    run(app, work, "ok")
    assert seen == ["prerun", "before_start", "on_success ok", "after_return SUCCESS", "postrun SUCCESS"]
    seen.clear()
    run(app, work, "fail")
    assert seen[2:] == ["on_failure boom", "after_return FAILURE", "postrun FAILURE"]
    seen.clear()
    run(app, work, "retry")
    assert seen[2:] == ["on_retry", "after_return RETRY", "postrun RETRY"]


def test_a_failing_hook_is_logged_and_changes_nothing(
    app: Celeriac, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Task[..., Any]):
        def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            raise RuntimeError("hook")

    @app.task(base=Broken)
    def fine() -> int:
        return 1

    with caplog.at_level(logging.ERROR, logger="celeriac"):
        assert run(app, fine).outcome.state == "SUCCESS"
    assert "a hook failed" in caplog.text


def test_messages_that_are_no_calls_go_to_the_dead_letters_with_the_reason(app: Celeriac) -> None:
    json = Envelope(b"{not json", "application/json", "utf-8", {"task": "t.x", "id": "1"}, {})
    pickle = Envelope(
        b"\x80\x04N.", "application/x-python-serialize", "binary", {"task": "t.x", "id": "1"}, {}
    )
    for envelope, reason in ((json, "DecodeError"), (pickle, "ContentDisallowed")):
        outcome = run(app, "t.x", envelope=envelope).outcome
        assert isinstance(outcome.disposition, DeadLetter)
        assert reason in outcome.disposition.reason


def test_an_unknown_task_is_a_recorded_failure(app: Celeriac) -> None:
    finished = run(app, "t.nowhere", verdict=Verdict("unknown"))
    assert isinstance(finished.outcome.disposition, DeadLetter)
    assert result(finished)["exc_type"] == "NotRegistered"


def test_async_functions_run(app: Celeriac) -> None:
    @app.task
    async def add(x: int, y: int) -> int:
        return x + y

    assert result(run(app, add, 1, 2)) == 3


def test_follow_ups_are_outgoing(app: Celeriac) -> None:
    @app.task
    def one() -> int:
        return 1

    outcome = run(app, one, link=app.signature("t.next", queue="web", priority=7)).outcome
    (next_,) = outcome.follow
    assert isinstance(next_, Outgoing)
    assert (next_.routing_key, next_.priority) == ("web", 7)
