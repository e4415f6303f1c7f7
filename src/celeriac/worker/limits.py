"""Time limits of running calls: soft ones are raised inside the task, hard ones end it from outside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from celeriac.wire.frames import TaskInfo
from celeriac.worker.executor import Executor
from celeriac.worker.work import Work

__all__ = ["Limits"]

logger = logging.getLogger("celeriac.worker")

_NO_LIMITS = (None, [None, None])


class Limits:
    """Arms the timers of a call when its executor comes to it, and disarms them when it answers.

    `end` is called with the executor whose running call passed its hard limit: it has to be killed.
    """

    def __init__(
        self,
        *,
        soft: float | None,
        hard: float | None,
        end: Callable[[Executor, Work, float], None],
    ) -> None:
        self._soft = soft
        self._hard = hard
        self._none = not soft and not hard
        self._end = end

    def of(self, work: Work) -> tuple[float | None, float | None]:
        """Soft and hard limit of a call in seconds: of the call, of its task, of this worker, in this order."""
        hard, soft = _in_headers(work.delivery.envelope.headers)
        info: TaskInfo = work.info
        return (
            _first(soft, info.soft_time_limit, self._soft),
            _first(hard, info.time_limit, self._hard),
        )

    def arm(self, executor: Executor, work: Work) -> None:
        """Start the clock of a call that runs from now on."""
        if (
            self._none
            and work.info.unlimited
            and work.delivery.envelope.headers.get("timelimit") in _NO_LIMITS
        ):
            return  # nearly every call of nearly every program
        soft, hard = self.of(work)
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []
        if soft is not None:
            timers.append(loop.call_later(soft, self._soften, executor, work, soft))
        if hard is not None:
            timers.append(loop.call_later(hard, self._harden, executor, work, hard))
        work.timers = tuple(timers)

    def disarm(self, work: Work) -> None:
        """Stop the clock of a call that ended."""
        for timer in work.timers:
            timer.cancel()
        work.timers = ()

    def _soften(self, executor: Executor, work: Work, seconds: float) -> None:
        logger.warning("Soft time limit (%ss) exceeded for %s[%s]", seconds, work.task, work.task_id)
        executor.interrupt(work.number, seconds)

    def _harden(self, executor: Executor, work: Work, seconds: float) -> None:
        logger.error("Hard time limit (%ss) exceeded for %s[%s]", seconds, work.task, work.task_id)
        work.limit_hit = seconds
        self._end(executor, work, seconds)


def _in_headers(headers: dict[str, Any]) -> tuple[float | None, float | None]:
    """``timelimit`` of protocol 2: ``[hard, soft]``."""
    limits: Any = headers.get("timelimit")
    if not isinstance(limits, list) or len(cast("list[Any]", limits)) != 2:
        return None, None
    return _seconds(limits[0]), _seconds(limits[1])


def _seconds(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def _first(*limits: float | None) -> float | None:
    """The first limit that is set; 0 means none, as in Celery."""
    return next((each or None for each in limits if each is not None), None)
