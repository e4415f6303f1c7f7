"""The story of one call: decode → request → run → outcome → hooks. Everything that user code can do happens here.

An executor builds every outcome, also of calls that end without running: those come with a verdict, for which
`invoke` skips the function and does the rest. It publishes and stores nothing: the outcome says what follows,
and the worker carries it out.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from celeriac import request as requests
from celeriac import signals
from celeriac.errors import Ignore, Reject, Retry, SoftTimeLimitExceeded, WireError
from celeriac.executor import hooks
from celeriac.executor.ended import Ended, by_verdict
from celeriac.executor.outcomes import outcome_of, progress, refused
from celeriac.executor.runners.base import Guard
from celeriac.request import Request
from celeriac.states import FAILURE, IGNORED, REJECTED, RETRY, STARTED, SUCCESS
from celeriac.wire import message as messages
from celeriac.wire.frames import Call, Outcome, Update
from celeriac.wire.message import Message

if TYPE_CHECKING:
    from celeriac.app import Celeriac
    from celeriac.task import Task

__all__ = ["Finished", "invoke"]

#: Where a call reports states on the way; the worker stores them in order.
Emit = Callable[[Update], None]


class Finished(msgspec.Struct, frozen=True):
    """The outcome for the worker, and what eager mode shows its caller."""

    outcome: Outcome
    ended: Ended | None = None


def invoke(app: Celeriac, call: Call, *, hostname: str, guard: Guard, emit: Emit) -> Finished:
    """Run one call to its outcome. Never raises what user code raised."""
    started = time.monotonic()
    assert call.envelope is not None
    try:
        message = messages.decode(call.envelope, accept=app.accepted_content)
        task = app.tasks[message.task]
    except (WireError, KeyError) as exc:
        return Finished(refused(app, call, exc))
    request = Request.of(message, call=call, hostname=hostname)
    token = requests.current.set(request)
    try:
        if call.verdict is not None:
            ended = by_verdict(call.verdict)
        else:
            ended = run(app, task, request, call=call, guard=guard, emit=emit)
        outcome, ended = outcome_of(app, task, request, message, call, ended, emit)
        runtime = time.monotonic() - started
        hooks.after(task, request, ended, runtime)
        outcome = msgspec.structs.replace(outcome, runtime=runtime)
    finally:
        requests.current.reset(token)
    return Finished(outcome, ended)


def run(
    app: Celeriac, task: Task[..., Any], request: Request, *, call: Call, guard: Guard, emit: Emit
) -> Ended:
    """Call the user's function and say how it ended."""
    try:
        hooks.before(task, request)
        if task.track_started and not request.ignore_result:
            emit(Update(call.number, progress(app, request, STARTED)))
        with guard():
            value = task.run(*request.args, **request.kwargs)
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
    except Retry as exc:
        return Ended(RETRY, exception=exc, traceback=_traceback())
    except Ignore:
        return Ended(IGNORED)
    except Reject as exc:
        return Ended(REJECTED, exception=exc)
    except BaseException as exc:  # noqa: BLE001 boundary: the user's exception becomes the task's outcome
        return Ended(FAILURE, exception=exc, traceback=_traceback())
    return Ended(SUCCESS, value)


def _traceback() -> str:
    """The traceback of the exception under way, from the user's function on."""
    return traceback.format_exc()
