"""The ``celeriac`` command: its general options, its commands, and what a failure looks like."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import click

from celeriac import __version__
from celeriac.cli import console
from celeriac.cli.arguments import Options, arrange, options_of
from celeriac.cli.options import PREFIX, General, option
from celeriac.errors import CeleriacError, ImproperlyConfigured, OperationalError, PublishFailed, TimeoutError

__all__ = ["celeriac", "run"]

_COMMANDS = {
    "worker": "celeriac.cli.worker",
    "call": "celeriac.cli.call",
    "result": "celeriac.cli.result",
    "purge": "celeriac.cli.purge",
    "report": "celeriac.cli.report",
    "shell": "celeriac.cli.shell",
}

#: Commands of Celery that this version does not have.
_LATER = frozenset(
    {
        "amqp",
        "beat",
        "control",
        "events",
        "graph",
        "inspect",
        "list",
        "logtool",
        "migrate",
        "multi",
        "status",
        "upgrade",
    }
)


class Commands(click.Group):
    """A group that imports a command when it is named, and turns errors of celeriac into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        return import_module(module).command if module else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in _LATER:
            raise click.UsageError(
                f"{name!r} comes in a later release of celeriac; "
                f"version {__version__} has {', '.join(_COMMANDS)}.",
                ctx,
            )
        if name not in _COMMANDS and not ctx.resilient_parsing:
            raise click.UsageError(f"No such command {name!r}.{_nearest(name, _COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (CeleriacError, console.Failure) as exc:
            if ctx.params["debug"]:
                import traceback

                traceback.print_exception(exc.__cause__ or exc)
            if isinstance(exc, console.Failure):
                raise
            raise console.Failure(str(exc) or type(exc).__name__, status=_status_of(exc)) from exc


def _status_of(exc: CeleriacError) -> int:
    """69 where trying again later may help, else 1."""
    # that nothing is configured to answer is an operational error too
    if isinstance(exc, ImproperlyConfigured) or (isinstance(exc, PublishFailed) and exc.unroutable):
        return 1
    return console.UNAVAILABLE if isinstance(exc, OperationalError | TimeoutError) else 1


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": PREFIX},
    subcommand_metavar="COMMAND [ARGS]...",
)
@option("-A", "--app", envvar="APP", metavar="APP", help="The app: proj, proj.celeriac or proj.module:app.")
@option("-b", "--broker", "broker_url", envvar="BROKER_URL", metavar="URL", help="URL of the message broker.")
@option("--result-backend", envvar="RESULT_BACKEND", metavar="URL", help="URL of the result backend.")
@option(
    "--config",
    "config_module",
    envvar="CONFIG_MODULE",
    metavar="MODULE",
    help="Module with settings, in place of the one the app names.",
)
@option(
    "--workdir",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="Change to this directory first.",
)
@option("-C", "--no-color", is_flag=True, help="No colors.")
@option("-q", "--quiet", is_flag=True, help="Only results and errors: no warnings, no progress.")
@option("--debug", is_flag=True, help="Show the traceback of an error.")
@option("--loader", expose_value=False, hidden=True)  # Celery's, without effect, as the next
@option("--skip-checks", is_flag=True, expose_value=False, hidden=True)
@click.version_option(__version__, message="%(version)s (%(prog)s)")
@click.pass_context
def celeriac(
    ctx: click.Context,
    *,
    app: str | None,
    broker_url: str | None,
    result_backend: str | None,
    config_module: str | None,
    workdir: str | None,
    no_color: bool,
    **_: bool,  # quiet and debug: asked where they count, in `console` and `Commands.invoke`
) -> None:
    """A distributed task queue.

    Options may stand before or after the command, and be given as environment variables:
    CELERIAC_APP, CELERIAC_WORKER_LOGLEVEL; Celery's CELERY_... work as well.
    """
    if workdir:
        os.chdir(workdir)
    if no_color or os.environ.get("NO_COLOR"):
        ctx.color = False
    ctx.obj = General(
        app=app,
        broker_url=broker_url,
        result_backend=result_backend,
        config=config_module,
        workdir=workdir,
        no_color=ctx.color is False,
    )


def run(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit status.

    0 success, 1 failure, 2 wrong usage, 69 broker or result backend unreachable or no reply in time,
    73 the pidfile cannot be created, 130 Ctrl-C.
    """
    try:
        line = arrange(argv, options_of(celeriac), _options_for) or ["--help"]
        status = celeriac.main(line, prog_name="celeriac", standalone_mode=False)
    except click.UsageError as exc:
        console.error(_usage(exc))
        return exc.exit_code
    except console.Failure as exc:
        console.error(str(exc))
        return exc.status
    except click.Abort as exc:
        # click raises Abort for Ctrl-C and for the end of input at a question
        if isinstance(exc.__cause__ or exc.__context__, KeyboardInterrupt):
            return 130
        console.error("Aborted.")
        return 1
    except KeyboardInterrupt:
        return 130
    return status if isinstance(status, int) else 0


def _options_for(name: str) -> Options | None:
    if name in _LATER:
        return {}
    module = _COMMANDS.get(name)
    return options_of(import_module(module).command) if module else None


def _usage(exc: click.UsageError) -> str:
    message = exc.format_message()
    if isinstance(exc, click.NoSuchOption):
        # click knows the options of one command only; general ones may stand here too
        known = set(options_of(celeriac))
        if exc.ctx is not None:
            known.update(options_of(exc.ctx.command))
        message = f"No such option {exc.option_name!r}.{_nearest(exc.option_name, known)}"
    path = exc.ctx.command_path if exc.ctx is not None else "celeriac"
    return f"{message} See '{path} --help'."


def _nearest(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, list(known))
    return f" Did you mean {' or '.join(repr(each) for each in near)}?" if near else ""
