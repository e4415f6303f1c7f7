"""Every exception celeriac raises, split by who has to act.

::

    CeleriacError
    ├── ImproperlyConfigured        configuration: a setting, URL or extra is wrong
    │   ├── MissingExtra            an optional dependency is not installed
    │   └── SecurityError
    ├── OperationalError            the server cannot be reached or refused; retry may help
    │   ├── ConnectionLost          of a broker or backend that was open
    │   └── PublishFailed           names the messages that were not accepted
    ├── WireError                   bytes or values that do not fit the format
    │   ├── EncodeError             raised at the caller; nothing was queued
    │   ├── DecodeError
    │   │   └── ContentDisallowed   content type outside accept_content
    │   └── InvalidTaskError        decoded, but not a task message
    ├── TaskError                   how a call, or the use of one, went wrong
    │   ├── NotRegistered (KeyError)   QueueNotFound (KeyError)   AlreadyRegistered
    │   ├── MaxRetriesExceededError    TaskRevokedError   ChordError
    │   ├── TimeLimitExceeded   SoftTimeLimitExceeded   WorkerLostError   Terminated
    │   └── TimeoutError            a wait for a result ran out of time
    └── TaskPredicate               control flow out of a task, not failures
        ├── Retry   ├── Ignore   └── Reject

Names and constructor arguments are those Celery's users know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

__all__ = [
    "CeleriacError",
    "ImproperlyConfigured",
    "MissingExtra",
    "SecurityError",
    "OperationalError",
    "ConnectionLost",
    "PublishFailed",
    "WireError",
    "EncodeError",
    "DecodeError",
    "ContentDisallowed",
    "InvalidTaskError",
    "TaskError",
    "NotRegistered",
    "QueueNotFound",
    "AlreadyRegistered",
    "MaxRetriesExceededError",
    "TaskRevokedError",
    "ChordError",
    "TimeLimitExceeded",
    "SoftTimeLimitExceeded",
    "WorkerLostError",
    "Terminated",
    "TimeoutError",
    "TaskPredicate",
    "Retry",
    "Ignore",
    "Reject",
    "CeleriacWarning",
    "AlwaysEagerIgnored",
    "DuplicateTaskNameWarning",
    "NotYetSupported",
]


class CeleriacError(Exception):
    """Root of all errors raised by celeriac."""


class ImproperlyConfigured(CeleriacError):
    """A setting, URL or option is missing, unknown or contradicts another; the message names it."""


class MissingExtra(ImproperlyConfigured, ImportError):
    """An optional dependency is needed: the message gives the ``pip install`` that brings it."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {module!r}, which is not installed: pip install 'celeriac[{extra}]'"
        )
        self.module = module
        self.extra = extra


class SecurityError(ImproperlyConfigured):
    """Content or a class was refused because loading it could run foreign code."""


class OperationalError(CeleriacError):
    """A broker or result backend could not do its work now; trying again later may help."""


class ConnectionLost(OperationalError):
    """The server went away or cannot be reached. Nothing is known of what was in flight."""


class PublishFailed(OperationalError):
    """The broker did not accept a message in time, or has no queue for it."""

    def __init__(self, message: str, *, ids: Sequence[str] = (), unroutable: bool = False) -> None:
        super().__init__(message)
        #: Ids of the tasks that were not published; the others of the batch were.
        self.ids = tuple(ids)
        #: No queue takes these messages: trying again does not help.
        self.unroutable = unroutable


class WireError(CeleriacError):
    """Bytes or values that do not fit the wire format."""


class EncodeError(WireError, TypeError):
    """A value cannot be serialised; the message names the argument."""


class DecodeError(WireError, ValueError):
    """Bytes cannot be read back into values."""


class ContentDisallowed(DecodeError):
    """The content type is not in ``accept_content``."""


class InvalidTaskError(WireError):
    """A message that decodes but is not a task message."""


class TaskError(CeleriacError):
    """Something about a task call."""


class NotRegistered(TaskError, KeyError):
    """No task of that name is registered here."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class QueueNotFound(TaskError, KeyError):
    """The queue is not in ``task_queues`` and ``task_create_missing_queues`` is off."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class AlreadyRegistered(TaskError):
    """A task of that name exists."""


class MaxRetriesExceededError(TaskError):
    """``self.retry`` was called more often than ``max_retries`` allows."""

    def __init__(
        self,
        *args: object,
        task_args: Sequence[Any] = (),
        task_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(*args)
        self.task_args = tuple(task_args)
        self.task_kwargs = dict(task_kwargs or {})


class TaskRevokedError(TaskError):
    """The task was revoked, terminated or expired; the message says which."""


class ChordError(TaskError):
    """A member of a chord's header failed; the message names it."""


class TimeLimitExceeded(TaskError):
    """The hard time limit ended the task."""


class SoftTimeLimitExceeded(TaskError):
    """Raised inside the task when its soft time limit passes; the task may clean up."""


class WorkerLostError(TaskError):
    """The executor that ran the task died, more often than the task may be handed out."""


class Terminated(TaskError):
    """The task was terminated by a signal."""


class TimeoutError(TaskError):
    """The result was not there in time."""


class TaskPredicate(CeleriacError):
    """Control flow out of a task: not a failure."""


class Retry(TaskPredicate):
    """The task asks to be run again; raised by `Task.retry`."""

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | None = None,
        when: float | datetime | None = None,
        is_eager: bool = False,
        sig: Any = None,
    ) -> None:
        super().__init__(message, exc, when)
        self.message = message
        #: What made the task retry, if it was an exception.
        self.exc = exc
        self.excs = repr(exc) if exc is not None else None
        #: Seconds until the next run, or its instant.
        self.when = when
        self.is_eager = is_eager
        #: The signature that runs next (used by eager mode and the executor).
        self.sig = sig

    def humanize(self) -> str:
        if isinstance(self.when, int | float):
            return f"in {self.when}s"
        return f"at {self.when}"

    def __str__(self) -> str:
        if self.message:
            return self.message
        if self.excs:
            return f"Retry {self.humanize()}: {self.excs}"
        return f"Retry {self.humanize()}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.exc, self.when)


class Ignore(TaskPredicate):
    """The task ends here: no state is stored, no callback is called."""


class Reject(TaskPredicate):
    """The worker refuses the message: back to its queue (``requeue``) or to the dead letters."""

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:
        super().__init__(reason, requeue)
        self.reason = reason
        self.requeue = requeue

    def __repr__(self) -> str:
        return f"reject requeue={self.requeue}: {self.reason}"


class CeleriacWarning(UserWarning):
    """Root of the warnings celeriac issues."""


class AlwaysEagerIgnored(CeleriacWarning):
    """``send_task`` cannot run eagerly: it may name a task that is not here."""


class DuplicateTaskNameWarning(CeleriacWarning):
    """Two functions ask for one task name; the first keeps it."""


class NotYetSupported(CeleriacWarning):
    """A setting or option is accepted, but the part that obeys it is not there yet."""
