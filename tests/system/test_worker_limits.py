"""Time limits: soft ones are raised inside the task, hard ones end whatever it does, and the slot comes back."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import uuid4

import pytest

from celeriac import Celeriac
from celeriac.errors import SoftTimeLimitExceeded, TimeLimitExceeded
from support import JOURNAL, Journal, WorkerProcess

#: The next task runs only if the slot comes back.
EXECUTORS = 1

TASKS = (
    JOURNAL
    + r"""
import re
from celeriac import Celeriac
from celeriac.errors import SoftTimeLimitExceeded

app = Celeriac("tasks")

def asleep():
    time.sleep(60)

def busy():
    while True:
        pass

def in_c():
    # one call into C that holds the interpreter's lock: no other thread of the executor runs
    return 7 ** (10 ** 8)

def backtracking():
    return re.match(r"(a|a)+$", "a" * 60 + "b")

@app.task
def stuck(how):
    globals()[how]()

@app.task
def careful(how):
    try:
        globals()[how]()
    except SoftTimeLimitExceeded as exc:
        return f"cleaned up after {exc}"

@app.task
def stubborn(key):
    while True:
        try:
            busy()
        except SoftTimeLimitExceeded:
            note("soft", key)

@app.task
def nap(seconds):
    time.sleep(seconds)
    return seconds

@app.task(soft_time_limit=0.2)
def limited():
    time.sleep(60)

@app.task(time_limit=0.2, acks_late=False)
def limited_early(key):
    note("ran", key)
    time.sleep(60)

@app.task
def pid():
    return os.getpid()

@app.task
def failed(request, exc, traceback):
    note("failed", request.id, type(exc).__name__)

@app.task(bind=True, max_retries=1, soft_time_limit=0.2)
def retried(self):
    try:
        if self.request.retries:
            return "second time"
        time.sleep(60)
    except SoftTimeLimitExceeded as exc:
        raise self.retry(exc=exc, countdown=0)
"""
)


def pid(running: Celeriac) -> int:
    """The process of the executor; it answers, so the slot is free."""
    found: int = running.send_task("tasks.pid").get(timeout=10)
    return found


# -- soft ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["asleep", "busy"])
def test_a_task_can_clean_up_at_its_soft_limit(running: Celeriac, how: str) -> None:
    before = pid(running)
    started = time.monotonic()
    result = running.send_task("tasks.careful", (how,), soft_time_limit=0.2, time_limit=10)
    assert result.get(timeout=10) == "cleaned up after 0.2"
    assert 0.2 <= time.monotonic() - started < 1.2
    assert pid(running) == before


@pytest.mark.parametrize("how", ["asleep", "busy"])
def test_a_soft_limit_that_is_not_caught_is_a_failure(
    running: Celeriac, worker: WorkerProcess, how: str
) -> None:
    before = pid(running)
    result = running.send_task("tasks.stuck", (how,), soft_time_limit=0.2)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=10)
    assert result.state == "FAILURE"
    worker.wait_for(f"Soft time limit (0.2s) exceeded for tasks.stuck[{result.id}]")
    assert pid(running) == before


def test_the_limit_of_the_task_holds_where_the_call_has_none(running: Celeriac) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        running.send_task("tasks.limited").get(timeout=10)


def test_a_task_may_retry_at_its_soft_limit(running: Celeriac) -> None:
    assert running.send_task("tasks.retried").get(timeout=10) == "second time"


def test_a_limit_hits_only_the_call_it_belongs_to(running: Celeriac) -> None:
    """Naps as long as their limit: either it wins or they do, and nobody else is hit."""
    results = []
    for _ in range(25):
        results.append(running.send_task("tasks.nap", (0.05,), soft_time_limit=0.05))
        results.append(running.send_task("tasks.nap", (0.0,)))
    for number, each in enumerate(results):
        value = each.get(timeout=20, propagate=False)
        if number % 2:
            assert value == 0.0
        else:
            assert value == 0.05 or isinstance(value, SoftTimeLimitExceeded)


# -- hard ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["asleep", "busy", "in_c", "backtracking"])
def test_a_hard_limit_ends_whatever_the_task_does(running: Celeriac, worker: WorkerProcess, how: str) -> None:
    before = pid(running)
    started = time.monotonic()
    result = running.send_task("tasks.stuck", (how,), time_limit=0.3)
    with pytest.raises(TimeLimitExceeded, match=r"0\.3"):
        result.get(timeout=10)
    assert 0.3 <= time.monotonic() - started < 1.3
    assert result.state == "FAILURE"
    worker.wait_for(f"Hard time limit (0.3s) exceeded for tasks.stuck[{result.id}]")
    assert pid(running) != before


def test_a_task_that_ignores_its_soft_limit_runs_into_the_hard_one(
    running: Celeriac, journal: Journal
) -> None:
    one = uuid4().hex
    result = running.send_task("tasks.stubborn", (one,), soft_time_limit=0.2, time_limit=0.5)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=10)
    assert len(journal.of("soft", one)) == 1
    assert pid(running)


def test_an_early_acknowledged_task_has_limits_too(running: Celeriac, journal: Journal) -> None:
    one = uuid4().hex
    with pytest.raises(TimeLimitExceeded):
        running.send_task("tasks.limited_early", (one,)).get(timeout=10)
    assert pid(running)
    assert len(journal.of("ran", one)) == 1


def test_what_follows_a_failure_follows_a_time_limit(running: Celeriac, journal: Journal) -> None:
    result = running.send_task(
        "tasks.stuck", ("asleep",), time_limit=0.2, link_error=running.signature("tasks.failed")
    )
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=10)
    journal.wait_for("failed", result.id, "TimeLimitExceeded")


@pytest.mark.on("sqlite", "redis", "rabbitmq")
def test_what_was_handed_ahead_of_a_killed_executor_still_runs(running: Celeriac) -> None:
    for each in [running.send_task("tasks.nap", (0.0,)) for _ in range(50)]:
        each.get(timeout=10)
    # known to be short, so the rest is handed ahead
    stuck = running.send_task("tasks.nap", (60.0,), time_limit=0.3)
    behind = [running.send_task("tasks.nap", (0.0,)) for _ in range(20)]
    with pytest.raises(TimeLimitExceeded):
        stuck.get(timeout=10)
    assert [each.get(timeout=10) for each in behind] == [0.0] * 20


def test_the_limits_of_the_worker_hold_for_every_task(alone: Path, client: Celeriac) -> None:
    with WorkerProcess(alone, "--soft-time-limit", "0.2", "--time-limit", "0.4", executors=1) as worker:
        with pytest.raises(SoftTimeLimitExceeded):
            client.send_task("tasks.stuck", ("asleep",)).get(timeout=20)
        with pytest.raises(TimeLimitExceeded):
            client.send_task("tasks.stuck", ("in_c",)).get(timeout=20)
        assert client.send_task("tasks.nap", (0.0,)).get(timeout=10) == 0.0
        assert worker.stop() == 0
