"""The seam to broadcasting: told to whoever listens now, at most once. Remote control, its replies, and events.

What travels here is worth nothing a minute later, so nothing is kept, confirmed or counted. Exchanges mean on a bus
what they mean to Celery's nodes on the same server (wire-protocol §3, §5, §10, §11): a *fanout* exchange reaches all
listeners, a *topic* exchange those whose pattern fits, a *direct* one the listener that bound the routing key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from celeriac.topology import Queue
from celeriac.wire.envelope import Envelope, Outgoing

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Bus", "Listener"]


class Bus(ABC):
    """Sends to, and makes, listeners. Thread-safe; usable again after a fork; constructing does no I/O.

    Methods raise `ConnectionLost` when the server cannot be reached, `OperationalError` for what it refuses.
    """

    @abstractmethod
    def send(self, batch: Sequence[Outgoing]) -> None:
        """Tell whoever listens; nobody is no error. Of each, `exchange`, `routing_key` and the envelope count."""

    @abstractmethod
    def listen(self, queue: Queue) -> Listener:
        """Receive what is sent to the queue's exchange from now on. The queue lives as long as its listener; one that
        died leaves nothing behind for longer than ``queue.expires`` seconds (an hour where it is None)."""


class Listener(ABC):
    """One place where broadcasts arrive. `receive` is for one thread, `wake` and `close` for any."""

    @abstractmethod
    def receive(self, timeout: float) -> Sequence[Envelope]:
        """What came, oldest first: at least one, or nothing after `timeout` seconds or a wake.

        Raises `ConnectionLost`; the next call listens anew. What was sent meanwhile is lost.
        """

    @abstractmethod
    def wake(self) -> None:
        """Make a blocked `receive` return now. Also from signal handlers."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening and delete the queue."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
