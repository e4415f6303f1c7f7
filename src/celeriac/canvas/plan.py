"""`plan`: any canvas → the messages to publish, the groups to save, the result to hand out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celeriac.canvas.signature import Signature, maybe_signature, plain
from celeriac.ids import uuid
from celeriac.wire.record import Group

__all__ = ["Plan", "plan", "steps"]

_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Plan:
    """What sending a canvas comes to."""

    #: Signatures of single tasks, complete with ids and with what they carry along.
    messages: Sequence[Signature[Any]]
    #: To be saved before the messages are published.
    groups: Sequence[Group]
    #: Celery's result tuple ``[[id, parent], members]`` of the whole; `result_from_tuple` reads it.
    result: list[Any]


def plan(
    signature: Signature[Any],
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] = _NOTHING,
    options: Mapping[str, Any] = _NOTHING,
    *,
    new_id: Callable[[], str] = uuid,
) -> Plan:
    """Lay out a canvas that is sent with these arguments and options. `signature` itself is not changed.

    Raises `ValueError` for an empty chain.
    """
    if signature.subtask_type == "chain":
        return _chain(signature, args, kwargs, options, new_id)
    given, named, together = signature.merged(args, kwargs, options)
    message = signature.replace(given, named, {"task_id": new_id(), **together})
    return Plan([message], [], [[message.id, None], None])


def _chain(
    signature: Signature[Any],
    args: Iterable[Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    new_id: Callable[[], str],
) -> Plan:
    first, *rest = steps(signature, args, kwargs, options, new_id=new_id)
    result = [[first.id, None], None]
    for step in rest:
        result = [[step.id, result], None]
    # Reversed, as it travels: the last element runs next. What is to follow the chain comes after all of it.
    outer = first.options.pop("chain", None)
    if rest or outer is not None:
        first.set(chain=[*(outer or ()), *map(plain, reversed(rest))])
    return Plan([first], [], result)


def steps(
    chain: Signature[Any],
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] = _NOTHING,
    options: Mapping[str, Any] = _NOTHING,
    *,
    new_id: Callable[[], str] = uuid,
) -> list[Signature[Any]]:
    """The tasks of a chain that is sent with these arguments and options, each with its id and all it is due:
    arguments and options go to the first, id and callbacks to the last, error callbacks to every one.

    Raises `ValueError` for an empty chain.
    """
    tasks = [maybe_signature(task).clone() for task in chain.kwargs["tasks"]]
    if not tasks:
        raise ValueError("an empty chain has nothing to send")
    together = {**chain.options, **options}
    if (last_id := together.pop("task_id", None)) is not None:
        tasks[-1].set(task_id=last_id)
    tasks[-1].extend_list_option("link", together.pop("link", None))
    errbacks = together.pop("link_error", None)
    for task in tasks:
        task.options.setdefault("task_id", new_id())
        task.extend_list_option("link_error", errbacks)
    return [tasks[0].clone(args, kwargs, **together), *tasks[1:]]
