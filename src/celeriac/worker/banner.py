"""What a worker says of itself when it starts."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence

from celeriac.topology import Queue

__all__ = ["banner"]


def banner(
    *,
    node: str,
    version: str,
    app: str,
    transport: str,
    results: str,
    concurrency: int,
    pool: str,
    acks_late: bool,
    task_events: bool,
    queues: Sequence[Queue],
    tasks: Iterable[str] | None,
) -> str:
    """The start banner. URLs must come with their passwords hidden; `tasks` of None leaves the list out."""
    lines = [
        f"{node} v{version} ({platform.system()} {platform.release()}, Python {platform.python_version()})",
        "",
        "[config]",
        f".> app:         {app}",
        f".> transport:   {transport}",
        f".> results:     {results}",
        f".> concurrency: {concurrency} ({pool})",
        f".> acks:        {'late' if acks_late else 'early'}{' (Celery: early)' if acks_late else ''}",
        f".> task events: {'ON' if task_events else 'OFF'}",
        "",
        "[queues]",
    ]
    for queue in queues:
        exchange = queue.exchange
        name, kind = (exchange.name, exchange.type) if exchange is not None else (queue.name, "direct")
        lines.append(f".> {queue.name:<16} exchange={name}({kind}) key={queue.routing_key or queue.name}")
    if tasks is not None:
        lines += ["", "[tasks]", *(f"  . {name}" for name in sorted(tasks))]
    return "\n".join(lines) + "\n"
