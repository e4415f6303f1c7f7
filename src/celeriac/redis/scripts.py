"""Lua scripts: put together from the package's files, known to the server by their hash."""

from __future__ import annotations

from functools import cached_property
from hashlib import sha1
from importlib.resources import files

__all__ = ["Script"]


class Script:
    """The text of several files of this package, one after the other: functions first, what calls them last."""

    def __init__(self, *names: str) -> None:
        self._names = names

    @cached_property
    def text(self) -> str:
        return "\n".join(files("celeriac.redis").joinpath(name).read_text("utf-8") for name in self._names)

    @cached_property
    def sha(self) -> str:
        return sha1(self.text.encode(), usedforsecurity=False).hexdigest()
