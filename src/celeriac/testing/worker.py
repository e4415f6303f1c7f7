"""A worker inside the test's process, over the app's own broker and backend (``memory://`` works)."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celeriac.inprocess import InProcessWorker
from celeriac.worker.options import WorkerOptions
from celeriac.worker.worker import Worker

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["running_worker"]


@contextmanager
def running_worker(app: Celeriac, *, concurrency: int = 1, **options: Any) -> Generator[Worker, None, None]:
    """Run a worker of `app` while the block runs; `concurrency` threads run its tasks.

    ::

        app = Celeriac("tests", broker="memory://", backend="memory://")
        with running_worker(app):
            assert add.delay(2, 3).get(timeout=5) == 5

    `options` are those of `WorkerOptions` (``queues=("web",)``). Leaving the block is a warm shutdown. It is the
    code of a production worker, but for the processes: a task that ends or blocks the process does so to the test.
    """
    worker = InProcessWorker(
        app,
        WorkerOptions(app=app.main or "", concurrency=concurrency, pool="solo", **options),
        servers=(app.broker, app.backend),
        quiet=True,
    )
    threads = [
        threading.Thread(target=worker.execute, name=f"celeriac-executor-{number}", daemon=True)
        for number in range(concurrency)
    ]
    for each in threads:
        each.start()
    try:
        worker.start()
        assert worker.worker is not None
        yield worker.worker
    finally:
        worker.stop()
        for each in threads:
            each.join()
