"""Ends a server together with every process it started, at the latest when whoever asked for it ends.

Run as a script, ``guard.py <command> ...``, by `celeriac.testing.private`; uses the standard library only. The
guard waits for the end of its standard input, which comes however its parent ends. As the reaper of all its
descendants it also finds those that left the command's session (Erlang's ``epmd``). Linux only.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
from types import FrameType

__all__ = ["descendants"]

_PR_SET_CHILD_SUBREAPER = 36
#: Seconds between looks whether the parent is still there: a process that it forked may hold the pipe open.
_LOOK = 0.5


def descendants(pid: int) -> list[int]:
    """Living processes below `pid`, parents before their children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (parent := _living_parent(int(name))) is not None:
            children.setdefault(parent, []).append(int(name))
    found = list(children.get(pid, ()))
    for each in found:
        found += children.get(each, ())
    return found


def _living_parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def _guard(command: list[str]) -> int:
    """Run `command` until it ends, or until the parent does; leaves nothing behind. Returns its exit status."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    parent = os.getppid()
    awake, awaken = socket.socketpair()
    awaken.setblocking(False)
    signal.set_wakeup_fd(awaken.fileno())
    signal.signal(signal.SIGCHLD, _noticed)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    try:
        while process.poll() is None and os.getppid() == parent:
            readable, _, _ = select.select([0, awake], [], [], _LOOK)
            if 0 in readable and not os.read(0, 1):
                break
            if awake in readable:
                awake.recv(4096)
                _reap_others(process.pid)
    finally:
        _end_all()
    return process.wait()


def _noticed(number: int, frame: FrameType | None) -> None:
    """A handler must be there for `signal.set_wakeup_fd` to write."""


def _reap_others(pid: int) -> None:
    """Descendants that became ours and ended; `pid` itself is left to whoever waits for it."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != pid:
        os.waitpid(ended.si_pid, 0)


def _end_all() -> None:
    while True:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    status = _guard(sys.argv[1:])
    sys.exit(status if status >= 0 else 128 - status)
