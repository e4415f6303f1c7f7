"""Ten thousand tasks for later, and workers that come and go: each runs once, not early and hardly late."""

from __future__ import annotations

import random
import statistics
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from celeriac import Celeriac
from celeriac.brokers.base import QueueSize
from counting import Runs, counted
from support import WorkerProcess, eventually

pytestmark = pytest.mark.on("sqlite", "redis", "rabbitmq")

TASKS = counted()
NUMBER = 10_000
#: Seconds from sending a task to its eta.
AHEAD = 20.0
WORKERS = 4
#: Megabytes that the parent of a worker may grow by while the tasks wait.
GROWTH = 10


def resident(worker: WorkerProcess) -> float:
    """Megabytes of a worker's parent process."""
    for line in Path(f"/proc/{worker.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


@pytest.mark.timeout(240)
def test_ten_thousand_tasks_for_later_run_once_and_in_time(alone: Path, client: Celeriac) -> None:
    chance = random.Random(NUMBER)
    with ExitStack() as stack:
        workers = [worker(stack, alone, number) for number in range(WORKERS)]
        for each in workers:
            each.ready()
        before = resident(workers[0])
        due = [send(client, number) for number in range(NUMBER)]
        assert time.time() < due[0], "sending took longer than they are ahead"
        # The first one stays, so that it can be measured.
        for restart in range(WORKERS, 1000):
            if time.time() > due[-1]:
                break
            if time.time() < due[0]:
                waiting = resident(workers[0])
            number = chance.randrange(1, WORKERS)
            assert workers[number].stop() == 0
            workers[number] = worker(stack, alone, restart).ready()
        runs = Runs(alone)
        runs.wait_until_finished(range(NUMBER))
        eventually(lambda: client.broker.size("celery") == QueueSize(0, 0, 0))
        assert [each.stop() for each in workers] == [0] * WORKERS
    assert {len(each) for each in runs.all().values()} == {1}
    late = sorted(runs.all()[number][0].started - instant for number, instant in enumerate(due))
    p99 = statistics.quantiles(late, n=100)[98]
    print(
        f"{restart - WORKERS} restarts; late: p50 {statistics.median(late):.3f} s, p99 {p99:.3f} s, "
        f"last {late[-1]:.3f} s; memory {before:.0f} MB, with {NUMBER} waiting {waiting:.0f} MB"
    )
    assert late[0] >= 0
    assert p99 < 1
    assert waiting - before < GROWTH


def worker(stack: ExitStack, folder: Path, number: int) -> WorkerProcess:
    return stack.enter_context(WorkerProcess(folder, "-n", f"w{number}", executors=1))


def send(client: Celeriac, number: int) -> float:
    """When it is due."""
    eta = datetime.now(UTC) + timedelta(seconds=AHEAD)
    client.send_task("tasks.run", (number,), eta=eta, ignore_result=True)
    return eta.timestamp()
