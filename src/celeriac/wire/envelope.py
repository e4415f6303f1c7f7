"""A message as a broker carries it: opaque body, readable headers."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from celeriac.topology import Queue

__all__ = ["Envelope", "Outgoing"]


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """Bytes and headers of one message. The body is never decoded outside an executor or a client.

    `headers` are Celery's protocol-2 task headers plus the user's own, `properties` the AMQP properties
    (``correlation_id``, ``reply_to``, ``priority``, ``delivery_info`` …); see wire-protocol §1.
    """

    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]

    @property
    def task_id(self) -> str:
        """The task's id, or ``""`` where the headers carry none (protocol 1, foreign messages)."""
        return self.headers.get("id") or self.properties.get("correlation_id") or ""


class Outgoing(msgspec.Struct, frozen=True, array_like=True):
    """An envelope and where it goes.

    With an empty `exchange` the `routing_key` is the name of the queue. `queue`, where it is known, is
    declared before the first message that is published to it. `due` (aware, UTC) is the earliest instant at
    which a worker may have the message; `priority`: larger is sooner.
    """

    envelope: Envelope
    exchange: str = ""
    routing_key: str = ""
    priority: int = 0
    due: datetime | None = None
    queue: Queue | None = None
