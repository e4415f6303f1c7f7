"""Task states and the sets that Celery's users know (celery-compatible names and values).

States are plain strings on the wire and in result backends; custom states are any other upper-case word.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "PENDING",
    "RECEIVED",
    "STARTED",
    "SUCCESS",
    "FAILURE",
    "RETRY",
    "REVOKED",
    "REJECTED",
    "IGNORED",
    "READY_STATES",
    "UNREADY_STATES",
    "EXCEPTION_STATES",
    "PROPAGATE_STATES",
    "ALL_STATES",
    "precedence",
]

#: Nothing is recorded for this id: waiting, or unknown.
PENDING: Final = "PENDING"
#: A worker has the task (seen in events only, never stored).
RECEIVED: Final = "RECEIVED"
#: An executor runs the task (stored only with ``track_started``).
STARTED: Final = "STARTED"
SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
#: The task failed and waits to be run again.
RETRY: Final = "RETRY"
#: Cancelled before it ran, terminated, or expired.
REVOKED: Final = "REVOKED"
#: A worker refused the task (seen in events only).
REJECTED: Final = "REJECTED"
#: The task raised ``Ignore``: no state is stored.
IGNORED: Final = "IGNORED"

READY_STATES: Final = frozenset({SUCCESS, FAILURE, REVOKED})
UNREADY_STATES: Final = frozenset({PENDING, RECEIVED, STARTED, REJECTED, RETRY})
EXCEPTION_STATES: Final = frozenset({RETRY, FAILURE, REVOKED})
PROPAGATE_STATES: Final = frozenset({FAILURE, REVOKED})
ALL_STATES: Final = frozenset({PENDING, RECEIVED, STARTED, SUCCESS, FAILURE, RETRY, REVOKED})

_PRECEDENCE: Final = (SUCCESS, FAILURE, None, REVOKED, STARTED, RECEIVED, REJECTED, RETRY, PENDING)


def precedence(state: str) -> int:
    """How final `state` is: 0 is the most final; custom states rank just after FAILURE."""
    return _PRECEDENCE.index(state) if state in _PRECEDENCE else _PRECEDENCE.index(None)
