"""Declarations that several commands share: environment variables, value types, which app is meant."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from celeriac.cli.console import Failure
from celeriac.errors import CeleriacError

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = [
    "General",
    "Option",
    "comma_list",
    "instant",
    "instant_or_seconds",
    "json_list",
    "json_object",
    "option",
    "pass_general",
    "subcommand",
]

F = TypeVar("F", bound=Callable[..., Any])

#: The prefix of every environment variable, ours and then Celery's: ``CELERIAC_WORKER_LOGLEVEL``.
PREFIX = "CELERIAC"
CELERYS_PREFIX = "CELERY"


class Option(click.Option):
    """An option that can also be given as ``CELERIAC_<COMMAND>_<OPTION>`` or ``CELERY_<COMMAND>_<OPTION>``."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        prefix = ctx.auto_envvar_prefix
        if prefix and self.name and self.allow_from_autoenv:
            name = f"{prefix}_{self.name.upper()}"
            celerys = CELERYS_PREFIX + name.removeprefix(PREFIX)
            if value := os.environ.get(name) or os.environ.get(celerys):
                return value
        return super().resolve_envvar_value(ctx)


def option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """`click.option` with celeriac's environment variables."""
    return click.option(*names, **{"cls": Option, **attributes})


def subcommand(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """`click.command` with ``-h`` beside ``--help``."""
    return click.command(name, context_settings={"help_option_names": ["-h", "--help"]})


def comma_list(value: str) -> tuple[str, ...]:
    """``a,b,c`` as a tuple."""
    return tuple(part for each in value.split(",") if (part := each.strip()))


def json_list(value: str) -> list[Any]:
    """A JSON list."""
    decoded = _json(value)
    if not isinstance(decoded, list):
        raise click.BadParameter(f"{value!r} is not a JSON list.")
    return cast("list[Any]", decoded)


def json_object(value: str) -> dict[str, Any]:
    """A JSON object."""
    decoded = _json(value)
    if not isinstance(decoded, dict):
        raise click.BadParameter(f"{value!r} is not a JSON object.")
    return cast("dict[str, Any]", decoded)


def _json(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError as exc:
        raise click.BadParameter(f"{value!r} is not JSON: {exc}.") from exc


def instant(value: str) -> datetime:
    """An instant in ISO 8601."""
    try:
        return datetime.fromisoformat(value)
    except ValueError as exc:
        raise click.BadParameter(f"{value!r} is not a time in ISO 8601.") from exc


def instant_or_seconds(value: str) -> datetime | float:
    """An instant in ISO 8601, or seconds from now."""
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(value)
    except ValueError as exc:
        raise click.BadParameter(f"{value!r} is neither a time in ISO 8601 nor seconds.") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class General:
    """What the general options say: which app, and what to override in it."""

    app: str | None = None
    broker_url: str | None = None
    result_backend: str | None = None
    config: str | None = None
    workdir: str | None = None
    no_color: bool = False

    def load(self) -> Celeriac:
        """The app of ``-A``, or an empty one on the embedded default; ``-b`` and the like override it."""
        self.export()
        try:
            app = self._app()
            if self.config:
                app.config_from_object(self.config, force=True)
        except CeleriacError:
            raise
        except Exception as exc:  # whatever a user's module raises while it is imported
            what = f"the app {self.app!r}" if self.app else f"the settings {self.config!r}"
            raise Failure(f"cannot load {what}: {type(exc).__name__}: {exc}{_place(exc)}") from exc
        return app

    def _app(self) -> Celeriac:
        if self.app:
            from celeriac.loading import load_app

            return load_app(self.app, workdir=self.workdir)
        from celeriac.app import Celeriac

        return Celeriac("default")

    def export(self) -> None:
        """Put the overrides where they win over every setting, also one the app makes while it is imported."""
        for name, value in (
            ("CELERIAC_BROKER_URL", self.broker_url),
            ("CELERIAC_RESULT_BACKEND", self.result_backend),
        ):
            if value:
                os.environ[name] = value


def _place(exc: Exception) -> str:
    """Where it was raised, for the end of a line; a syntax error says so itself."""
    from traceback import extract_tb

    frames = [frame for frame in extract_tb(exc.__traceback__) if not frame.filename.startswith("<frozen ")]
    if isinstance(exc, SyntaxError) or not frames:
        return ""
    return f" ({frames[-1].filename}, line {frames[-1].lineno})"


pass_general = click.make_pass_decorator(General)
