"""Futures of event loops that run in other threads."""

from __future__ import annotations

import asyncio
import copy
from collections import defaultdict
from collections.abc import Iterable
from typing import TypeVar

__all__ = ["settle", "tell", "twin"]

T = TypeVar("T")


def tell(told: Iterable[tuple[asyncio.Future[T], T]]) -> None:
    """Give futures their results, from any thread. Each event loop is woken once; one that was closed is left alone."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[T], T]]] = defaultdict(list)
    for each in told:
        by_loop[each[0].get_loop()].append(each)
    for loop, theirs in by_loop.items():
        try:
            loop.call_soon_threadsafe(settle, theirs)
        except RuntimeError:
            pass  # it was closed: nobody waits there any more


def settle(told: Iterable[tuple[asyncio.Future[T], T]]) -> None:
    """Give futures of this thread's event loop their results, but those that have one or were cancelled."""
    for future, result in told:
        if not future.done():
            future.set_result(result)


def twin(exc: BaseException) -> BaseException:
    """A failure of many, for one of them to raise in a task of its own; the original is its cause."""
    try:
        made = copy.copy(exc)
    except Exception:  # noqa: BLE001 it cannot be made from its arguments: then all share it
        return exc
    made.__cause__ = exc
    return made
