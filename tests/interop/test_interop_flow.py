"""Work that moves between Celery and celeriac: retries, chains, routing, priorities, mixed fleets."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from celeriac.testing.private import PrivateRedis
from interop.fleet import KINDS, LIBRARY, Fleet, Kind
from support import eventually

pairs = pytest.mark.parametrize(
    ("producer", "worker"), [pytest.param(p, w, id=f"{p}-to-{w}") for p in KINDS for w in KINDS]
)
producers = pytest.mark.parametrize("producer", KINDS)
workers = pytest.mark.parametrize("worker", KINDS)


def both(fleet: Fleet) -> None:
    for kind in KINDS:
        fleet.worker(kind)


def other(kind: Kind) -> Kind:
    return "celeriac" if kind == "celery" else "celery"


# -- what a task sees of its message -------------------------------------------------------------------------------


@producers
def test_request_is_the_same_on_both_workers(fleet: Fleet, producer: Kind) -> None:
    """All that a request tells, of a call with every option, but for ids and instants."""
    options: dict[str, Any] = {
        "headers": {"tenant": 7, "nested": {"a": [1, None]}},
        "shadow": "nice",
        "time_limit": 30,
        "soft_time_limit": 20,
        "priority": 3,
        "expires": 600,
        "argsrepr": "(secret)",
        "ignore_result": False,
        "link": [
            {
                "task": "writes",
                "args": ("linked",),
                "immutable": True,
                "options": {"queue": fleet.queue("none")},
            }
        ],
    }
    seen: dict[Kind, dict[str, Any]] = {}
    for kind in KINDS:
        fleet.worker(kind)
        for each, name in (({}, "plain"), (options, "full")):
            task_id = fleet.client(producer).call("describe", queue=fleet.queue(kind), **each)
            found = fleet.value(task_id)
            assert found["id"] == found["root_id"] == found["correlation_id"] == task_id
            assert (found["kind"], found["delivery_info"].pop("routing_key")) == (kind, fleet.queue(kind))
            found["headers"] = found["headers"] or {}  # ours are {} where Celery's are None
            found["delivery_info"]["priority"] = found["delivery_info"]["priority"] or 0
            seen.setdefault(kind, {})[name] = {
                key: value
                for key, value in found.items()
                if key not in ("id", "root_id", "correlation_id", "kind", "expires", "origin", "reply_to")
            }
    assert seen["celeriac"] == seen["celery"]


@pairs
def test_ids_of_a_task_that_a_task_sent(fleet: Fleet, producer: Kind, worker: Kind) -> None:
    both(fleet)
    task_id = fleet.client(producer).call("spawn", (fleet.queue(other(worker)),), queue=fleet.queue(worker))
    child = fleet.value(task_id)
    found = fleet.value(child)
    assert (found["parent_id"], found["root_id"]) == (task_id, task_id)
    assert [fleet.client(kind).look(task_id)["children"] for kind in KINDS] == [[child], [child]]


@pairs
def test_extended_result(on_rabbitmq: Fleet, producer: Kind, worker: Kind) -> None:
    fleet = on_rabbitmq
    node = fleet.worker(worker).name
    queue = fleet.queue(worker)
    task_id = fleet.client(producer).call("echo", (1, "a"), {"k": [None]}, queue=queue)
    fleet.value(task_id)
    looks = [fleet.client(kind).look(task_id) for kind in KINDS]
    assert looks[0] == looks[1]
    found = {key: looks[0][key] for key in ("name", "args", "kwargs", "worker", "queue", "retries")}
    assert found == {
        "name": "interop_tasks.echo",
        "args": [1, "a"],
        "kwargs": {"k": [None]},
        "worker": node,
        "queue": queue,
        "retries": 0,
    }


# -- retries -------------------------------------------------------------------------------------------------------


@pairs
def test_retried_here_and_run_there(fleet: Fleet, producer: Kind, worker: Kind) -> None:
    """From one kind of worker to the other and back, four times."""
    both(fleet)
    there = other(worker)
    route = [fleet.queue(each) for each in (there, worker, there, worker)]
    task_id = fleet.client(producer).call(
        "retry_at", (route,), queue=fleet.queue(worker), headers={"tenant": 7}
    )
    assert fleet.value(task_id) == [worker, 4]
    notes = fleet.noted(task_id)
    assert [line[:3] for line in notes] == [
        [worker, "0", "None"],
        *([kind, str(n), task_id] for n, kind in enumerate((there, worker, there, worker), 1)),
    ]
    headers = [json.loads(" ".join(line[3:])) for line in notes]
    assert [each["tenant"] for each in headers] == [7] * 5
    assert all("redelivered" not in each and "x-death" not in each for each in headers)


@producers
def test_retries_in_a_queue_of_both(fleet: Fleet, producer: Kind) -> None:
    """Every try is run once, by whichever has it."""
    both(fleet)
    tasks, tries = 20, 4
    ids = [
        fleet.client(producer).call("retry_times", (tries,), queue=fleet.queue("both")) for _ in range(tasks)
    ]
    assert [fleet.value(each) for each in ids] == [tries] * tasks
    for task_id in ids:
        notes = fleet.noted(task_id)
        assert [line[1:] for line in notes] == [
            [str(n), "None" if n == 0 else task_id, task_id] for n in range(tries + 1)
        ]


@pairs
def test_retried_in_vain(fleet: Fleet, producer: Kind, worker: Kind) -> None:
    fleet.worker(worker)
    task_id = fleet.client(producer).call("retry_in_vain", queue=fleet.queue(worker))
    raised = fleet.read(task_id)["raised"]
    assert (raised["class"], raised["args"]) == ("interop_tasks.OwnError", ["never", 2])
    assert fleet.noted(task_id) == [[worker, str(n)] for n in range(3)]


@pairs
def test_retried_automatically(fleet: Fleet, producer: Kind, worker: Kind) -> None:
    fleet.worker(worker)
    task_id = fleet.client(producer).call("retry_by_itself", queue=fleet.queue(worker))
    assert fleet.value(task_id) == 2


# -- chains --------------------------------------------------------------------------------------------------------


@pairs
def test_chain_over_both_workers(fleet: Fleet, producer: Kind, worker: Kind) -> None:
    both(fleet)
    kinds = [worker, other(worker), worker, other(worker)]
    steps = [
        {"task": "add", "args": (1, 2) if n == 0 else (10,), "options": {"queue": fleet.queue(kind)}}
        for n, kind in enumerate(kinds)
    ]
    ids = fleet.client(producer).chain(*steps)
    assert [fleet.value(each) for each in reversed(ids)] == [33, 23, 13, 3]
    for before, after in pairwise(ids):
        assert [fleet.client(kind).look(before)["children"] for kind in KINDS] == [[after], [after]]


@pairs
def test_ids_along_a_chain(fleet: Fleet, producer: Kind, worker: Kind) -> None:
    """Every task of a chain knows the first, the one before it, and where its client waits."""
    both(fleet)
    kinds = [worker, other(worker), other(worker), worker]
    steps = [{"task": "describe_then", "options": {"queue": fleet.queue(kind)}} for kind in kinds]
    ids = fleet.client(producer).chain(*steps)
    assert fleet.value(ids[-1]) == worker
    notes = fleet.noted(ids[0])
    assert [line[0] for line in notes] == kinds
    told = [json.loads(" ".join(line[1:])) for line in notes]
    assert [each[0] for each in told] == ids
    assert [each[1] for each in told] == [None, *ids[:-1]]
    if producer == "celery":  # ours has none without the rpc backend: then Celery's workers put their own
        assert len({each[2] for each in told}) == 1
    assert [each[4] for each in told] == [None, *kinds[:-1]]


@pairs
def test_chain_that_breaks(fleet: Fleet, producer: Kind, worker: Kind) -> None:
    """The tasks after the one that failed have failed the same way."""
    both(fleet)
    options, elsewhere = {"queue": fleet.queue(worker)}, {"queue": fleet.queue(other(worker))}
    ids = fleet.client(producer).chain(
        {"task": "add", "args": (1, 2), "options": options},
        {"task": "fail", "args": ("OwnError", "x"), "immutable": True, "options": elsewhere},
        {"task": "add", "args": (1,), "options": options},
        {"task": "add", "args": (1,), "options": options},
    )
    assert fleet.value(ids[0]) == 3
    for each in ids[1:]:
        raised = fleet.read(each)["raised"]
        assert (raised["class"], raised["args"]) == ("interop_tasks.OwnError", ["x"])


@pairs
def test_links_of_a_chain(fleet: Fleet, producer: Kind, worker: Kind) -> None:
    both(fleet)
    here, there = {"queue": fleet.queue(worker)}, {"queue": fleet.queue(other(worker))}
    key = token_hex(4)
    ids = fleet.client(producer).chain(
        {"task": "add", "args": (1, 2), "options": here},
        {"task": "add", "args": (1,), "options": there},
        link=[{"task": "writes", "args": (key,), "immutable": True, "options": here}],
        link_error=[{"task": "errback_old", "options": here}],
    )
    assert fleet.value(ids[-1]) == 4
    assert fleet.wait_for_notes(key) == [[worker]]
    failing = fleet.client(producer).chain(
        {"task": "add", "args": (1, 2), "options": here},
        {"task": "fail", "args": ("OwnError",), "immutable": True, "options": there},
        link_error=[{"task": "errback_old", "options": here}],
    )
    assert fleet.wait_for_notes(f"errback.{failing[1]}") == [[worker, "old"]]


# -- where to ------------------------------------------------------------------------------------------------------


@pairs
def test_topic_exchange(fleet: Fleet, producer: Kind, worker: Kind) -> None:
    fleet.worker(worker)
    key = token_hex(4)
    fleet.client(producer).call(
        "writes", (key,), queue=fleet.queue(f"topic.{worker}"), routing_key=f"to.{worker}.deep.down"
    )
    assert fleet.wait_for_notes(key) == [[worker]]


@producers
def test_topic_exchange_to_both(fleet: Fleet, producer: Kind) -> None:
    both(fleet)
    key = token_hex(4)
    fleet.client(producer).call("writes", (key,), queue=fleet.queue("all.celery"), routing_key="to.everybody")
    assert sorted(fleet.wait_for_notes(key, 2)) == [["celeriac"], ["celery"]]


@producers
def test_fanout_exchange(fleet: Fleet, producer: Kind) -> None:
    both(fleet)
    key = token_hex(4)
    fleet.client(producer).call("writes", (key,), queue=fleet.queue("fan.celery"))
    assert sorted(fleet.wait_for_notes(key, 2)) == [["celeriac"], ["celery"]]


@producers
def test_broadcast(fleet: Fleet, producer: Kind) -> None:
    both(fleet)
    key = token_hex(4)
    fleet.client(producer).know_exchange(fleet.queue("everyone"))
    fleet.client(producer).call("writes", (key,), queue=fleet.queue("everyone"))
    assert sorted(fleet.wait_for_notes(key, 2)) == [["celeriac"], ["celery"]]


@producers
def test_routed_by_a_rule(fleet: Fleet, producer: Kind) -> None:
    fleet.worker("celery")
    assert fleet.value(fleet.client(producer).call("routed_by_rule")) == "celery"


@pairs
def test_purge(fleet: Fleet, producer: Kind, worker: Kind) -> None:
    """What one side sent, the other deletes."""
    queue = fleet.queue(f"purged-{token_hex(3)}")
    for n in range(5):
        fleet.client(producer).call("add", (n, n), queue=queue, priority=n if fleet.on_redis else None)
    purger = fleet.client(worker)
    assert purger.purge(queue) == 5
    assert purger.purge(queue) == 0


@workers
def test_urgent_first(fleet: Fleet, worker: Kind) -> None:
    """A worker that comes to a full queue takes by priority, then by age; the smaller is sooner on Redis alone."""
    key, queue = token_hex(4), fleet.queue(f"urgent.{worker}")
    sent = [(kind, priority) for priority in (5, 0, 9, 3, 0, 9) for kind in KINDS]
    for number, (kind, priority) in enumerate(sent):
        words = (key, number, priority)
        last = fleet.client(kind).call("writes", words, queue=queue, priority=priority)
    with fleet.extra_worker(worker, [f"urgent.{worker}"], concurrency=1, worker_prefetch_multiplier=1):
        notes = fleet.wait_for_notes(key, len(sent))
        fleet.value(last)
    ran = [int(line[1]) for line in notes]
    step = (lambda p: [0, 0, 0, 3, 3, 3, 6, 6, 6, 9][p]) if fleet.on_redis else (lambda p: -p)
    for each in range(2):  # by age: those of one sender, who reach the server in order
        mine = [n for n in ran if n % 2 == each]
        assert mine == sorted(mine, key=lambda n: (step(sent[n][1]), n))
    assert [step(sent[n][1]) for n in ran] == sorted(step(priority) for _, priority in sent)


# -- mixed fleets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10_000])
def test_both_drain_one_queue(fleet: Fleet, count: int) -> None:
    """Sent by both, run by both, each task once."""
    both(fleet)
    key, half = token_hex(4), count // 2
    numbers = {"celery": range(half), "celeriac": range(half, count)}
    for kind in KINDS:
        arguments = [(key, n) for n in numbers[kind]]
        fleet.client(kind).call_many("done", arguments, queue=fleet.queue("both"), ignore_result=True)
    done, by = fleet.queue(f"done.{key}"), fleet.queue(f"by.{key}")
    eventually(lambda: fleet.notes.hlen(done) == count, within=60, what=f"{count} tasks")
    took_part = {kind: int(n) for kind, n in fleet.notes.hgetall(by).items()}
    twice = {number: times for number, times in fleet.notes.hgetall(done).items() if times != "1"}
    assert not twice, fleet.complaints()
    assert sum(took_part.values()) == count
    assert min(took_part.get(kind, 0) for kind in KINDS) > count // 50, took_part


def test_worker_leaves_while_both_drain(fleet: Fleet) -> None:
    """It puts back what it has not begun, and Celery's does that."""
    key, queue, count = token_hex(4), f"left-{token_hex(3)}", 600
    done, by = fleet.queue(f"done.{key}"), fleet.queue(f"by.{key}")
    with fleet.extra_worker("celery", [queue]), fleet.extra_worker("celeriac", [queue]) as worker:
        arguments = [(key, n, 0.005) for n in range(count)]
        fleet.client("celery").call_many("done", arguments, queue=fleet.queue(queue), ignore_result=True)
        eventually(lambda: fleet.notes.hget(by, "celeriac"), what="a start")
        worker.process.terminate()
        assert worker.process.wait(30) == 0
        worker.expected_to_end()
        eventually(lambda: fleet.notes.hlen(done) == count, within=60, what=f"{count} tasks")
        assert fleet.notes.hget(by, "celery")
    assert set(fleet.notes.hvals(done)) == {"1"}


# -- what a worker that dies leaves behind -------------------------------------------------------------------------


@pytest.fixture
def crashing(celery: Path, redis_server: PrivateRedis, folder: Path) -> Iterator[Fleet]:
    """A fleet on a database of its own: what Celery's workers hold is in one place for all of a database."""
    url = redis_server.url.replace("/0", "/2")
    with closing(Fleet(url, url, folder)) as fleet:
        yield fleet


def test_messages_of_a_killed_celery_worker_on_redis(crashing: Fleet) -> None:
    """Celery's rules: handed out again once they were held for the visibility timeout."""
    key, gate, queue = token_hex(4), token_hex(4), f"killed-{token_hex(3)}"
    options = {"visibility_timeout": 1.5, "unacked_restore_interval": 1}
    with crashing.extra_worker("celery", [queue], concurrency=1, broker_transport_options=options) as worker:
        ids = [
            crashing.client("celery").call("hold_late", (key, gate), queue=crashing.queue(queue))
            for _ in range(2)
        ]
        crashing.wait_for_notes(key)
        os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        worker.expected_to_end()
    for _ in ids:
        crashing.open_gate(gate)
    with crashing.extra_worker("celeriac", [queue], broker_transport_options=options):
        assert [crashing.value(each, timeout=30) for each in ids] == ["celeriac"] * 2


def test_messages_of_a_killed_worker_on_rabbitmq(on_rabbitmq: Fleet) -> None:
    """RabbitMQ hands them out again at once."""
    key, gate, queue = token_hex(4), token_hex(4), f"killed-{token_hex(3)}"
    for killed, taking_over in (("celery", "celeriac"), ("celeriac", "celery")):
        with on_rabbitmq.extra_worker(killed, [queue], concurrency=1) as worker:
            client = on_rabbitmq.client("celery")
            ids = [client.call("hold_late", (key, gate), queue=on_rabbitmq.queue(queue)) for _ in range(2)]
            on_rabbitmq.wait_for_notes(key)
            os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            worker.expected_to_end()
        for _ in ids:
            on_rabbitmq.open_gate(gate)
        with on_rabbitmq.extra_worker(taking_over, [queue]):
            assert [on_rabbitmq.value(each) for each in ids] == [taking_over] * 2


@pytest.mark.skipif(LIBRARY["celeriac"] == "celery", reason="is about what a worker of celeriac's leaves")
@producers
def test_scheduled_message_is_celerys_once_no_celeriac_worker_is_left(fleet: Fleet, producer: Kind) -> None:
    queue = f"eta-{token_hex(3)}"
    due = time.time() + 3.0
    with fleet.extra_worker("celeriac", [queue]):
        client = fleet.client(producer)
        task_id = client.call("when", queue=fleet.queue(queue), eta=datetime.fromtimestamp(due, UTC))
    with fleet.extra_worker("celery", [queue]):
        kind, ran = fleet.value(task_id)
    assert kind == "celery"
    assert due - 0.05 <= ran <= due + 3.0
