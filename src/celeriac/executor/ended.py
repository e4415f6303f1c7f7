"""How a call ended: by its function, or by a verdict of the worker's."""

from __future__ import annotations

from typing import Any, assert_never

import msgspec

from celeriac.errors import NotRegistered, TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celeriac.states import FAILURE, REVOKED
from celeriac.wire.frames import Verdict

__all__ = ["Ended", "by_verdict"]


class Ended(msgspec.Struct, frozen=True):
    """A state (see `celeriac.states`), with the return value or the exception that led to it."""

    state: str
    value: Any = None
    exception: BaseException | None = None
    traceback: str | None = None


def by_verdict(verdict: Verdict) -> Ended:
    """The ending that a verdict stands for, with the exception Celery's users know."""
    match verdict.kind:
        case "expired" | "revoked":
            return Ended(REVOKED, exception=TaskRevokedError(verdict.kind))
        case "timeout":
            return Ended(FAILURE, exception=TimeLimitExceeded(float(verdict.detail)))
        case "lost":
            return Ended(FAILURE, exception=WorkerLostError(f"the executor died: {verdict.detail}"))
        case "unknown":
            return Ended(FAILURE, exception=NotRegistered(verdict.detail))
        case _:
            assert_never(verdict.kind)
