"""`Connection`: one AMQP connection after its handshake: frames, heartbeats, and nothing that waits for ever.

The socket does not block; whatever waits, waits here and with a limit. While it waits, heartbeats go out in time.
"""

from __future__ import annotations

import os
import select
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from celeriac.amqp import methods
from celeriac.amqp.channel import Call, Channel
from celeriac.amqp.driver import Opened
from celeriac.errors import ConnectionLost, OperationalError

__all__ = ["Connection", "wait_for"]

#: Bytes read at once.
_CHUNK = 1 << 18
#: Seconds that writing a few bytes may take: then nobody reads on the other side, and has not for long.
_SEND_TIMEOUT = 10.0
#: Seconds that an answer may take, where the caller does not say.
_CALL_TIMEOUT = 10.0

_frame_head = struct.Struct(">BHI").unpack_from
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connection:
    """1. `channel` opens a channel; channels make methods and get what the server sends them.
    2. `read` takes in what is there, `pump` waits for it, `send` writes; `tick` keeps the connection alive.
    3. `close` says goodbye, `drop` does not.

    Not thread-safe by itself: whoever uses it, or a channel of it, holds `lock`, and may wait for the socket
    (`fileno`) without. It belongs to the process that opened it (`is_usable`); a forked child drops it.

    Every method that touches the socket raises `ConnectionLost` once the connection is; `lost` is that error.
    """

    def __init__(self, opened: Opened, where: str, *, patience: float | None) -> None:
        #: For messages: which server.
        self.where = where
        self.lock = threading.RLock()
        self.frame_max = opened.frame_max
        self.lost: ConnectionLost | None = None
        #: Why the server takes no messages now; None: it does.
        self.blocked: str | None = None
        self._heartbeat = opened.heartbeat
        self._patience = patience
        self._pid = os.getpid()
        self._socket = opened.socket
        self._socket.setblocking(False)
        self._is_tls = isinstance(self._socket, ssl.SSLSocket)
        #: What was read and is not a whole frame yet.
        self._rest = opened.read
        self._channels: dict[int, Channel] = {}
        self._said_goodbye = False
        #: What is to be written when the frame that is being written is complete; None: none is.
        self._queued: list[bytes] | None = None
        self._sent_at = self._received_at = time.monotonic()

    @property
    def is_usable(self) -> bool:
        """It is open, as far as is known, and this process's own."""
        return self.lost is None and self._pid == os.getpid()

    def fileno(self) -> int:
        return self._socket.fileno()

    # -- channels --------------------------------------------------------------------------------------------

    def channel(self, *, timeout: float = _CALL_TIMEOUT) -> Channel:
        """Open a channel."""
        number = next(n for n in range(1, 2048) if n not in self._channels)
        channel = Channel(self, number)
        self._channels[number] = channel
        channel.call(methods.channel_open(number), methods.CHANNEL_OPEN_OK, timeout=timeout)
        return channel

    def forget(self, channel: Channel) -> None:
        """The channel is closed on both sides: its number is free."""
        self._channels.pop(channel.number, None)

    def wait(self, call: Call, timeout: float = _CALL_TIMEOUT) -> bytes:
        """The answer to a call. Raises `OperationalError` if it does not come in time, or is a refusal."""
        deadline = time.monotonic() + timeout
        while not call.done:
            left = deadline - time.monotonic()
            if left <= 0 and not self.read():
                raise OperationalError(f"{self.where} did not answer within {timeout:g}s")
            self.pump(left)
        return call.result()

    # -- bytes -----------------------------------------------------------------------------------------------

    def send(self, data: bytes, *, timeout: float = _SEND_TIMEOUT) -> None:
        """Write whole frames. If the other side does not take them in time, the connection is lost."""
        self._check()
        if self._queued is not None:
            self._queued.append(data)
            return
        self._queued = []
        try:
            self._write(data, timeout)
            while self._queued:
                self._write(self._queued.pop(0), timeout)
        finally:
            self._queued = None
        self._sent_at = time.monotonic()

    def _write(self, data: bytes, timeout: float) -> None:
        view = memoryview(data)
        deadline = time.monotonic() + timeout
        while view:
            try:
                view = view[self._socket.send(view) :]
            except _NOT_NOW:
                if time.monotonic() >= deadline:
                    self._lose(f"takes no data (waited {timeout:g}s)")
                # It may take nothing because we do not read what it says.
                wait_for([self.fileno()], self.fileno(), min(1.0, max(0.0, deadline - time.monotonic())))
                self.read()
            except (OSError, ValueError) as exc:
                self._lose(str(exc) or type(exc).__name__)

    def read(self) -> bool:
        """Take in what is there, without waiting; returns whether there was anything."""
        self._check()
        found = False
        while True:
            try:
                data = self._socket.recv(_CHUNK)
            except _NOT_NOW:
                return found
            except (OSError, ValueError) as exc:
                self._lose(str(exc) or type(exc).__name__)
            if not data:
                self._lose("closed the connection")
            found = True
            self._received_at = time.monotonic()
            self._take_in(data)
            if len(data) < _CHUNK and not self._is_tls:
                return True

    def pump(self, timeout: float) -> bool:
        """Wait until something came, at most `timeout` seconds; returns whether it did."""
        deadline = time.monotonic() + timeout
        while not self.read():
            self.tick()
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            wait_for([self.fileno()], None, min(left, self.until_tick()))
        return True

    def tick(self) -> None:
        """Send a heartbeat if it is time, and look how long the server has been silent. After a `read`."""
        now = time.monotonic()
        if self._heartbeat and now - self._sent_at >= 0.4 * self._heartbeat:
            self.send(methods.HEARTBEAT)
        silent = now - self._received_at
        if self._heartbeat and self._patience is not None and silent > self._patience:
            self._lose(f"has been silent for {silent:.0f}s")

    def until_tick(self) -> float:
        """Seconds until `tick` is due."""
        if not self._heartbeat:
            return 60.0
        return max(0.0, self._sent_at + 0.4 * self._heartbeat - time.monotonic())

    def _take_in(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        channels = self._channels
        while end - at >= 8:
            kind, number, size = _frame_head(data, at)
            stop = at + 8 + size
            if stop > end:
                break
            if data[stop - 1] != methods.FRAME_END:
                self._lose("sent what is not AMQP")
            payload = data[at + 7 : stop - 1]
            at = stop
            if number:
                channel = channels.get(number)
                if channel is not None:
                    channel.take_in(kind, payload)
            elif kind == 1:
                self._control(payload)
        self._rest = data[at:]

    def _control(self, payload: bytes) -> None:
        """A method of the connection itself."""
        match payload[:4]:
            case methods.CONNECTION_CLOSE:
                reason = methods.read_closed(payload).text
                try:
                    self._socket.send(methods.connection_close_ok())
                except OSError:
                    pass  # it is closed either way
                self._lose(f"closed the connection: {reason}")
            case methods.CONNECTION_CLOSE_OK:
                self._said_goodbye = True
            case methods.CONNECTION_BLOCKED:
                self.blocked = methods.read_shortstr(payload, 4)[0]
            case methods.CONNECTION_UNBLOCKED:
                self.blocked = None
            case _:
                pass

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self, *, timeout: float = 2.0) -> None:
        """Say goodbye, wait for the answer, close. Raises nothing; what is unsettled goes back."""
        if self.is_usable:
            try:
                self.send(methods.connection_close(), timeout=timeout)
                deadline = time.monotonic() + timeout
                while not self._said_goodbye and (left := deadline - time.monotonic()) > 0:
                    self.pump(left)
            except ConnectionLost:
                return
        self.drop()

    def drop(self) -> None:
        """Close the socket, in this process only; whoever waits for it is not woken."""
        if self.lost is None:
            self.lost = ConnectionLost(f"the connection to {self.where} was closed")
        self._socket.close()
        for channel in self._channels.values():
            channel.fail(self.lost)

    def _check(self) -> None:
        if self.lost is not None:
            raise ConnectionLost(str(self.lost))

    def _lose(self, reason: str) -> NoReturn:
        self.lost = ConnectionLost(f"{self.where} {reason}")
        self.drop()
        raise self.lost


def wait_for(read: Sequence[int], write: int | None, timeout: float) -> None:
    """Wait until one of these can be read or written, or is closed, or the time is over, or a signal came."""
    if any(fd < 0 for fd in read):
        return
    if not hasattr(select, "poll"):  # Windows
        select.select(read, () if write is None else (write,), (), timeout)
        return
    poll = select.poll()
    for fd in read:
        poll.register(fd, select.POLLIN)
    if write is not None:
        poll.register(write, select.POLLIN | select.POLLOUT)
    # Rounded up: a wait that ends too early is repeated, which spins.
    poll.poll(max(0, int(timeout * 1000 + 0.999)))
