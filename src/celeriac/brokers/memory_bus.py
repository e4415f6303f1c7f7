"""Broadcasting within this process."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from celeriac.brokers.bus import Bus, Listener
from celeriac.topology import Queue, queues_for
from celeriac.wire.envelope import Envelope, Outgoing

__all__ = ["MemoryBus"]


class MemoryBus(Bus):
    """Listeners of one broker object."""

    def __init__(self) -> None:
        #: Guards all listeners. Reentrant, because a signal handler may call `Listener.wake`.
        self.changed = threading.Condition(threading.RLock())
        self.listeners: list[MemoryListener] = []

    def send(self, batch: Sequence[Outgoing]) -> None:
        with self.changed:
            for each in batch:
                for listener in self.listeners:
                    if queues_for(each.exchange, each.routing_key, [listener.queue]) == [listener.queue.name]:
                        listener.arrived.append(each.envelope)
            self.changed.notify_all()

    def listen(self, queue: Queue) -> MemoryListener:
        listener = MemoryListener(self, queue)
        with self.changed:
            self.listeners.append(listener)
        return listener


class MemoryListener(Listener):
    def __init__(self, bus: MemoryBus, queue: Queue) -> None:
        self.queue = queue
        self.arrived: deque[Envelope] = deque()
        self._bus = bus
        self._woken = False

    def receive(self, timeout: float) -> Sequence[Envelope]:
        deadline = time.monotonic() + timeout
        with self._bus.changed:
            while not self.arrived and not self._woken and (left := deadline - time.monotonic()) > 0:
                self._bus.changed.wait(left)
            self._woken = False
            came = list(self.arrived)
            self.arrived.clear()
            return came

    def wake(self) -> None:
        with self._bus.changed:
            self._woken = True
            self._bus.changed.notify_all()

    def close(self) -> None:
        with self._bus.changed:
            if self in self._bus.listeners:
                self._bus.listeners.remove(self)
        self.wake()
