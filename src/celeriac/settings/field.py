"""How a setting is declared: `setting` at an annotated attribute of a `section` class, read back as a `Field`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec

from celeriac.errors import ImproperlyConfigured
from celeriac.settings.kinds import KINDS, Kind
from celeriac.settings.masking import is_secret, masked

__all__ = ["FIELDS", "Field", "section", "setting"]

_AS_HERE: Any = object()


class _Declaration(NamedTuple):
    default: Any
    old: str
    doc: str
    celery: Any
    later: bool
    least: float | None


def setting(
    default: Any,
    old: str,
    doc: str,
    *,
    celery: Any = _AS_HERE,
    later: bool = False,
    least: float | None = None,
) -> Any:
    """Declare a setting: its default, its name before Celery 4 ("" for none), and what it means.

    `celery`: Celery's default where ours is another. `later`: the part that obeys it is not built yet.
    `least`: the smallest number it may be; durations are at least 0 without being told.
    """
    return _Declaration(default, old, doc, celery, later, least)


class Field(msgspec.Struct, frozen=True):
    """What is known of one setting."""

    name: str
    #: The heading it stands under.
    section: str
    #: Its type, as the declaration spells it: ``Seconds | None``.
    annotation: str
    default: Any
    #: Its upper-case name before Celery 4, "" if it had none.
    old: str
    doc: str
    #: What the value is in Celery when nobody sets it.
    celery_default: Any
    #: Accepted, but the part of celeriac that obeys it is still to come.
    later: bool
    least: float | None

    @property
    def kind(self) -> Kind:
        return KINDS[self.annotation.removesuffix(" | None")]

    @property
    def nullable(self) -> bool:
        return self.annotation.endswith(" | None")

    @property
    def unit(self) -> str:
        """What a number counts: seconds, milliseconds, KiB; "" where that needs no word."""
        return self.kind.unit

    @property
    def secret(self) -> bool:
        """The value must not be shown."""
        return is_secret(self.name)

    @property
    def deviates(self) -> bool:
        """The default is not Celery's."""
        return self.default != self.celery_default

    @property
    def expects(self) -> str:
        """What a value has to be, in words that follow "expected"."""
        least = "" if self.least is None else f", at least {self.least:g}"
        return f"{self.kind.expects}{least}{' or None' if self.nullable else ''}"

    def convert(self, value: Any) -> Any:
        """The value to keep for one that was given. Raises `ImproperlyConfigured` naming the setting, what it
        expects and what it got."""
        if value is None and self.nullable:
            return None
        try:
            result = self.kind.convert(value)
        except ImproperlyConfigured as exc:
            raise ImproperlyConfigured(f"{self.name}: {exc}") from None
        except (TypeError, ValueError, OverflowError):
            raise self._refusal(value) from None
        if self.least is not None and isinstance(result, int | float) and result < self.least:
            raise self._refusal(value)
        return result

    def _refusal(self, value: Any) -> ImproperlyConfigured:
        got = type(value).__name__
        if not self.secret and value is not None:
            shown = repr(masked(self.name, value))
            got = f"{shown if len(shown) <= 100 else shown[:97] + '...'} ({got})"
        return ImproperlyConfigured(f"{self.name}: expected {self.expects}, got {got}")


#: Every setting by name, in the order of declaration.
FIELDS: dict[str, Field] = {}

T = TypeVar("T")


def section(title: str) -> Callable[[type[T]], type[T]]:
    """Read the settings that a class declares into `FIELDS`; what stays on the class are the defaults."""

    def collect(cls: type[T]) -> type[T]:
        for name, annotation in cls.__annotations__.items():
            declared: _Declaration = cls.__dict__[name]
            least = 0 if declared.least is None and annotation.startswith("Seconds") else declared.least
            celery = declared.default if declared.celery is _AS_HERE else declared.celery
            FIELDS[name] = Field(
                name,
                title,
                annotation,
                declared.default,
                declared.old,
                declared.doc,
                celery,
                declared.later,
                least,
            )
            setattr(cls, name, declared.default)
        return cls

    return collect
