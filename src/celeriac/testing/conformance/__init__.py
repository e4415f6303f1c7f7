"""Test suites for those who write a part behind one of celeriac's seams: subclass one, say how to open it.

`broker.BrokerConformance`, `backend.BackendConformance`, `bus.BusConformance`, `runner.RunnerConformance`: plain pytest
classes, gated by declared traits and never by names.
"""

from __future__ import annotations

import pytest

# So that a failed assert of a suite shows its values, as in a test of one's own.
_SUITES = (
    *("backend", "bus", "fetching", "harness", "leases", "publishing", "results", "runner", "settling"),
    *("units", "watching"),
)
pytest.register_assert_rewrite(*(f"{__name__}.{suite}" for suite in _SUITES))
