"""Ids of tasks."""

from __future__ import annotations

import time
from uuid import RFC_4122, UUID

from celeriac.ids import uuid


def test_an_id_is_a_uuid_as_text() -> None:
    text = uuid()
    assert str(UUID(text)) == text
    assert (UUID(text).version, UUID(text).variant) == (7, RFC_4122)
    assert uuid() != text


def test_ids_grow_with_time() -> None:
    before = time.time_ns() // 1_000_000
    milliseconds = [int(uuid().replace("-", "")[:12], 16) for _ in range(1000)]
    assert milliseconds == sorted(milliseconds)
    assert before <= milliseconds[0]
    assert milliseconds[-1] <= time.time_ns() // 1_000_000
