"""What ``celeriac worker`` does: start a worker from its options, obey signals, return an exit status."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack

from celeriac import __version__, log
from celeriac.backends import open_backend
from celeriac.backends.base import ResultBackend
from celeriac.brokers import open_broker
from celeriac.brokers.base import Broker
from celeriac.errors import CeleriacError, OperationalError
from celeriac.opening import backend_options, broker_options
from celeriac.routing import queues_to_consume
from celeriac.settings import Settings
from celeriac.topology import Queue
from celeriac.urls import mask_url
from celeriac.wire.frames import Boot, Manifest
from celeriac.worker.banner import banner
from celeriac.worker.nursery import AppLoadFailed
from celeriac.worker.options import WorkerOptions
from celeriac.worker.pool import NurseryLauncher, Pool
from celeriac.worker.worker import Shutdown, Worker

__all__ = ["boot_of", "run", "serve"]

logger = logging.getLogger("celeriac.worker")

_EX_UNAVAILABLE = 69


def run(options: WorkerOptions) -> int:
    """Run a worker until it is shut down, on this thread; returns the exit status.

    0 after SIGTERM, 1 after SIGINT (as Celery's) and when it could not start or go on.
    """
    log.configure(options.loglevel, file=options.logfile, color=options.color)
    pool = Pool(NurseryLauncher(boot_of(options)))
    try:
        return asyncio.run(_run(options, pool))
    except AppLoadFailed as exc:
        if exc.traceback:
            sys.stderr.write(exc.traceback)
        return _fail(f"cannot load the app {options.app!r}: {exc}", 1)
    except OperationalError as exc:
        return _fail(str(exc), _EX_UNAVAILABLE)
    except CeleriacError as exc:
        return _fail(str(exc), 1)


def _fail(message: str, status: int) -> int:
    print(f"celeriac: {message}", file=sys.stderr)
    return status


def boot_of(options: WorkerOptions) -> Boot:
    """What the executors must know of the options."""
    return Boot(
        app=options.app,
        hostname=options.hostname,
        include=list(options.include),
        overrides=options.overrides,
        loglevel=options.loglevel,
        logfile=options.logfile,
        color=options.color,
    )


async def _run(options: WorkerOptions, pool: Pool) -> int:
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    assert this is not None
    signals = _Signals(give_up=this.cancel)
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(each, signals.receive, each)
    try:
        manifest = await pool.start()
        await serve(options, pool, manifest, created=signals.attach)
    except asyncio.CancelledError:
        logger.warning("worker: shut down before it was ready")
        return signals.early_status
    finally:
        pool.close()
    return signals.status


class _Signals:
    """What signals do to a worker: the first shuts it down, another one faster. Before there is a worker, the
    first ends the process."""

    def __init__(self, *, give_up: Callable[[], object]) -> None:
        self.status = 0
        #: Exit status where there was no worker yet: as if the signal had not been handled.
        self.early_status = 0
        self._give_up = give_up
        self._worker: Worker | None = None
        self._signalled = False

    def attach(self, worker: Worker) -> None:
        self._worker = worker

    def receive(self, number: signal.Signals) -> None:
        how = Shutdown.COLD if self._signalled or number == signal.SIGQUIT else Shutdown.WARM
        self._signalled = True
        if number == signal.SIGINT:
            self.status = 1  # as Celery's
        logger.warning("worker: %s shutdown (%s)", how.name.capitalize(), number.name)
        if self._worker is None:
            self.early_status = 128 + number
            self._give_up()
        else:
            self._worker.shut_down(how)


async def serve(
    options: WorkerOptions,
    pool: Pool,
    manifest: Manifest,
    *,
    created: Callable[[Worker], None],
    on_ready: Callable[[], None] | None = None,
    servers: tuple[Broker, ResultBackend] | None = None,
    quiet: bool = False,
) -> None:
    """Run one worker on this loop until it is shut down.

    `created` gets it before it starts, `on_ready` is called once it takes tasks. `servers`, where given, are
    shared with the caller, who closes them; else those of the settings are opened. `quiet`: no banner.
    """
    settings = Settings.from_plain(manifest.settings)
    for name in settings.not_yet():
        logger.warning("%s is set, but the part that obeys it comes in a later release", name)
    queues = queues_to_consume(settings, options.queues, options.exclude_queues)
    with ExitStack() as stack:
        broker, backend = servers or _open_servers(settings, stack)
        if options.purge:
            _purge(broker, queues)
        if not quiet:
            print(_banner(options, settings, manifest, queues), flush=True)
        worker = Worker(
            name=options.hostname,
            manifest=manifest,
            settings=settings,
            broker=broker,
            backend=backend,
            queues=queues,
            pool=pool,
            concurrency=options.concurrency_or(settings.worker_concurrency),
            soft_time_limit=options.soft_time_limit,
            time_limit=options.time_limit,
            max_tasks_per_child=options.max_tasks_per_child,
            on_ready=on_ready,
        )
        created(worker)
        # Nothing made so far will go away: the collector need not look at it again.
        gc.freeze()
        await worker.run()


def _open_servers(settings: Settings, stack: ExitStack) -> tuple[Broker, ResultBackend]:
    """Broker and result backend of the settings, closed with the stack."""
    broker = open_broker(settings.effective_broker_url, broker_options(settings))
    stack.callback(broker.close)
    backend = open_backend(settings.effective_result_backend, backend_options(settings))
    stack.callback(backend.close)
    return broker, backend


def _purge(broker: Broker, queues: list[Queue]) -> None:
    count = sum(broker.purge(queue.name) for queue in queues)
    logger.warning("purged %d messages from %d queues", count, len(queues))


def _banner(options: WorkerOptions, settings: Settings, manifest: Manifest, queues: list[Queue]) -> str:
    info = logging.getLogger("celeriac").isEnabledFor(logging.INFO)
    return banner(
        node=options.hostname,
        version=__version__,
        app=manifest.main or options.app,
        transport=mask_url(settings.effective_broker_url),
        results=mask_url(settings.effective_result_backend),
        concurrency=options.concurrency_or(settings.worker_concurrency),
        pool=options.pool or settings.worker_pool,
        acks_late=settings.task_acks_late,
        task_events=settings.worker_send_task_events,
        queues=queues,
        tasks=[name for name in manifest.tasks if not name.startswith("celery.")] if info else None,
    )
