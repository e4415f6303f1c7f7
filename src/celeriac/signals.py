"""Signals: functions of the user's that are called when something happens.

::

    @task_failure.connect
    def alert(sender, task_id, exception, **kwargs): ...

Receivers run where the thing happens: ``before_task_publish`` in the process that sends, ``task_*`` in an executor.
What a receiver raises is logged and given back to the sender; it stops neither the other receivers nor the task.
Names and keyword arguments are Celery's. Names that nothing sends yet are there, so that programs which
connect to them import.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Hashable
from types import MethodType
from typing import Any, NamedTuple, TypeVar, overload

__all__ = [
    "Signal",
    "after_setup_logger",
    "after_setup_task_logger",
    "after_task_publish",
    "beat_embedded_init",
    "beat_init",
    "before_task_publish",
    "celeryd_after_setup",
    "celeryd_init",
    "eventlet_pool_apply",
    "eventlet_pool_postshutdown",
    "eventlet_pool_preshutdown",
    "eventlet_pool_started",
    "heartbeat_sent",
    "import_modules",
    "setup_logging",
    "task_failure",
    "task_internal_error",
    "task_postrun",
    "task_prerun",
    "task_received",
    "task_rejected",
    "task_retry",
    "task_revoked",
    "task_sent",
    "task_success",
    "task_unknown",
    "user_preload_options",
    "worker_before_create_process",
    "worker_init",
    "worker_process_init",
    "worker_process_shutdown",
    "worker_ready",
    "worker_shutdown",
    "worker_shutting_down",
]

logger = logging.getLogger("celeriac")

Receiver = Callable[..., Any]
ReceiverT = TypeVar("ReceiverT", bound=Receiver)


class Connection(NamedTuple):
    """A receiver, and whose signals it wants to hear."""

    key: Hashable
    #: Returns the receiver, or None once it is gone.
    receiver: Callable[[], Receiver | None]
    sender: Any


class Signal:
    """Something that happens, and who wants to know. Thread-safe; receivers are called in the order they connected.

    A receiver is held weakly by default: one that nothing else holds (a lambda, a local function) goes away.
    """

    def __init__(self, name: str, *, raises: bool = False) -> None:
        self.name = name
        #: Pass on what a receiver raises, instead of logging it.
        self._raises = raises
        #: Replaced, never changed: `send` needs no lock, and an empty one costs a truth test.
        self.connections: tuple[Connection, ...] = ()
        self._lock = threading.Lock()

    @overload
    def connect(
        self, receiver: ReceiverT, sender: Any = None, weak: bool = True, dispatch_uid: Hashable = None
    ) -> ReceiverT: ...

    @overload
    def connect(
        self, receiver: None = None, sender: Any = None, weak: bool = True, dispatch_uid: Hashable = None
    ) -> Callable[[ReceiverT], ReceiverT]: ...

    def connect(
        self,
        receiver: Receiver | None = None,
        sender: Any = None,
        weak: bool = True,
        dispatch_uid: Hashable = None,
    ) -> Any:
        """Have `receiver` called; it must take keyword arguments it does not know (``**kwargs``).

        `sender`: only what this one sends (a task, or its name). `dispatch_uid`: connect once under this key.
        Without a receiver this is a decorator.
        """
        if receiver is None:

            def decorate(fun: ReceiverT) -> ReceiverT:
                return self.connect(fun, sender, weak, dispatch_uid)

            return decorate
        reference = _weak(receiver, self._forget) if weak else lambda: receiver
        connection = Connection(_key(receiver, sender, dispatch_uid), reference, sender)
        with self._lock:
            if all(known.key != connection.key for known in self.connections):
                self.connections = (*self.connections, connection)
        return receiver

    def disconnect(
        self, receiver: Receiver | None = None, sender: Any = None, dispatch_uid: Hashable = None
    ) -> bool:
        """Take back a `connect` with the same arguments. Says whether there was one."""
        key = _key(receiver, sender, dispatch_uid)
        with self._lock:
            left = tuple(known for known in self.connections if known.key != key)
            found = len(left) < len(self.connections)
            self.connections = left
        return found

    def send(self, sender: Any, **details: Any) -> list[tuple[Receiver, Any]]:
        """Call every receiver that wants to hear of `sender`; returns each with its answer or its exception."""
        answers: list[tuple[Receiver, Any]] = []
        for connection in self.connections:
            if not _is_for(connection.sender, sender) or (receiver := connection.receiver()) is None:
                continue
            try:
                answer = receiver(signal=self, sender=sender, **details)
            except Exception as exc:  # boundary: a receiver must not stop what it is told about
                if self._raises:
                    raise
                logger.exception("receiver %r of signal %s failed", receiver, self.name)
                answer = exc
            answers.append((receiver, answer))
        return answers

    def _forget(self, reference: object) -> None:
        with self._lock:
            self.connections = tuple(known for known in self.connections if known.receiver is not reference)

    def __repr__(self) -> str:
        return f"<Signal {self.name}>"


def _weak(receiver: Receiver, gone: Callable[[object], None]) -> Callable[[], Receiver | None]:
    if isinstance(receiver, MethodType):
        return weakref.WeakMethod(receiver, gone)
    return weakref.ref(receiver, gone)


def _key(receiver: Receiver | None, sender: Any, dispatch_uid: Hashable) -> Hashable:
    if dispatch_uid is not None:
        return (dispatch_uid, id(sender))
    if isinstance(receiver, MethodType):
        return (id(receiver.__self__), id(receiver.__func__), id(sender))
    return (id(receiver), id(sender))


def _is_for(wanted: Any, sender: Any) -> bool:
    """Whether a receiver that wants `wanted` hears of `sender`; a task is also known by its name."""
    if wanted is None or wanted is sender or wanted == sender:
        return True
    name = getattr(wanted, "name", wanted)
    return isinstance(name, str) and name == getattr(sender, "name", sender)


# In the process that sends. Sender: the task's name.
before_task_publish = Signal("before_task_publish")
after_task_publish = Signal("after_task_publish")
task_sent = Signal("task_sent")

# In an executor. Sender: the task.
task_received = Signal("task_received")
task_prerun = Signal("task_prerun")
task_postrun = Signal("task_postrun")
task_success = Signal("task_success")
task_retry = Signal("task_retry")
task_failure = Signal("task_failure")
task_internal_error = Signal("task_internal_error")
task_revoked = Signal("task_revoked")
task_rejected = Signal("task_rejected")
task_unknown = Signal("task_unknown")

# The life of a worker. Sender: its node name.
celeryd_init = Signal("celeryd_init")
celeryd_after_setup = Signal("celeryd_after_setup")
worker_init = Signal("worker_init")
worker_ready = Signal("worker_ready")
worker_shutting_down = Signal("worker_shutting_down")
worker_shutdown = Signal("worker_shutdown")
worker_before_create_process = Signal("worker_before_create_process")
worker_process_init = Signal("worker_process_init")
worker_process_shutdown = Signal("worker_process_shutdown")
heartbeat_sent = Signal("heartbeat_sent")
eventlet_pool_started = Signal("eventlet_pool_started")
eventlet_pool_preshutdown = Signal("eventlet_pool_preshutdown")
eventlet_pool_postshutdown = Signal("eventlet_pool_postshutdown")
eventlet_pool_apply = Signal("eventlet_pool_apply")

# Loading and logging. Connecting to `setup_logging` turns celeriac's own set-up off.
import_modules = Signal("import_modules", raises=True)
setup_logging = Signal("setup_logging")
after_setup_logger = Signal("after_setup_logger")
after_setup_task_logger = Signal("after_setup_task_logger")
user_preload_options = Signal("user_preload_options")
beat_init = Signal("beat_init")
beat_embedded_init = Signal("beat_embedded_init")
