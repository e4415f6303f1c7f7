"""Several processes on one file: publishing to each other, dying in the middle, noticing it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.brokers import open_broker
from celeriac.brokers.base import Broker, BrokerOptions, QueueSize, Settlement
from celeriac.errors import ConnectionLost
from celeriac.testing.conformance.harness import PATIENCE, InThread, ids, outgoing, take
from celeriac.topology import Queue
from celeriac.wire.disposition import ACK
from sql_support import Program

QUEUE = Queue("q")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/celeriac.db"


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    broker = open_broker(url, BrokerOptions())
    yield broker
    broker.close()


@pytest.fixture
def backend(url: str) -> Iterator[ResultBackend]:
    backend = open_backend(url, BackendOptions())
    yield backend
    backend.close()


def test_a_waiting_consumer_gets_what_another_process_publishes(url: str, broker: Broker) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    waiting = InThread(lambda: consumer.fetch(1, PATIENCE))
    with Program(url, "broker.publish([outgoing(queue, 'a')])"):
        assert ids(waiting.result()) == ["a"]
    consumer.close()


def test_a_watcher_gets_what_another_process_records(url: str, backend: ResultBackend) -> None:
    waiting = InThread(lambda: list(backend.watch(["a"], PATIENCE)))
    with Program(url, "backend.put([Record(task_id='a', state='SUCCESS', result=b'1')])"):
        assert [each.result for each in waiting.result()] == [b"1"]


def test_a_process_that_cannot_ring_is_noticed_too(url: str, broker: Broker) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    waiting = InThread(lambda: consumer.fetch(1, PATIENCE))
    deaf = "broker.database.ring = lambda topics, number: None\n"
    with Program(url, deaf + "broker.publish([outgoing(queue, 'a')])"):
        assert ids(waiting.result()) == ["a"]
    consumer.close()


def test_what_a_killed_worker_held_is_handed_out_without_waiting_for_its_lease(
    url: str, broker: Broker
) -> None:
    broker.publish([outgoing(QUEUE, "a"), outgoing(QUEUE, "b")])
    with Program(
        url, "held = broker.consumer([queue], name='w').fetch(2, 5); say('held'); listen()"
    ) as worker:
        assert worker.hear() == "held"
        alive = broker.consumer([QUEUE], name="alive")
        alive.renew()
        assert broker.size("q") == QueueSize(0, 0, 2)
        worker.kill()
        alive.renew()
        deliveries = take(alive, 2)
    assert [(each.attempts, each.redelivered) for each in deliveries] == [(2, True), (2, True)]
    alive.close()


def test_a_worker_that_starts_again_finds_what_it_held_when_it_was_killed(url: str, broker: Broker) -> None:
    broker.publish([outgoing(QUEUE, "a")])
    with Program(
        url, "held = broker.consumer([queue], name='w').fetch(1, 5); say('held'); listen()"
    ) as worker:
        assert worker.hear() == "held"
        worker.kill()
    began = time.monotonic()
    again = broker.consumer([QUEUE], name="w")
    assert ids(take(again, 1)) == ["a"]
    assert time.monotonic() - began < broker.options.lease / 2
    again.close()


def test_a_worker_that_is_stopped_is_not_taken_for_dead_before_its_lease_ends(
    url: str, broker: Broker
) -> None:
    broker.publish([outgoing(QUEUE, "a")])
    code = """
consumer = broker.consumer([queue], name='w')
[held] = consumer.fetch(1, 5)
say('held')
listen()
say(str(len(consumer.settle([Settlement(held, ACK)]))))
consumer.close()
"""
    with Program(url, code) as worker:
        assert worker.hear() == "held"
        worker.process.send_signal(signal.SIGSTOP)
        alive = broker.consumer([QUEUE], name="alive")
        alive.renew()
        assert list(alive.fetch(1, 0)) == []
        worker.process.send_signal(signal.SIGCONT)
        worker.tell("go on")
        assert worker.hear() == "0"
    alive.close()


@pytest.mark.parametrize("moment", ["while it writes", "before it commits", "after it committed"])
def test_a_process_killed_within_a_unit_did_all_of_it_or_nothing(
    url: str, broker: Broker, backend: ResultBackend, moment: str
) -> None:
    broker.publish([outgoing(QUEUE, "a")])
    code = f"""
consumer = broker.consumer([queue], name='w')
[delivery] = consumer.fetch(1, 5)
unit = consumer.unit(backend)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

match {moment!r}:
    case 'while it writes':
        backend.put_in = die
    case 'before it commits':
        carry_out = consumer.carry_out
        consumer.carry_out = lambda *a: (carry_out(*a), die())
    case 'after it committed':
        broker.ring = die
record = Record(task_id='a', state='SUCCESS', result=b'1')
unit.complete([Completion(Settlement(delivery, ACK), record, [outgoing(Queue('next'), 'b')])])
"""
    with Program(url, code) as worker:
        assert worker.hear() == ""
        assert worker.process.wait(PATIENCE) == -signal.SIGKILL
    consumer = broker.consumer([QUEUE], name="w")
    done = moment == "after it committed"
    assert [record and record.state for record in backend.get(["a"])] == ["SUCCESS" if done else None]
    assert broker.size("next") == QueueSize(int(done), 0, 0)
    assert broker.size("q") == QueueSize(0 if done else 1, 0, 0)
    consumer.close()


def test_processes_that_publish_and_work_at_once_lose_nothing(url: str, broker: Broker) -> None:
    publish = """
for number in range(20):
    broker.publish([outgoing(queue, f'{os.getpid()}-{number}-{i}') for i in range(5)])
"""
    work = """
import threading
consumer = broker.consumer([queue], name='w')
told = threading.Event()

def stop_when_told():
    listen()
    told.set()
    consumer.wake()

threading.Thread(target=stop_when_told).start()
while not told.is_set():
    deliveries = consumer.fetch(7, 20)
    assert not consumer.settle([Settlement(each, ACK) for each in deliveries])
    say(str(len(deliveries)))
consumer.close()
"""
    settled: SimpleQueue[int] = SimpleQueue()

    def follow(worker: Program) -> None:
        while word := worker.hear():
            settled.put(int(word))

    with Program(url, work) as first, Program(url, work) as second:
        following = [InThread(partial(follow, each)) for each in (first, second)]
        with Program(url, publish), Program(url, publish), Program(url, publish):
            total = 0
            while total < 300:
                total += settled.get(timeout=PATIENCE)
        for worker, thread in zip((first, second), following, strict=True):
            worker.tell("stop")
            thread.result()
    assert total == 300
    assert broker.size("q") == QueueSize(0, 0, 0)


def test_a_fork_while_a_consumer_waits(url: str, broker: Broker) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    waiting = InThread(lambda: consumer.fetch(1, PATIENCE))
    code = "pid = os.fork()\nif pid:\n    os.waitpid(pid, 0)\nbroker.publish([outgoing(queue)])"
    with Program(url, "import warnings; warnings.simplefilter('ignore')\n" + code):
        [delivery] = waiting.result()
        assert list(consumer.settle([Settlement(delivery, ACK)])) == []
        take(consumer, 1)
    consumer.close()


def test_the_lease_of_a_worker_does_not_outlive_it_in_its_children(url: str, broker: Broker) -> None:
    broker.publish([outgoing(QUEUE, "a")])
    code = """
held = broker.consumer([queue], name='w').fetch(1, 5)
if os.fork() == 0:
    say('held')
    listen()
    os._exit(0)
signal.pause()
"""
    with Program(url, code) as worker:
        assert worker.hear() == "held"
        worker.kill()
        alive = broker.consumer([QUEUE], name="alive")
        assert ids(take(alive, 1)) == ["a"]
    alive.close()


def test_a_claim_whose_transaction_fails_is_not_held(url: str, broker: Broker) -> None:
    broker.publish([outgoing(QUEUE, "a")])
    impatient = open_broker(url, BrokerOptions(publish_timeout=0.05))
    consumer = impatient.consumer([QUEUE], name="w")
    with Program(url, "begun = broker.transaction(); begun.__enter__(); say('locked'); listen()") as other:
        assert other.hear() == "locked"
        with pytest.raises(ConnectionLost, match="locked"):
            consumer.fetch(1, 1)
        other.tell("end")
    [delivery] = take(consumer, 1)
    assert delivery.attempts == 1
    assert list(consumer.held()) == []
    consumer.close()
