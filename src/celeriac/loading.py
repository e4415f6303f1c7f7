"""Finding the app that ``-A`` names, and importing the modules its tasks are in.

``-A proj`` means, in this order: ``proj.app``, ``proj.celeriac``, ``proj.celery`` if they are apps; any other app
in the module `proj`; the same in the modules ``proj.celeriac`` and ``proj.celery``. ``-A proj.sub:attribute.app``
names it outright.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from celeriac.errors import ImproperlyConfigured
from celeriac.settings.sources import find_module, find_object
from celeriac.signals import import_modules

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["load_app"]

#: Attributes an app is looked for under, and the last two as modules.
_ATTRIBUTES = ("app", "celeriac", "celery")
_MODULES = ("celeriac", "celery")


def load_app(spec: str, *, workdir: str | None = None, include: Iterable[str] = ()) -> Celeriac:
    """Import the app that `spec` names (``proj``, ``proj.sub``, ``proj:app``, ``proj.sub:attribute.app``) and every
    module it wants: ``imports``, ``include``, those given here, and those found by ``autodiscover_tasks``.

    `workdir` (else the working directory) comes first in ``sys.path``; it does not become the working directory.

    Raises `ImproperlyConfigured` where there is no such module, no app in it, or something else of that name;
    what goes wrong inside the user's modules is raised as it is.
    """
    directory = _look_first_in(workdir)
    top = spec.partition(":")[0].partition(".")[0]
    if find_module(top) is None:
        raise ImproperlyConfigured(
            f"there is no module {top!r}, neither in {directory} nor elsewhere in sys.path"
        )
    app = _app_of(spec)
    import_modules.send(sender=app)
    app.discover_tasks()
    _import("imports", app.conf.imports)
    _import("include", (*app.conf.include, *include))
    app.loaded()
    return app


def _look_first_in(workdir: str | None) -> str:
    directory = os.path.abspath(workdir or os.getcwd())
    if not os.path.isdir(directory):
        raise ImproperlyConfigured(f"there is no working directory {workdir!r}")
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)
    return directory


def _import(setting: str, modules: Iterable[str]) -> None:
    for name in modules:
        if find_module(name) is None:
            raise ImproperlyConfigured(f"{setting}: there is no module {name!r}")


def _app_of(spec: str) -> Celeriac:
    from celeriac.app import Celeriac

    found = find_object(spec)
    if isinstance(found, Celeriac):
        return found
    if not isinstance(found, ModuleType):
        raise ImproperlyConfigured(
            f"{spec!r} is not an app but {found!r:.100} (of type {type(found).__name__})"
        )
    for module in (found, *_submodules(found)):
        app = _app_in(module)
        if app is not None:
            return app
    name = found.__name__
    where = [f"{name}.{each}" for each in _ATTRIBUTES]
    inside = [repr(f"{name}.{each}") for each in _MODULES] if _is_package(found) else []
    raise ImproperlyConfigured(
        f"there is no app in the module {name!r}: looked for {', '.join(where)}, any other instance of Celeriac"
        + (f", and for the modules {' and '.join(inside)}" if inside else "")
    )


def _is_package(module: ModuleType) -> bool:
    return hasattr(module, "__path__")


def _submodules(package: ModuleType) -> Iterator[ModuleType]:
    for name in _MODULES if _is_package(package) else ():
        module = find_module(f"{package.__name__}.{name}")
        if module is not None:
            yield module


def _app_in(module: ModuleType) -> Celeriac | None:
    from celeriac.app import Celeriac

    values = vars(module)
    candidates: list[Any] = [values.get(name) for name in _ATTRIBUTES]
    return next((each for each in (*candidates, *values.values()) if isinstance(each, Celeriac)), None)
