"""`chain`: tasks one after the other, each given the value of the one before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from celeriac.canvas.plan import plan, steps
from celeriac.canvas.signature import Signature, maybe_signature
from celeriac.result import result_from_tuple

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    from celeriac.app import Celeriac
    from celeriac.result import AsyncResult, EagerResult

    R_co = TypeVarWithDefault("R_co", covariant=True, default=Any)
else:
    R_co = TypeVar("R_co", covariant=True)

__all__ = ["Chain", "chain"]

_NOTHING: Mapping[str, Any] = {}


class Chain(Signature[R_co]):
    """``chain(a, b, c)`` or ``a | b | c``: `b` is sent when `a` succeeded, with its value as first argument.

    Its result is that of the last task, with the others as its parents. The first one takes the arguments the
    chain is sent with, the last one its callbacks, and every one its error callbacks. When a task fails, the
    ones after it never run and have failed the same way.
    """

    def __init__(self, *tasks: Any, app: Celeriac | None = None, **options: Any) -> None:
        if len(tasks) == 1 and not isinstance(tasks[0], Mapping) and isinstance(tasks[0], Iterable):
            tasks = tuple(cast("Iterable[Any]", tasks[0]))
        flat = [step for each in tasks for step in _flattened(each, app)]
        if app is None and flat:
            app = flat[0].app
        super().__init__("celery.chain", (), {"tasks": flat}, options, subtask_type="chain", app=app)

    @property
    def tasks(self) -> list[Signature[Any]]:
        """The steps, in the order they run."""
        return [maybe_signature(step, app=self.app) for step in self.kwargs["tasks"]]

    def clone(
        self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] = _NOTHING, **options: Any
    ) -> Chain[R_co]:
        copy = super().clone(args, kwargs, **options)
        copy.kwargs["tasks"] = [step.clone() for step in copy.tasks]
        return copy

    def apply_async(
        self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] = _NOTHING, **options: Any
    ) -> AsyncResult[R_co]:
        """Send the first task, which carries the others. None for an empty chain, as Celery's."""
        if not self.kwargs["tasks"]:
            return cast("AsyncResult[R_co]", None)
        if self.app.conf.task_always_eager:
            return self.apply(args, kwargs, **options)
        planned = plan(self, args, kwargs, options)
        for message in planned.messages:
            message.apply_async()
        return result_from_tuple(planned.result, app=self.app)

    def apply(
        self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] = _NOTHING, **options: Any
    ) -> EagerResult[R_co]:
        """Run the tasks one after the other, here and now; stops at the first that does not succeed."""
        first, *rest = steps(self, args, kwargs, options)
        result: EagerResult[Any] = first.apply()
        for step in rest:
            if not result.successful():
                break
            before, result = result, step.apply((result.result,))
            result.parent = before
        return cast("EagerResult[R_co]", result)

    def __call__(self, *args: Any, **kwargs: Any) -> R_co:
        """Run the chain here and now; the value of the last task."""
        return self.apply(args, kwargs).get()

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> AsyncResult[R_co]:
        """Fix the ids of all tasks; `_id`, group and chord are those of the last one. Returns the result to come."""
        *before, last = tasks = self.tasks
        self.kwargs["tasks"] = tasks
        for task in before:
            task.freeze(root_id=root_id, parent_id=parent_id)
        last.freeze(_id, group_id, chord, root_id, parent_id, group_index)
        return result_from_tuple(plan(self).result, app=self.app)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.tasks)) or "chain()"


Signature.TYPES["chain"] = Chain
#: What Celery's users write.
chain = Chain


def _flattened(task: Any, app: Celeriac | None) -> Sequence[Signature[Any]]:
    """The tasks that an item of a chain stands for: itself, or those of a chain within."""
    step = maybe_signature(task, app=app)
    if not isinstance(step, Signature):
        raise TypeError(f"a chain is made of signatures, not of {task!r}; did you forget .s()?")
    found = cast("Signature[Any]", step).clone()
    if found.subtask_type != "chain":
        return [found]
    tasks = cast("Chain[Any]", found).tasks
    if tasks:
        tasks[-1].extend_list_option("link", found.options.get("link"))
    for each in tasks:
        each.extend_list_option("link_error", found.options.get("link_error"))
    return tasks
