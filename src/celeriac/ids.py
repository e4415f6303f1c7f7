"""Ids of tasks."""

from __future__ import annotations

import os

__all__ = ["uuid"]


def uuid() -> str:
    """A new random id: what ``str(uuid.uuid4())`` gives, in half the time."""
    digits = bytearray(os.urandom(16))
    digits[6] = digits[6] & 0x0F | 0x40
    digits[8] = digits[8] & 0x3F | 0x80
    text = digits.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
