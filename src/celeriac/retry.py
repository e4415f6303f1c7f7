"""When to try again, as pure functions: after a failed task (backoff, jitter) and after a failed publish."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["backoff", "intervals"]


def backoff(
    retries: int,
    *,
    factor: float,
    maximum: float,
    jitter: bool,
    rng: Callable[[], float] = random.random,
) -> float:
    """Seconds to wait before the next try: ``factor * 2**retries``, at most `maximum`.

    `jitter` spreads it evenly between 0 and that, so that tasks which failed together do not return together.
    """
    # 2**1024 is no float; no maximum needs that many retries to be reached
    delay = min(maximum, factor * 2.0 ** min(retries, 1000))
    return max(0.0, delay * rng() if jitter else delay)


def intervals(policy: Mapping[str, Any]) -> Iterator[float]:
    """The pauses between attempts that a ``task_publish_retry_policy`` allows: ``max_retries`` of them
    (None: no end), from ``interval_start`` by ``interval_step`` up to ``interval_max`` seconds."""
    pause = float(policy.get("interval_start") or 0.0)
    step = float(policy.get("interval_step") or 0.0)
    longest = float(policy.get("interval_max") or 0.0)
    left = policy.get("max_retries", 3)
    while left is None or left > 0:
        yield min(pause, longest)
        pause += step
        left = None if left is None else left - 1
