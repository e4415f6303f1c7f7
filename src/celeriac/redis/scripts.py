"""Lua scripts: put together from the package's files, run by their hash."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import sha1
from importlib.resources import files
from typing import Any

import redis
from redis.exceptions import NoScriptError

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

    def run(self, client: redis.Redis, keys: Sequence[str | bytes], args: Sequence[str | bytes | int]) -> Any:
        """Run it; its text goes out only where the server does not know it yet."""
        driver: Any = client  # whose declared results are right for nobody
        try:
            return driver.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return driver.execute_command("EVAL", self.text, len(keys), *keys, *args)
