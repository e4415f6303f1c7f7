"""SIGKILL at bad moments: nothing is lost, and only what was running runs twice."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from celeriac import Celeriac
from support import WorkerProcess, eventually

#: Random kills, each under load; `make soak` does more.
ROUNDS = 100
SOAK_ROUNDS = 2000

TASKS = """
import os, time
from celeriac import Celeriac

app = Celeriac("tasks", worker_lease=1.0, task_max_deliveries=100)

@app.task
def note(number, seconds=0.0):
    fd = os.open("runs.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"start {number}\\n".encode())
    if seconds:
        time.sleep(seconds)
    os.write(fd, f"end {number}\\n".encode())
    os.close(fd)
    return number
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Celeriac:
    return Celeriac("tasks", worker_lease=1.0)


def runs(folder: Path, what: str) -> Counter[int]:
    log = folder / "runs.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(int(line.split()[1]) for line in lines if line.startswith(what))


@pytest.mark.timeout(600)
def test_nothing_is_lost_whatever_is_killed(folder: Path, client: Celeriac) -> None:
    kill_at_random(folder, client, ROUNDS)


@pytest.mark.soak
def test_nothing_is_lost_in_a_long_run(folder: Path, client: Celeriac) -> None:
    kill_at_random(folder, client, SOAK_ROUNDS)


def kill_at_random(folder: Path, client: Celeriac, rounds: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    worker = WorkerProcess(folder).ready()
    numbers = iter(range(1 << 30))
    results: dict[int, object] = {}
    again = 0
    try:
        for _ in range(rounds):
            batch = {
                number: client.send_task("tasks.note", (number, chance.choice((0, 0, 0.001, 0.02))))
                for number in (next(numbers) for _ in range(chance.randrange(5, 60)))
            }
            enough = min(batch) + chance.randrange(len(batch))
            eventually(lambda enough=enough: len(runs(folder, "end")) >= enough)
            victim = chance.choice(("executor", "executors", "nursery", "parent", "all"))
            family = worker.family()
            if victim == "parent":
                worker.kill()
            elif victim == "nursery":
                os.kill(worker.nursery, signal.SIGKILL)
            else:
                pids = family if victim == "all" else worker.executors()
                for pid in pids[:1] if victim == "executor" else pids:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            if victim in ("parent", "all"):
                worker.__exit__(None, None, None)
                worker = WorkerProcess(folder)
            for number, result in batch.items():
                assert result.get(timeout=30) == number, f"seed {seed}: {number} after {victim}"
                results[number] = result
            again += len(family)
        started, ended = runs(folder, "start"), runs(folder, "end")
        assert set(ended) == set(results), f"seed {seed}"
        # At most what each killed process was running can have run twice.
        assert sum(started.values()) - len(results) <= again, f"seed {seed}"
        assert worker.stop() == 0
    except BaseException:
        print(f"--- output of the last worker ---\n{worker.text}")
        raise
    finally:
        worker.__exit__(None, None, None)


def test_executors_end_with_their_worker(folder: Path, client: Celeriac) -> None:
    with WorkerProcess(folder) as worker:
        worker.ready()
        client.send_task("tasks.note", (1, 60))
        eventually(lambda: runs(folder, "start")[1] == 1)
        family = worker.family()
        assert len(family) == 4
        worker.kill()
        eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in family[1:]), within=2.0)
