"""A TCP proxy that breaks on demand, to put between a client and a server.

::

    with Proxy("redis://localhost:6379/15") as proxy:
        app = Celeriac(broker=proxy.url)
        proxy.stall()                  # half open: bytes are held both ways
        proxy.resume()                 # they arrive
        proxy.cut_reply(b"some-id")    # the answer that holds these bytes is lost, with its connection

Every method returns when it is done. Thread-safe.
"""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from celeriac.testing.private import free_port

__all__ = ["Proxy"]

#: Bytes that one direction of a connection may hold before its sender has to wait.
_HOLD = 1 << 20
_RESET = struct.pack("ii", 1, 0)

Mode = Literal["pass", "refuse", "stall", "black hole", "drop replies"]


class Proxy:
    """Listens on a port of 127.0.0.1 and passes bytes to `server` and back, until told otherwise.

    :param server: a URL, or ``host:port``.

    What is said applies to connections that are open and to those to come, until `resume`; `cut` and
    `cut_reply` happen once.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server if "://" in server else f"//{server}")
        if parts.hostname is None or parts.port is None:
            raise ValueError(f"a server to stand in front of has a host and a port, not {server!r}")
        self._server = (parts.hostname, parts.port)
        self._lock = threading.Lock()
        self._commands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        #: Where it listens: host and port.
        self.address: tuple[str, int] = ("127.0.0.1", free_port())
        login = parts.netloc.rpartition("@")[0]
        place = f"{login}@" if login else ""
        #: The server's URL, with the address of the proxy.
        self.url: str = parts._replace(netloc=f"{place}127.0.0.1:{self.address[1]}").geturl()
        self._mode: Mode = "pass"
        self._delay = 0.0
        self._to_cut: bytes | None = None
        self._passing = 0
        self._cuts = threading.Event()
        self._connections: list[_Connection] = []
        self._listener: socket.socket | None = None
        #: They take the places in a listener's queue; it is a black hole then.
        self._fillers: list[socket.socket] = []
        self._ending = False

    # -- what may be said ------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset (RST) every open connection; new ones are served."""
        self._do(self._cut)

    def refuse(self) -> None:
        """Reset every connection and refuse new ones: nobody listens."""
        self._do(lambda: self._enter("refuse"))

    def stall(self) -> None:
        """Hold bytes both ways, and accept new connections: a peer that is there and does not answer."""
        self._do(lambda: self._enter("stall"))

    def black_hole(self) -> None:
        """Hold bytes both ways, and leave new connections unanswered: a host that vanished."""
        self._do(lambda: self._enter("black hole"))

    def drop_replies(self) -> None:
        """Pass what clients say, and throw away what the server answers. Connections stay open; since answers
        are missing in them, they are reset by `resume`."""
        self._do(lambda: self._enter("drop replies"))

    def cut_reply(self, containing: bytes = b"", *, passing: int = 0) -> None:
        """Once: wait for an answer that holds `containing`, pass the first `passing` bytes of it, reset.

        The server has done what it was asked for, and the client does not know. See `wait_for_cut`.
        """
        self._do(lambda: self._plan(containing, passing))

    def wait_for_cut(self, timeout: float = 30.0) -> None:
        """Wait until `cut_reply` found its answer; raises `TimeoutError`."""
        if not self._cuts.wait(timeout):
            raise TimeoutError(f"no answer to cut within {timeout} s")

    def delay(self, seconds: float) -> None:
        """Let bytes arrive so much later, both ways."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def resume(self) -> None:
        """Be an ordinary proxy again; what was held arrives."""
        self._do(lambda: self._enter("pass"))

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    # -- its thread ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._selector = selectors.DefaultSelector()
        self._awake, self._awaken = socket.socketpair()
        self._selector.register(self._awake, selectors.EVENT_READ)
        self._listen()
        self._thread = threading.Thread(target=self._run, name="celeriac-proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._end)
        self._thread.join()
        self._awake.close()
        self._awaken.close()

    def _do(self, command: Callable[[], None]) -> None:
        """Run a command in the proxy's thread."""
        done: Future[None] = Future()
        with self._lock:
            self._commands.append((command, done))
        self._awaken.send(b"!")
        done.result(30)

    def _run(self) -> None:
        while not self._ending:
            for key, events in self._selector.select(self._until_due()):
                if key.fileobj is self._awake:
                    self._awake.recv(4096)
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.data.alive:
                    key.data.move(key.fileobj, events)
            while self._commands:
                command, done = self._commands.popleft()
                try:
                    command()
                    done.set_result(None)
                except Exception as exc:  # noqa: BLE001 raised where the command was given
                    done.set_exception(exc)
            for each in self._connections:
                each.pump()
            self._connections = [each for each in self._connections if each.alive]

    def _until_due(self) -> float | None:
        dues = [due for each in self._connections if (due := each.due()) is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _enter(self, mode: Mode) -> None:
        if self._mode == "drop replies" or mode == "refuse":
            self._cut()
        self._mode, self._delay = mode, 0.0
        if mode in ("refuse", "black hole") or self._fillers:
            self._stop_listening()
        if mode == "black hole":
            self._listener = _listener(self.address, backlog=0)
            self._fillers = _fill(self.address)
        elif mode != "refuse" and self._listener is None:
            self._listen()

    def _plan(self, containing: bytes, passing: int) -> None:
        self._cuts.clear()
        self._to_cut, self._passing = containing, passing

    def _cut(self) -> None:
        for each in self._connections:
            each.reset()
        self._connections.clear()

    def _end(self) -> None:
        self._cut()
        self._stop_listening()
        self._selector.close()
        self._ending = True

    def _listen(self) -> None:
        self._listener = _listener(self.address)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _stop_listening(self) -> None:
        for each in self._fillers:
            each.close()
        self._fillers = []
        if self._listener is not None:
            with suppress(KeyError):
                self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            server = socket.create_connection(self._server, 5.0)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            return
        self._connections.append(_Connection(self, client, server))

    # -- what its connections ask ----------------------------------------------------------------------------

    @property
    def selector(self) -> selectors.BaseSelector:
        return self._selector

    def when(self) -> float:
        """When bytes that were read now are to arrive, on the monotonic clock."""
        return time.monotonic() + self._delay

    @property
    def holds(self) -> bool:
        return self._mode in ("stall", "black hole")

    def answer(self, data: bytes, before: bytes) -> tuple[bytes, bool]:
        """What is to pass of an answer that followed `before`, and whether the connection ends with it."""
        if self._mode == "drop replies":
            return b"", False
        if self._to_cut is None or self._to_cut not in before + data:
            return data, False
        self._to_cut = None
        self._cuts.set()
        return data[: self._passing], True


class _Connection:
    """A client, the server, and the bytes on their way."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.alive = True
        self._proxy = proxy
        self._client, self._server = client, server
        self._others = {client: server, server: client}
        #: What each socket is to be sent, and when; b"" is the end.
        self._queues: dict[socket.socket, deque[tuple[float, bytes]]] = {client: deque(), server: deque()}
        self._ended: set[socket.socket] = set()
        self._before = b""
        self._doomed = False
        self._registered: dict[socket.socket, int] = {}
        for each in (client, server):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pump()

    def due(self) -> float | None:
        """When bytes become due that wait for nothing else."""
        if self._proxy.holds:
            return None
        now = time.monotonic()
        return min((q[0][0] for q in self._queues.values() if q and q[0][0] > now), default=None)

    def move(self, where: socket.socket, events: int) -> None:
        """Read or write what can be."""
        try:
            if events & selectors.EVENT_READ:
                self._read(where)
            if events & selectors.EVENT_WRITE:
                self._write(where)
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.EINTR):
                self.reset()

    def _read(self, where: socket.socket) -> None:
        data = where.recv(1 << 16)
        ends = not data
        if ends:
            self._ended.add(where)
        elif where is self._server:
            before = self._before[-256:]
            self._before = before + data
            data, self._doomed = self._proxy.answer(data, before)
        if data or ends:
            self._queues[self._others[where]].append((self._proxy.when(), data))

    def _write(self, where: socket.socket) -> None:
        queue = self._queues[where]
        while queue and queue[0][0] <= time.monotonic():
            when, data = queue[0]
            if not data:
                where.shutdown(socket.SHUT_WR)
                queue.popleft()
                continue
            sent = where.send(data)
            if sent < len(data):
                queue[0] = (when, data[sent:])
                return
            queue.popleft()

    def pump(self) -> None:
        """Watch for what can be done next; end what has come to its end."""
        if not self.alive:
            return
        empty = not any(self._queues.values())
        if empty and self._doomed:
            self.reset()
        elif empty and len(self._ended) == 2:
            self._close()
        else:
            now = time.monotonic()
            for where, other in self._others.items():
                queue = self._queues[where]
                held = self._proxy.holds or (self._doomed and where is self._server)
                full = sum(len(data) for _, data in self._queues[other]) > _HOLD
                reads = not (held or full or where in self._ended)
                writes = bool(queue) and queue[0][0] <= now and not self._proxy.holds
                self._watch(where, reads * selectors.EVENT_READ | writes * selectors.EVENT_WRITE)

    def _watch(self, where: socket.socket, events: int) -> None:
        before = self._registered.get(where, 0)
        if events == before:
            return
        if not before:
            self._proxy.selector.register(where, events, self)
        elif events:
            self._proxy.selector.modify(where, events, self)
        else:
            self._proxy.selector.unregister(where)
        self._registered[where] = events

    def reset(self) -> None:
        """Close both sides at once, so that they notice (RST)."""
        for each in self._others:
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close()

    def _close(self) -> None:
        if self.alive:
            self.alive = False
            for each in self._others:
                self._watch(each, 0)
                each.close()


def _listener(address: tuple[str, int], *, backlog: int = 128) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(backlog)
    return listener


def _fill(address: tuple[str, int]) -> list[socket.socket]:
    """Take the places in the queue of a listener that accepts nobody: the system ignores whoever comes next."""
    fillers: list[socket.socket] = []
    for _ in range(4):
        each = socket.socket()
        each.setblocking(False)
        each.connect_ex(address)
        fillers.append(each)
    return fillers
