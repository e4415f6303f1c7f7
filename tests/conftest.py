"""Fixtures for all tests: the servers (`celeriac.testing.servers`)."""

from __future__ import annotations

pytest_plugins = ["celeriac.testing.plugin"]
