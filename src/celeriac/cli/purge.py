"""``celeriac purge``: delete what waits in the queues."""

from __future__ import annotations

import click

from celeriac.cli.console import progress
from celeriac.cli.options import General, comma_list, option, pass_general, subcommand
from celeriac.cli.overrides import parse_overrides

__all__ = ["command"]


@subcommand("purge")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@option("-f", "--force", is_flag=True, help="Do not ask.")
@option(
    "-Q", "--queues", type=comma_list, default="", metavar="A,B", help="Queues to purge; default: the app's."
)
@option("-X", "--exclude-queues", type=comma_list, default="", metavar="A,B", help="Queues to leave alone.")
@pass_general
def command(
    general: General,
    *,
    settings: tuple[str, ...],
    force: bool,
    queues: tuple[str, ...],
    exclude_queues: tuple[str, ...],
) -> None:
    """Delete every message that waits in the queues, scheduled ones too. What workers hold stays."""
    from celeriac.routing import queues_to_consume

    overrides = parse_overrides(settings)
    with general.load() as app:
        app.conf.update(overrides)
        names = [queue.name for queue in queues_to_consume(app.conf, queues, exclude_queues)]
        in_queues = _count(len(names), "queue")
        if not force:
            click.confirm(
                f"This deletes every message in {in_queues}: {', '.join(names)}.\n"
                "It cannot be undone. Do it? (-f does not ask)",
                abort=True,
            )
        total = sum(
            app.broker.purge(name) for name in progress(names, total=len(names), message="Purging queues")
        )
    if total:
        known = _count(len(names), "known task queue")
        click.echo(f"Purged {_count(total, 'message')} from {known}.")
    else:
        click.echo(f"No messages purged from {in_queues}.")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
