"""From how a call ended to the outcome: what becomes of its message, what is recorded, what is published next."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from celeriac.errors import EncodeError, NotRegistered, Reject, Retry, WireError
from celeriac.executor.ended import Ended
from celeriac.states import FAILURE, IGNORED, READY_STATES, REJECTED
from celeriac.wire import codecs
from celeriac.wire import errors as wire_errors
from celeriac.wire.disposition import ACK, DeadLetter, Defer, Disposition, Return
from celeriac.wire.envelope import Outgoing
from celeriac.wire.frames import Call, Outcome, Update
from celeriac.wire.message import Message
from celeriac.wire.record import Record

if TYPE_CHECKING:
    from celeriac.app import Celeriac
    from celeriac.request import Request
    from celeriac.task import Task

__all__ = ["outcome_of", "progress", "refused"]

logger = logging.getLogger("celeriac.executor")

Emit = Callable[[Update], None]


def outcome_of(
    app: Celeriac,
    task: Task[..., Any],
    request: Request,
    message: Message,
    call: Call,
    ended: Ended,
    emit: Emit,
) -> tuple[Outcome, Ended]:
    """The outcome of a call, and how it ended after all: what follows may fail, too."""
    try:
        return _build(app, task, request, message, call, ended, emit), ended
    except WireError as exc:
        # A result, a retry or a follow-up that cannot be put into bytes: that is how the task failed.
        failed = Ended(FAILURE, exception=exc, traceback=f"{type(exc).__name__}: {exc}\n")
        return _build(app, task, request, message, call, failed, emit), failed


def _build(
    app: Celeriac,
    task: Task[..., Any],
    request: Request,
    message: Message,
    call: Call,
    ended: Ended,
    emit: Emit,
) -> Outcome:
    disposition: Disposition = ACK
    follow: list[Outgoing] = []
    match ended.state:
        case "SUCCESS":
            follow = _after_success(app, request, message, ended.value)
        case "RETRY":
            disposition, follow = _again(app, request, call, ended)
        case "REJECTED":
            disposition = _put_back(ended)
        case "IGNORED":
            pass
        case _:
            disposition = _after_failure_of(task, call, ended)
            follow = _errbacks(app, request, message, ended)
            _fail_rest_of_chain(app, request, message, ended, emit, call.number)
    return Outcome(call.number, ended.state, disposition, _record(app, task, request, ended), follow)


# -- what becomes of the message -----------------------------------------------------------------------------


def _again(app: Celeriac, request: Request, call: Call, ended: Ended) -> tuple[Disposition, list[Outgoing]]:
    """A retry replaces the message where it goes back to its own queue, and is published where it goes elsewhere."""
    retry = ended.exception
    assert isinstance(retry, Retry)
    outgoing = app.retry_of(request, retry)
    if outgoing.exchange == "" and outgoing.routing_key == call.queue:
        return Defer(outgoing.due or datetime.now(UTC), outgoing.envelope), []
    return ACK, [outgoing]


def _put_back(ended: Ended) -> Disposition:
    reject = ended.exception
    assert isinstance(reject, Reject)
    return Return() if reject.requeue else DeadLetter(f"rejected: {reject.reason}")


def _after_failure_of(task: Task[..., Any], call: Call, ended: Ended) -> Disposition:
    """A failed task is done, unless its options say otherwise; one that killed its executors is dead-lettered."""
    if call.verdict is not None:
        if call.verdict.kind in ("lost", "unknown"):
            return DeadLetter(str(ended.exception))
        if call.verdict.kind == "timeout" and task.acks_on_timeout is False:
            return Return(counted=True)
        return ACK
    if ended.state == FAILURE and task.acks_on_failure is False:
        return DeadLetter(f"failed: {ended.exception!r}")
    return ACK


# -- what is published next ----------------------------------------------------------------------------------


def _after_success(app: Celeriac, request: Request, message: Message, value: Any) -> list[Outgoing]:
    """The task's callbacks, and the next task of its chain."""
    follow: list[Outgoing] = []
    for callback in message.callbacks or ():
        follow += app.follow_ups(callback, args=(value,), request=request)
    if message.chain:
        # Reversed on the wire: the last element runs next and takes the rest along.
        follow += app.follow_ups(
            message.chain[-1], args=(value,), request=request, chain=list(message.chain[:-1])
        )
    return follow


def _errbacks(app: Celeriac, request: Request, message: Message, ended: Ended) -> list[Outgoing]:
    """Error callbacks: those that take (request, exception, traceback) are called here and now, the others are
    published with the id of the failed task."""
    follow: list[Outgoing] = []
    for errback in message.errbacks or ():
        task = app.tasks.get(errback.get("task", ""))
        if task is not None and not errback.get("immutable") and _takes_details(task, errback):
            try:
                task.run(request, ended.exception, ended.traceback)
            except Exception:  # boundary: an errback that fails is logged; the task has failed already
                logger.exception("errback %s of %s[%s] failed", task.name, request.task, request.id)
        else:
            follow += app.follow_ups(errback, args=(request.id,), request=request)
    return follow


def _takes_details(task: Task[..., Any], errback: dict[str, Any]) -> bool:
    """Whether an errback has the new signature: more than one argument, none of them given beforehand."""
    if errback.get("args"):
        return False
    return len(inspect.signature(task.run).parameters) > 1


def _fail_rest_of_chain(
    app: Celeriac, request: Request, message: Message, ended: Ended, emit: Emit, number: int
) -> None:
    """Tasks that will never run, because the chain broke here, have failed the same way: waiters must see it."""
    for signature in message.chain or ():
        task_id = signature.get("options", {}).get("task_id")
        if task_id:
            emit(Update(number, _shell(app, request, ended, task_id=task_id)))


# -- what is recorded ------------------------------------------------------------------------------------------


def _record(app: Celeriac, task: Task[..., Any], request: Request, ended: Ended) -> Record | None:
    if ended.state == IGNORED:
        return None
    if ended.state == REJECTED:
        if isinstance(ended.exception, Reject) and ended.exception.requeue:
            return None
        ended = Ended(FAILURE, exception=ended.exception)
    if request.ignore_result and not (ended.state == FAILURE and task.store_errors_even_if_ignored):
        return None
    return _shell(app, request, ended, task_id=request.id)


def _shell(app: Celeriac, request: Request, ended: Ended, *, task_id: str) -> Record:
    codec = app.conf.result_serializer
    exception = ended.exception
    if isinstance(exception, Retry) and exception.exc is not None:
        exception = exception.exc
    value = wire_errors.to_meta(exception, codec) if exception is not None else ended.value
    record = Record(
        task_id=task_id,
        state=ended.state,
        result=_encode_result(value, codec, request),
        codec=codec,
        traceback=ended.traceback,
        children=request.children_tuples(),
        date_done=datetime.now(UTC) if ended.state in READY_STATES else None,
        retries=request.retries,
        group_id=request.group,
        parent_id=request.parent_id,
    )
    return extended(app, request, record)


def _encode_result(value: Any, codec: str, request: Request) -> bytes:
    try:
        return codecs.dumps(value, codec)
    except EncodeError as exc:
        raise EncodeError(
            f"the result of {request.task} cannot be stored: {exc}; return values that {codec!r} can"
            " serialise, or choose another result_serializer"
        ) from exc


def extended(app: Celeriac, request: Request, record: Record) -> Record:
    """The record with what ``result_extended`` adds."""
    if not app.conf.result_extended:
        return record
    return msgspec.structs.replace(
        record,
        name=request.task,
        args=codecs.dumps(list(request.args), record.codec),
        kwargs=codecs.dumps(dict(request.kwargs), record.codec),
        worker=request.hostname,
        queue=(request.delivery_info or {}).get("routing_key"),
        stamps=request.stamps or None,
    )


def progress(app: Celeriac, request: Request, state: str, meta: Any = None) -> Record:
    """A record of a state on the way: STARTED, or what `Task.update_state` was given.

    Raises `EncodeError` where `meta` cannot be serialised.
    """
    codec = app.conf.result_serializer
    return extended(
        app,
        request,
        Record(
            task_id=request.id,
            state=state,
            result=codecs.dumps(meta, codec),
            codec=codec,
            children=request.children_tuples(),
            retries=request.retries,
            group_id=request.group,
            parent_id=request.parent_id,
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
    if task_id and isinstance(exc, NotRegistered):
        codec = app.conf.result_serializer
        record = Record(
            task_id=task_id,
            state=FAILURE,
            result=codecs.dumps(wire_errors.to_meta(exc, codec), codec),
            codec=codec,
            date_done=datetime.now(UTC),
        )
    return Outcome(call.number, FAILURE, DeadLetter(reason), record)


