"""The life of one executor: loaded app in, calls through the runner, until the worker sends no more."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

from celeriac import log, signals
from celeriac import request as requests
from celeriac.executor.invoke import invoke
from celeriac.executor.link import Link
from celeriac.executor.runners.base import Guard, Runner
from celeriac.executor.runners.sequential import SequentialRunner
from celeriac.wire.frames import Boot, Call, Outcome, Ready, Update

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["die_with_parent", "execute", "serve"]

logger = logging.getLogger("celeriac.executor")

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, its parent, dies. Exits if it is dead already.

    Linux only; elsewhere the end of the line is what ends an orphaned executor.
    """
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)


#: Signals that terminals and supervisors send to the whole process group.
_GROUP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def ignore_group_signals() -> None:
    """Leave signals to the whole group to the worker.

    A handler and not ``SIG_IGN``: that would be inherited by the programs which tasks start.
    """
    for each in _GROUP_SIGNALS:
        signal.signal(each, lambda _signum, _frame: None)


def disown_forks(*sockets: socket.socket) -> None:
    """See to it that a process which a task forks is no executor: it heeds signals and has not these sockets."""
    blocked: list[set[int | signal.Signals]] = []

    def block() -> None:
        # One that comes to the child before it heeds them would be swallowed.
        blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS))

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked.pop())

    def disown() -> None:
        for each in (*_GROUP_SIGNALS, signal.SIGUSR1):
            signal.signal(each, signal.default_int_handler if each is signal.SIGINT else signal.SIG_DFL)
        for each in sockets:
            each.close()
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=disown)


def execute(app: Celeriac, boot: Boot, inbox: socket.socket, line: socket.socket, index: int) -> None:
    """Be an executor in a process of its own. Returns when the worker sends no more calls."""
    ignore_group_signals()
    disown_forks(inbox, line)
    settings = app.conf
    log.configure(
        boot.loglevel,
        file=boot.logfile,
        format=settings.worker_log_format,
        task_format=settings.worker_task_log_format,
        datefmt=settings.worker_log_datefmt,
        task_datefmt=settings.worker_task_log_datefmt,
        color=boot.color if boot.color is not None else settings.worker_log_color,
        hijack_root=settings.worker_hijack_root_logger,
        process_name=f"Executor-{index}",
    )
    signals.worker_process_init.send(sender=boot.hostname)
    serve(app, Link(inbox, line), SequentialRunner(), hostname=boot.hostname, alone=True)
    signals.worker_process_shutdown.send(sender=boot.hostname, pid=os.getpid(), exitcode=0)


def serve(app: Celeriac, link: Link, runner: Runner, *, hostname: str, alone: bool) -> None:
    """Run calls until the link has no more. `alone`: this process is an executor and nothing else, so that
    it exits at once when its worker is gone."""

    def listen() -> None:
        link.listen(runner.interrupt)
        if alone:
            os._exit(1)

    def run(call: Call, guard: Guard) -> Outcome:
        return invoke(app, call, hostname=hostname, guard=guard, emit=emit).outcome

    def emit(update: Update) -> None:
        runner.emit(link, update)

    log.set_task_source(_running_task)
    threading.Thread(target=listen, name="celeriac-line", daemon=True).start()
    link.send(Ready(os.getpid()))
    try:
        runner.run(link, run)
    except ConnectionError:
        logger.warning("the worker is gone; what ran here will be run again elsewhere")


def _running_task() -> tuple[str, str] | None:
    """Name and id of the task that runs here, for its log records."""
    request = requests.running()
    return None if request is None else (request.task or "???", request.id or "???")
