"""``celeriac call``: publish one task by name."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from typing import Any

import click

from celeriac.cli.options import General, Json, Moment, option, pass_general, subcommand

__all__ = ["command"]


@subcommand("call")
@click.argument("name")
@option("-a", "--args", type=Json(list), default=[], metavar="JSON", help="Positional arguments, a JSON list.")
@option("-k", "--kwargs", type=Json(dict), default={}, metavar="JSON", help="Keyword arguments, an object.")
@option("--eta", type=Moment(), metavar="TIME", help="Earliest start, ISO 8601.")
@option("--countdown", type=float, metavar="SECONDS", help="Earliest start, from now.")
@option("--expires", type=Moment(seconds=True), metavar="TIME|SECONDS", help="Latest start.")
@option("--serializer", metavar="NAME", help="json, msgpack, yaml, ...; default: task_serializer.")
@option("--queue", metavar="NAME", help="Queue to send it to.")
@option("--exchange", metavar="NAME", help="Exchange to send it to.")
@option("--routing-key", metavar="KEY", help="Routing key to send it with.")
@pass_general
def command(
    general: General,
    *,
    name: str,
    args: list[Any],
    kwargs: dict[str, Any],
    eta: datetime | None,
    countdown: float | None,
    expires: datetime | float | None,
    serializer: str | None,
    queue: str | None,
    exchange: str | None,
    routing_key: str | None,
) -> None:
    """Call the task NAME and print its id. The task need not be known here."""
    given = {
        "eta": eta,
        "countdown": countdown,
        "expires": expires,
        "serializer": serializer,
        "queue": queue,
        "exchange": exchange,
        "routing_key": routing_key,
    }
    with closing(general.load()) as app:
        options = {key: value for key, value in given.items() if value is not None}
        click.echo(app.send_task(name, args=args, kwargs=kwargs, **options).id)
