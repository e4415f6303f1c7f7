"""An executor's end of the two sockets to its worker: the inbox of calls and the line (see `wire.frames`)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from celeriac.wire.envelope import Envelope
from celeriac.wire.frames import (
    INBOX_LIMIT,
    Call,
    FrameBuffer,
    Interrupt,
    Outcome,
    Parcel,
    Ready,
    Update,
    decode_call,
    decode_down,
    frame,
)

__all__ = ["Link"]


class Link:
    """1. `take` receives the next call, in the order they were sent. Any thread that runs calls may call it.
    2. `send` writes one frame to the worker, whole, before it returns. Any thread.
    3. `listen` reads what the worker sends down the line until it ends; a thread of its own runs it.
    """

    def __init__(self, inbox: socket.socket, line: socket.socket) -> None:
        self._inbox = inbox
        self._line = line
        self._writing = threading.Lock()
        self._parcels: dict[int, Envelope] = {}
        self._arrived = threading.Condition()
        self._ended = False

    def take(self) -> Call | None:
        """Wait for a call; None when the worker sends no more."""
        packet = self._inbox.recv(2 * INBOX_LIMIT)
        if not packet:
            return None
        call = decode_call(packet)
        if call.envelope is None:
            return self._unpack(call)
        return call

    def _unpack(self, call: Call) -> Call | None:
        """Wait for the parcel that was put on the line before this call was sent."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._ended or call.number in self._parcels)
            envelope = self._parcels.pop(call.number, None)
            # Parcels of calls that the worker took back are never asked for.
            for number in [n for n in self._parcels if n < call.number]:
                del self._parcels[number]
        if envelope is None:
            return None
        return Call(
            call.number,
            envelope,
            call.queue,
            call.attempts,
            call.redelivered,
            call.settled,
            call.verdict,
        )

    def send(self, value: Ready | Outcome | Update) -> None:
        """Write one frame. Raises `OSError` when the worker is gone."""
        data = frame(value)
        with self._writing:
            self._line.sendall(data)

    def listen(self, interrupt: Callable[[Interrupt], None]) -> None:
        """Read the line until it ends, which means that the worker is gone."""
        frames = FrameBuffer()
        while data := self._receive():
            for each in frames.feed(data):
                match decode_down(each):
                    case Parcel(number=number, envelope=envelope):
                        with self._arrived:
                            self._parcels[number] = envelope
                            self._arrived.notify_all()
                    case Interrupt() as what:
                        interrupt(what)
        with self._arrived:
            self._ended = True
            self._arrived.notify_all()

    def _receive(self) -> bytes:
        try:
            return self._line.recv(256 * 1024)
        except OSError:
            return b""  # reset by the other side, or closed by this one

    def close(self) -> None:
        """Close both sockets; a thread in `take` or `listen` sees the end."""
        for each in (self._inbox, self._line):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side closed first
            each.close()
