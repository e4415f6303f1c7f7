"""``celeriac result``: wait for one task and print what came of it."""

from __future__ import annotations

import json

import click

from celeriac.cli.console import Failure, spinner
from celeriac.cli.options import General, option, pass_general, subcommand
from celeriac.states import SUCCESS

__all__ = ["command"]


@subcommand("result")
@click.argument("task_id", metavar="ID")
@option("-t", "--task", metavar="NAME", help="The task's name, where it keeps results in a place of its own.")
@option("--traceback", "show_traceback", is_flag=True, help="Print the traceback of a failed task.")
@option("--json", "as_json", is_flag=True, help="Print state, result and traceback as a JSON object.")
@option(
    "--timeout", type=float, metavar="SECONDS", help="Give up after this time; default: result_get_timeout."
)
@pass_general
def command(
    general: General,
    *,
    task_id: str,
    task: str | None,
    show_traceback: bool,
    as_json: bool,
    timeout: float | None,
) -> int:
    """Wait for the task ID and print its result.

    The exit status is 1 where the task failed, 69 where its result did not come in time.
    """
    with general.load() as app:
        result = app.tasks[task].AsyncResult(task_id) if task else app.AsyncResult(task_id)
        with spinner(f"waiting for {task_id}"):
            value = result.get(timeout=timeout, propagate=False)
        failed = result.state != SUCCESS
        if as_json:
            click.echo(_document(task_id, result.state, value, result.traceback))
        elif show_traceback and result.traceback:
            click.echo(result.traceback.rstrip())
        elif failed:
            raise Failure(f"task {task_id} is {result.state}: {value!r}")
        else:
            click.echo(str(value))
        return int(failed)


def _document(task_id: str, state: str, value: object, traceback: str | None) -> str:
    """The outcome as Celery's result stores keep it; what JSON does not know becomes text."""
    from celeriac.wire.errors import to_meta

    if isinstance(value, BaseException):
        value = to_meta(value, "json")
    document = {"task_id": task_id, "status": state, "result": value, "traceback": traceback}
    try:
        return json.dumps(document, default=str)
    except (TypeError, ValueError) as exc:
        raise Failure(f"the result of task {task_id} has no JSON form: {exc}") from exc
