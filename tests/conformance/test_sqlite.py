"""The embedded default against the suites: SQLite as broker and result backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers import open_broker
from celeriac.brokers.base import Broker, BrokerOptions, Consumer
from celeriac.errors import ConnectionLost
from celeriac.sql.sqlite import SQLite, file_of
from celeriac.testing.conformance.backend import BackendConformance
from celeriac.testing.conformance.broker import BrokerConformance
from celeriac.testing.conformance.units import UnitTests


class TestSQLiteBroker(BrokerConformance):
    atomic = True

    @pytest.fixture
    def server(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/celeriac.db"

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        return open_broker(server, options)

    def open_backend(self, server: Any, options: BackendOptions) -> ResultBackend:
        return open_backend(server, options)

    @contextmanager
    def lose_reply(self, consumer: Consumer) -> Iterator[None]:
        database = consumer.broker.database
        transaction = database.transaction

        @contextmanager
        def commit_and_lose_the_reply(timeout: float) -> Iterator[Any]:
            with transaction(timeout) as begun:
                yield begun
            raise ConnectionLost("the reply was lost")

        database.transaction = commit_and_lose_the_reply
        yield
        del database.transaction

    @contextmanager
    def transaction(self, server: Any) -> Iterator[Any]:
        engine = sqlalchemy.create_engine(server)
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()


class TestSQLiteBetweenProcesses(TestSQLiteBroker):
    """Every broker but the first has connections of its own, as in processes of their own."""

    @pytest.fixture(autouse=True)
    def nothing_open(self) -> None:
        self.opened: set[str] = set()

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        broker = open_broker(server, options)
        if server in self.opened:
            broker.database = SQLite(file_of(server)[0])
        self.opened.add(server)
        return broker


class TestStepByStep(UnitTests):
    """Units with a backend elsewhere: each step by itself, behind the fence."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/celeriac.db"

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        return open_broker(server, options)

    def open_backend(self, server: Any, options: BackendOptions) -> ResultBackend:
        return MemoryBackend("memory://", options)


class TestSQLiteBackend(BackendConformance):
    @pytest.fixture
    def server(self, tmp_path: Path) -> str:
        return f"db+sqlite:///{tmp_path}/results.db"

    def open(self, server: Any, options: BackendOptions) -> ResultBackend:
        return open_backend(server, options)
