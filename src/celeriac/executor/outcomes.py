"""From how a call ended to the outcome: what becomes of its message, what is recorded, what is published next."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import msgspec

from celeriac.errors import EncodeError, Reject, Retry, WireError
from celeriac.executor.ended import Ended
from celeriac.executor.run import Run
from celeriac.result import AsyncResult
from celeriac.states import FAILURE, IGNORED, READY_STATES, REJECTED, RETRY
from celeriac.wire import codecs
from celeriac.wire import errors as wire_errors
from celeriac.wire.disposition import ACK, Ack, DeadLetter, Defer, Disposition, Return
from celeriac.wire.envelope import Outgoing
from celeriac.wire.frames import Call, Outcome, Update, decode_up, encode
from celeriac.wire.record import Record

if TYPE_CHECKING:
    from celeriac.app import Celeriac
    from celeriac.task import Task

__all__ = ["outcome_of", "progress", "refused"]

logger = logging.getLogger("celeriac.executor")


def outcome_of(run: Run, ended: Ended) -> tuple[Outcome, Ended]:
    """The outcome of a call, and how it ended after all: what follows may fail, too."""
    try:
        return _sendable(_build(run, ended)), ended
    except Exception as exc:  # boundary: a result or a follow-up that cannot be made is how the task failed
        if not isinstance(exc, WireError):
            logger.exception("Task %s: its outcome cannot be made", run.log_name)
        failed = Ended(FAILURE, exception=exc, traceback=_printable(f"{type(exc).__name__}: {exc}\n"))
    try:
        return _sendable(_build(run, failed)), failed
    except Exception as exc:  # boundary: nor can its failure be recorded; the message is kept with the reason
        logger.exception("Task %s: its failure cannot be recorded", run.log_name)
        return refused(run.app, run.call, exc), failed


def _sendable(outcome: Outcome) -> Outcome:
    """The outcome, if the worker can read its frame; raises what encoding and decoding raise."""
    frame = encode(outcome)
    if outcome.follow or not isinstance(outcome.disposition, Ack):
        decode_up(frame)  # these hold what users gave: a priority, say, that is no number
    return outcome


def _build(run: Run, ended: Ended) -> Outcome:
    disposition: Disposition = ACK
    follow: list[Outgoing] = []
    match ended.state:
        case "SUCCESS":
            follow = _after_success(run, ended.value)
        case "RETRY":
            disposition, follow = _again(run, ended)
        case "REJECTED":
            disposition = _put_back(ended)
        case "IGNORED":
            pass
        case _:
            disposition = _after_failure_of(run, ended)
            if isinstance(disposition, Return):
                return Outcome(run.call.number, RETRY, disposition)  # it runs again: nothing has ended
            follow = _errbacks(run, ended)
            _fail_rest_of_chain(run, ended)
    follow += [run.app.retry_of(run.request, Retry(sig=each)) for each in run.request.postponed or ()]
    return Outcome(run.call.number, ended.state, disposition, _record(run, ended), follow)


# -- what becomes of the message -----------------------------------------------------------------------------


def _again(run: Run, ended: Ended) -> tuple[Disposition, list[Outgoing]]:
    """A retry replaces the message where it goes back to its own queue, and is published where it goes elsewhere."""
    assert isinstance(ended.exception, Retry)
    outgoing = run.app.retry_of(run.request, ended.exception)
    same_place = outgoing.exchange == "" and outgoing.routing_key == run.call.queue
    if same_place and outgoing.priority == run.message.priority:
        return Defer(outgoing.due or datetime.now(UTC), outgoing.envelope), []
    return ACK, [outgoing]


def _put_back(ended: Ended) -> Disposition:
    reject = ended.exception
    assert isinstance(reject, Reject)
    return Return() if reject.requeue else _dead(f"rejected: {reject.reason}")


def _after_failure_of(run: Run, ended: Ended) -> Disposition:
    """A failed task is done, unless its options say otherwise; one that killed its executors is dead-lettered."""
    verdict, task = run.call.verdict, run.task
    if verdict is not None:
        if verdict.kind in ("lost", "unknown"):
            return _dead(str(ended.exception))
        if verdict.kind == "timeout" and task.acks_on_timeout is False:
            return Return(counted=True)
        return ACK
    if ended.state == FAILURE and task.acks_on_failure is False:
        return _dead(f"failed: {ended.exception!r}")
    return ACK


def _dead(reason: str) -> DeadLetter:
    """To the dead letters, with a reason that any store takes: without lone surrogates."""
    return DeadLetter(_printable(reason))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


# -- what is published next ----------------------------------------------------------------------------------


def _after_success(run: Run, value: Any) -> list[Outgoing]:
    """The task's callbacks, and the next task of its chain."""
    message = run.message
    follow: list[Outgoing] = []
    for callback in message.callbacks or ():
        follow += run.app.follow_ups(callback, args=(value,), request=run.request)
    if message.chain:
        # Reversed on the wire: the last element runs next and takes the rest along.
        *rest, following = message.chain
        follow += run.app.follow_ups(following, args=(value,), request=run.request, chain=rest)
    if run.task.trail:
        for each in follow:
            run.request.add_child(AsyncResult(each.envelope.task_id, app=run.app))
    return follow


def _errbacks(run: Run, ended: Ended) -> list[Outgoing]:
    """Error callbacks: those that take (request, exception, traceback) are called here and now, the others are
    published with the id of the failed task."""
    follow: list[Outgoing] = []
    for errback in run.message.errbacks or ():
        task = run.app.tasks.get(errback.get("task", ""))
        if task is not None and _takes_details(task, errback):
            try:
                task.run(run.request, ended.exception, ended.traceback)
            except Exception:  # boundary: an errback that fails is logged; the task has failed already
                logger.exception("errback %s of %s failed", task.name, run.log_name)
        else:
            follow += run.app.follow_ups(errback, args=(run.message.id,), request=run.request)
    return follow


def _takes_details(task: Task[..., Any], errback: Mapping[str, Any]) -> bool:
    """Whether an errback has the new form: more than one argument, and none of them given beforehand."""
    if errback.get("immutable") or errback.get("args"):
        return False
    return len(inspect.signature(task.run).parameters) > 1


def _fail_rest_of_chain(run: Run, ended: Ended) -> None:
    """Tasks that will never run, because the chain broke here, have failed the same way: waiters must see it."""
    for signature in run.message.chain or ():
        task_id = signature.get("options", {}).get("task_id")
        if task_id:
            run.emit(Update(run.call.number, _shell(run, ended, task_id=task_id)))


# -- what is recorded ------------------------------------------------------------------------------------------


def _record(run: Run, ended: Ended) -> Record | None:
    if ended.state == IGNORED:
        return None
    if ended.state == REJECTED:
        if isinstance(ended.exception, Reject) and ended.exception.requeue:
            return None
        ended = Ended(FAILURE, exception=ended.exception)
    ignored = run.request.ignore_result
    if ignored and not (ended.state == FAILURE and run.task.store_errors_even_if_ignored):
        return None
    return _shell(run, ended, task_id=run.message.id)


def _shell(run: Run, ended: Ended, *, task_id: str) -> Record:
    codec = run.app.conf.result_serializer
    exception = ended.exception
    if isinstance(exception, Retry) and exception.exc is not None:
        exception = exception.exc
    value = wire_errors.to_meta(exception, codec) if exception is not None else ended.value
    return _extended(
        run,
        Record(
            task_id=task_id,
            state=ended.state,
            result=_encode_result(run, value, codec),
            codec=codec,
            traceback=ended.traceback,
            children=run.request.children_tuples(),
            date_done=datetime.now(UTC) if ended.state in READY_STATES else None,
            retries=run.message.retries,
            group_id=run.message.group,
            parent_id=run.message.parent_id,
            reply_to=run.message.reply_to or None,
        ),
    )


def _encode_result(run: Run, value: Any, codec: str) -> bytes:
    try:
        return codecs.dumps(value, codec)
    except EncodeError as exc:
        raise EncodeError(
            f"the result of {run.message.task} cannot be stored: {exc}; return what {codec!r} can serialise,"
            " or choose another result_serializer"
        ) from exc


def _extended(run: Run, record: Record) -> Record:
    """The record with what ``result_extended`` adds."""
    if not run.app.conf.result_extended:
        return record
    message = run.message
    return msgspec.structs.replace(
        record,
        name=message.task,
        args=_shown(list(message.args), record.codec),
        kwargs=_shown(dict(message.kwargs), record.codec),
        worker=run.request.hostname,
        queue=run.call.queue or None,
        stamps=message.stamps or None,
    )


def _shown(value: Any, codec: str) -> bytes:
    """Arguments for people to look at: what the codec of results does not know is written as its repr."""
    try:
        return codecs.dumps(value, codec)
    except EncodeError:
        if isinstance(value, dict):
            return codecs.dumps(
                {key: repr(each) for key, each in cast("dict[str, Any]", value).items()}, codec
            )
        return codecs.dumps([repr(each) for each in value], codec)


def progress(run: Run, state: str, meta: Any = None) -> Record:
    """A record of a state on the way: STARTED, or what `Task.update_state` was given.

    Raises `EncodeError` where `meta` cannot be serialised.
    """
    codec = run.app.conf.result_serializer
    return _extended(
        run,
        Record(
            task_id=run.message.id,
            state=state,
            result=codecs.dumps(meta, codec),
            codec=codec,
            children=run.request.children_tuples(),
            retries=run.message.retries,
            group_id=run.message.group,
            parent_id=run.message.parent_id,
            reply_to=run.message.reply_to or None,
        ),
    )


# -- what could not be read ------------------------------------------------------------------------------------


def refused(app: Celeriac, call: Call, exc: Exception) -> Outcome:
    """A message that is no call of a task known here: dead-lettered as it came, with the reason."""
    assert call.envelope is not None
    reason = f"{type(exc).__name__}: {exc}"
    task_id = call.envelope.task_id
    logger.error("message %s in queue %s refused: %s", task_id or "without id", call.queue, reason)
    record = None
    if task_id:
        # Somebody may wait for it.
        codec = app.conf.result_serializer
        record = Record(
            task_id=task_id,
            state=FAILURE,
            result=codecs.dumps(wire_errors.to_meta(exc, codec), codec),
            codec=codec,
            date_done=datetime.now(UTC),
            reply_to=call.envelope.properties.get("reply_to") or None,
        )
    return Outcome(call.number, FAILURE, _dead(reason), record)
