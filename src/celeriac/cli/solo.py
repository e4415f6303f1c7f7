"""``-P solo``: calls run one by one on the main thread of the worker's own process, for debuggers."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType

from celeriac import log
from celeriac.errors import CeleriacError, OperationalError
from celeriac.executor.manifest import load
from celeriac.executor.run import Abandoned
from celeriac.inprocess import InProcessWorker
from celeriac.worker.main import boot_of
from celeriac.worker.options import WorkerOptions
from celeriac.worker.worker import Shutdown

__all__ = ["run"]

logger = logging.getLogger("celeriac.worker")


def run(options: WorkerOptions) -> int:
    """Run a worker on this thread until it is shut down; returns the exit status, as `worker.main.run` does."""
    log.configure(options.loglevel, file=options.logfile, color=options.color)
    status = 0
    signalled = False
    try:
        worker = InProcessWorker(load(boot_of(options)), options)

        def on_signal(number: int, _frame: FrameType | None) -> None:
            nonlocal status, signalled
            status = 1 if number == signal.SIGINT else status
            if signalled:
                # The task runs on this very thread: only an exception ends it. It goes back to its queue.
                if worker.worker is not None:
                    worker.worker.shut_down(Shutdown.COLD)
                raise Abandoned
            signalled = True
            logger.warning("worker: Warm shutdown (%s)", signal.Signals(number).name)
            if worker.worker is not None:
                worker.worker.shut_down(Shutdown.WARM)

        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, on_signal)
        worker.start()
        try:
            worker.execute()
        except Abandoned:
            pass
        worker.stop()
    except OperationalError as exc:
        print(f"celeriac: {exc}", file=sys.stderr)
        return 69
    except CeleriacError as exc:
        print(f"celeriac: {exc}", file=sys.stderr)
        return 1
    return status
