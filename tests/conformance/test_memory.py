"""The memory broker and backend against the suites, alone and behind the wrappers that can fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers.base import Broker, BrokerOptions, Consumer
from celeriac.brokers.memory import MemoryBroker
from celeriac.errors import ConnectionLost
from celeriac.testing.conformance.backend import BackendConformance
from celeriac.testing.conformance.broker import BrokerConformance
from celeriac.testing.conformance.bus import BusConformance
from celeriac.testing.conformance.units import UnitTests
from celeriac.testing.faults import FaultyBackend, FaultyBroker


class TestMemoryBroker(BrokerConformance):
    atomic = True

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        return MemoryBroker("memory://", options)

    @contextmanager
    def lose_reply(self, consumer: Consumer) -> Iterator[None]:
        server = consumer.broker.server
        claim = server.claim

        def claim_and_lose_the_reply(*args: Any) -> None:
            claim(*args)
            raise ConnectionLost("the reply was lost")

        server.claim = claim_and_lose_the_reply
        yield
        server.claim = claim


class TestFaultyBroker(BrokerConformance):
    """The wrapper changes nothing while nothing fails, and keeps the contract when a reply is lost."""

    atomic = True

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        return FaultyBroker(MemoryBroker("memory://", options))

    @contextmanager
    def lose_reply(self, consumer: Consumer) -> Iterator[None]:
        consumer.broker.faults.fail("fetch", "after")
        yield


class TestStepByStep(UnitTests):
    """Units with a backend elsewhere: each step by itself, behind the fence."""

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        return MemoryBroker("memory://", options)

    def open_backend(self, server: Any, options: BackendOptions) -> ResultBackend:
        return FaultyBackend(MemoryBackend("memory://", options))


class TestMemoryBus(BusConformance):
    def open(self, server: Any, options: BrokerOptions) -> Broker:
        return MemoryBroker("memory://", options)


class TestMemoryBackend(BackendConformance):
    def open(self, server: Any, options: BackendOptions) -> ResultBackend:
        return MemoryBackend("memory://", options)


class TestFaultyBackend(BackendConformance):
    def open(self, server: Any, options: BackendOptions) -> ResultBackend:
        return FaultyBackend(MemoryBackend("memory://", options))
