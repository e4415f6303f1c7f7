"""``celeriac worker``: read Celery's options, hold the pidfile, hand over to the worker.

This process runs no user code: the app is named here and loaded in an executor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import click

from celeriac.cli.console import warning
from celeriac.cli.options import General, Option, comma_list, option, pass_general, subcommand

if TYPE_CHECKING:
    from celeriac.worker.options import WorkerOptions

__all__ = ["command", "worker_options"]

_POOLS = ("prefork", "solo")
#: Pools of Celery that this version does not have.
_LATER_POOLS = ("threads", "gevent", "eventlet", "custom")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "FATAL")
POSITIVE = click.FloatRange(min=0, min_open=True)


def _concurrency(value: str) -> int:
    """A number of executors, or ``auto`` for the number of cores."""
    if value == "auto":
        return os.cpu_count() or 1
    if not value.isdigit() or not int(value):
        raise click.BadParameter(f"{value!r} is neither a number above 0 nor auto.")
    return int(value)


def _autoscale(value: str) -> int:
    """``max,min`` in any order, or one number: the most executors there may be."""
    parts = value.split(",")
    if len(parts) > 2 or not all(part.strip().isdigit() for part in parts) or not max(map(int, parts)):
        raise click.BadParameter(f"{value!r} is not max,min.")
    return max(map(int, parts))


def _octal(value: str) -> int:
    try:
        return int(value, 8)
    except ValueError as exc:
        raise click.BadParameter(f"{value!r} is not an octal number.") from exc


def _pool(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value in _LATER_POOLS:
        raise click.BadParameter(
            f"pool {value!r} comes in a later release of celeriac; this version has {', '.join(_POOLS)}.",
            ctx,
            param,
        )
    return "prefork" if value == "processes" else value


def _hidden(*names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option of Celery that is accepted and not shown in the help."""
    return option(*names, hidden=True, **attributes)


def _satisfied(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that ask for what is so anyway: fair hand-out, no gossip, leases that need no events."""
    for declare in (
        _hidden("-O", "optimization", type=click.Choice(("default", "fair")), expose_value=False),
        _hidden("--disable-prefetch", is_flag=True, expose_value=False),
        _hidden("--pool-start-method", type=click.Choice(("fork", "spawn")), expose_value=False),
        _hidden("--without-gossip", is_flag=True, expose_value=False),
        _hidden("--without-mingle", is_flag=True, expose_value=False),
        _hidden("--without-heartbeat", is_flag=True, expose_value=False),
        _hidden("--heartbeat-interval", type=float, expose_value=False),
    ):
        function = declare(function)
    return function


class Later(Option):
    """An option whose part of the worker comes in a later release; the command warns where it is given."""


def _later(function: Callable[..., Any]) -> Callable[..., Any]:
    for declare in (
        _hidden("-D", "--detach", is_flag=True, cls=Later),
        _hidden("--executable", cls=Later),
        _hidden("--max-memory-per-child", type=int, cls=Later),
        _hidden("--autoscale", type=_autoscale, cls=Later),
        _hidden("-S", "--statedb", cls=Later),
        _hidden("--scheduler", cls=Later),
        _hidden("-s", "--schedule", "--schedule-filename", cls=Later),
        _hidden("-B", "--beat", is_flag=True, cls=Later),
        _hidden("-E", "--task-events", "--events", is_flag=True, cls=Later),
    ):
        function = declare(function)
    return function


class Given(TypedDict):
    """The values of the worker's own options."""

    settings: tuple[str, ...]
    hostname: str | None
    loglevel: str
    logfile: str | None
    concurrency: int | None
    pool: str | None
    queues: tuple[str, ...]
    exclude_queues: tuple[str, ...]
    include: tuple[str, ...]
    purge: bool
    time_limit: float | None
    soft_time_limit: float | None
    max_tasks_per_child: int | None
    prefetch_multiplier: int | None
    pidfile: str | None
    uid: str | None
    gid: str | None
    umask: int | None
    autoscale: int | None


@subcommand("worker")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@option("-n", "--hostname", metavar="NAME", help="Node name; %h is the host, %n its name, %d its domain.")
@option(
    "-l",
    "--loglevel",
    type=click.Choice(_LEVELS, case_sensitive=False),
    default="WARNING",
    show_default=True,
    help="What to log.",
)
@option("-f", "--logfile", metavar="PATH", help="Log to this file instead of stderr; %n is the node.")
@option(
    "-c",
    "--concurrency",
    type=_concurrency,
    metavar="N|auto",
    help="Number of executors; auto: one per core.",
)
@option(
    "-P",
    "--pool",
    type=click.Choice((*_POOLS, "processes", *_LATER_POOLS), case_sensitive=False),
    metavar="POOL",
    callback=_pool,
    help="prefork: tasks run in executor processes; solo: one by one in this process, for debuggers.",
)
@option("-Q", "--queues", type=comma_list, default="", metavar="A,B", help="Queues to consume.")
@option("-X", "--exclude-queues", type=comma_list, default="", metavar="A,B", help="Queues to leave out.")
@option(
    "-I", "--include", type=comma_list, default="", metavar="A,B", help="Modules to import beside the app."
)
@option("--purge", "--discard", is_flag=True, help="Delete every waiting message before the start.")
@option("--time-limit", type=POSITIVE, metavar="SECONDS", help="A task that runs longer is ended.")
@option(
    "--soft-time-limit",
    type=POSITIVE,
    metavar="SECONDS",
    help="A task that runs longer gets SoftTimeLimitExceeded.",
)
@option(
    "--max-tasks-per-child",
    type=click.IntRange(min=1),
    metavar="N",
    help="Replace an executor after so many tasks.",
)
@option("--prefetch-multiplier", type=click.IntRange(min=0), metavar="N", help="worker_prefetch_multiplier.")
@option("--pidfile", metavar="PATH", help="Write the process id here; refuse to run twice.")
@option("--uid", metavar="USER", help="Become this user, by name or number.")
@option("--gid", metavar="GROUP", help="Become this group, by name or number.")
@option("--umask", type=_octal, metavar="OCTAL", help="Mode bits that new files do not get.")
@_satisfied
@_later
@pass_general
def command(general: General, **given: Unpack[Given]) -> int:
    """Run a worker: take tasks from the queues and run them.

    KEY=VALUE changes a setting: worker_lease=5, task.acks_late=false, task_routes=(json){...}.
    """
    from celeriac.cli.pidfile import pidfile
    from celeriac.cli.privileges import drop_privileges

    options = worker_options(general, given)
    _warn_of_later(general)
    general.export()
    if given["umask"] is not None:
        os.umask(given["umask"])
    drop_privileges(uid=given["uid"], gid=given["gid"])
    with pidfile(options.pidfile):
        return _run(options)


def worker_options(general: General, given: Given) -> WorkerOptions:
    """What the command line says, as the worker wants it.

    Raises `click.UsageError`, and `ImproperlyConfigured` for a wrong setting.
    """
    from celeriac.cli.overrides import parse_overrides
    from celeriac.settings import Settings
    from celeriac.worker.options import WorkerOptions, node_name

    if general.app is None:
        raise click.UsageError("A worker needs an app: -A proj.")
    overrides = parse_overrides(given["settings"])
    if given["prefetch_multiplier"] is not None:
        overrides["worker_prefetch_multiplier"] = given["prefetch_multiplier"]
    Settings(overrides)  # refuses what no setting takes, before anything is started
    node = node_name(given["hostname"])
    return WorkerOptions(
        app=general.app,
        hostname=node,
        # a pool that cannot grow must be as large as it may get
        concurrency=given["concurrency"] or given["autoscale"],
        pool=given["pool"],
        queues=given["queues"],
        exclude_queues=given["exclude_queues"],
        include=given["include"],
        loglevel="CRITICAL" if given["loglevel"] == "FATAL" else given["loglevel"],
        logfile=_expand(given["logfile"], node),
        pidfile=_expand(given["pidfile"], node),
        purge=given["purge"],
        time_limit=given["time_limit"],
        soft_time_limit=given["soft_time_limit"],
        max_tasks_per_child=given["max_tasks_per_child"],
        overrides=overrides,
        color=False if general.no_color else None,
    )


def _run(options: WorkerOptions) -> int:
    if options.pool == "solo":
        from celeriac.cli import solo

        return solo.run(options)
    from celeriac.worker import main

    return main.run(options)


def _warn_of_later(general: General) -> None:
    """Name, on one line, the given options that have no effect yet."""
    context = click.get_current_context()
    later = [
        param.opts[1] if len(param.opts) > 1 else param.opts[0]
        for param in context.command.params
        if isinstance(param, Later) and param.name and context.params[param.name]
    ]
    if general.config:
        later.append("--config")
    if later:
        warning(f"no effect in this version of celeriac: {', '.join(later)}")


def _expand(path: str | None, node: str) -> str | None:
    """A file name for this node: %n is the part of its name before the @, %h the host, %d the domain, %p all.

    %i and %I number the processes of Celery's pool, and are the parent's here.
    """
    if path is None:
        return None
    name, _, host = node.partition("@")
    values = {"n": name, "h": host, "d": host.partition(".")[2], "p": node, "i": "0", "I": "", "%": "%"}
    return re.sub("%([nhdpiI%])", lambda match: values[match[1]], path)
