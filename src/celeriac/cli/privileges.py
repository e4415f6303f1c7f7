"""``--uid`` and ``--gid``: what a worker started by root becomes before it opens anything."""

from __future__ import annotations

import grp
import os
import pwd

from celeriac.cli.console import Failure

__all__ = ["drop_privileges"]


def drop_privileges(*, uid: str | None, gid: str | None) -> None:
    """Become this user and group, given by name or number; with `uid` alone, the groups of that user.

    Raises `Failure` for an unknown name, or where this process may not.
    """
    number, user = _user(uid) if uid else (None, None)
    group = _group(gid) if gid else (user.pw_gid if user else None)
    try:
        if group is not None:
            os.setgid(group)
            if user is not None:
                os.initgroups(user.pw_name, group)
        if number is not None:
            os.setuid(number)
    except PermissionError as exc:
        wanted = ", ".join(
            f"{kind} {name}" for kind, name in (("user", uid), ("group", gid)) if name is not None
        )
        raise Failure(f"cannot become {wanted}: {exc.strerror}") from exc


def _user(name: str) -> tuple[int, pwd.struct_passwd | None]:
    """The user's number, and its entry; a number needs none (containers)."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError as exc:
        if name.isdigit():
            return int(name), None
        raise Failure(f"no user {name!r} on this machine") from exc
    return entry.pw_uid, entry


def _group(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as exc:
        raise Failure(f"no group {name!r} on this machine") from exc
