"""Quorum queues on RabbitMQ, and the exchanges through which both sides delay messages there."""

from __future__ import annotations

import json
import time
from secrets import token_hex

import pytest

from interop.fleet import KINDS, Fleet, Kind
from support import eventually

pairs = pytest.mark.parametrize(
    ("producer", "worker"), [pytest.param(p, w, id=f"{p}-to-{w}") for p in KINDS for w in KINDS]
)


@pairs
def test_call(on_quorum: Fleet, producer: Kind, worker: Kind) -> None:
    on_quorum.worker(worker)
    assert on_quorum.value(on_quorum.client(producer).call("add", (2, 3), queue=on_quorum.queue(worker))) == 5


@pairs
@pytest.mark.parametrize("queue", ["", "topic."])
def test_not_before_its_time(on_quorum: Fleet, producer: Kind, worker: Kind, queue: str) -> None:
    """To a queue on a direct exchange Celery sends at once, to one on a topic exchange through its delay."""
    on_quorum.worker(worker)
    due = time.time() + 1.5
    options = {"routing_key": f"to.{worker}.x"} if queue else {}
    target = on_quorum.queue(f"{queue}{worker}")
    kind, ran = on_quorum.value(
        on_quorum.client(producer).call("when", queue=target, countdown=1.5, **options)
    )
    assert kind == worker
    assert due - 0.05 <= ran <= due + 2.0


@pytest.mark.parametrize("worker", KINDS)
def test_retried_here_and_run_there(on_quorum: Fleet, worker: Kind) -> None:
    """What the server put into the headers on the way is not ours. (Celery cannot delay by less than 1 s here.)"""
    for kind in KINDS:
        on_quorum.worker(kind)
    there: Kind = "celeriac" if worker == "celery" else "celery"
    route = [on_quorum.queue(f"topic.{there}"), on_quorum.queue(worker)]
    client = on_quorum.client("celery")
    task_id = client.call("retry_at", (route, 1.1), queue=on_quorum.queue(worker), headers={"tenant": 7})
    assert on_quorum.value(task_id) == [worker, 2]
    notes = on_quorum.noted(task_id)
    headers = {line[0]: json.loads(" ".join(line[3:])) for line in notes}
    assert [line[0] for line in notes] == [worker, there, worker]
    assert headers["celery"]["tenant"] == 7  # among others: Celery's tasks see what the server added
    assert headers["celeriac"] == {"tenant": 7}


def test_both_drain_one_queue(on_quorum: Fleet) -> None:
    key, count = token_hex(4), 500
    for kind in KINDS:
        on_quorum.worker(kind)
    for kind in KINDS:
        arguments = [(key, f"{kind}-{n}") for n in range(count)]
        on_quorum.client(kind).call_many("done", arguments, queue=on_quorum.queue("both"))
    done = on_quorum.queue(f"done.{key}")
    eventually(lambda: on_quorum.notes.hlen(done) == 2 * count, what=f"{2 * count} tasks")
    assert set(on_quorum.notes.hvals(done)) == {"1"}
