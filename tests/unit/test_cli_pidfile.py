"""A pidfile names the living owner, is taken over from a dead one, and goes away at the end."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from celeriac.cli.console import Failure
from celeriac.cli.pidfile import pidfile


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_it_holds_the_process_id_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "w.pid"
    with pidfile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
        assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0
    assert not path.exists()


def test_it_goes_away_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.pid"
    with pytest.raises(RuntimeError), pidfile(str(path)):
        raise RuntimeError
    assert not path.exists()


def test_it_goes_away_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with pidfile("w.pid"):
        monkeypatch.chdir("elsewhere")
    assert not (tmp_path / "w.pid").exists()


def test_a_living_owner_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "w.pid"
    path.write_text(f"{os.getppid()}\n")
    with pytest.raises(Failure, match=f"process {os.getppid()} runs already") as caught, pidfile(str(path)):
        pass
    assert caught.value.status == 73
    assert path.read_text() == f"{os.getppid()}\n"


@pytest.mark.parametrize("content", ["", "garbage", "-1", "0", "9" * 30])
def test_a_damaged_file_is_taken_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / "w.pid"
    path.write_text(content)
    with pidfile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_the_file_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "w.pid"
    path.write_text(f"{dead_pid()}\n")
    with pidfile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_own_id_from_before_a_restart_is_stale(tmp_path: Path) -> None:
    # in a container every start has the same process id
    path = tmp_path / "w.pid"
    path.write_text(f"{os.getpid()}\n")
    with pidfile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_someone_elses_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "w.pid"
    with pidfile(str(path)):
        path.write_text("1\n")
    assert path.read_text() == "1\n"


def test_a_file_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    with (
        pytest.raises(Failure, match="No such file or directory") as caught,
        pidfile(str(tmp_path / "no" / "w")),
    ):
        pass
    assert caught.value.status == 73


def test_of_many_processes_one_gets_a_stale_file(tmp_path: Path) -> None:
    path = tmp_path / "w.pid"
    path.write_text(f"{dead_pid()}\n")
    program = (
        "import sys\n"
        "from celeriac.cli.pidfile import pidfile\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "with pidfile(sys.argv[1]):\n"
        "    print('got it', flush=True); sys.stdin.readline()\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(6)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("\n")
            racer.stdin.flush()
        said = [racer.stdout.readline() for racer in racers if racer.stdout]
        assert sorted(said) == [""] * 5 + ["got it\n"]
    finally:
        for racer in racers:
            racer.communicate("\n")
