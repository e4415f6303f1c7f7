"""The options of a call, and the message they make of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypedDict

from celeriac.canvas.signature import Signature, as_list, plain
from celeriac.ids import uuid
from celeriac.settings.names import did_you_mean
from celeriac.topology import Exchange, Queue
from celeriac.wire.message import Message

if TYPE_CHECKING:
    from celeriac.app import Celeriac
    from celeriac.request import Request

__all__ = ["CallOptions", "instant", "message_of"]


class CallOptions(TypedDict, total=False):
    """What `Task.apply_async` and `Celeriac.send_task` take beside the arguments. None is as good as not given."""

    task_id: str | None
    #: Seconds from now, or the instant, before which the task must not run. Naive instants are in ``timezone``.
    countdown: float | None
    eta: datetime | str | None
    #: Seconds from now, or the instant, after which it must not run any more.
    expires: float | datetime | str | None
    #: Larger is sooner.
    priority: int | None
    #: Where to: a queue, or an exchange and a routing key; else as ``task_routes`` says.
    queue: str | Queue | None
    exchange: str | Exchange | None
    exchange_type: str | None
    routing_key: str | None
    #: How arguments are encoded and compressed.
    serializer: str | None
    compression: str | None
    #: Travel with the message; the task finds them in ``self.request.headers``.
    headers: Mapping[str, Any] | None
    #: Called with the value of the task, or when it failed.
    link: Signature[Any] | Iterable[Signature[Any]] | None
    link_error: Signature[Any] | Iterable[Signature[Any]] | None
    #: Seconds the task may run.
    time_limit: float | None
    soft_time_limit: float | None
    #: Store no result.
    ignore_result: bool | None
    #: Name to show in logs and events.
    shadow: str | None
    #: Try again where the broker cannot be reached, and how (``task_publish_retry_policy``).
    retry: bool | None
    retry_policy: Mapping[str, Any] | None
    #: A SQLAlchemy connection or session on the broker's database: the message is published in its transaction.
    connection: Any
    session: Any
    #: Not to be among the children of the task that runs here.
    add_to_parent: bool | None
    root_id: str | None
    parent_id: str | None
    group_id: str | None
    group_index: int | None
    chord: Any
    chain: Any
    retries: int | None
    replaced_task_nesting: int | None
    reply_to: str | None
    #: How the arguments look to people, where that must not be their `repr`.
    argsrepr: str | None
    kwargsrepr: str | None
    #: 2: kept on disk; 1: may be lost when the broker restarts.
    delivery_mode: int | None
    stamped_headers: Iterable[str] | None
    stamps: Mapping[str, Any] | None
    #: More properties for the message (`SQS: MessageGroupId`). Options of any other name become properties, too.
    properties: Mapping[str, Any] | None


#: Options that are a field of the message under another name, or the same.
_FIELDS = {
    "task_id": "id",
    "group_id": "group",
    **{
        name: name
        for name in (
            "argsrepr",
            "delivery_mode",
            "group_index",
            "ignore_result",
            "kwargsrepr",
            "origin",
            "parent_id",
            "priority",
            "replaced_task_nesting",
            "reply_to",
            "retries",
            "root_id",
            "shadow",
            "soft_time_limit",
            "time_limit",
        )
    },
}
#: Options that say how to send, or were read before; the last ones are kombu's and mean nothing here.
_ELSEWHERE = frozenset(
    {
        *("queue", "exchange", "exchange_type", "routing_key", "serializer", "compression"),
        *("retry", "retry_policy", "connection", "session", "add_to_parent", "properties"),
        *("producer", "publisher", "router", "result_cls", "declare", "mandatory", "immediate"),
        *("timeout", "confirm_timeout", "route_name", "task_type"),
    }
)


def message_of(
    app: Celeriac,
    name: str,
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    ignore_result: bool | None,
    parent: Request | None,
) -> Message:
    """The message of a call with these options (none of them None). `ignore_result` is what holds where no option
    says it, `parent` the request that makes the call.

    Raises `TypeError` and `ValueError` for options that make no sense.
    """
    fields: dict[str, Any] = {
        "task": name,
        "id": options.get("task_id") or uuid(),
        "args": tuple(args),
        "kwargs": kwargs,
        "origin": _origin(os.getpid()),
        "ignore_result": ignore_result,
        "priority": app.conf.task_default_priority or 0,
        "delivery_mode": app.conf.task_default_delivery_mode,
    }
    if not options.get("ignore_result", ignore_result):
        fields["reply_to"] = app.backend.reply_to
    if parent is not None:
        fields["parent_id"] = parent.id
        fields["root_id"] = parent.root_id or parent.id
        if app.conf.task_inherit_parent_priority and parent.delivery_info:
            fields["priority"] = parent.delivery_info.get("priority") or fields["priority"]
    for option, value in options.items():
        if option in _FIELDS:
            fields[_FIELDS[option]] = value
        elif option in _READERS:
            field, read = _READERS[option]
            fields[field] = read(app, value)
        elif option not in _ELSEWHERE:
            _add_extra(fields, option, value, options)
    if "properties" in options:
        fields["properties"] = {**fields.get("properties", {}), **options["properties"]}
    if "root_id" not in fields:
        fields["root_id"] = fields["id"]
    return Message(**fields)


def _add_extra(fields: dict[str, Any], option: str, value: Any, options: Mapping[str, Any]) -> None:
    """An option of no name we know: a stamp, or a property of the message."""
    if option in options.get("stamped_headers", ()):
        fields.setdefault("stamps", {})[option] = value
        return
    hint = did_you_mean(option, CallOptions.__annotations__)
    if hint:
        raise TypeError(f"there is no option {option!r}{hint}")
    fields.setdefault("properties", {})[option] = value


@lru_cache(maxsize=1)
def _origin(pid: int) -> str:
    """Who sends: Celery's name for this process. Asked with its id, so that a fork asks anew."""
    return f"gen{pid}@{socket.gethostname()}"


def instant(app: Celeriac, value: datetime | str | float) -> datetime:
    """An aware instant from one, from ISO 8601 text, or from seconds from now."""
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else value.replace(tzinfo=app.timezone)
    if isinstance(value, str):
        return instant(app, datetime.fromisoformat(value))
    return datetime.now(UTC) + timedelta(seconds=value)


def _signatures(_app: Celeriac, value: Any) -> list[dict[str, Any]]:
    found = [plain(each) for each in as_list(value)]
    for each in found:
        if not isinstance(each, dict) or "task" not in each:
            raise TypeError(f"a link is made with a signature, not with {each!r}; did you forget .s()?")
    return found


def _dict(_app: Celeriac, value: Mapping[str, Any]) -> dict[str, Any]:
    return dict(value)


def _list(_app: Celeriac, value: Iterable[Any]) -> list[Any]:
    return [plain(each) for each in value]


def _plain(_app: Celeriac, value: Any) -> Any:
    return plain(value)


_READERS: dict[str, tuple[str, Any]] = {
    "eta": ("eta", instant),
    "countdown": ("eta", instant),
    "expires": ("expires", instant),
    "link": ("callbacks", _signatures),
    "link_error": ("errbacks", _signatures),
    "chain": ("chain", _list),
    "chord": ("chord", _plain),
    "headers": ("headers", _dict),
    "stamps": ("stamps", _dict),
    "stamped_headers": ("stamped_headers", _list),
}
