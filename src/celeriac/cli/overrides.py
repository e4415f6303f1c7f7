"""Settings given as words on a command line: ``worker.prefetch_multiplier=2``, ``task_routes=(json){…}``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import click

__all__ = ["parse_overrides"]

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def _bool(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


_CASTS: dict[str, Callable[[str], object]] = {
    "int": int,
    "float": float,
    "bool": _bool,
    "str": str,
    "string": str,
    "json": json.loads,
    "list": json.loads,
    "dict": json.loads,
    "tuple": lambda text: tuple(json.loads(text)),
}


def parse_overrides(words: Iterable[str]) -> dict[str, object]:
    """Settings by name, from words ``key=value``; a dot in the key stands for an underscore.

    ``(type)value`` says what the value is; without it the setting's own type decides.
    Raises `click.UsageError` naming the word that is none.
    """
    return dict(_parse(word) for word in words)


def _parse(word: str) -> tuple[str, object]:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise click.UsageError(f"{word!r} is neither an option nor a setting (KEY=VALUE).")
    return key, text
