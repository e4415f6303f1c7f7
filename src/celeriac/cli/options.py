"""Declarations that several commands share: environment variables, value types, which app is meant."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["CommaList", "General", "Json", "Moment", "option", "pass_general", "subcommand"]

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
    return click.option(*names, cls=Option, **attributes)


def subcommand(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """`click.command` with ``-h`` beside ``--help``."""
    return click.command(name, context_settings={"help_option_names": ["-h", "--help"]})


class CommaList(click.ParamType):
    """``a,b,c`` as a tuple."""

    name = "a,b,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return cast("tuple[str, ...]", value)
        return tuple(part for each in str(value).split(",") if (part := each.strip()))


class Json(click.ParamType):
    """A JSON value of one type: the list of ``--args``, the object of ``--kwargs``."""

    def __init__(self, kind: type[list[Any]] | type[dict[str, Any]]) -> None:
        self.kind = kind
        self.name = "json list" if kind is list else "json object"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, self.kind):
            return value
        try:
            decoded = json.loads(value)
        except ValueError as exc:
            self.fail(f"{value!r} is not JSON: {exc}", param, ctx)
        if not isinstance(decoded, self.kind):
            self.fail(f"{value!r} is not a {self.name}", param, ctx)
        return decoded


class Moment(click.ParamType):
    """An instant in ISO 8601; with `seconds`, also a number of seconds from now."""

    def __init__(self, *, seconds: bool = False) -> None:
        self.seconds = seconds
        self.name = "iso time|seconds" if seconds else "iso time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | float:
        if isinstance(value, datetime | float):
            return value
        if self.seconds:
            try:
                return float(value)
            except ValueError:
                pass
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not an {self.name.replace('|', ' or a number of ')}", param, ctx)


@dataclass(frozen=True, slots=True, kw_only=True)
class General:
    """What the general options say: which app, and what to override in it."""

    app: str | None = None
    broker_url: str | None = None
    result_backend: str | None = None
    config: str | None = None
    workdir: str | None = None
    no_color: bool = False
    quiet: bool = False

    def load(self) -> Celeriac:
        """The app of ``-A``, or an empty one on the embedded default; ``-b`` and the like override it."""
        self.export()
        if self.app:
            from celeriac.loading import load_app

            return load_app(self.app, workdir=self.workdir)
        from celeriac.app import Celeriac

        app = Celeriac("default")
        if self.config:
            app.config_from_object(self.config)
        return app

    def export(self) -> None:
        """Put the overrides where they win over every setting, also one the app makes while it is imported."""
        for name, value in (
            ("CELERIAC_BROKER_URL", self.broker_url),
            ("CELERIAC_RESULT_BACKEND", self.result_backend),
        ):
            if value:
                os.environ[name] = value


pass_general = click.make_pass_decorator(General)
