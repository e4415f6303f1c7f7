"""Settings that contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from celeriac.topology import Queue

__all__ = ["contradictions"]

#: Serializers whose names and content types are known here; others are registered at run time.
_CONTENT_TYPES = {
    "json": {"json", "application/json"},
    "pickle": {"pickle", "application/x-python-serialize"},
    "yaml": {"yaml", "application/x-yaml"},
    "msgpack": {"msgpack", "application/x-msgpack"},
}


def contradictions(get: Callable[[str], Any]) -> Iterator[str]:
    """Say of every contradiction among the settings that `get` looks up which two they are, and why."""
    soft, hard = get("task_soft_time_limit"), get("task_time_limit")
    if soft is not None and hard is not None and soft > hard:
        yield f"task_soft_time_limit ({soft:g}) would never be reached: task_time_limit is {hard:g}"
    for line in ("control_queue", "event_queue"):
        if get(f"{line}_exclusive") and get(f"{line}_durable"):
            yield f"{line}_exclusive and {line}_durable are both on: an exclusive queue ends with its connection"
    if get("task_queue_max_priority"):
        for name in ("task_default_queue_type", "task_create_missing_queue_type"):
            if get(name) == "quorum":
                yield f"{name} is 'quorum', and RabbitMQ refuses task_queue_max_priority on quorum queues"
    yield from _undecodable(get)
    yield from _no_default_queue(get)


def _undecodable(get: Callable[[str], Any]) -> Iterator[str]:
    """What this app writes, its own workers must be willing to read."""
    readers = {
        "task_serializer": "accept_content",
        "result_serializer": "accept_content"
        if get("result_accept_content") is None
        else "result_accept_content",
    }
    for writer, reader in readers.items():
        types = _CONTENT_TYPES.get(get(writer))
        if types and types.isdisjoint(get(reader)):
            yield f"{writer} is {get(writer)!r}, which {reader} ({', '.join(get(reader))}) does not admit"


def _no_default_queue(get: Callable[[str], Any]) -> Iterator[str]:
    queues: tuple[Queue, ...] | None = get("task_queues")
    default = get("task_default_queue")
    if queues and not get("task_create_missing_queues") and default not in {queue.name for queue in queues}:
        yield (
            f"task_default_queue is {default!r}, which task_queues ({', '.join(each.name for each in queues)}) does "
            "not have, and task_create_missing_queues is off"
        )
