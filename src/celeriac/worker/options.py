"""What a worker is started with: the command line's options as one value."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

__all__ = ["WorkerOptions", "node_name"]


def node_name(template: str | None = None) -> str:
    """Expand a node name: ``%h`` host, ``%n`` name part, ``%d`` domain, ``%%``; default ``celery@%h``.

    A name without ``@`` gets this host's: ``w1`` → ``w1@host``.
    """
    host = socket.gethostname()
    name, _, domain = host.partition(".")
    template = template or "celery@%h"
    for key, value in (("%h", host), ("%n", name), ("%d", domain), ("%%", "%")):
        template = template.replace(key, value)
    return template if "@" in template else f"{template}@{host}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Options of one worker. None means: what the app's settings say."""

    #: Where the app is: ``proj``, ``proj.celeriac``, ``proj:app``; resolved in an executor, never here.
    app: str
    #: Node name (``-n``), already expanded.
    hostname: str = field(default_factory=node_name)
    #: Number of executors (``-c``); None: ``worker_concurrency``, else the number of cores.
    concurrency: int | None = None
    #: ``prefork`` or ``solo`` (``-P``).
    pool: str | None = None
    #: Queue names to consume (``-Q``) and to leave out (``-X``).
    queues: tuple[str, ...] = ()
    exclude_queues: tuple[str, ...] = ()
    #: Modules to import beside the app (``-I``).
    include: tuple[str, ...] = ()
    loglevel: str = "WARNING"
    logfile: str | None = None
    pidfile: str | None = None
    #: Delete what waits in the queues before starting (``--purge``).
    purge: bool = False
    #: Limits that override the settings (``--time-limit``, ``--soft-time-limit``), seconds.
    time_limit: float | None = None
    soft_time_limit: float | None = None
    max_tasks_per_child: int | None = None
    #: Settings given on the command line (``key=value``), already cast.
    overrides: dict[str, object] = field(default_factory=dict[str, object])
    color: bool | None = None

    def concurrency_or(self, setting: int | str | None) -> int:
        """The number of executors, given ``worker_concurrency``."""
        wanted = self.concurrency or setting
        return int(wanted) if wanted and wanted != "auto" else (os.cpu_count() or 1)
