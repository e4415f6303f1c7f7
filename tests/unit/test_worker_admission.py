"""Admission: what becomes of a delivery, by its headers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celeriac.brokers.base import Delivery
from celeriac.wire.disposition import ACK, Defer
from celeriac.wire.envelope import Envelope
from celeriac.wire.frames import TaskInfo, Verdict
from celeriac.worker.admission import UNKNOWN_TRIES, Admission, admit, unknown_delay

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
INFO = TaskInfo()


def delivery(attempts: int = 1, **headers: Any) -> Delivery:
    headers = {"task": "t.add", "id": "one", **headers}
    envelope = Envelope(b"", "application/json", "utf-8", headers, {})
    return Delivery(envelope, "celery", None, attempts, attempts > 1)


def decide(one: Delivery, **given: Any) -> Admission:
    known: dict[str, Any] = {
        "tasks": {"t.add": INFO},
        "revoked": (),
        "succeeded": (),
        "max_deliveries": 5,
        "now": NOW,
    }
    return admit(one, **{**known, **given})


def test_a_plain_call_goes_to_an_executor() -> None:
    assert decide(delivery()) == Admission("t.add", INFO)


def test_a_message_without_a_task_header_is_left_to_an_executor() -> None:
    one = delivery(task=None)
    assert decide(one).disposition is None
    assert decide(one).verdict is None


def test_a_revoked_call_does_not_run() -> None:
    assert decide(delivery(), revoked={"one"}).verdict == Verdict("revoked")


@pytest.mark.parametrize(
    ("expires", "verdict"),
    [
        ((NOW - timedelta(seconds=1)).isoformat(), Verdict("expired")),
        (NOW.isoformat().replace("+00:00", "Z"), Verdict("expired")),
        ((NOW + timedelta(seconds=1)).isoformat(), None),
        ("2026-11-20T11:59:59", Verdict("expired")),
        ("not a time", None),
        (12, None),
    ],
)
def test_an_expired_call_does_not_run(expires: Any, verdict: Verdict | None) -> None:
    assert decide(delivery(expires=expires)).verdict == verdict


def test_a_call_that_is_not_due_goes_back_until_it_is() -> None:
    due = NOW + timedelta(minutes=1)
    assert decide(delivery(eta=due.isoformat())).disposition == Defer(due)
    assert decide(delivery(eta=NOW.isoformat())).disposition is None


def test_a_redelivered_call_whose_success_is_recorded_is_done() -> None:
    assert decide(delivery(attempts=2), succeeded={"one"}).disposition == ACK


def test_a_call_that_was_handed_out_too_often_is_lost() -> None:
    assert decide(delivery(attempts=5)).verdict is None
    verdict = decide(delivery(attempts=6)).verdict
    assert verdict is not None
    assert verdict.kind == "lost"
    assert "5 times" in verdict.detail


def test_an_unknown_task_is_put_back_for_growing_pauses() -> None:
    one = delivery(task="t.new")
    pauses: list[float] = []
    for _ in range(UNKNOWN_TRIES):
        disposition = decide(one).disposition
        assert isinstance(disposition, Defer)
        assert disposition.envelope is not None
        pauses.append((disposition.until - NOW).total_seconds())
        one = Delivery(disposition.envelope, "celery", None)
    assert pauses[:4] == [1, 2, 4, 8]
    assert max(pauses) == 60
    assert sum(pauses) > 10 * 60, "a rolling deploy may take ten minutes"
    verdict = decide(one).verdict
    assert verdict is not None
    assert verdict.kind == "unknown"


def test_the_pause_for_unknown_tasks_does_not_overflow() -> None:
    assert unknown_delay(500) == 60.0
