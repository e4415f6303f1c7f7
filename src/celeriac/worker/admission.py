"""What becomes of a delivery that arrives, by its headers alone: pure, no body is decoded here."""

from __future__ import annotations

from collections.abc import Container, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from celeriac.brokers.base import Delivery
from celeriac.wire.disposition import ACK, Defer, Disposition
from celeriac.wire.frames import TaskInfo, Verdict

__all__ = ["UNKNOWN_TRIES", "Admission", "admit", "unknown_delay"]

#: Header that counts how often a message of an unknown task was put back.
UNKNOWN_HEADER = "x-celeriac-unknown"
#: After so many tries (about 20 minutes in all) a message of an unknown task is dead-lettered.
UNKNOWN_TRIES = 26
_UNKNOWN_DELAY_MAX = 60.0

_NO_INFO = TaskInfo()


class Admission(msgspec.Struct, frozen=True):
    """Settle at once with `disposition`, or hand to an executor, with a `verdict` where it is not to run."""

    task: str
    info: TaskInfo
    disposition: Disposition | None = None
    verdict: Verdict | None = None


def admit(
    delivery: Delivery,
    *,
    tasks: Mapping[str, TaskInfo],
    revoked: Container[str],
    succeeded: Container[str],
    max_deliveries: int,
    now: datetime,
) -> Admission:
    """Decide about one delivery.

    `tasks` is the manifest's registry, `revoked` and `succeeded` hold task ids, `now` is aware. Messages whose
    headers name no task (protocol 1, foreign ones) go to an executor, which reads the body and decides.
    """
    headers = delivery.envelope.headers
    name = headers.get("task")
    if not isinstance(name, str):
        return Admission("", _NO_INFO)
    info = tasks.get(name)
    if info is None:
        return _unknown(delivery, name, now)
    task_id = delivery.envelope.task_id
    if (delivery.redelivered or delivery.attempts > 1) and task_id in succeeded:
        return Admission(name, info, ACK)
    if delivery.attempts > max_deliveries:
        return Admission(name, info, verdict=Verdict("lost", f"handed out {delivery.attempts - 1} times"))
    if task_id in revoked:
        return Admission(name, info, verdict=Verdict("revoked"))
    if headers.get("expires") is not None and _is_past(headers["expires"], now):
        return Admission(name, info, verdict=Verdict("expired"))
    if headers.get("eta") is not None:
        due = _instant(headers["eta"])
        if due is not None and due > now:
            return Admission(name, info, Defer(due))
    return Admission(name, info)


def _unknown(delivery: Delivery, name: str, now: datetime) -> Admission:
    """Put a message of an unknown task back for a while: a deploy may be under way."""
    envelope = delivery.envelope
    tries = envelope.headers.get(UNKNOWN_HEADER, 0)
    tries = tries if isinstance(tries, int) else 0
    if tries >= UNKNOWN_TRIES:
        return Admission(
            name, _NO_INFO, verdict=Verdict("unknown", f"not registered here, tried {tries} times")
        )
    later = msgspec.structs.replace(envelope, headers={**envelope.headers, UNKNOWN_HEADER: tries + 1})
    return Admission(name, _NO_INFO, Defer(now + timedelta(seconds=unknown_delay(tries)), later))


def unknown_delay(tries: int) -> float:
    """Seconds before a message of an unknown task is tried again: 1, 2, 4 … 60."""
    return min(2.0**tries, _UNKNOWN_DELAY_MAX)


def _is_past(value: Any, now: datetime) -> bool:
    instant = _instant(value)
    return instant is not None and instant <= now


def _instant(value: Any) -> datetime | None:
    """An ISO 8601 header as an instant; None where it is not one (the executor refuses such a message)."""
    if not isinstance(value, str):
        return None
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        return None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
