"""Finding the task modules of packages (`Celeriac.autodiscover_tasks`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from celeriac.errors import ImproperlyConfigured
from celeriac.settings.sources import find_module

__all__ = ["import_packages"]


def import_packages(
    packages: Iterable[str] | Callable[[], Iterable[str]] | None, related_name: str | None
) -> None:
    """Import the module `related_name` of each package that has one; without a name the packages themselves.

    Raises `ImproperlyConfigured` for a package that is not there, and what the modules raise.
    """
    if packages is None:
        packages = _django_apps()
    for package in packages() if callable(packages) else packages:
        if find_module(package) is None:
            raise ImproperlyConfigured(f"autodiscover_tasks: there is no package {package!r}")
        if related_name:
            find_module(f"{package}.{related_name}")


def _django_apps() -> list[str]:
    try:
        apps: Any = import_module("django.apps").apps
    except ImportError as exc:
        raise ImproperlyConfigured(
            "autodiscover_tasks() without packages asks Django, which is not installed"
        ) from exc
    return [config.name for config in apps.get_app_configs()]
