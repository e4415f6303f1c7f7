"""How much a worker asks its broker for: what its executors can use, less where caution says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from celeriac.worker.caution import Caution
from celeriac.worker.dispatch import Dispatcher
from celeriac.worker.work import Work

__all__ = ["Pacer"]


class Pacer:
    """1. `open` begins to tell the fetcher, by `set_room`, how many deliveries this worker can use.
    2. `update` does so again; to be called whenever that may have changed.
    3. `sift` says which of those that came are kept.
    4. `close` ends it.

    Lives on the loop.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._caution = Caution()
        self._set_room: Callable[[int], None] | None = None
        #: Updates when caution has lasted long enough.
        self._timer: asyncio.TimerHandle | None = None

    def open(self, set_room: Callable[[int], None]) -> None:
        self._set_room = set_room
        self.update()

    def close(self) -> None:
        self._set_room = None
        if self._timer is not None:
            self._timer.cancel()

    def update(self) -> None:
        if self._set_room is None:
            return
        dispatcher, now = self._dispatcher, time.monotonic()
        self._set_room(
            self._caution.room(dispatcher.room(), free=dispatcher.free(), held=dispatcher.held(), now=now)
        )
        if self._timer is None and (wait := self._caution.waits(now)) is not None:
            self._timer = asyncio.get_running_loop().call_later(wait, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self.update()

    def sift(self, works: list[Work]) -> tuple[list[Work], list[Work]]:
        """Those that are kept here, and those that go back."""
        kept = self._caution.sift(
            [1 if each.verdict else each.delivery.attempts for each in works],
            free=self._dispatcher.free(),
            held=self._dispatcher.held(),
            now=time.monotonic(),
        )
        return works[:kept], works[kept:]
