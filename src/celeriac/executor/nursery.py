"""The process that loads the app once and forks executors from it.

1. `main` reads a `Boot` frame, imports the user's app and answers with its `Manifest`, or `LoadFailed`.
2. For each `Spawn` frame, which brings the two sockets of a new executor, it forks. It holds no connection
   and no threads, so that what it forks is sound; where the user's modules started threads, it starts each
   executor as a fresh interpreter instead and says so once.
3. It reaps: each executor that died is told by an `Exited` frame.

It ends when its worker does, and its executors with it. Signals to the process group do not reach it.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from celeriac.errors import CeleriacError
from celeriac.executor.main import die_with_parent, execute, ignore_group_signals
from celeriac.executor.manifest import load, manifest_of
from celeriac.wire.frames import (
    Boot,
    Exited,
    FrameBuffer,
    LoadFailed,
    Spawn,
    Spawned,
    decode_nursery_down,
    frame,
)

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["Nursery", "main"]

logger = logging.getLogger("celeriac.executor")


def main(line_fd: int, parent: int) -> int:
    """Entry of ``python -m celeriac.executor nursery``; returns the exit status."""
    die_with_parent(parent)
    ignore_group_signals()
    line = socket.socket(fileno=line_fd)
    frames = FrameBuffer()
    boot = _read_boot(line, frames)
    if boot is None:
        return 1
    try:
        app = load(boot)
        manifest = manifest_of(app)
    except CeleriacError as exc:
        line.sendall(frame(LoadFailed(str(exc), "")))
        return 1
    except Exception as exc:  # noqa: BLE001 boundary: what the user's modules raise is told to the worker
        line.sendall(frame(LoadFailed(f"{type(exc).__name__}: {exc}", traceback.format_exc())))
        return 1
    line.sendall(frame(manifest))
    Nursery(app, boot, line, frames).run()
    return 0


def _read_boot(line: socket.socket, frames: FrameBuffer) -> Boot | None:
    while data := line.recv(65536):
        for each in frames.feed(data):
            boot = decode_nursery_down(each)
            return boot if isinstance(boot, Boot) else None
    return None


class Nursery:
    """Forks executors on request and reaps them; see the module's description."""

    def __init__(self, app: Celeriac, boot: Boot, line: socket.socket, frames: FrameBuffer) -> None:
        self._app = app
        self._boot = boot
        self._line = line
        self._frames = frames
        self._alive: set[int] = set()
        self._sockets: deque[int] = deque()
        self._fork = threads_of_this_process() == 1
        if not self._fork:
            logger.warning("the app starts threads when it is imported: executors are started, not forked")

    def run(self) -> None:
        """Serve until the line ends."""
        # Executors share these pages as long as the collector does not write to them.
        gc.collect()
        gc.freeze()
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        while True:
            readable, _, _ = select.select([self._line, wake], [], [])
            if wake in readable:
                os.read(wake, 4096)
                self._reap()
            if self._line in readable and not self._serve():
                return

    def _serve(self) -> bool:
        """Answer what the worker sent; False at the end of the line."""
        data, fds, _, _ = socket.recv_fds(self._line, 65536, 16)
        if not data:
            return False
        self._sockets.extend(fds)
        for each in self._frames.feed(data):
            match decode_nursery_down(each):
                case Spawn(index=index):
                    self._spawn(index, self._sockets.popleft(), self._sockets.popleft())
                case Boot():
                    pass  # a nursery loads one app
        return True

    def _spawn(self, index: int, inbox: int, line: int) -> None:
        pid = self._forked(index, inbox, line) if self._fork else self._started(index, inbox, line)
        os.close(inbox)
        os.close(line)
        self._alive.add(pid)
        self._line.sendall(frame(Spawned(index, pid)))

    def _forked(self, index: int, inbox: int, line: int) -> int:
        nursery = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        # From here on: the executor. It must never return into the nursery's code.
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            die_with_parent(nursery)
            self._line.close()
            execute(self._app, self._boot, socket.socket(fileno=inbox), socket.socket(fileno=line), index)
            status = 0
        except SystemExit as exc:
            status = exc.code if isinstance(exc.code, int) else 1
        except BaseException:  # noqa: BLE001 boundary: the worker sees the exit status and starts another
            traceback.print_exc()
        finally:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _started(self, index: int, inbox: int, line: int) -> int:
        # The boot frame may hold passwords: it goes through an anonymous file, not through argv or environ.
        boot = os.memfd_create("celeriac-boot", 0)
        os.write(boot, msgspec.msgpack.encode(self._boot))
        os.lseek(boot, 0, os.SEEK_SET)
        arguments = [str(each) for each in (os.getpid(), boot, inbox, line, index)]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "celeriac.executor", "executor", *arguments],
            pass_fds=(boot, inbox, line),
            stdin=subprocess.DEVNULL,
        )
        os.close(boot)
        process.returncode = 0  # reaped by _reap, not by Popen
        return process.pid

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self._alive:
                self._alive.discard(pid)
                self._line.sendall(frame(Exited(pid, os.waitstatus_to_exitcode(status))))


def start_fresh(parent: int, boot_fd: int, inbox: int, line: int, index: int) -> int:
    """Entry of ``python -m celeriac.executor executor``: load the app here and be an executor."""
    die_with_parent(parent)
    with os.fdopen(boot_fd, "rb") as file:
        boot = msgspec.msgpack.decode(file.read(), type=Boot)
    execute(load(boot), boot, socket.socket(fileno=inbox), socket.socket(fileno=line), index)
    return 0


def threads_of_this_process() -> int:
    """How many threads run here, native ones of extension modules too."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 2  # unknown: assume the worst, which costs start-up time only
