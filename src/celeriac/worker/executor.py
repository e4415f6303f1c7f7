"""The worker's handle on one executor: its two sockets, and what it has been handed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

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
    decode_up,
    encode,
    frame,
)
from celeriac.worker.work import Work

__all__ = ["Executor"]

#: Bytes the kernel may keep for one executor's inbox.
_INBOX_BUFFER = 1 << 20


class Executor(asyncio.Protocol):
    """1. `send` puts a call into the executor's inbox, which is a queue in the kernel.
    2. `take_back` reads the calls that were not started out of it again, whatever the executor is doing.
    3. Outcomes and updates are reported as they come; `drain` reads what a dead executor still said.

    `handed` keeps the order in which calls were sent, so that the first `slots` of it are the running ones.
    """

    def __init__(
        self,
        index: int,
        *,
        on_ready: Callable[[Executor], None],
        on_outcome: Callable[[Executor, Outcome], None],
        on_update: Callable[[Executor, Update], None],
        on_batch: Callable[[], None],
        on_silent: Callable[[Executor], None],
    ) -> None:
        self.index = index
        self.pid = 0
        self.slots = 1
        #: Handed out and unanswered, oldest first, by call number.
        self.handed: dict[int, Work] = {}
        #: Slots kept for calls that are being settled before they are sent.
        self.reserved = 0
        self.ready = False
        #: No call is handed ahead until the running one is done: it takes longer than it was thought to.
        self.stalled = False
        #: Seconds and bytes of the calls handed ahead of the running ones, by estimate.
        self.ahead = 0.0
        self.ahead_bytes = 0
        #: Calls it has answered so far.
        self.answered = 0
        #: Stopping or dead: gets no more calls.
        self.retired = False
        self._on_ready = on_ready
        self._on_outcome = on_outcome
        self._on_update = on_update
        self._on_batch = on_batch
        self._on_silent = on_silent
        self._frames = FrameBuffer()
        self._transport: asyncio.Transport | None = None
        self._inbox, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._inbox.setblocking(False)
        _enlarge(self._inbox)
        self._line, self._their_line = socket.socketpair()

    async def open(self, launch: Callable[[int, socket.socket, socket.socket], None]) -> None:
        """Hand the executor's ends to whoever launches it and start to listen."""
        launch(self.index, self._theirs, self._their_line)
        self._their_line.close()
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_connection(lambda: self, sock=self._line)

    @property
    def idle(self) -> bool:
        return len(self.handed) + self.reserved < self.slots

    def send(self, number: int, work: Work) -> bool:
        """Hand over a call; False when the inbox is full or closed."""
        delivery = work.delivery
        call = Call(
            number,
            delivery.envelope,
            delivery.queue,
            delivery.attempts,
            delivery.redelivered,
            work.settled,
            work.verdict,
        )
        packet = encode(call)
        work.size = len(packet)
        if len(packet) > INBOX_LIMIT:
            packet = self._ship(call)
        try:
            self._inbox.send(packet)
        except (BlockingIOError, ConnectionError, OSError):
            return False
        work.number = number
        self.handed[number] = work
        return True

    def _ship(self, call: Call) -> bytes:
        """Send the envelope of a large call down the line; returns the call without it."""
        assert self._transport is not None and call.envelope is not None
        self._transport.write(frame(Parcel(call.number, call.envelope)))
        return encode(
            Call(call.number, None, call.queue, call.attempts, call.redelivered, call.settled, call.verdict)
        )

    def take_back(self) -> list[Work]:
        """Read every unstarted call out of the inbox, oldest first: the executor will not see them."""
        returned: list[Work] = []
        while True:
            try:
                packet = self._theirs.recv(2 * INBOX_LIMIT, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionError):
                break
            if not packet:
                break
            work = self.handed.pop(decode_call(packet).number, None)
            if work is not None:
                work.number = 0
                returned.append(work)
        return returned

    def interrupt(self, number: int, seconds: float, *, hard: bool = False) -> None:
        """Raise a limit's exception inside a running call."""
        if self._transport is not None:
            self._transport.write(frame(Interrupt(number, seconds, hard)))

    def retire(self) -> None:
        """Send no more calls: the executor ends after the running ones. Take back first."""
        self.retired = True
        self._inbox.close()

    def drain(self) -> None:
        """Read what is left on the line of an executor that died."""
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.pause_reading()
        line = self._line
        while True:
            try:
                data = line.recv(1 << 18)
            except (BlockingIOError, ConnectionError):
                break
            if not data:
                break
            self.data_received(data)

    def close(self) -> None:
        """Release the sockets; a living executor takes the end of its line for the end of its worker."""
        self.retired = True
        self._inbox.close()
        self._theirs.close()
        if self._transport is not None:
            self._transport.abort()
        else:
            self._line.close()

    def data_received(self, data: bytes) -> None:
        for each in self._frames.feed(data):
            match decode_up(each):
                case Outcome() as outcome:
                    self._on_outcome(self, outcome)
                case Update() as update:
                    self._on_update(self, update)
                case Ready(pid=pid):
                    self.pid = pid
                    self.ready = True
                    self._on_ready(self)
        self._on_batch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_silent(self)


def _enlarge(inbox: socket.socket) -> None:
    """Ask for a larger kernel queue; where that is not allowed the default holds some hundred calls."""
    try:
        inbox.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_SNDBUFFORCE", 32), _INBOX_BUFFER)
    except OSError:
        inbox.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _INBOX_BUFFER)
