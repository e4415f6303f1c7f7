"""Settings given as words on a command line: ``worker.lease=5``, ``task_routes=(json){"a.b": "fast"}``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import click

__all__ = ["parse_overrides"]

_CAST = re.compile(r"\((\w+)\)(.*)", re.DOTALL)
_TRUTH = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def parse_overrides(words: Iterable[str]) -> dict[str, object]:
    """Settings by name, from words ``key=value``; a dot in a key stands for an underscore.

    ``(type)value`` says what the value is: int, float, bool, str, json, list, tuple or dict. Without it the
    value is text, which settings read as what they hold. Raises `click.UsageError` naming a word that is no
    setting.
    """
    return dict(_parse(word) for word in words)


def _parse(word: str) -> tuple[str, object]:
    key, equals, text = word.partition("=")
    name = key.replace(".", "_").lstrip("_")
    if not equals or not name:
        raise click.UsageError(f"{word!r} is neither an option nor a setting (KEY=VALUE).")
    found = _CAST.fullmatch(text)
    try:
        value = _cast(found[1], found[2]) if found else text
    except (ValueError, TypeError, KeyError) as exc:
        assert found
        raise click.UsageError(f"{key}: {found[2]!r} is no {found[1]}.") from exc
    # Celery's old names are upper case throughout
    return name if name.isupper() else name.lower(), value


def _cast(kind: str, text: str) -> Any:
    match kind:
        case "int":
            return int(text)
        case "float":
            return float(text)
        case "bool":
            return _TRUTH[text.lower()]
        case "str" | "string":
            return text
        case "json" | "list" | "dict":
            return json.loads(text)
        case "tuple":
            return tuple(json.loads(text))
        case _:
            raise click.UsageError(
                f"({kind}) is not a type: int, float, bool, str, json, list, tuple and dict are."
            )
