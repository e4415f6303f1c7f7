"""Which values are secrets, and what is shown in their place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from celeriac.urls import mask_url

__all__ = ["is_secret", "masked"]

_MASK = "********"
_WORDS = frozenset({"pass", "passwd", "password", "secret", "token", "key", "credential", "credentials"})
# Keys that route and name, and open nothing.
_HARMLESS = re.compile(r"(routing|binding)_key$")


def is_secret(name: str) -> bool:
    """Whether a value of this name is to be kept from people's eyes: ``redis_password``, ``s3_access_key_id``."""
    lower = name.lower()
    return not _WORDS.isdisjoint(re.split(r"[^a-z]+", lower)) and not _HARMLESS.search(lower)


def masked(name: str, value: Any) -> Any:
    """`value` as it may be shown: secrets are replaced, in containers and in URLs too."""
    if is_secret(name) and value not in (None, "", b"") and not isinstance(value, Mapping):
        return _MASK
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {key: masked(str(key), each) for key, each in items}
    if isinstance(value, list | tuple):
        shown = [masked(name, each) for each in cast("list[Any]", value)]
        return shown if isinstance(value, list) else tuple(shown)
    return value
