"""Proof that a consumer's process has ended: locks that the kernel drops, in a directory beside the database file.

Who does not renew may be dead, or stopped, or behind a slow disk, and it takes a lease to be sure. But whose lock
can be had has ended for certain, and what it held can be handed out at once. Where there is no lock (a file system
without, another path to the same file) nothing is concluded, and the lease decides.
"""

from __future__ import annotations

import fcntl
import os

__all__ = ["Presences"]


class Presences:
    """The locks of this process's consumers, and a look at those of others."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._files: dict[int, int] = {}

    def appear(self, holder: int) -> None:
        """Take a lock for `holder`, before anybody can ask for it."""
        path = self._path(holder)
        try:
            os.makedirs(self._directory, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except OSError:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            self._remove(path)  # without a lock it would say that we have ended
        else:
            self._files[holder] = file

    def disappear(self, holder: int) -> None:
        """`holder` is not known any more: it left, or was found dead."""
        self._remove(self._path(holder))
        file = self._files.pop(holder, None)
        if file is not None:
            os.close(file)

    def has_ended(self, holder: int) -> bool:
        """Whether the process of `holder` has ended for certain."""
        try:
            file = os.open(self._path(holder), os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(file)

    def after_fork(self) -> None:
        """In a forked child: the locks are to end with the parent."""
        files, self._files = self._files, {}
        for file in files.values():
            os.close(file)

    def _path(self, holder: int) -> str:
        return os.path.join(self._directory, f"{holder:x}.lock")

    def _remove(self, path: str) -> None:
        try:
            os.unlink(path)
            os.rmdir(self._directory)
        except OSError:
            pass  # gone already, or others are there
