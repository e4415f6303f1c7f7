"""What users hang on a call: the task's own hooks, signals, and the log line. Their failures end no call."""

from __future__ import annotations

import logging
from typing import Any

from celeriac import signals
from celeriac.executor.ended import Ended
from celeriac.executor.run import Run
from celeriac.states import IGNORED, REJECTED, SUCCESS
from celeriac.wire.message import safe_repr

__all__ = ["after", "before"]

logger = logging.getLogger("celeriac.executor")


def before(run: Run) -> None:
    """Everything that comes before the function. What the task's own hook raises is the task's failure."""
    message, task = run.message, run.task
    if signals.task_prerun.connections:
        signals.task_prerun.send(
            sender=task, task_id=message.id, task=task, args=message.args, kwargs=message.kwargs
        )
    task.before_start(message.id, message.args, message.kwargs)


def after(run: Run, ended: Ended, runtime: float) -> None:
    """Everything that comes after the outcome is known; it cannot change it."""
    retval = ended.value if ended.state == SUCCESS else ended.exception
    try:
        _signal(run, ended, runtime)
        _log(run, ended, runtime)
        _task_hooks(run, ended, retval)
    except Exception:  # boundary: a hook that fails is logged; the outcome stands
        logger.exception("Task %s: a hook failed", run.log_name)
    message, task = run.message, run.task
    if signals.task_postrun.connections:
        signals.task_postrun.send(
            sender=task,
            task_id=message.id,
            task=task,
            args=message.args,
            kwargs=message.kwargs,
            retval=retval,
            state=ended.state,
        )


def _task_hooks(run: Run, ended: Ended, retval: Any) -> None:
    message, task = run.message, run.task
    details = (message.id, message.args, message.kwargs)
    match ended.state:
        case "SUCCESS":
            task.on_success(retval, *details)
        case "RETRY":
            task.on_retry(retval, *details, ended.traceback)
        case "FAILURE":
            task.on_failure(retval, *details, ended.traceback)
        case _:
            pass
    if ended.state not in (IGNORED, REJECTED):
        task.after_return(ended.state, retval, *details, ended.traceback)


def _signal(run: Run, ended: Ended, runtime: float) -> None:
    message, task = run.message, run.task
    match ended.state:
        case "SUCCESS":
            signals.task_success.send(sender=task, result=ended.value, runtime=runtime)
        case "RETRY":
            signals.task_retry.send(
                sender=task, request=run.request, reason=ended.exception, einfo=ended.traceback
            )
        case "FAILURE":
            signals.task_failure.send(
                sender=task,
                task_id=message.id,
                exception=ended.exception,
                args=message.args,
                kwargs=message.kwargs,
                traceback=ended.exception.__traceback__ if ended.exception else None,
                einfo=ended.traceback,
            )
        case "REVOKED":
            verdict = run.call.verdict
            signals.task_revoked.send(
                sender=task,
                request=run.request,
                terminated=False,
                signum=None,
                expired=verdict is not None and verdict.kind == "expired",
            )
        case _:
            pass


def _log(run: Run, ended: Ended, runtime: float) -> None:
    """The lines that Celery's users and their log parsers know."""
    exception = ended.exception
    match ended.state:
        case "SUCCESS":
            if logger.isEnabledFor(logging.INFO):
                result = safe_repr(ended.value, limit=run.task.resultrepr_maxsize)
                logger.info("Task %s succeeded in %ss: %s", run.log_name, runtime, result)
        case "RETRY":
            logger.info("Task %s retry: %s", run.log_name, exception)
        case "IGNORED":
            logger.info("Task %s ignored", run.log_name)
        case "REJECTED":
            logger.warning("Task %s %r", run.log_name, exception)
        case "REVOKED":
            logger.info("Discarding revoked task: %s (%s)", run.log_name, exception)
        case _ if isinstance(exception, tuple(run.task.throws)):
            logger.info("Task %s raised expected: %r", run.log_name, exception)
        case _:
            logger.error("Task %s raised unexpected: %r\n%s", run.log_name, exception, ended.traceback or "")
