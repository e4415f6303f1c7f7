"""Ids of tasks."""

from __future__ import annotations

from uuid import RFC_4122, UUID

from celeriac.ids import uuid


def test_an_id_is_a_random_uuid_as_text() -> None:
    text = uuid()
    assert str(UUID(text)) == text
    assert (UUID(text).version, UUID(text).variant) == (4, RFC_4122)
    assert uuid() != text
