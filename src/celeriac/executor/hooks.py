"""What users hang on a call: the task's own hooks, signals, and the log line. Their failures end no call."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celeriac import signals
from celeriac.errors import Reject, Retry
from celeriac.executor.ended import Ended
from celeriac.states import FAILURE, IGNORED, REJECTED, RETRY, REVOKED, SUCCESS
from celeriac.wire.repr import safe_repr

if TYPE_CHECKING:
    from celeriac.request import Request
    from celeriac.task import Task

__all__ = ["after", "before"]

logger = logging.getLogger("celeriac.executor")


def before(task: Task[..., Any], request: Request) -> None:
    """Everything that comes before the function. What the task's own hook raises is the task's failure."""
    signals.task_prerun.send(
        sender=task, task_id=request.id, task=task, args=request.args, kwargs=request.kwargs
    )
    task.before_start(request.id, request.args, request.kwargs)


def after(task: Task[..., Any], request: Request, ended: Ended, runtime: float) -> None:
    """Everything that comes after the outcome is known; it cannot change it."""
    try:
        _task_hook(task, request, ended)
    except Exception:  # boundary: a hook that fails is logged; the outcome stands
        logger.exception("Task %s[%s]: a hook failed", request.task, request.id)
    _signal(task, request, ended, runtime)
    _log(task, request, ended, runtime)
    if ended.state in (IGNORED, REJECTED):
        return
    retval = ended.value if ended.state == SUCCESS else ended.exception
    try:
        task.after_return(
            ended.state, retval, request.id, request.args, request.kwargs, ended.traceback
        )
    except Exception:  # boundary: as above
        logger.exception("Task %s[%s]: after_return failed", request.task, request.id)
    signals.task_postrun.send(
        sender=task,
        task_id=request.id,
        task=task,
        args=request.args,
        kwargs=request.kwargs,
        retval=retval,
        state=ended.state,
    )


def _task_hook(task: Task[..., Any], request: Request, ended: Ended) -> None:
    details = (request.id, request.args, request.kwargs)
    match ended.state:
        case "SUCCESS":
            task.on_success(ended.value, *details)
        case "RETRY":
            task.on_retry(ended.exception, *details, ended.traceback)
        case "FAILURE":
            task.on_failure(ended.exception, *details, ended.traceback)
        case _:
            pass


def _signal(task: Task[..., Any], request: Request, ended: Ended, runtime: float) -> None:
    match ended.state:
        case "SUCCESS":
            signals.task_success.send(sender=task, result=ended.value, runtime=runtime)
        case "RETRY":
            signals.task_retry.send(
                sender=task, request=request, reason=ended.exception, einfo=ended.traceback
            )
        case "FAILURE":
            signals.task_failure.send(
                sender=task,
                task_id=request.id,
                exception=ended.exception,
                args=request.args,
                kwargs=request.kwargs,
                traceback=getattr(ended.exception, "__traceback__", None),
                einfo=ended.traceback,
            )
        case "REVOKED":
            signals.task_revoked.send(
                sender=task,
                request=request,
                terminated=False,
                signum=None,
                expired="expired" in str(ended.exception),
            )
        case _:
            pass


def _log(task: Task[..., Any], request: Request, ended: Ended, runtime: float) -> None:
    """The lines that Celery's users and their log parsers know."""
    name, id = request.shadow or request.task, request.id
    exception = ended.exception
    match ended.state:
        case "SUCCESS":
            if logger.isEnabledFor(logging.INFO):
                result = safe_repr(ended.value, limit=task.resultrepr_maxsize)
                logger.info("Task %s[%s] succeeded in %ss: %s", name, id, runtime, result)
        case "RETRY":
            logger.info("Task %s[%s] retry: %s", name, id, exception)
        case "IGNORED":
            logger.info("Task %s[%s] ignored", name, id)
        case "REJECTED":
            logger.warning("Task %s[%s] %r", name, id, exception)
        case "REVOKED":
            logger.info("Discarding revoked task: %s[%s] (%s)", name, id, exception)
        case _ if isinstance(exception, task.throws):
            logger.info("Task %s[%s] raised expected: %r", name, id, exception)
        case _:
            logger.error("Task %s[%s] raised unexpected: %r\n%s", name, id, exception, ended.traceback or "")
