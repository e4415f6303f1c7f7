"""The story of one call: decode → request → run → outcome → hooks. Everything that user code can do happens here.

An executor builds every outcome, also of calls that end without running: those come with a verdict, for which
`invoke` skips the function and does the rest. It publishes and stores nothing: the outcome says what follows,
and the worker carries it out.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
import traceback
from typing import TYPE_CHECKING

import msgspec

from celeriac import request as requests
from celeriac.errors import Ignore, Reject, Retry, WireError
from celeriac.executor import hooks
from celeriac.executor.ended import Ended, by_verdict
from celeriac.executor.outcomes import outcome_of, progress, refused
from celeriac.executor.run import Abandoned, Emit, Run
from celeriac.executor.runners.base import Guard
from celeriac.request import Request
from celeriac.states import FAILURE, IGNORED, REJECTED, RETRY, STARTED, SUCCESS
from celeriac.wire import message as messages
from celeriac.wire.frames import Call, Outcome, Update

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["Finished", "invoke"]


class Finished(msgspec.Struct, frozen=True):
    """The outcome for the worker, and how the call ended, which eager mode shows its caller."""

    outcome: Outcome
    ended: Ended


def invoke(
    app: Celeriac, call: Call, *, hostname: str, guard: Guard, emit: Emit, eager: bool = False
) -> Finished:
    """Run one call to its outcome. Raises `Abandoned` only, whatever user code does."""
    started = time.monotonic()
    try:
        run = _read(app, call, hostname=hostname, guard=guard, emit=emit, eager=eager)
    except (WireError, KeyError) as exc:
        return Finished(refused(app, call, exc), Ended(FAILURE, exception=exc))
    token = requests.current.set(run.request)
    try:
        ended = _run(run) if call.verdict is None else by_verdict(call.verdict)
        outcome, ended = outcome_of(run, ended)
        runtime = time.monotonic() - started
        hooks.after(run, ended, runtime)
    finally:
        requests.current.reset(token)
    return Finished(msgspec.structs.replace(outcome, runtime=runtime), ended)


def _read(app: Celeriac, call: Call, *, hostname: str, guard: Guard, emit: Emit, eager: bool) -> Run:
    """Decode the body and find the task. Raises `WireError` and `NotRegistered`."""
    assert call.envelope is not None
    message = messages.decode(call.envelope, accept=app.accepted_content, timezone=app.timezone)
    task = app.tasks[message.task]
    request = Request.of(message, call=None if eager else call, hostname=hostname)
    if message.ignore_result is None:
        request.ignore_result = bool(task.ignore_result)
    run = Run(app, task, call, message, request, guard, emit)
    request.report = lambda state, meta: emit(Update(call.number, progress(run, state, meta)))
    return run


def _run(run: Run) -> Ended:
    """Call the user's function and say how it ended."""
    task, request, message = run.task, run.request, run.message
    process = os.getpid()
    try:
        hooks.before(run)
        if task.track_started and not request.ignore_result:
            meta = {"pid": os.getpid(), "hostname": request.hostname}
            run.emit(Update(run.call.number, progress(run, STARTED, meta)))
        with run.guard():
            value = task.execute(message.args, message.kwargs)
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
    except Abandoned:
        raise
    except Retry as exc:
        return Ended(RETRY, exception=exc, traceback=_traceback())
    except Ignore:
        return Ended(IGNORED)
    except Reject as exc:
        return Ended(REJECTED, exception=exc)
    except BaseException as exc:  # noqa: BLE001 boundary: the user's exception becomes the task's outcome
        if os.getpid() != process:
            # A child that the task forked has come back here: it is no executor.
            os._exit(exc.code if isinstance(exc, SystemExit) and isinstance(exc.code, int) else 1)
        return Ended(FAILURE, exception=exc, traceback=_traceback())
    return Ended(SUCCESS, value)


def _traceback() -> str:
    """The traceback of the exception under way, as text that any store takes: no lone surrogates."""
    return traceback.format_exc().encode("utf-8", "backslashreplace").decode()
