"""No results: what is stored goes nowhere, and asking for it says what to configure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar, NoReturn

from celeriac.backends.base import BackendTraits, ResultBackend, Watcher
from celeriac.errors import ImproperlyConfigured, OperationalError
from celeriac.wire.record import Group, Record

__all__ = ["DisabledBackend", "NoResultBackend"]


class NoResultBackend(ImproperlyConfigured, OperationalError):
    """A result was asked for, but results are kept nowhere."""


class DisabledBackend(ResultBackend):
    """The backend of an app without ``result_backend``: tasks run, nobody can ask how they ended."""

    schemes: ClassVar[tuple[str, ...]] = ("disabled",)
    traits: ClassVar[BackendTraits] = BackendTraits(
        persistent=False, push=False, groups=False, extended=False
    )

    def put(self, records: Sequence[Record]) -> None:
        """Nothing is stored."""

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        _refuse()

    def watcher(self) -> Watcher:
        _refuse()

    def forget(self, ids: Sequence[str]) -> None:
        """Nothing was stored."""

    def save_group(self, group: Group) -> None:
        _refuse()

    def load_group(self, group_id: str) -> Group | None:
        _refuse()

    def forget_group(self, group_id: str) -> None:
        """Nothing was stored."""

    def join(self, chord: str, index: int, record: Record, size: int) -> Sequence[Record] | None:
        _refuse()

    def finish_chord(self, chord: str) -> bool:
        _refuse()

    def revoke(self, ids: Sequence[str], *, until: datetime) -> None:
        _refuse()

    def revoked(self, after: int) -> tuple[int, Mapping[str, datetime]]:
        return after, {}

    def close(self) -> None:
        """Nothing is open."""


def _refuse() -> NoReturn:
    raise NoResultBackend(
        "no result backend is configured: set result_backend, for example to 'sqlite:///results.db'"
    )
