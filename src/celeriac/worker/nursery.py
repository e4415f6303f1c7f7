"""The worker's handle on its nursery, the process that loads the app and forks executors."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable

from celeriac.errors import CeleriacError
from celeriac.wire.frames import (
    Boot,
    Exited,
    FrameBuffer,
    LoadFailed,
    Manifest,
    Spawn,
    Spawned,
    decode_nursery_up,
    frame,
)

__all__ = ["AppLoadFailed", "Nursery"]

#: Seconds a nursery may take to end before it is killed.
_PATIENCE = 2.0


class AppLoadFailed(CeleriacError):
    """The user's app could not be loaded; `traceback` is where."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class Nursery(asyncio.Protocol):
    """1. `start` runs the process and returns the app's manifest.
    2. `spawn` asks for an executor; `on_spawned` and `on_exited` tell of its birth and death.
    3. `on_lost` tells that the nursery itself died, and with it, by the kernel's hand, every executor.
    """

    def __init__(
        self,
        boot: Boot,
        *,
        on_spawned: Callable[[int, int], None],
        on_exited: Callable[[int, int], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._boot = boot
        self._on_spawned = on_spawned
        self._on_exited = on_exited
        self._on_lost = on_lost
        self._frames = FrameBuffer()
        self._manifest: asyncio.Future[Manifest] | None = None
        self._line: socket.socket | None = None
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = False
        self._loaded = False

    async def start(self) -> Manifest:
        """Start the process and wait until it has loaded the app. Raises `AppLoadFailed`."""
        loop = asyncio.get_running_loop()
        self._manifest = loop.create_future()
        self._frames = FrameBuffer()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "celeriac.executor",
                    "nursery",
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        # Ancillary data needs the bare socket: a transport over a duplicate reads, `_line` writes.
        self._line = ours.dup()
        self._transport, _ = await loop.create_connection(lambda: self, sock=ours)
        self._line.sendall(frame(self._boot))
        return await self._manifest

    def spawn(self, index: int, inbox: socket.socket, line: socket.socket) -> None:
        """Have an executor forked that owns these two ends; the caller closes its copies."""
        if self._line is not None:
            try:
                socket.send_fds(self._line, [frame(Spawn(index))], [inbox.fileno(), line.fileno()])
            except ConnectionError:
                pass  # connection_lost follows and starts another nursery

    def data_received(self, data: bytes) -> None:
        for each in self._frames.feed(data):
            match decode_nursery_up(each):
                case Manifest() as manifest:
                    self._loaded = True
                    if self._manifest is not None and not self._manifest.done():
                        self._manifest.set_result(manifest)
                case LoadFailed(message=message, traceback=traceback):
                    self._closing = True
                    if self._manifest is not None and not self._manifest.done():
                        self._manifest.set_exception(AppLoadFailed(message, traceback))
                case Spawned(index=index, pid=pid):
                    self._on_spawned(index, pid)
                case Exited(pid=pid, status=status):
                    self._on_exited(pid, status)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._manifest is not None and not self._manifest.done():
            self._manifest.set_exception(
                AppLoadFailed("the process that loads the app died while loading it")
            )
        elif not self._closing:
            self._on_lost()

    def close(self) -> None:
        """End the process: it sees the end of its line."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
        if self._line is not None:
            # The transport closes its duplicate of the socket later: the end has to be said here.
            try:
                self._line.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the nursery is dead already
            self._line.close()
            self._line = None
        if self._process is not None:
            if not self._loaded:
                self._process.kill()  # it is in the middle of the user's imports and hears nothing
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
