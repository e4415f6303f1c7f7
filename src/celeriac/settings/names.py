"""The spellings of settings, and which one a misspelt name was meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from celeriac.settings.field import FIELDS

__all__ = ["did_you_mean", "near_misses", "nearest", "old_names", "resolve"]

#: Names that Celery's documentation gave to settings whose code asked for another.
_AS_DOCUMENTED = {
    "CELERYD_TIME_LIMIT": "task_time_limit",
    "CELERYD_SOFT_TIME_LIMIT": "task_soft_time_limit",
}


@cache
def old_names() -> dict[str, str]:
    """Upper-case spellings and the settings they mean: names before Celery 4, and today's with ``CELERY_``."""
    names = {f"CELERY_{name.upper()}": name for name in FIELDS}
    names |= {field.old: name for name, field in FIELDS.items() if field.old}
    return names | _AS_DOCUMENTED


def resolve(key: str) -> str | None:
    """The setting that `key` spells, or None."""
    return key if key in FIELDS else old_names().get(key)


def near_misses(key: str) -> list[str]:
    """The spellings that `key`, which is none, was probably meant to be: those at most two letters off."""
    return nearest(key, _spellings())


@cache
def _spellings() -> tuple[str, ...]:
    return (*FIELDS, *old_names())


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: ``": did you mean 'x'?"``, or nothing."""
    near = nearest(word, known)
    return f": did you mean {' or '.join(map(repr, near[:3]))}?" if near else ""


def nearest(word: str, known: Iterable[str], *, limit: int = 2) -> list[str]:
    """Those of `known` with the smallest edit distance to `word`, if that is at most `limit`."""
    letters = _letters(word)
    best: list[str] = []
    for name in known:
        # An edit changes the set of letters by two at most: a look that spares most of the comparing.
        if abs(len(name) - len(word)) > limit or (letters ^ _letters(name)).bit_count() > 2 * limit:
            continue
        distance = _distance(word, name, limit)
        if distance < limit:
            limit = distance
            best = [name]
        elif distance == limit:
            best.append(name)
    return best


@cache
def _letters(word: str) -> int:
    """The set of letters of a word, as bits."""
    bits = 0
    for letter in word:
        bits |= 1 << (ord(letter) & 127)
    return bits


def _distance(a: str, b: str, limit: int) -> int:
    """Insertions, deletions and replacements that turn `a` into `b`; where more than `limit`, something larger."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
        if min(row) > limit:
            break
    return row[-1] if min(row) <= limit else limit + 1
