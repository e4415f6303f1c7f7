"""What the parts of `BackendConformance` share: how to open the backend under test, and words for tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.states import SUCCESS
from celeriac.testing.clock import MovableClock
from celeriac.wire.record import Record

__all__ = ["BackendHarness", "as_results", "ids", "record", "states"]


class BackendHarness:
    """The hooks that a subclass fills in, and the fixtures that tests take."""

    @pytest.fixture
    def server(self) -> Any:
        """A fresh place for one test, in whatever form `open` takes it: a path, a URL, nothing. Override."""
        return None

    def open(self, server: Any, options: BackendOptions) -> ResultBackend:
        """A backend on `server`. Called again by tests that want a second one on the same."""
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> MovableClock:
        return MovableClock()

    @pytest.fixture
    def backend(self, server: Any, clock: MovableClock) -> Iterator[ResultBackend]:
        backend = self.open(server, BackendOptions(clock=clock))
        yield backend
        backend.close()

    @pytest.fixture
    def other(self, server: Any, backend: ResultBackend) -> Iterator[ResultBackend]:
        """What another process would open; the same object where records do not leave the process."""
        if not backend.traits.persistent:
            yield backend
            return
        other = self.open(server, backend.options)
        yield other
        other.close()


def record(id: str | None = None, **fields: Any) -> Record:
    """A SUCCESS, unless `fields` say otherwise."""
    plain: dict[str, Any] = {"task_id": id or str(uuid4()), "state": SUCCESS, "result": b"null", **fields}
    return Record(**plain)


def ids(records: Any) -> list[str | None]:
    return [each and each.task_id for each in records]


def states(backend: ResultBackend, *ids: str) -> list[str | None]:
    return [each and each.state for each in backend.get(ids)]


def as_results(parts: Any) -> list[bytes] | None:
    return [each.result for each in parts] if parts is not None else None
