"""What people see: one line for a failure, a spinner or progress bar while something takes long.

Results go to stdout; errors, warnings and progress to stderr, progress only where that is a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Failure", "error", "progress", "spinner", "warning"]

T = TypeVar("T")

#: Exit statuses beside 0, 1 and 2; the numbers are those of ``sysexits.h``.
UNAVAILABLE = 69
CANNOT_CREATE = 73


class Failure(Exception):
    """Ends the command with one line and an exit status."""

    def __init__(self, message: str, *, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def error(message: str) -> None:
    """Say what went wrong, on one line of stderr."""
    _line("Error", "red", message)


def warning(message: str) -> None:
    """Say what the user should know, on one line of stderr; `--quiet` silences it."""
    context = click.get_current_context(silent=True)
    if context is None or not context.find_root().params.get("quiet"):
        _line("Warning", "yellow", message)


def _line(label: str, color: str, message: str) -> None:
    text = " ".join(message.split())
    click.echo(f"{click.style(f'{label}:', fg=color, bold=True)} {text}", err=True)


@contextmanager
def spinner(message: str) -> Generator[None, None, None]:
    """Show that something is being waited for."""
    if not _is_live():
        yield
        return
    with _console().status(message):
        yield


def progress(items: Iterable[T], *, total: int, message: str) -> Iterator[T]:
    """Iterate over `items` behind a progress bar, where there are several."""
    if total < 2 or not _is_live():
        yield from items
        return
    from rich.progress import track

    yield from track(items, message, total=total, console=_console(), transient=True)


def _is_live() -> bool:
    context = click.get_current_context(silent=True)
    quiet = context is not None and bool(context.find_root().params.get("quiet"))
    return sys.stderr.isatty() and not quiet


def _console() -> Console:
    from rich.console import Console

    context = click.get_current_context(silent=True)
    return Console(stderr=True, no_color=context is not None and context.color is False)
