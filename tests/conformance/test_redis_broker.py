"""The Redis broker against the suite: as it is set up usually, and in the ways that its code takes other turns for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import redis

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers import open_broker
from celeriac.brokers.base import Broker, BrokerOptions, Consumer
from celeriac.testing.conformance.broker import BrokerConformance
from celeriac.testing.conformance.units import UnitTests


class OnRedis:
    """How these suites open a broker, and a result backend in the same database."""

    transport: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture
    def server(self, redis_url: str) -> str:
        return redis_url

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        return open_broker(server, replace(options, transport={**options.transport, **self.transport}))

    def open_backend(self, server: Any, options: BackendOptions) -> ResultBackend:
        return open_backend(server, options)

    @contextmanager
    def lose_reply(self, consumer: Consumer) -> Iterator[None]:
        """The server does what it is asked for, and the connection breaks before it says so."""
        claimer = consumer._claimer
        receive = claimer._opened().receive

        def answered_and_cut(timeout: float) -> list[Any]:
            receive(timeout)
            raise redis.ConnectionError("the connection was cut")

        claimer._line.receive = answered_and_cut
        yield


class TestRedisBroker(OnRedis, BrokerConformance):
    atomic = True


class TestWithAPrefix(OnRedis, BrokerConformance):
    """Keys with ``global_keyprefix``, and other options that names are made of."""

    atomic = True
    transport: ClassVar[Mapping[str, Any]] = {
        "global_keyprefix": "mine:",
        "sep": "|",
        "fanout_prefix": "all.",
        "fanout_patterns": False,
        "queue_order_strategy": "sorted",
    }


class TestPolling(OnRedis, BrokerConformance):
    """Consumers that are not told by the server."""

    atomic = True
    transport: ClassVar[Mapping[str, Any]] = {"client_tracking": False}

    @contextmanager
    def lose_reply(self, consumer: Consumer) -> Iterator[None]:
        links = consumer.broker.links
        exchange = links.exchange

        def answered_and_cut(data: bytes, replies: int, timeout: float | None = None) -> list[Any]:
            exchange(data, replies, timeout)
            links._raise(redis.ConnectionError("the connection was cut"))

        links.exchange = answered_and_cut
        yield
        del links.exchange


class TestStepByStep(OnRedis, UnitTests):
    """Units with a backend elsewhere: each step by itself, behind the fence."""

    def open_backend(self, server: Any, options: BackendOptions) -> ResultBackend:
        return MemoryBackend("memory://", options)
