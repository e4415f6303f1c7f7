"""A worker inside this process: its loop on one thread, its executors' code on others, or on the caller's.

For ``-P solo`` (a debugger sees the task on the main thread), for tests, and for programs that embed a worker.
What a task does to the process it does to the worker too; in production executors are processes.
"""

from __future__ import annotations

import asyncio
import queue
import signal
import socket
import threading
from typing import TYPE_CHECKING

from celeriac.backends.base import ResultBackend
from celeriac.brokers.base import Broker
from celeriac.executor.link import Link
from celeriac.executor.main import serve as serve_calls
from celeriac.executor.manifest import manifest_of
from celeriac.executor.runners.sequential import SequentialRunner
from celeriac.worker.main import serve
from celeriac.worker.options import WorkerOptions
from celeriac.worker.pool import Pool, ThreadLauncher
from celeriac.worker.worker import Shutdown, Worker

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["InProcessWorker"]


class InProcessWorker:
    """1. `start` runs the worker's loop on a thread and returns when it is ready for tasks.
    2. `execute` runs calls on the calling thread until the worker ends; as many threads as there are slots.
    3. `stop` shuts the worker down and waits for it.

    `servers` are shared with the caller where given (a memory broker has to be), else opened.
    """

    def __init__(
        self,
        app: Celeriac,
        options: WorkerOptions,
        *,
        servers: tuple[Broker, ResultBackend] | None = None,
        quiet: bool = False,
    ) -> None:
        self.worker: Worker | None = None
        self._app = app
        self._options = options
        self._servers = servers
        self._quiet = quiet
        self._ends: queue.SimpleQueue[tuple[socket.socket, socket.socket] | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="celeriac-worker", daemon=True)

    def start(self) -> None:
        """Start the loop; returns when it is ready. Raises what kept it from starting."""
        # Signals are for the main thread, which runs the calls; blocked here, they cannot get lost on another.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def execute(self) -> None:
        """Run calls on this thread until the worker ends."""
        while (ends := self._ends.get()) is not None:
            link = Link(*ends)
            try:
                serve_calls(self._app, link, SequentialRunner(), hostname=self._options.hostname, alone=False)
            finally:
                link.close()
        self._ends.put(None)  # for the next thread that waits

    def stop(self, how: Shutdown = Shutdown.WARM) -> None:
        """Shut down and wait until nothing of the worker runs. Raises what ended it early."""
        if self.worker is not None:
            self.worker.shut_down(how)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _main(self) -> None:
        pool: Pool | None = None
        try:
            manifest = manifest_of(self._app)
            pool = Pool(ThreadLauncher(manifest, lambda inbox, line: self._ends.put((inbox, line))))
            asyncio.run(
                serve(
                    self._options,
                    pool,
                    manifest,
                    created=self._created,
                    on_ready=self._ready.set,
                    servers=self._servers,
                    quiet=self._quiet,
                )
            )
        except BaseException as exc:  # noqa: BLE001 boundary: `start` or `stop` raises it on the caller's thread
            self._failure = exc
        finally:
            if pool is not None:
                pool.close()
            self._ready.set()
            self._ends.put(None)

    def _created(self, worker: Worker) -> None:
        self.worker = worker
