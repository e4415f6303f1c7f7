"""What a running task knows of itself: `Request`, and which one runs here (`current`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from celeriac.result import AsyncResult
    from celeriac.wire.frames import Call
    from celeriac.wire.message import Message

__all__ = [
    "Request",
    "allow_join_result",
    "assert_may_wait",
    "current",
    "denied_join_result",
    "running",
]


class Request(msgspec.Struct, kw_only=True, dict=True, eq=False):
    """One call of a task, seen from inside (``self.request``).

    Made with its defaults it describes a task that was called as a function, or does not run at all.
    Headers that the caller added (``headers={"tenant": 7}``) can be read as attributes too.
    """

    task: str | None = None
    id: str | None = None
    args: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    #: First task of the workflow, and the task that published this one.
    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    group_index: int | None = None
    #: How often this task has been retried.
    retries: int = 0
    #: ISO 8601, as they travel.
    eta: str | None = None
    expires: str | None = None
    utc: bool = True
    #: Seconds, as the message says; the worker's own limits are not in here.
    time_limit: float | None = None
    soft_time_limit: float | None = None
    #: Signatures (dicts) of what follows: see wire-protocol §1.3.
    callbacks: list[dict[str, Any]] | None = None
    errbacks: list[dict[str, Any]] | None = None
    chain: list[dict[str, Any]] | None = None
    chord: dict[str, Any] | None = None
    #: Results of the tasks that this one published.
    children: list[AsyncResult[Any]] | None = None
    is_eager: bool = False
    ignore_result: bool = False
    #: The task runs as a function, not for a message.
    called_directly: bool = True
    #: ``exchange``, ``routing_key``, ``priority`` and ``redelivered`` of the message.
    delivery_info: dict[str, Any] | None = None
    #: The queue the message came from.
    queue: str | None = None
    #: Which hand-out of the message this is, 1 for the first.
    attempts: int = 1
    reply_to: str | None = None
    origin: str | None = None
    #: Node name of the worker.
    hostname: str | None = None
    properties: dict[str, Any] | None = None
    #: The caller's own headers.
    headers: dict[str, Any] | None = None
    shadow: str | None = None
    replaced_task_nesting: int = 0
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    loglevel: int | None = None
    logfile: str | None = None
    #: Takes a state on the way and its meta to the worker; None where no executor runs this.
    report: Callable[[str, Any], None] | None = None
    #: Signatures to publish when this call ends (``retry(throw=False)``).
    postponed: list[Any] | None = None
    #: The request that ran here when this one was called directly.
    outer: Request | None = None
    #: The worker is about to call a task that runs code around its function (``__call__``).
    starting: bool = False

    @classmethod
    def of(cls, message: Message, *, call: Call | None = None, hostname: str | None = None) -> Request:
        """The request of a message that is to run; `call` is how it came, None in eager mode."""
        envelope = None if call is None else call.envelope
        properties: dict[str, Any] = {} if envelope is None else envelope.properties
        target: dict[str, Any] = properties.get("delivery_info") or {}
        queue = None if call is None else call.queue
        return cls(
            task=message.task,
            id=message.id,
            args=message.args,
            kwargs=message.kwargs,
            root_id=message.root_id or message.id,
            parent_id=message.parent_id,
            group=message.group,
            group_index=message.group_index,
            retries=message.retries,
            eta=message.eta and message.eta.isoformat(),
            expires=message.expires and message.expires.isoformat(),
            time_limit=message.time_limit,
            soft_time_limit=message.soft_time_limit,
            callbacks=message.callbacks,
            errbacks=message.errbacks,
            chain=message.chain,
            chord=message.chord,
            is_eager=call is None,
            ignore_result=bool(message.ignore_result),
            called_directly=False,
            delivery_info={
                "exchange": target.get("exchange", ""),
                "routing_key": target.get("routing_key", queue),
                "priority": message.priority,
                "redelivered": call is not None and call.redelivered,
            },
            queue=queue,
            attempts=1 if call is None else call.attempts,
            reply_to=message.reply_to,
            origin=message.origin,
            hostname=hostname,
            properties=properties,
            headers=message.headers,
            shadow=message.shadow,
            replaced_task_nesting=message.replaced_task_nesting,
            stamped_headers=list(message.stamps) or None,
            stamps=message.stamps,
        )

    @property
    def correlation_id(self) -> str | None:
        return self.id

    @property
    def taskset(self) -> str | None:
        """Celery 2's word for the group."""
        return self.group

    @property
    def timelimit(self) -> list[float | None]:
        """Hard limit, then soft limit, as the header has them."""
        return [self.time_limit, self.soft_time_limit]

    def __getattr__(self, name: str) -> Any:
        headers = None if name == "headers" else self.headers
        if headers and name in headers:
            return headers[name]
        raise AttributeError(f"a request has no {name!r}, and the message carries no such header")

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute of that name, or `default`."""
        return getattr(self, key, default)

    def update(self, *args: Mapping[str, Any], **changes: Any) -> None:
        """Set attributes, as ``dict.update`` sets items."""
        for name, value in dict(*args, **changes).items():
            setattr(self, name, value)

    def clear(self) -> None:
        """Go back to the defaults."""
        self.update(msgspec.structs.asdict(Request()))

    def add_child(self, result: AsyncResult[Any]) -> None:
        """Note that this task published another one."""
        if self.children is None:
            self.children = []
        self.children.append(result)

    def children_tuples(self) -> list[Any]:
        """The children as a record keeps them."""
        return [child.as_tuple() for child in self.children or ()]

    def as_execution_options(self) -> dict[str, Any]:
        """Options for `Task.apply_async` that publish the same call again (a retry)."""
        return {
            "task_id": self.id,
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "group_id": self.group,
            "group_index": self.group_index,
            "shadow": self.shadow,
            "chord": self.chord,
            "chain": self.chain,
            "link": self.callbacks,
            "link_error": self.errbacks,
            "expires": self.expires,
            "soft_time_limit": self.soft_time_limit,
            "time_limit": self.time_limit,
            "headers": _without_transports(self.headers),
            "retries": self.retries,
            "reply_to": self.reply_to,
            "replaced_task_nesting": self.replaced_task_nesting,
            "origin": self.origin,
            "priority": (self.delivery_info or {}).get("priority"),
            "ignore_result": self.ignore_result,
            "stamped_headers": self.stamped_headers,
            "stamps": self.stamps,
        }


def _without_transports(headers: dict[str, Any] | None) -> dict[str, Any] | None:
    """Headers less those of the way this message came: RabbitMQ counts dead-lettering in some, Celery on Redis says
    that a message was restored. A new message starts anew."""
    marks = ("x-death", "x-first-death-", "x-last-death-")
    return headers and {
        name: value for name, value in headers.items() if name != "redelivered" and not name.startswith(marks)
    }


#: Whether waiting for results is allowed here; None: not inside a task.
_joins: ContextVar[bool | None] = ContextVar("celeriac.joins", default=None)

#: The request that runs in this thread or coroutine; set by the executor, and by calling a task directly.
current: ContextVar[Request | None] = ContextVar("celeriac.request", default=None)


def running() -> Request | None:
    """The request that a worker runs here: the innermost one that is not a direct call."""
    request = current.get()
    while request is not None and request.called_directly:
        request = request.outer
    return request


# -- waiting inside tasks --------------------------------------------------------------------------------------


def assert_may_wait() -> None:
    """Raise `RuntimeError` inside a task, where waiting for others was not allowed."""
    if _joins.get() is False or (_joins.get() is None and running() is not None):
        raise RuntimeError(
            "a task must not wait for the result of another: it would hold a slot of the worker that the other "
            "may need. Use a callback or a chain, or get(disable_sync_subtasks=False)"
        )


@contextmanager
def allow_join_result() -> Generator[None]:
    """Inside it, a task may wait for the results of others."""
    token = _joins.set(True)
    try:
        yield
    finally:
        _joins.reset(token)


@contextmanager
def denied_join_result() -> Generator[None]:
    """Inside it, waiting for a result is an error, in a task or not."""
    token = _joins.set(False)
    try:
        yield
    finally:
        _joins.reset(token)
