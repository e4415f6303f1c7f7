"""An app without result backend: storing is quiet, asking says what is missing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.backends.disabled import DisabledBackend
from celeriac.errors import ImproperlyConfigured, OperationalError
from celeriac.wire.record import Group, Record

RECORD = Record(task_id="a", state="SUCCESS", result=b"1")


@pytest.fixture
def backend() -> ResultBackend:
    return DisabledBackend("disabled://", BackendOptions())


def test_what_a_worker_does_goes_nowhere_quietly(backend: ResultBackend) -> None:
    backend.put([RECORD])
    backend.forget(["a"])
    backend.forget_group("g")
    assert backend.revoked(7) == (7, {})
    backend.close()


@pytest.mark.parametrize(
    "ask",
    [
        lambda backend: backend.get(["a"]),
        lambda backend: backend.watch(["a"], 1),
        lambda backend: backend.save_group(Group(group_id="g", result=[])),
        lambda backend: backend.load_group("g"),
        lambda backend: backend.join("c", 0, RECORD, 1),
        lambda backend: backend.finish_chord("c"),
        lambda backend: backend.revoke(["a"], until=datetime(2026, 1, 1, tzinfo=UTC)),
    ],
)
@pytest.mark.parametrize("kind", [ImproperlyConfigured, OperationalError])
def test_who_asks_is_told_what_to_configure(
    backend: ResultBackend, ask: Callable[[ResultBackend], object], kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="set result_backend"):
        ask(backend)
