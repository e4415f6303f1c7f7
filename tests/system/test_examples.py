"""The programs in ``examples/`` do what their readers are told, with real workers and real kills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from uuid import uuid4

import pytest

from support import WorkerProcess

EXAMPLES = Path(__file__).parents[2] / "examples"
#: In the environment of the demo and of everything it starts.
MARK = "CELERIAC_TEST_RUN"


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The quickstart in a folder of its own."""
    return copytree(EXAMPLES / "quickstart", tmp_path / "quickstart")


def test_the_quickstart_gets_its_results_from_a_worker_in_the_same_folder(folder: Path) -> None:
    with WorkerProcess(folder) as worker:
        worker.ready()
        caller = run("call.py", cwd=folder)
        assert caller.returncode == 0, caller.stderr
        assert "1 / 3 = 0.3333333333333333\nSUCCESS True True None 0.3333333333333333\n" in caller.stdout
        assert "2 / 2 = 1.0" in caller.stdout
        assert worker.stop() == 0
        assert (folder / "celeriac.db").exists()


def test_the_quickstart_retries_a_division_by_zero(folder: Path) -> None:
    with WorkerProcess(folder) as worker:
        worker.ready()
        caller = run("-c", "from tasks import div; print(div.delay(1, 0).id)", cwd=folder)
        task_id = caller.stdout.strip()
        worker.wait_for(f"tasks.div[{task_id}] retry: Retry in 5s")
        worker.wait_for(f"tasks.div[{task_id}] received", times=2)
        assert worker.stop() == 0


@pytest.fixture(scope="module")
def demo() -> tuple[subprocess.CompletedProcess[str], str]:
    """The demo on the largest files only, with a short lease, without a terminal; and what marks its processes."""
    mark = uuid4().hex
    done = run("stdlib_index/demo.py", "--files", "150", "--lease", "2", cwd=EXAMPLES, **{MARK: mark})
    return done, mark


def test_the_demo_loses_nothing(demo: tuple[subprocess.CompletedProcess[str], str]) -> None:
    done, _ = demo
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 150" in done.stdout
    assert "equal" in done.stdout


def test_what_the_demo_kills_has_work_in_hand(demo: tuple[subprocess.CompletedProcess[str], str]) -> None:
    done, _ = demo
    assert "killed executor" in done.stdout
    assert "killed worker" in done.stdout
    # An executor may end its file in the instant before it is killed; both at once is another matter.
    assert "in hand, all done" in done.stdout, done.stdout


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_the_demo_leaves_no_process_behind(demo: tuple[subprocess.CompletedProcess[str], str]) -> None:
    done, mark = demo
    assert done.returncode == 0
    assert processes(f"{MARK}={mark}") == []


def processes(variable: str) -> list[str]:
    """Command lines of the processes that have this in their environment."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            pass  # it ended while we looked, or is another user's
    return found
