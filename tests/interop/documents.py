"""Documents in a form in which a difference shows as a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["lines"]


def lines(value: Any, path: str = "") -> list[str]:
    """A document as a line per value, in its order; without `reply_to`: who waits where is every sender's own."""
    items: Iterable[tuple[Any, Any]]
    match value:
        case dict() if value:
            items = value.items()
        case list() if value:
            items = enumerate(value)
        case _:
            return [f"{path} = {value!r}"]
    return [line for key, each in items if key != "reply_to" for line in lines(each, f"{path}.{key}")]
