"""Dead letters: the message as it was, and its story in the headers."""

from __future__ import annotations

from datetime import UTC, datetime

from celeriac.brokers.base import Delivery
from celeriac.brokers.dead import dead_letter
from celeriac.testing.conformance.harness import envelope
from celeriac.topology import Queue


def test_a_dead_letter_is_the_message_and_its_story() -> None:
    sent = envelope("a", b"body", retries=2)
    found = dead_letter(Delivery(sent, "web", 1, 5, True), "lost", datetime(2026, 1, 2, 3, tzinfo=UTC))
    assert (found.exchange, found.routing_key, found.queue) == ("", "web.dead", Queue("web.dead"))
    assert (found.priority, found.due) == (0, None)
    assert found.envelope.headers == {
        **sent.headers,
        "x-celeriac-dead-reason": "lost",
        "x-celeriac-dead-attempts": 5,
        "x-celeriac-dead-at": "2026-01-02T03:00:00+00:00",
        "x-celeriac-dead-queue": "web",
    }
    assert (found.envelope.body, found.envelope.properties) == (sent.body, sent.properties)
    assert "x-celeriac-dead-reason" not in sent.headers
