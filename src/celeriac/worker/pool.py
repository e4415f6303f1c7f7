"""The worker's executors: started, replaced when they die, stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from celeriac.errors import CeleriacError
from celeriac.wire.frames import Boot, Manifest, Outcome, Update
from celeriac.worker.executor import Executor
from celeriac.worker.nursery import Nursery

__all__ = ["ExecutorsKeepDying", "Launcher", "NurseryLauncher", "Pool", "ThreadLauncher"]

logger = logging.getLogger("celeriac.worker")

#: Executors that die before they took a call, in a row, after which the worker gives up.
_STILLBORN = 5
#: Seconds after which a killed executor is taken for dead, although nobody says so.
_DEATH = 2.0


class ExecutorsKeepDying(CeleriacError):
    """No executor lives long enough to take a call."""


class Events(Protocol):
    """What a pool tells the worker, on the loop."""

    def executor_ready(self, executor: Executor) -> None: ...
    def executor_died(self, executor: Executor, how: str) -> None: ...
    def outcome(self, executor: Executor, outcome: Outcome) -> None: ...
    def update(self, executor: Executor, update: Update) -> None: ...
    def outcomes_read(self) -> None: ...
    def failed(self, exc: BaseException) -> None: ...


class Launcher(Protocol):
    """How executors come to life."""

    async def start(self, pool: Pool) -> Manifest:
        """Load the app; returns what it looks like. Raises `AppLoadFailed`."""
        ...

    def launch(self, index: int, inbox: socket.socket, line: socket.socket) -> None:
        """Start an executor that owns these two ends."""
        ...

    def kill(self, executor: Executor) -> bool:
        """End it now, whatever it does; False where that cannot be done."""
        ...

    def close(self) -> None:
        """Release what the launcher holds; every executor has been stopped."""
        ...


class Pool:
    """1. `start` loads the app; `open` starts the executors.
    2. A dead executor is told to `events` once everything it said was read, and replaced.
    3. `stop` lets the running calls end; `kill` does not.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.size = 0
        self.executors: list[Executor] = []
        self._launcher = launcher
        self._events: Events | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._stillborn = 0
        self._stopping = False
        #: The launcher has died and is started again: it cannot replace anything now.
        self._relaunching = False
        self._next = 0
        self._emptied = asyncio.Event()

    async def start(self) -> Manifest:
        """Load the app and return its manifest. Raises `AppLoadFailed`."""
        return await self._launcher.start(self)

    async def open(self, size: int, events: Events) -> None:
        """Start `size` executors; what they say goes to `events`."""
        self.size = size
        self._events = events
        await self._fill(events)

    async def _fill(self, events: Events) -> None:
        """Start the executors that are missing."""
        # Not from a nursery that died meanwhile: there will be another.
        while len(self.executors) < self.size and not self._stopping and not self._relaunching:
            await self._start_one(events)

    async def _start_one(self, events: Events) -> None:
        self._next += 1
        self._emptied.clear()
        executor = Executor(
            self._next,
            on_ready=self._ready,
            on_outcome=events.outcome,
            on_update=events.update,
            on_batch=events.outcomes_read,
            on_silent=self._silent,
        )
        self.executors.append(executor)
        await executor.open(self._launcher.launch)

    def _ready(self, executor: Executor) -> None:
        if not self._stopping and self._events is not None:
            self._events.executor_ready(executor)

    def spawned(self, index: int, pid: int) -> None:
        """The launcher knows the process id of an executor."""
        for each in self.executors:
            if each.index == index:
                each.pid = pid

    def exited(self, pid: int, status: int) -> None:
        """The launcher says that a process is dead."""
        for each in list(self.executors):
            if each.pid == pid:
                self._bury(each, _how(status))

    def all_lost(self) -> None:
        """The nursery died, and its children with it."""
        self._relaunching = True
        for each in list(self.executors):
            _kill(each)
            self._bury(each, "its nursery died")
        if not self._stopping and self._events is not None:
            logger.error("the nursery process died: starting another, with new executors")
            self._later(self._relaunch(self._events))

    async def _relaunch(self, events: Events) -> None:
        await self._launcher.start(self)
        self._relaunching = False
        await self._refill(events)

    def _silent(self, executor: Executor) -> None:
        """The line ended. A thread is gone then; the death of a process is told by who reaps it."""
        if isinstance(self._launcher, ThreadLauncher):
            self._bury(executor, "its thread ended")

    def _bury(self, executor: Executor, how: str) -> None:
        if executor not in self.executors or self._events is None:
            return
        executor.drain()
        self.executors.remove(executor)
        self._stillborn = 0 if executor.ready else self._stillborn + 1
        self._events.executor_died(executor, how)
        executor.close()
        if not self.executors:
            self._emptied.set()
        if not self._stopping and not self._relaunching:
            self._replace(self._events)

    def _replace(self, events: Events) -> None:
        if self._stillborn >= _STILLBORN:
            events.failed(ExecutorsKeepDying(f"{self._stillborn} executors died before they took a call"))
            return
        self._later(self._refill(events))

    def _later(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(what)
        self._starting.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None and self._events is not None:
            self._events.failed(failure)

    async def _refill(self, events: Events) -> None:
        # A pause only where executors die at birth: the usual death is one task's doing.
        await asyncio.sleep(0.2 * self._stillborn)
        await self._fill(events)

    def kill(self, executor: Executor) -> bool:
        """End an executor whose call cannot be ended otherwise; False where it cannot be killed."""
        return self._launcher.kill(executor)

    async def stop(self) -> None:
        """Take no more calls, wait for the running ones. Idempotent. Take back unstarted calls first."""
        self._stopping = True
        for each in self.executors:
            if not each.retired:
                each.retire()
        if self.executors:
            await self._emptied.wait()

    def kill_all(self) -> None:
        """End every executor now."""
        self._stopping = True
        for each in list(self.executors):
            if not self._launcher.kill(each):
                self._bury(each, "shut down")
        # Their deaths are told by the nursery, which may be stopped or hang itself.
        asyncio.get_running_loop().call_later(_DEATH, self._bury_all)

    def _bury_all(self) -> None:
        for each in list(self.executors):
            self._bury(each, "killed")

    def close(self) -> None:
        """Release what is left."""
        for each in self.executors:
            each.close()
        self._launcher.close()


class NurseryLauncher:
    """Executors are processes, forked by a nursery that has loaded the app."""

    def __init__(self, boot: Boot) -> None:
        self._boot = boot
        self._nursery: Nursery | None = None

    async def start(self, pool: Pool) -> Manifest:
        if self._nursery is not None:
            self._nursery.close()
        self._nursery = Nursery(
            self._boot, on_spawned=pool.spawned, on_exited=pool.exited, on_lost=pool.all_lost
        )
        return await self._nursery.start()

    def launch(self, index: int, inbox: socket.socket, line: socket.socket) -> None:
        if self._nursery is not None:
            self._nursery.spawn(index, inbox, line)

    def kill(self, executor: Executor) -> bool:
        return _kill(executor)

    def close(self) -> None:
        if self._nursery is not None:
            self._nursery.close()


class ThreadLauncher:
    """Executors are threads of this process: for debuggers (``-P solo``) and tests.

    `run` is called on a thread of its own with the executor's two ends; it was given the app.
    """

    def __init__(self, manifest: Manifest, run: Callable[[socket.socket, socket.socket], None]) -> None:
        self._manifest = manifest
        self._run = run

    async def start(self, pool: Pool) -> Manifest:
        return self._manifest

    def launch(self, index: int, inbox: socket.socket, line: socket.socket) -> None:
        self._run(inbox.dup(), line.dup())

    def kill(self, executor: Executor) -> bool:
        return False

    def close(self) -> None:
        pass


def _kill(executor: Executor) -> bool:
    if executor.pid:
        try:
            os.kill(executor.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # died by itself; its exit is on the way
    return True


def _how(status: int) -> str:
    if status < 0:
        name = {each.value: each.name for each in signal.Signals}.get(-status, "a real-time signal")
        return f"killed by signal {-status} ({name})"
    return f"exited with status {status}"
