"""What listeners of a server have in common: a connection that is opened, read, lost, and opened anew."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from celeriac.brokers.bus import Listener
from celeriac.errors import OperationalError
from celeriac.topology import Queue
from celeriac.wire.envelope import Envelope

__all__ = ["Alarm", "ConnectedListener", "opened"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
L = TypeVar("L", bound="ConnectedListener")


class Alarm:
    """What one thread waits on beside a socket, and any thread, or a signal handler, can ring.

    A ring is kept until a wait has seen it. After `close` nothing waits and rings are ignored.
    """

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)
        self._there.setblocking(False)

    def ring(self) -> None:
        """End the present wait, or the next one."""
        try:
            self._there.send(b"!")
        except OSError:
            pass  # full, so the next wait ends anyway; or closed, so there is none

    def wait(self, fileno: int, timeout: float) -> bool:
        """Until the socket of that number can be read, a ring or the end of `timeout` seconds. True for a ring."""
        with selectors.DefaultSelector() as selector:
            selector.register(fileno, selectors.EVENT_READ)
            selector.register(self._here, selectors.EVENT_READ)
            selector.select(max(0.0, timeout))
        try:
            return bool(self._here.recv(4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._here.close()
        self._there.close()


class ConnectedListener(Listener, ABC):
    """Reads one connection, which belongs to the process that opened it. A subclass says how.

    Made by `opened`, so that it listens from the beginning. The methods that a subclass writes are called by one
    thread at a time, within `_errors`; all but `_leave` may find the connection lost.
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._pid = os.getpid()
        self._alarm = Alarm()
        #: Held by who uses the connection.
        self._using = threading.Lock()
        self._closed = False

    @property
    @abstractmethod
    def _is_open(self) -> bool: ...

    @abstractmethod
    def _open(self) -> None:
        """Connect, and listen. What of it was done before an error is undone by `_hang_up`."""

    @abstractmethod
    def _arrived(self) -> list[Envelope]:
        """What has come, without waiting."""

    @abstractmethod
    def _tend(self) -> float:
        """See that the server says something now and then; returns seconds until that is to be done again.

        Raises `ConnectionLost` where it has been silent for too long. To be called after `_arrived`.
        """

    @abstractmethod
    def _fileno(self) -> int: ...

    @abstractmethod
    def _leave(self) -> None:
        """Delete the queue."""

    @abstractmethod
    def _hang_up(self) -> None:
        """Close the connection if there is one, and say nothing to the server."""

    def _errors(self) -> AbstractContextManager[None]:
        """Makes our errors of the driver's."""
        return nullcontext()

    def open(self) -> None:
        with self._using:
            self._guarded(self._open)

    def receive(self, timeout: float) -> Sequence[Envelope]:
        deadline = time.monotonic() + timeout
        with self._using:
            return self._guarded(lambda: self._receive(deadline))

    def _receive(self, deadline: float) -> list[Envelope]:
        while not self._closed:
            if not self._is_open:
                self._open()
            if arrived := self._arrived():
                return arrived
            left = min(deadline - time.monotonic(), self._tend())
            if self._alarm.wait(self._fileno(), left) or time.monotonic() >= deadline:
                return [] if self._closed else self._arrived()
        return []

    def wake(self) -> None:
        self._alarm.ring()

    def close(self) -> None:
        self._closed = True
        if self._pid != os.getpid():
            # The lock, and what is left at the server, are the parent's.
            self._hang_up()
            self._alarm.close()
            return
        self._alarm.ring()
        with self._using:
            try:
                if self._is_open:
                    self._guarded(self._leave)
            except OperationalError as exc:
                logger.debug("%s: left to expire: %s", self.queue.name, exc)
            self._hang_up()
            self._alarm.close()

    def _guarded(self, what: Callable[[], T]) -> T:
        """Whatever goes wrong, the connection is not used again: nobody knows what was read of it."""
        try:
            with self._errors():
                return what()
        except BaseException:
            self._hang_up()
            raise


def opened(listener: L) -> L:
    """The listener, listening. Where it cannot, nothing of it is left."""
    try:
        listener.open()
    except BaseException:
        listener.close()
        raise
    return listener
