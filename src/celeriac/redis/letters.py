"""A message as the bytes that lie in Redis, and what they tell beside the envelope."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from celeriac.errors import DecodeError
from celeriac.ids import uuid
from celeriac.wire.envelope import Envelope, from_virtual, to_virtual

__all__ = ["Letter", "marked", "read", "write"]

# In front of everything else, put there by `marked` in queues.lua; with blanks once Celery wrote it anew.
_MARK = b'{"celeriac-attempts":'
_MARKED = re.compile(rb'\{"celeriac-attempts": ?(\d+), ?')


class Letter(NamedTuple):
    """What was read from the bytes of a message."""

    envelope: Envelope
    #: How often it was handed out in vain.
    attempts: int
    #: Some consumer, ours or Celery's, had it before.
    redelivered: bool


def write(envelope: Envelope, exchange: str, routing_key: str) -> bytes:
    """The bytes of a message that nobody had yet."""
    return to_virtual(envelope, exchange=exchange, routing_key=routing_key, delivery_tag=uuid())


def marked(data: bytes, attempts: int) -> bytes:
    """What `write` gave, as a message that was handed out so often in vain."""
    return b"%s%d,%s" % (_MARK, attempts, data[1:])


def read(data: bytes, queue: str) -> Letter:
    """Read the bytes of a message from a queue.

    What is no message keeps its bytes as a body of no known kind: whoever gets it will say why it is refused.
    """
    attempts, redelivered = 0, False
    if data.startswith(_MARK) and (mark := _MARKED.match(data)):
        attempts, redelivered = int(mark[1]), True
        data = b"{" + data[mark.end() :]
    try:
        envelope = from_virtual(data)
    except DecodeError:
        return Letter(Envelope(data, "application/data", "binary", {}, {}), attempts, redelivered)
    headers, properties = envelope.headers, envelope.properties
    properties.pop("delivery_tag", None)
    if isinstance(properties.get("delivery_info"), dict):
        target: dict[str, Any] = properties["delivery_info"]
        redelivered |= bool(target.pop("redelivered", False))
        # The usual place is not worth being told.
        if not target.get("exchange") and target.get("routing_key", queue) == queue:
            del properties["delivery_info"]
    redelivered |= bool(headers.pop("redelivered", False))
    return Letter(envelope, attempts, redelivered)
