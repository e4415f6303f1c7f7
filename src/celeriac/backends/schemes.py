"""From the scheme of a URL to the class that serves it, for brokers and result backends alike."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from celeriac.errors import ImproperlyConfigured

__all__ = ["Schemes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schemes:
    """The schemes of one kind of server. Nothing is imported before a URL asks for it."""

    #: What people call it: ``broker``, ``result backend``.
    kind: str
    #: Scheme → ``module:Class``. What follows a ``+`` (a driver) is for the class to read.
    known: Mapping[str, str]
    #: Those that Celery has and celeriac has not, yet.
    planned: Collection[str]
    #: Prefixes that Celery puts before a URL of SQLAlchemy: ``db+sqlite:///results.db``.
    prefixes: Collection[str]
    #: Entry points by which other distributions add schemes.
    entry_points: str

    def find(self, url: str) -> tuple[str, type[Any]]:
        """The URL without such a prefix, and the class; raises `ImproperlyConfigured`."""
        prefix, plus, rest = url.partition("+")
        if plus and prefix.lower() in self.prefixes:
            url = rest
        scheme, cut, _ = url.partition("://")
        scheme = scheme.lower()
        # A bare word may be a scheme ("disabled"); what we do not know may be a secret, and is not shown.
        if (cut and scheme) or scheme in self.known or scheme in self.planned:
            return url, self._class(scheme)
        raise ImproperlyConfigured(f"the {self.kind} URL has no scheme; {self._expected()}")

    def _class(self, scheme: str) -> type[Any]:
        dialect = scheme.partition("+")[0]
        if path := self.known.get(dialect):
            module, _, name = path.partition(":")
            return getattr(importlib.import_module(module), name)
        if found := self._from_entry_point(scheme):
            return found
        if dialect in self.planned:
            raise ImproperlyConfigured(
                f"this version of celeriac has no {self.kind} for {dialect}:// yet; {self._expected()}"
            )
        close = get_close_matches(dialect, [*self.known, *self.planned], n=1)
        hint = f" (did you mean {close[0]}://?)" if close else ""
        raise ImproperlyConfigured(f"unknown {self.kind} scheme {scheme!r}{hint}; {self._expected()}")

    def _from_entry_point(self, scheme: str) -> type[Any] | None:
        from importlib.metadata import entry_points  # slow to import, rarely needed

        for each in entry_points(group=self.entry_points, name=scheme):
            return each.load()
        return None

    def _expected(self) -> str:
        return f"known are {', '.join(f'{scheme}://' for scheme in self.known)}"
