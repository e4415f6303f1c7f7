"""A pidfile: says which process runs, and keeps a second one from starting."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress

from celeriac.cli.console import CANNOT_CREATE, Failure

__all__ = ["pidfile"]


@contextmanager
def pidfile(path: str | None) -> Generator[None, None, None]:
    """Hold `path` with this process's id inside; remove it at the end. None: do nothing.

    A file whose process is gone is taken over. Raises `Failure` with status 73 where another process lives
    or the file cannot be written.
    """
    if path is None:
        yield
        return
    path = os.path.abspath(path)  # the worker may change its directory
    try:
        _take(path)
    except OSError as exc:
        raise Failure(f"pidfile {path}: {exc.strerror}", status=CANNOT_CREATE) from exc
    try:
        yield
    finally:
        with suppress(OSError):
            if _owner(path) == os.getpid():
                os.unlink(path)


def _take(path: str) -> None:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            # two processes that find the same stale file: the lock lets one look and write at a time
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not _is_still(path, fd):
                continue
            owner = _pid(os.read(fd, 32))
            if owner is not None and owner != os.getpid() and _lives(owner):
                raise Failure(f"pidfile {path}: process {owner} runs already", status=CANNOT_CREATE)
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
            return
        finally:
            os.close(fd)


def _is_still(path: str, fd: int) -> bool:
    """Whether `path` names the open file: its former owner may have removed it meanwhile."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _owner(path: str) -> int | None:
    with open(path, "rb") as file:
        return _pid(file.read(32))


def _pid(content: bytes) -> int | None:
    """The process id in a pidfile, None for an empty or damaged one."""
    text = content.strip()
    return int(text) if text.isdigit() and int(text) > 0 else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
