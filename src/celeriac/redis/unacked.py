"""What Celery's workers took and did not settle: swept as they do it themselves, so that nothing stays behind when they
are gone (wire-protocol §5.2)."""

from __future__ import annotations

import json
import logging
import math
import secrets
import time
from collections.abc import Sequence
from typing import Any

from celeriac.clock import Clock
from celeriac.redis.bindings import Bindings
from celeriac.redis.layout import Layout
from celeriac.redis.links import Links
from celeriac.redis.scripts import Script
from celeriac.wire.envelope import Envelope, Outgoing

__all__ = ["Unacked"]

logger = logging.getLogger("celeriac.brokers")

_RESTORE = Script("restore.lua")
_UNLOCK = Script("unlock.lua")
#: Messages that are looked at in one go.
_SLICE = 100


class Unacked:
    """Puts back what a worker of Celery's has had for longer than `visibility_timeout` seconds.

    `mutex_expires`: seconds after which somebody else may sweep, whatever became of us.
    """

    def __init__(
        self,
        links: Links,
        layout: Layout,
        bindings: Bindings,
        clock: Clock,
        *,
        visibility_timeout: float,
        mutex_expires: float,
    ) -> None:
        self._links = links
        self._layout = layout
        self._bindings = bindings
        self._clock = clock
        self._visibility_timeout = visibility_timeout
        self._mutex_expires = max(1, round(mutex_expires * 1000))
        #: How many of the overdue ones are known to stay, where a sweep had no time for all.
        self._goes_on_at: int | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether the last sweep had no time for all of it."""
        return self._goes_on_at is not None

    def sweep(self, until: float = math.inf) -> int:
        """Returns how many were put back; 0 too where somebody else is at it.

        It ends at the monotonic instant `until`, and the next one goes on there.
        """
        layout = self._layout
        passed_over, self._goes_on_at = self._goes_on_at or 0, None
        [there] = self._links.ask(("EXISTS", layout.unacked_index))
        if not there:
            return 0
        token = secrets.token_hex(16)
        [locked] = self._links.ask(("SET", layout.unacked_mutex, token, "NX", "PX", self._mutex_expires))
        if not locked:
            return 0
        try:
            return self._sweep(passed_over, until)
        finally:
            self._links.run(_UNLOCK, [layout.unacked_mutex], [token])

    def _sweep(self, passed_over: int, until: float) -> int:
        latest = self._clock.now().timestamp() - self._visibility_timeout
        restored = 0
        while True:
            command = (
                "ZRANGEBYSCORE",
                self._layout.unacked_index,
                0,
                repr(latest),
                "LIMIT",
                passed_over,
                _SLICE,
            )
            [tags] = self._links.ask(command)
            for tag in tags:
                moved = self._restore(tag)
                if moved is None:
                    passed_over += 1
                else:
                    restored += moved
                if time.monotonic() >= until:
                    self._goes_on_at = passed_over
                    return restored
            if len(tags) < _SLICE:
                return restored

    def _restore(self, tag: bytes) -> int | None:
        """1: it was put back; 0: it was settled meanwhile; None: it stays."""
        layout = self._layout
        keys = [layout.unacked, layout.unacked_index]
        [entry] = self._links.ask(("HGET", layout.unacked, tag))
        if entry is None:
            return self._links.run(_RESTORE, keys, [tag])
        try:
            document, exchange, routing_key = json.loads(entry)
            lists = self._lists(document, exchange, routing_key)
        except (ValueError, TypeError, AttributeError) as exc:
            logger.error("Celery's unsettled message %r cannot be read, and stays where it is: %s", tag, exc)
            return None
        if not lists:
            logger.error(
                "Celery's unsettled message %r goes nowhere, and stays where it is: no queue is bound to exchange %r "
                "with key %r", tag, exchange, routing_key,
            )  # fmt: skip
            return None
        message = json.dumps(document)
        return self._links.run(_RESTORE, [*keys, *lists], [tag, *[message for _ in lists]])

    def _lists(self, document: Any, exchange: str, routing_key: str) -> Sequence[str]:
        """Where the message goes; marks it as one that somebody had before."""
        headers: dict[str, Any] = document.setdefault("headers", {})
        properties: dict[str, Any] = document.setdefault("properties", {})
        headers["redelivered"] = True
        properties.setdefault("delivery_info", {})["redelivered"] = True
        priority = properties.get("priority")
        step = self._layout.step(priority if isinstance(priority, int) else 0)
        envelope = Envelope(b"", "", "", headers, {})
        [queues] = self._bindings.routes([Outgoing(envelope, exchange, routing_key)])
        return [self._layout.ready(queue, step) for queue in queues]
