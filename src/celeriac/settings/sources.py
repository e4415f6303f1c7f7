"""Reading settings from what a program has: a module, its name, a class, an object, a dict."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, cast

from celeriac.errors import ImproperlyConfigured
from celeriac.settings.field import FIELDS
from celeriac.settings.names import did_you_mean, near_misses, resolve

__all__ = ["Found", "find_module", "find_object", "from_items", "from_source"]

_CODE = (ModuleType, type, FunctionType, BuiltinFunctionType, MethodType)
_TAKES_CODE = frozenset({"Any", "Hook", "ClassPath"})


class Found(NamedTuple):
    """What a source holds, converted."""

    settings: dict[str, Any]
    #: Foreign keys: an extension's, perhaps.
    unknown: dict[str, Any]


def find_module(name: str) -> ModuleType | None:
    """Import a module; None if there is none of that name. What goes wrong inside it is raised as it is."""
    if not name or name.startswith("."):
        return None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            return None
        raise


def find_object(path: str) -> Any:
    """What ``"pkg.module"``, ``"pkg.module:attribute"`` or ``"pkg.module.attribute"`` names.

    Raises `ImproperlyConfigured` where nothing has that name.
    """
    name, colon, attributes = path.partition(":")
    module = find_module(name)
    if module is None and not colon:
        parent, _, attributes = name.rpartition(".")
        module = find_module(parent)
    if module is None or name.endswith(".py"):
        hint = f": did you mean {name[:-3]!r}?" if name.endswith(".py") else ""
        raise ImproperlyConfigured(f"there is no module {name!r}{hint}")
    found: Any = module
    for each in attributes.split(".") if attributes else ():
        try:
            found = getattr(found, each)
        except AttributeError:
            raise ImproperlyConfigured(
                f"there is no {path!r}: {_described(found)} has no attribute {each!r}"
            ) from None
    return found


def _described(value: Any) -> str:
    return (
        f"the module {value.__name__!r}"
        if isinstance(value, ModuleType)
        else f"{type(value).__name__} object"
    )


def from_source(source: Any, namespace: str | None) -> Found:
    """Read every setting of a module, class, object or dict, or of the one a string names.

    With a `namespace` of ``"CELERY"``, a setting is called ``CELERY_TASK_SERIALIZER``, and what begins otherwise
    is not looked at. Without one, names of today and names before Celery 4 are understood, but not mixed.
    Raises `ImproperlyConfigured`.
    """
    if isinstance(source, str):
        source = find_object(source)
    if isinstance(source, Mapping):
        items = dict(cast("Mapping[str, Any]", source))
        if namespace:
            items = {key: value for key, value in items.items() if key.startswith(_prefix(namespace))}
    else:
        items = _attributes(source, namespace)
    if namespace:
        return _from_namespace(items, _prefix(namespace))
    _refuse_mixture(items)
    return from_items(items)


def _prefix(namespace: str) -> str:
    return f"{namespace.rstrip('_')}_"


def _attributes(source: Any, namespace: str | None) -> dict[str, Any]:
    """The attributes of a module, class or object that may be settings. What it imports and defines is none."""
    start = _prefix(namespace) if namespace else ""
    found: dict[str, Any] = {}
    for key in dir(source):
        if key.startswith("_") or not key.startswith(start):
            continue
        value = getattr(source, key)
        name = key.removeprefix(start).lower() if namespace else resolve(key)
        if isinstance(value, _CODE) and not _takes_code(name):
            continue
        found[key] = value
    return found


def _takes_code(name: str | None) -> bool:
    field = FIELDS.get(name) if name else None
    return field is not None and field.annotation.removesuffix(" | None") in _TAKES_CODE


def from_items(items: Mapping[str, Any]) -> Found:
    """Read settings spelt in any way; raises `ImproperlyConfigured` for a key that nearly spells one, and for two
    that spell the same."""
    settings: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for key, value in items.items():
        name = resolve(key)
        if name is None:
            _refuse_misspelling(key)
            unknown[key] = value
            continue
        if name in spelt:
            raise ImproperlyConfigured(f"{spelt[name]!r} and {key!r} are the same setting: keep one")
        spelt[name] = key
        settings[name] = FIELDS[name].convert(value)
    return Found(settings, unknown)


def _from_namespace(items: Mapping[str, Any], prefix: str) -> Found:
    settings: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for key, value in items.items():
        name = key.removeprefix(prefix).lower()
        if name in FIELDS:
            settings[name] = FIELDS[name].convert(value)
            continue
        today = resolve(key)
        if today is not None:
            raise ImproperlyConfigured(
                f"{key!r} is a name from before Celery 4: with the namespace {prefix[:-1]!r} it is "
                f"{prefix + today.upper()!r}"
            )
        hint = did_you_mean(key, (prefix + each.upper() for each in FIELDS))
        if hint:
            raise ImproperlyConfigured(f"unknown setting {key!r}{hint}")
        unknown[name] = value
    return Found(settings, unknown)


def _refuse_misspelling(key: str) -> None:
    near = near_misses(key)
    if near:
        raise ImproperlyConfigured(
            f"unknown setting {key!r}: did you mean {' or '.join(map(repr, near[:3]))}?"
        )


def _refuse_mixture(keys: Iterable[str]) -> None:
    new = old = None
    for key in keys:
        if key in FIELDS:
            new = new or key
        elif resolve(key):
            old = old or key
    if new and old:
        raise ImproperlyConfigured(
            f"{new!r} is a name of today and {old!r} one from before Celery 4 (now {resolve(old)!r}): use one kind"
        )
