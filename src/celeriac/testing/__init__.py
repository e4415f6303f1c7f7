"""Tools for tests: a clock to move, servers that fail on demand, real servers (`celeriac.testing.servers`) behind
a network that breaks (`celeriac.testing.proxy`), and suites for those who write a broker, a result backend or a
runner (`celeriac.testing.conformance`)."""

from __future__ import annotations

from celeriac.testing.clock import MovableClock
from celeriac.testing.faults import Faults, FaultyBackend, FaultyBroker

__all__ = ["Faults", "FaultyBackend", "FaultyBroker", "MovableClock"]
