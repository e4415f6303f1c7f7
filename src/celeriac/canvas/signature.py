"""`Signature`: a call of a task as a value, to be sent later, passed on, or combined.

It is a dict with Celery's keys (wire-protocol §1.4), so that it travels in messages as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, overload

from celeriac import registry
from celeriac.ids import uuid
from celeriac.wire.message import safe_repr

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import TypeVar as TypeVarWithDefault

    from celeriac.app import Celeriac
    from celeriac.canvas.chain import Chain
    from celeriac.result import AsyncResult, EagerResult
    from celeriac.task import Task

    R_co = TypeVarWithDefault("R_co", covariant=True, default=Any)
else:
    R_co = TypeVar("R_co", covariant=True)

T = TypeVar("T")
SignatureT = TypeVar("SignatureT", bound="Signature[Any]")

__all__ = ["Signature", "as_list", "maybe_signature", "plain", "signature"]

#: Options that a signature keeps once it has them, whatever a later call says.
_KEPT = frozenset({"group_id", "stamped_headers"})
_NOTHING: Mapping[str, Any] = {}


class Signature(dict[str, Any], Generic[R_co]):
    """A call of a task: its name, arguments and options.

    Arguments given when it is sent come *before* its own; keyword arguments and options given then override
    its own. An *immutable* one takes no arguments (`Task.si`), only options.

    ::

        add.s(2).delay(1)                  # add(1, 2)
        add.si(2, 2).set(countdown=10).apply_async()
        add.s(2, 2) | mul.s(4)             # a chain
    """

    #: Classes by ``subtask_type``: how a dict from a message becomes the right kind of signature.
    TYPES: ClassVar[dict[str, type[Signature[Any]]]] = {}

    def __init__(
        self,
        task: str | Task[..., R_co] | Mapping[str, Any] | None = None,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        type: Task[..., R_co] | None = None,
        subtask_type: str | None = None,
        immutable: bool = False,
        app: Celeriac | None = None,
        **extra: Any,
    ) -> None:
        if isinstance(task, Mapping):
            super().__init__(task)
        else:
            named: Any = type if type is not None else task
            super().__init__(
                task=named if isinstance(named, str) or named is None else named.name,
                args=tuple(args or ()),
                kwargs=dict(kwargs or {}),
                options={**(options or {}), **extra},
                subtask_type=subtask_type,
                immutable=immutable,
            )
            if app is None and named is not None and not isinstance(named, str):
                app = named.app
        self._app = app

    # -- what it holds ----------------------------------------------------------------------------------------

    @property
    def task(self) -> str:
        """The name of the task."""
        return self["task"]

    @property
    def args(self) -> Sequence[Any]:
        return self["args"]

    @property
    def kwargs(self) -> dict[str, Any]:
        return self["kwargs"]

    @property
    def options(self) -> dict[str, Any]:
        """What `Task.apply_async` is given; the signature's own dict."""
        return self["options"]

    @property
    def immutable(self) -> bool:
        return bool(self.get("immutable"))

    @property
    def subtask_type(self) -> str | None:
        return self.get("subtask_type")

    @property
    def id(self) -> str | None:
        """The task's id, where it is fixed already (`freeze`)."""
        return self.options.get("task_id")

    @property
    def parent_id(self) -> str | None:
        return self.options.get("parent_id")

    @property
    def root_id(self) -> str | None:
        return self.options.get("root_id")

    @property
    def name(self) -> str:
        return self.task

    @property
    def app(self) -> Celeriac:
        """The app it was made with, else the current one."""
        return self._app or registry.current_app()

    @property
    def type(self) -> Task[..., R_co]:
        """The task. Raises `NotRegistered` where this process does not know it."""
        return self.app.tasks[self.task]

    # -- sending ----------------------------------------------------------------------------------------------

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """Send it, with more arguments."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] = _NOTHING, **options: Any
    ) -> AsyncResult[R_co]:
        """Send it, with more arguments and options (those of `Task.apply_async`)."""
        args, kwargs, options = self.merged(args, kwargs, options)
        task = self.app.tasks.get(self.task)
        if task is None:
            return self.app.send_task(self.task, args, kwargs, **options)
        return task.apply_async(args, kwargs, **options)

    def apply(
        self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] = _NOTHING, **options: Any
    ) -> EagerResult[R_co]:
        """Run it here and now."""
        args, kwargs, options = self.merged(args, kwargs, options)
        return self.type.apply(args, kwargs, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> R_co:
        """Call the task as a function."""
        given, named, _ = self.merged(args, kwargs, {})
        return self.type(*given, **named)

    def __invert__(self) -> R_co:
        """``~signature``: send it and wait for its value."""
        return self.apply_async().get()

    # -- making others of it ----------------------------------------------------------------------------------

    def merged(
        self, args: Iterable[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
        """Its arguments and options with these added, by the rule of `Signature`."""
        mine = self.options
        together = {**mine, **options}
        if "group_id" in mine or "stamped_headers" in mine:
            kept = _KEPT.union(mine.get("stamped_headers") or ())
            together |= {key: mine[key] for key in kept if key in mine}
        if self.immutable:
            return tuple(self.args), dict(self.kwargs), together
        return (*args, *self.args), {**self.kwargs, **kwargs}, together

    def clone(self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] = _NOTHING, **options: Any) -> Self:
        """A copy with more arguments and options."""
        given, named, together = self.merged(args, kwargs, options)
        for key in ("link", "link_error"):
            if key in together:
                together[key] = as_list(together[key])
        return self._with(args=given, kwargs=named, options=together)

    partial = clone

    def replace(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Self:
        """A copy with other arguments or options in place of its own."""
        copy = self.clone()
        if args is not None:
            copy["args"] = tuple(args)
        if kwargs is not None:
            copy["kwargs"] = dict(kwargs)
        if options is not None:
            copy["options"] = dict(options)
        return copy

    def _with(self, **changes: Any) -> Self:
        copy = self.from_dict({**self, **changes}, app=self._app)
        return cast("Self", copy)

    def freeze(
        self,
        _id: str | None = None,
        group_id: str | None = None,
        chord: Any = None,
        root_id: str | None = None,
        parent_id: str | None = None,
        group_index: int | None = None,
    ) -> AsyncResult[R_co]:
        """Fix the id it will be sent with, and where it belongs; returns the result to come."""
        fixed = {
            "task_id": _id or self.id or uuid(),
            "group_id": group_id,
            "chord": chord,
            "root_id": root_id,
            "parent_id": parent_id,
            "group_index": group_index,
        }
        self.options.update({key: value for key, value in fixed.items() if value is not None})
        return self.app.AsyncResult(self.options["task_id"])

    def AsyncResult(self) -> AsyncResult[R_co]:  # noqa: N802 Celery's name
        """The result of the id it is frozen to."""
        return self.freeze()

    # -- changing it ------------------------------------------------------------------------------------------

    def set(self, immutable: bool | None = None, **options: Any) -> Self:
        """Set options; returns the signature itself."""
        if immutable is not None:
            self.set_immutable(immutable)
        self.options.update(options)
        return self

    def set_immutable(self, immutable: bool) -> None:
        self["immutable"] = immutable

    def link(self, callback: SignatureT) -> SignatureT:
        """Call `callback` with the return value, once the task succeeded. Returns `callback`."""
        return self.append_to_list_option("link", callback)

    def link_error(self, errback: SignatureT) -> SignatureT:
        """Call `errback` when the task failed. Returns `errback`."""
        return self.append_to_list_option("link_error", errback)

    def on_error(self, errback: Signature[Any]) -> Self:
        """`link_error` that returns the signature itself."""
        self.link_error(errback)
        return self

    def append_to_list_option(self, key: str, value: T) -> T:
        """Add to an option that is a list, unless it is in there."""
        items = self.options[key] = as_list(self.options.get(key))
        if value not in items:
            items.append(value)
        return value

    def extend_list_option(self, key: str, values: Any) -> None:
        """Add one or several to an option that is a list."""
        if added := as_list(values):
            self.options[key] = as_list(self.options.get(key)) + added

    def flatten_links(self) -> list[Signature[Any]]:
        """The signature, its callbacks, theirs, and so on."""
        flat: list[Signature[Any]] = [self]
        for callback in as_list(self.options.get("link")):
            flat += maybe_signature(callback, app=self._app).flatten_links()
        return flat

    # -- chains -----------------------------------------------------------------------------------------------

    @overload
    def __or__(self, other: Signature[T], /) -> Chain[T]: ...

    @overload
    def __or__(self, other: Any, /) -> Any: ...

    def __or__(self, other: Any, /) -> Any:
        """``a | b``: a chain, in which `b` gets the value of `a`."""
        if not isinstance(other, Signature):
            return NotImplemented
        from celeriac.canvas.chain import Chain

        return Chain(self, cast("Signature[Any]", other), app=self._app)

    def __ior__(self, other: Any, /) -> Any:  # a dict's would put `other` into this one
        """``a |= b`` is ``a = a | b``; the signature that `a` was is not changed."""
        return self.__or__(other)

    # -- as data ----------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], app: Celeriac | None = None) -> Signature[Any]:
        """The signature a message carries; of the class its ``subtask_type`` names."""
        kind = cls.TYPES.get(values.get("subtask_type") or "", Signature)
        made: Signature[Any] = kind.__new__(kind)
        made.update(values)
        made._app = app
        return made

    @classmethod
    def register_type(cls, name: str) -> Callable[[type[SignatureT]], type[SignatureT]]:
        """Decorator: `from_dict` makes one of this class for that ``subtask_type``."""

        def register(kind: type[SignatureT]) -> type[SignatureT]:
            cls.TYPES[name] = kind
            return kind

        return register

    def __json__(self) -> dict[str, Any]:
        return plain(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        """A plain dict, as Celery's."""
        memo[id(self)] = self
        return deepcopy(dict(self), memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return signature, (dict(self),)

    def reprcall(self, *args: Any, **kwargs: Any) -> str:
        """How the call looks, with more arguments: ``tasks.add(2, x=3)``."""
        given, named, _ = self.merged(args, kwargs, {})
        words = [safe_repr(each) for each in given] + [f"{key}={safe_repr(v)}" for key, v in named.items()]
        return f"{self.task}({', '.join(words)})"

    def __repr__(self) -> str:
        return self.reprcall()


def signature(
    varies: str | Task[..., T] | Mapping[str, Any], *args: Any, app: Celeriac | None = None, **kwargs: Any
) -> Signature[Any]:
    """A signature from a task or its name, with arguments as `Signature` takes them, or from a dict."""
    if isinstance(varies, Mapping):
        if isinstance(varies, Signature):
            return cast("Signature[Any]", varies).clone()
        return Signature[Any].from_dict(varies, app=app)
    return Signature(varies, *args, app=app, **kwargs)


def maybe_signature(value: Any, app: Celeriac | None = None, clone: bool = False) -> Any:
    """A signature from a dict; a signature, or what is neither, as it is (`clone`: a copy)."""
    if isinstance(value, Signature):
        found = cast("Signature[Any]", value)
        return found.clone() if clone else found
    if isinstance(value, Mapping):
        return Signature[Any].from_dict(cast("Mapping[str, Any]", value), app=app)
    return value


def plain(value: Any) -> Any:
    """`value` with every signature in it, at any depth of dicts, lists and tuples, as a plain dict."""
    if isinstance(value, Signature) or type(value) is dict:
        return {key: plain(each) for key, each in cast("Mapping[Any, Any]", value).items()}
    if type(value) is list:
        return [plain(each) for each in cast("list[Any]", value)]
    if type(value) is tuple:
        return tuple(plain(each) for each in cast("tuple[Any, ...]", value))
    return value


def as_list(value: Any) -> list[Any]:
    """One, several or no signatures, as a new list."""
    if value is None:
        return []
    return list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else [value]
