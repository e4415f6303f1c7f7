"""The app that is measured, the same text for celeriac and for Celery: tasks that do nothing.

Imported by the Python of either; the environment says which, with what settings, and where the journal is.
"""

from __future__ import annotations

import json
import os
from typing import Any

from journal import Journal

if os.environ.get("BENCH_SIDE") == "celery":
    from celery import Celery as App
else:
    from celeriac import Celeriac as App

journal = Journal(os.environ["BENCH_JOURNAL"]) if "BENCH_JOURNAL" in os.environ else None


def new_app() -> Any:
    """An app of its own, so that each measurement of the embedded default can start with an empty database."""
    app = App("bench")
    app.conf.update(json.loads(os.environ.get("BENCH_SETTINGS", "{}")))

    @app.task(name="bench.noop")
    def noop(number: int = 0) -> int:
        """The task of that number in the journal."""
        if journal is not None:
            journal.mark(number)
        return number

    @app.task(name="bench.step")
    def step(value: int) -> int:
        """Of a chain."""
        return value + 1

    return app


app = new_app()
