"""``celeriac call``: publish one task by name."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from celeriac.cli.options import (
    General,
    instant,
    instant_or_seconds,
    json_list,
    json_object,
    option,
    pass_general,
    subcommand,
)
from celeriac.errors import CeleriacError

__all__ = ["command"]


@subcommand("call")
@click.argument("name")
@option(
    "-a", "--args", type=json_list, default="[]", metavar="JSON", help="Positional arguments, a JSON list."
)
@option(
    "-k", "--kwargs", type=json_object, default="{}", metavar="JSON", help="Keyword arguments, an object."
)
@option("--eta", type=instant, metavar="TIME", help="Earliest start, ISO 8601.")
@option("--countdown", type=float, metavar="SECONDS", help="Earliest start, from now.")
@option("--expires", type=instant_or_seconds, metavar="TIME|SECONDS", help="Latest start.")
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
    options: Any = {key: value for key, value in given.items() if value is not None}
    with general.load() as app:
        try:
            result = app.send_task(name, args, kwargs, **options)
        except CeleriacError:
            raise
        except (TypeError, ValueError) as exc:  # options that do not fit together
            raise click.UsageError(f"{exc}.") from exc
    click.echo(result.id)
