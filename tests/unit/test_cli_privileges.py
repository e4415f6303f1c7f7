"""Names of users and groups are looked up before anything changes."""

import os

import pytest

from celeriac.cli.console import Failure
from celeriac.cli.privileges import drop_privileges


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(Failure, match="no user 'nobody-of-that-name'"):
        drop_privileges(uid="nobody-of-that-name", gid=None)


def test_an_unknown_group_is_named() -> None:
    with pytest.raises(Failure, match="no group 'no-such-group'"):
        drop_privileges(uid=None, gid="no-such-group")


def test_nothing_asked_nothing_changed() -> None:
    before = (os.getresuid(), os.getresgid(), os.getgroups())
    drop_privileges(uid=None, gid=None)
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may become anybody")
def test_who_may_not_is_told() -> None:
    with pytest.raises(Failure, match="cannot become user 0"):
        drop_privileges(uid="0", gid=None)
