"""The pipes through which processes of one host wake each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from celeriac.sql.doorbell import Doorbell, Listener


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def bell(directory: Path) -> Doorbell:
    return Doorbell(str(directory))


def heard(listener: Listener, pipe: int | None) -> bool:
    assert pipe is not None
    try:
        return bool(os.read(pipe, 100))
    except BlockingIOError:
        return False


def test_who_listens_is_rung(bell: Doorbell) -> None:
    listener = bell.listener(["a"])
    pipe = listener.open()
    assert not heard(listener, pipe)
    bell.ring(["a"], 1)
    assert heard(listener, pipe)
    listener.remove()


def test_ringing_where_nobody_ever_listened_is_fine(bell: Doorbell, directory: Path) -> None:
    bell.ring(["a"], 1)
    assert not directory.exists()


def test_only_those_are_rung_whom_it_concerns(bell: Doorbell) -> None:
    one, two, both = bell.listener(["a"]), bell.listener(["b"]), bell.listener(["a", "b"])
    listeners = [one, two, both]
    pipes = [each.open() for each in listeners]
    bell.ring(["a"], 10)
    assert [heard(*each) for each in zip(listeners, pipes, strict=True)] == [True, False, True]
    bell.ring(["b"], 10)
    assert [heard(*each) for each in zip(listeners, pipes, strict=True)] == [False, True, True]
    for each in listeners:
        each.remove()


def test_one_message_wakes_one_of_thirty(bell: Doorbell) -> None:
    listeners = [bell.listener(["a"]) for _ in range(30)]
    pipes = [each.open() for each in listeners]
    bell.ring(["a"], 1)
    assert sum(heard(*each) for each in zip(listeners, pipes, strict=True)) == 1
    bell.ring(["a"], 7)
    assert sum(heard(*each) for each in zip(listeners, pipes, strict=True)) == 7
    for each in listeners:
        each.remove()


def test_who_does_not_wait_now_is_passed_over(bell: Doorbell) -> None:
    busy, idle = bell.listener(["a"]), bell.listener(["a"])
    busy.open()
    busy.close()
    pipe = idle.open()
    for _ in range(5):
        bell.ring(["a"], 1)
        assert heard(idle, pipe)
    assert not heard(busy, busy.open())
    busy.remove()
    idle.remove()


def test_a_full_pipe_blocks_nobody(bell: Doorbell) -> None:
    listener = bell.listener(["a"])
    pipe = listener.open()
    for _ in range(70_000):
        bell.ring(["a"], 1)
    assert heard(listener, pipe)
    listener.remove()


def test_the_pipe_of_a_dead_process_is_removed_by_who_rings(bell: Doorbell, directory: Path) -> None:
    code = (
        "import sys; from celeriac.sql.doorbell import Doorbell; Doorbell(sys.argv[1]).listener(['a']).open()"
    )
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True)
    assert len(os.listdir(directory)) == 1
    bell.ring(["a"], 1)
    assert os.listdir(directory) == []


def test_a_listener_whose_pipe_was_removed_makes_it_again(bell: Doorbell, directory: Path) -> None:
    listener = bell.listener(["a"])
    listener.open()
    listener.close()
    for each in directory.iterdir():
        each.unlink()
    directory.rmdir()
    pipe = listener.open()
    bell.ring(["a"], 1)
    assert heard(listener, pipe)
    listener.remove()


def test_the_last_one_takes_the_directory_along(bell: Doorbell, directory: Path) -> None:
    first, second = bell.listener(["a"]), bell.listener(["a"])
    first.open()
    second.open()
    first.remove()
    assert directory.exists()
    second.remove()
    assert not directory.exists()


def test_long_paths_are_no_matter(tmp_path: Path) -> None:
    bell = Doorbell(str(tmp_path / ("x" * 200) / "run"))
    listener = bell.listener(["a"])
    pipe = listener.open()
    bell.ring(["a"], 1)
    assert heard(listener, pipe)
    listener.remove()


def test_where_no_pipe_can_be_made_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("somebody's file")
    bell = Doorbell(str(tmp_path / "run"))
    listener = bell.listener(["a"])
    assert listener.open() is None
    bell.ring(["a"], 1)
    listener.remove()
    assert (tmp_path / "run").read_text() == "somebody's file"


def test_other_files_in_the_directory_are_left_alone(bell: Doorbell, directory: Path) -> None:
    directory.mkdir()
    (directory / "notes").write_text("")
    listener = bell.listener(["a"])
    pipe = listener.open()
    bell.ring(["a"], 1)
    assert heard(listener, pipe)
    listener.remove()
    assert (directory / "notes").read_text() == ""
