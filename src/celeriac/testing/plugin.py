"""Fixtures for projects that test their tasks: ``pytest_plugins = ["celeriac.testing.plugin"]``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from celeriac.app import Celeriac
from celeriac.testing.worker import running_worker
from celeriac.worker.worker import Worker

__all__ = ["celeriac_app", "celeriac_worker"]


@pytest.fixture
def celeriac_app() -> Iterator[Celeriac]:
    """An app of its own for one test, with broker and results in memory. Override it to use your own app."""
    with Celeriac("tests", broker="memory://", backend="memory://", set_as_current=False) as app:
        yield app


@pytest.fixture
def celeriac_worker(celeriac_app: Celeriac) -> Iterator[Worker]:
    """A worker that runs the tasks of `celeriac_app` while the test runs."""
    with running_worker(celeriac_app) as worker:
        yield worker
