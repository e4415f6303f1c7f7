"""One delivery on its way through this worker, from admission to settlement."""

from __future__ import annotations

import asyncio

from celeriac.brokers.base import Delivery
from celeriac.wire.frames import Outcome, TaskInfo, Verdict

__all__ = ["Work"]


class Work:
    """What the worker's loop knows of one borrowed delivery. Changed on the loop's thread only."""

    __slots__ = (
        "again",
        "decided",
        "delivery",
        "info",
        "key",
        "limit_hit",
        "lost",
        "number",
        "outcome",
        "settled",
        "size",
        "started",
        "task",
        "task_id",
        "timers",
        "verdict",
    )

    def __init__(self, delivery: Delivery, task: str, info: TaskInfo, verdict: Verdict | None = None) -> None:
        self.delivery = delivery
        self.task = task
        self.task_id = delivery.envelope.task_id
        #: What is called, and which try of it; None where the message does not say.
        retries = delivery.envelope.headers.get("retries", 0)
        self.key = (self.task_id, retries) if self.task_id and isinstance(retries, int) else None
        self.info = info
        #: How the call ended without running, if it did.
        self.verdict = verdict
        #: Number of the present hand-out to an executor; 0 while there is none.
        self.number = 0
        #: Bytes of that hand-out's frame.
        self.size = 0
        #: Monotonic time at which the executor came to it, as far as can be seen; 0.0 before.
        self.started = 0.0
        #: The delivery was settled before it ran (``acks_late=False``).
        self.settled = False
        #: What becomes of the delivery is decided, and on its way to the broker.
        self.decided = False
        #: What came of the call, until it is carried out.
        self.outcome: Outcome | None = None
        #: The same message, which came once more before that.
        self.again: Delivery | None = None
        #: The lease was lost: whatever comes of the call is dropped.
        self.lost = False
        #: The hard limit that passed, in seconds, once the executor was killed for it.
        self.limit_hit: float | None = None
        #: The timers of its limits, while it runs.
        self.timers: tuple[asyncio.TimerHandle, ...] = ()

    @property
    def settles_first(self) -> bool:
        """It has to be settled before an executor may see it."""
        return not self.info.acks_late and not self.settled and self.verdict is None
