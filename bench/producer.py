"""What a program does that calls tasks, measured from inside: run as ``python producer.py COMMAND ARGUMENT...``.

The same text for celeriac and for Celery, run by the Python of either; prints its figures as JSON. The only
difference: celeriac publishes a list of messages at once; the quickest that Celery has is a loop that keeps one
producer (its `group` is slower).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tasks import app

CELERY = os.environ.get("BENCH_SIDE") == "celery"
if CELERY:
    from celery import chain
else:
    from celeriac import chain

#: Messages that are published at once.
BULK = 1_000
#: Seconds that a result may take.
PATIENCE = 30.0
#: A queue that nobody consumes: a call into it opens the connection.
ASIDE = "bench.aside"

noop: Any = app.tasks["bench.noop"]
step: Any = app.tasks["bench.step"]


def one_by_one(count: int) -> dict[str, Any]:
    """Call a task `count` times."""
    noop.apply_async((0,), queue=ASIDE)
    started = time.perf_counter()
    for _ in range(count):
        noop.delay(0)
    return {"rate": count / (time.perf_counter() - started)}


def fill(first: int, count: int) -> dict[str, Any]:
    """Call a task with each number of a range, as fast as can be; gives the ids of the calls, too."""
    noop.apply_async((0,), queue=ASIDE)
    started = time.perf_counter()
    ids = _publish(range(first, first + count), {})
    return {"rate": count / (time.perf_counter() - started), "ids": ids}


def due(first: int, count: int, seconds: int) -> dict[str, Any]:
    """Call a task with each number of a range, all due at one instant, so many seconds from now.

    Gives the instant, and how many seconds were left when all were published.
    """
    instant = time.time() + seconds
    _publish(range(first, first + count), {"eta": datetime.fromtimestamp(instant, UTC)})
    return {"instant": instant, "spare": instant - time.time()}


def _publish(numbers: Sequence[int], options: dict[str, Any]) -> list[str]:
    if CELERY:
        with app.producer_pool.acquire(block=True) as kept:
            return [noop.apply_async((each,), producer=kept, **options).id for each in numbers]
    ids: list[str] = []
    for start in range(0, len(numbers), BULK):
        batch = numbers[start : start + BULK]
        calls = [app.publisher.lay_out(noop.name, (each,), {}, options, task=noop) for each in batch]
        app.publish([outgoing for _, outgoing in calls])
        ids += [message.id for message, _ in calls]
    return ids


def latencies(calls: int) -> dict[str, Any]:
    """Call a task and wait for its result, so many times; milliseconds."""
    taken: list[float] = []
    for number in range(calls):
        started = time.perf_counter()
        if noop.delay(number).get(timeout=PATIENCE) != number:
            raise SystemExit("the result of another call")
        taken.append((time.perf_counter() - started) * 1000)
    taken.sort()
    return {"p50": taken[calls // 2], "p99": taken[calls * 99 // 100]}


def chains(length: int, times: int) -> dict[str, Any]:
    """Run chains one after the other, from the call to the last result; milliseconds, the median."""
    taken: list[float] = []
    for _ in range(times):
        whole = chain(step.s(0), *(step.s() for _ in range(length - 1)))
        started = time.perf_counter()
        if whole.apply_async().get(timeout=PATIENCE) != length:
            raise SystemExit("the chain did not count its steps")
        taken.append((time.perf_counter() - started) * 1000)
    return {"p50": sorted(taken)[times // 2]}


COMMANDS = {each.__name__: each for each in (one_by_one, fill, due, latencies, chains)}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](*map(int, sys.argv[2:]))))
