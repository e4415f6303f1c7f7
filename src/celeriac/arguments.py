"""The arguments of a task's function: checked at the caller, and turned from and into pydantic models."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celeriac.errors import MissingExtra

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["Models", "Parameters"]


class Parameters:
    """What a function takes, looked at once, so that checking a plain positional call costs next to nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = inspect.signature(function)
        #: Numbers of positional arguments that need no closer look, where no keyword is given.
        self._least, self._most = _positional(self._signature)

    def check(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise `TypeError` where the function could not be called with these arguments."""
        if not kwargs and self._least <= len(args) <= self._most:
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"{name}(): {exc}") from None

    def without(self, kwargs: Mapping[str, Any], count: int) -> dict[str, Any]:
        """Keyword arguments less those that `count` positional ones give already."""
        taken = self._names[:count]
        return {name: value for name, value in kwargs.items() if name not in taken}

    def reconciled(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments less the positional ones that `kwargs` give, too; those behind them become keywords."""
        for at, name in enumerate(self._names[: len(args)]):
            if name in kwargs:
                return args[:at], {**dict(zip(self._names[at:], args[at:], strict=False)), **kwargs}
        return args, dict(kwargs)

    @cached_property
    def _names(self) -> list[str]:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [name for name, each in self._signature.parameters.items() if each.kind in kinds]


def _positional(signature: inspect.Signature) -> tuple[int, float]:
    least, most = 0, 0.0
    for each in signature.parameters.values():
        match each.kind:
            case inspect.Parameter.VAR_POSITIONAL:
                most = float("inf")
            case inspect.Parameter.KEYWORD_ONLY if each.default is inspect.Parameter.empty:
                return 0, -1.0
            case inspect.Parameter.POSITIONAL_ONLY | inspect.Parameter.POSITIONAL_OR_KEYWORD:
                most += 1
                least += each.default is inspect.Parameter.empty
            case _:
                pass
    return least, most


class Models:
    """The pydantic models among a function's annotations (``pydantic=True``).

    Models travel as what ``model_dump(mode="json")`` gives; the function gets models again.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        strict: bool = False,
        context: Mapping[str, Any] | None = None,
        dump_options: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            from pydantic import BaseModel
        except ImportError as exc:
            raise MissingExtra("pydantic", "pydantic", "a task with pydantic=True") from exc
        self._base = BaseModel
        self._signature = inspect.signature(function)
        self._function = function
        self._strict = strict or None
        self._context = dict(context or {})
        self._dump_options: dict[str, Any] = {"mode": "json", **(dump_options or {})}

    @cached_property
    def _models(self) -> dict[str, type[BaseModel]]:
        """Parameters that are models, or a model and None. Found at first use: annotations may name later classes."""
        hints = typing.get_type_hints(self._function)
        return {name: model for name, hint in hints.items() if (model := self._model_in(hint)) is not None}

    def _model_in(self, hint: Any) -> type[BaseModel] | None:
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            members = [each for each in typing.get_args(hint) if each is not type(None)]
            return self._model_in(members[0]) if len(members) == 1 else None
        if isinstance(hint, type) and issubclass(hint, self._base):
            return hint
        return None

    def validated(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments with models made of what travelled. Raises pydantic's `ValidationError`."""
        bound = self._signature.bind(*args, **kwargs)
        for name, model in self._models.items():
            value = bound.arguments.get(name)
            if value is not None:
                bound.arguments[name] = model.model_validate(
                    value, strict=self._strict, context=self._context
                )
        return bound.args, bound.kwargs

    def dumped(self, value: Any) -> Any:
        """A model as what travels; anything else as it is."""
        return value.model_dump(**self._dump_options) if isinstance(value, self._base) else value
