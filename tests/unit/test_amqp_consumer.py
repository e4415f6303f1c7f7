"""A consumer of RabbitMQ under fire: lost connections, counted attempts, long work, stalls, threads."""

from __future__ import annotations

import os
import queue as queue_module
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from amqp_support import OpenBroker, new_queue, opened, raw, vhost
from celeriac.backends.base import BackendOptions
from celeriac.backends.memory import MemoryBackend
from celeriac.brokers.base import Completion, Consumer, Delivery, QueueSize, Settlement
from celeriac.errors import ConnectionLost, OperationalError
from celeriac.testing.conformance.harness import (
    PATIENCE,
    InThread,
    assert_nothing,
    await_ready,
    envelope,
    ids,
    outgoing,
    take,
)
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.proxy import Proxy
from celeriac.testing.servers import PrivateRabbitMQ, free_port
from celeriac.topology import Broadcast, Queue
from celeriac.wire.disposition import ACK, DeadLetter, Defer, Return
from celeriac.wire.envelope import Outgoing
from celeriac.wire.record import Record

__all__ = ["opened", "vhost"]

#: Seconds that the private server lets a consumer hold a message.
TIMEOUT = 2.0


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbitMQ]:
    folder = tmp_path_factory.mktemp("rabbitmq")
    with skipped_without_server(), PrivateRabbitMQ(folder, consumer_timeout=TIMEOUT) as server:
        yield server


def set_consumer_timeout(server: PrivateRabbitMQ, seconds: float) -> None:
    """For channels to come too."""
    server.rabbitmqctl("eval", f"application:set_env(rabbit, consumer_timeout, {round(seconds * 1000)}).")


def classic() -> Queue:
    return new_queue()


def quorum() -> Queue:
    return new_queue(queue_arguments={"x-queue-type": "quorum"})


def reconnect(consumer: Consumer, limit: int = 10) -> list[Delivery]:
    """Fetch after a loss: what is found broken on the way is part of it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if found := consumer.fetch(limit, 1.0):
                return list(found)
        except OperationalError:
            pass
    raise AssertionError("nothing came")


def lose(consumer: Consumer) -> list[Delivery]:
    """Wait until a consumer says what it lost."""
    deadline = time.monotonic() + PATIENCE
    while not (lost := consumer.renew()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return list(lost)


def queues_of(vhost: str) -> list[str]:
    """The queues of a virtual host, but for those of delayed delivery."""
    name = vhost.rpartition("/")[2]
    done = subprocess.run(
        ["rabbitmqctl", "-q", "list_queues", "-p", name, "name"], capture_output=True, text=True, check=True
    )
    return [each for each in done.stdout.split()[1:] if not each.startswith("celery_delayed")]


# -- lost connections ----------------------------------------------------------------------------------------


def test_what_a_cut_connection_held_is_told_once_and_comes_again(opened: OpenBroker, vhost: str) -> None:
    queue = classic()
    with Proxy(vhost) as proxy:
        consumer = opened(proxy.url).consumer([queue], name="w")
        publisher = opened()
        publisher.publish([outgoing(queue, id) for id in "abc"])
        settled, *held = take(consumer, 3)
        consumer.settle([Settlement(settled, ACK)])
        assert list(consumer.fence(held)) == []  # the server has read what came before
        assert list(consumer.renew()) == []
        proxy.cut()
        assert set(lose(consumer)) == set(held)
        assert list(consumer.renew()) == []
        again = take(consumer, 2)
        assert sorted(ids(again)) == ["b", "c"]
        assert all(each.redelivered for each in again)
        assert consumer.settle([Settlement(each, ACK) for each in again]) == []
        assert_nothing(consumer)
        consumer.close()
    assert publisher.size(queue.name) == QueueSize(0, 0, 0)


def test_a_waiting_fetch_notices_that_the_connection_is_cut(opened: OpenBroker, vhost: str) -> None:
    with Proxy(vhost) as proxy:
        queue = classic()
        consumer = opened(proxy.url).consumer([queue], name="w")
        waiting = InThread(lambda: consumer.fetch(1, 10 * PATIENCE))
        time.sleep(0.1)
        proxy.cut()
        with pytest.raises(ConnectionLost):
            waiting.result()
        opened().publish([outgoing(queue, "a")])
        assert ids(reconnect(consumer)) == ["a"]
        consumer.close()


@pytest.mark.parametrize("make", [classic, quorum])
def test_a_poisonous_message_is_counted(opened: OpenBroker, vhost: str, make: Callable[[], Queue]) -> None:
    """The first cut cannot be told from a message that was given back untouched: it counts when there is a second."""
    queue, attempts, redelivered = make(), [], []
    with Proxy(vhost) as proxy:
        consumer = opened(proxy.url).consumer([queue], name="w")
        opened().publish([outgoing(queue, "poison")])
        for _ in range(6):
            [delivery] = reconnect(consumer)
            attempts.append(delivery.attempts)
            redelivered.append(delivery.redelivered)
            assert delivery.queue == queue.name
            assert delivery.envelope == envelope("poison")
            proxy.cut()
            lose(consumer)
        [delivery] = reconnect(consumer)
        assert consumer.settle([Settlement(delivery, DeadLetter("poison"))]) == []
        consumer.close()
    assert attempts == [1, 1, 3, 4, 5, 6]
    assert redelivered == [False, True, True, True, True, True]
    assert opened().size(queue.name).ready == 0
    assert opened().size(queue.dead).ready == 1


def test_who_lost_its_connection_cannot_settle(opened: OpenBroker, vhost: str) -> None:
    queue = classic()
    with Proxy(vhost) as proxy:
        consumer, broker = opened(proxy.url).consumer([queue], name="w"), opened()
        broker.publish([outgoing(queue, "a")])
        [stale] = take(consumer, 1)
        proxy.cut()
        await_ready(broker, queue, 1)
        now = broker.options.clock.now()
        assert consumer.settle([Settlement(stale, Return())]) == [stale]
        for disposition in (ACK, Return(), Defer(now), DeadLetter("no")):
            assert consumer.settle([Settlement(stale, disposition)]) == [stale]
        assert consumer.renew() == []
        assert broker.size(queue.name).ready == 1
        [fresh] = reconnect(consumer)
        assert consumer.settle([Settlement(stale, ACK), Settlement(fresh, ACK)]) == [stale]
        consumer.close()
    assert broker.size(queue.name).ready == 0


def test_a_unit_behind_a_cut_connection_does_nothing(opened: OpenBroker, vhost: str) -> None:
    queue, follow = classic(), classic()
    backend = MemoryBackend("memory://", BackendOptions())
    with Proxy(vhost) as proxy:
        consumer, broker = opened(proxy.url).consumer([queue], name="w"), opened()
        broker.publish([outgoing(queue, "a")])
        [stale] = take(consumer, 1)
        proxy.cut()
        done = Completion(
            Settlement(stale, ACK), Record(task_id="a", state="SUCCESS", result=b"1"), [outgoing(follow, "b")]
        )
        assert consumer.unit(backend).complete([done]) == [stale]
        assert list(backend.get(["a"])) == [None]
        assert broker.size(follow.name).ready == 0
        assert ids(reconnect(consumer)) == ["a"]
        consumer.close()


def test_a_unit_without_consequences_needs_no_fence(opened: OpenBroker) -> None:
    queue, broker = classic(), opened()
    consumer = broker.consumer([queue], name="w")
    broker.publish([outgoing(queue, "a"), outgoing(queue, "b")])
    a, b = take(consumer, 2)
    unit = consumer.unit(MemoryBackend("memory://", BackendOptions()))
    assert unit.complete([Completion(Settlement(a, ACK)), Completion(Settlement(b, ACK))]) == []
    assert unit.complete([Completion(Settlement(a, ACK))]) == [a]
    assert unit.fence([a, b]) == [a, b]
    consumer.close()


def test_another_server_is_taken_when_one_is_gone(opened: OpenBroker, vhost: str) -> None:
    queue = classic()
    with Proxy(vhost) as first, Proxy(vhost) as second:
        consumer = opened(f"{first.url};{second.url}").consumer([queue], name="w")
        first.refuse()
        lost = InThread(lambda: reconnect(consumer))
        opened().publish([outgoing(queue, "a")])
        assert ids(lost.result()) == ["a"]
        second.refuse()
        with pytest.raises(ConnectionLost):
            consumer.fetch(1, 5)
        with pytest.raises(ConnectionLost):
            consumer.fetch(1, 5)
        first.resume()
        assert ids(reconnect(consumer)) == ["a"]
        consumer.close()


# -- counted attempts ----------------------------------------------------------------------------------------

HOLDER = """
import os, sys
from celeriac.brokers import open_broker
from celeriac.brokers.base import BrokerOptions
from celeriac.topology import Broadcast, Queue

consumer = open_broker(sys.argv[1], BrokerOptions()).consumer([Queue(sys.argv[2])], name="doomed")
[delivery] = consumer.fetch(1, 20)
print(delivery.attempts, flush=True)
os.read(0, 1)
"""


def test_a_killed_worker_costs_an_attempt_and_a_second(opened: OpenBroker, vhost: str) -> None:
    queue, broker = classic(), opened()
    broker.publish([outgoing(queue, "a")])
    attempts: list[int] = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, vhost, queue.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout and process.stdin
        attempts.append(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stdin.close()
    consumer = broker.consumer([queue], name="w")
    began = time.monotonic()
    [delivery] = take(consumer, 1)
    assert time.monotonic() - began < 5
    assert [*attempts, delivery.attempts] == [1, 1, 3, 4]
    assert delivery.envelope == envelope("a")
    consumer.close()


def test_what_is_given_back_does_not_count_however_often(opened: OpenBroker, vhost: str) -> None:
    queue, broker = classic(), opened()
    broker.publish([outgoing(queue, "a")])
    for _ in range(5):
        consumer = broker.consumer([queue], name="w")
        [delivery] = take(consumer, 1)
        assert delivery.attempts == 1
        consumer.close()
    consumer = broker.consumer([queue], name="w")
    for _ in range(5):
        [delivery] = take(consumer, 1)
        assert (delivery.attempts, delivery.redelivered) == (1, True)
        consumer.settle([Settlement(delivery, Return())])
    [delivery] = take(consumer, 1)
    consumer.settle([Settlement(delivery, Return(counted=True))])
    [delivery] = take(consumer, 1)
    assert delivery.attempts == 2
    consumer.close()
    assert broker.size(queue.name).ready == 1
    # Hold queues are gone with their consumers.
    assert [each for each in queues_of(vhost) if queue.name in each] == [queue.name]


def test_attempts_are_counted_in_batches_and_in_order(opened: OpenBroker) -> None:
    queue, broker = classic(), opened()
    first = broker.consumer([queue], name="w")
    broker.publish([outgoing(queue, f"{n}") for n in range(300)])
    take(first, 200)
    first.close()
    second = broker.consumer([queue], name="w")
    found = take(second, 300)
    assert ids(found) == [f"{n}" for n in range(300)]
    assert [each.redelivered for each in found] == [True] * 200 + [False] * 100
    assert second.settle([Settlement(each, ACK) for each in found]) == []
    assert broker.size(queue.name) == QueueSize(0, 0, 0)
    second.close()


def test_an_expiring_message_keeps_its_properties_through_an_exchange(opened: OpenBroker) -> None:
    queue, broker = classic(), opened()
    sent = envelope("a")
    sent.properties["expiration"] = "60000"
    broker.publish([Outgoing(sent, "", queue.name, queue=queue)])
    consumer = broker.consumer([queue], name="w")
    for disposition in (Return(), Return(), Return(counted=True)):
        [delivery] = take(consumer, 1)
        assert delivery.envelope == sent
        consumer.settle([Settlement(delivery, disposition)])
    assert take(consumer, 1)[0].envelope == sent
    consumer.close()


def test_redelivered_messages_are_handed_out_when_nobody_may_publish(
    opened: OpenBroker, private: PrivateRabbitMQ
) -> None:
    queue, broker = classic(), opened(private.url, publish_timeout=0.5)
    broker.publish([outgoing(queue, "a"), outgoing(queue, "b")])
    first = broker.consumer([queue], name="w")
    take(first, 2)
    first.close()
    private.rabbitmqctl("set_vm_memory_high_watermark", "0")
    try:
        second = broker.consumer([queue], name="w")
        found = take(second, 2)
        assert [(each.attempts, each.redelivered) for each in found] == [(1, True), (1, True)]
        assert second.settle([Settlement(each, ACK) for each in found]) == []
    finally:
        private.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1GB")
    second.close()
    # The copies that were published after all are given up.
    await_ready(broker, queue, 0)


# -- long work -----------------------------------------------------------------------------------------------


def test_long_work_survives_the_servers_consumer_timeout(
    opened: OpenBroker, private: PrivateRabbitMQ
) -> None:
    queue = classic()
    broker = opened(private.url, transport={"consumer_timeout": TIMEOUT})
    busy, idle = broker.consumer([queue], name="busy"), broker.consumer([queue], name="idle")
    broker.publish([outgoing(queue, "long"), outgoing(queue, "longer")])
    long, longer = take(busy, 2)
    until = time.monotonic() + 3.5 * TIMEOUT
    while time.monotonic() < until:
        assert list(busy.renew()) == []
        assert ids(idle.fetch(1, 0.2)) == []
    assert busy.settle([Settlement(long, ACK)]) == []
    assert busy.settle([Settlement(longer, Return())]) == []
    [delivery] = take(idle, 1)
    assert (delivery.envelope.task_id, delivery.attempts) == ("longer", 1)
    assert idle.settle([Settlement(delivery, ACK)]) == []
    busy.close()
    idle.close()
    assert broker.size(queue.name) == QueueSize(0, 0, 0)


def test_a_servers_shorter_consumer_timeout_is_learned(
    opened: OpenBroker, private: PrivateRabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    queue, broker = classic(), opened(private.url)
    consumer = broker.consumer([queue], name="w")
    broker.publish([outgoing(queue, "a")])
    [delivery] = take(consumer, 1)
    assert lose(consumer) == [delivery]
    assert "takes back what a worker holds for 2s" in caplog.text
    [delivery] = reconnect(consumer)
    until = time.monotonic() + 2 * TIMEOUT
    while time.monotonic() < until:
        assert list(consumer.renew()) == []
        time.sleep(0.2)
    assert consumer.settle([Settlement(delivery, ACK)]) == []
    consumer.close()


def test_settling_beside_the_exchange_of_long_work(opened: OpenBroker, private: PrivateRabbitMQ) -> None:
    """Each delivery is settled once, whether before, while or after it is exchanged for a copy."""
    queue, broker = classic(), opened(private.url, transport={"consumer_timeout": 0.06})
    consumer = broker.consumer([queue], name="w")
    broker.publish([outgoing(queue, f"{n}") for n in range(600)])
    deliveries = take(consumer, 600)
    stop = threading.Event()

    def renew() -> None:
        while not stop.is_set():
            assert list(consumer.renew()) == []

    renewing = InThread(renew)
    dispositions = [ACK, Return(counted=True), DeadLetter("x")]
    for n, each in enumerate(deliveries):
        assert consumer.settle([Settlement(each, dispositions[n % 3])]) == []
    stop.set()
    renewing.result()
    consumer.close()
    await_ready(broker, queue, 200)
    assert broker.size(queue.dead).ready == 200
    name = [
        each for each in private.rabbitmqctl("list_queues", "name").split() if f"{queue.name}.held" in each
    ]
    assert name == []


# -- stalls, heartbeats, queues that go ----------------------------------------------------------------------


def test_a_stalled_server_finds_its_consumers_alive(opened: OpenBroker, private: PrivateRabbitMQ) -> None:
    queue, broker = classic(), opened(private.url, heartbeat=1.0, lease=2.0)
    set_consumer_timeout(private, 1800.0)
    consumer = broker.consumer([queue], name="w")
    broker.publish([outgoing(queue, "a")])
    [delivery] = take(consumer, 1)
    private.pause()
    try:
        until = time.monotonic() + 4
        while time.monotonic() < until:
            assert list(consumer.renew()) == []
            assert ids(consumer.fetch(1, 0.3)) == []
    finally:
        private.resume()
        set_consumer_timeout(private, TIMEOUT)
    broker.publish([outgoing(queue, "b")])
    assert ids(take(consumer, 1)) == ["b"]
    assert consumer.settle([Settlement(delivery, ACK)]) == []
    consumer.close()
    assert broker.size(queue.name).ready == 1


def test_heartbeats_go_out_while_a_fetch_waits_and_while_nobody_fetches(
    opened: OpenBroker, private: PrivateRabbitMQ
) -> None:
    queue, broker = classic(), opened(private.url, heartbeat=1.0, lease=2.0)
    waits, works = broker.consumer([queue], name="waits"), broker.consumer([queue], name="works")
    waiting = InThread(lambda: waits.fetch(1, 5.0))
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        assert list(works.renew()) == []
        time.sleep(0.4)
    assert list(waiting.result()) == []
    waits.close()
    works.close()
    assert "missed heartbeats" not in private.log


def test_a_consumer_whose_queue_is_deleted_makes_it_again(opened: OpenBroker, vhost: str) -> None:
    queue, other, broker = classic(), classic(), opened()
    consumer = broker.consumer([queue, other], name="w")
    broker.publish([outgoing(other, "a")])
    [held] = take(consumer, 1)
    assert_nothing(consumer)
    with raw(vhost) as channel:
        channel.queue_delete(queue.name)
    assert_nothing(consumer)
    assert_nothing(consumer)
    opened().publish([Outgoing(envelope("b"), queue.name, queue.name)])
    assert ids(take(consumer, 1)) == ["b"]
    assert consumer.settle([Settlement(held, ACK)]) == []
    consumer.close()


# -- nobody hoards -------------------------------------------------------------------------------------------


def test_a_consumer_takes_what_it_asks_for_and_no_more(opened: OpenBroker) -> None:
    queue, broker = classic(), opened()
    broker.publish([outgoing(queue, f"{n}") for n in range(100)])
    first = broker.consumer([queue], name="first")
    assert len(take(first, 3)) == 3
    assert broker.size(queue.name) == QueueSize(97, 0, 3)
    assert len(take(first, 5)) == 5
    assert broker.size(queue.name) == QueueSize(92, 0, 8)
    first.close()
    assert broker.size(queue.name) == QueueSize(100, 0, 0)


def test_who_does_not_fetch_any_more_gives_back_what_is_on_its_way(opened: OpenBroker) -> None:
    queue, broker = classic(), opened()
    draining, other = broker.consumer([queue], name="draining"), broker.consumer([queue], name="other")
    broker.publish([outgoing(queue, f"{n}") for n in range(20)])
    held = take(draining, 10)
    draining.settle([Settlement(each, ACK) for each in held[:5]])  # the server sends five more
    deadline = time.monotonic() + PATIENCE
    found: list[Delivery] = []
    while len(found) < 10:
        assert list(draining.renew()) == []
        found += other.fetch(20, 0.2)
        assert time.monotonic() < deadline
    other.settle([Settlement(each, ACK) for each in found])
    assert draining.settle([Settlement(each, ACK) for each in held[5:]]) == []
    other.close()
    broker.publish([outgoing(queue, "last")])
    assert ids(take(draining, 1)) == ["last"]
    draining.close()


def test_a_consumer_that_wants_less_gets_less(opened: OpenBroker) -> None:
    queue, broker = classic(), opened()
    greedy = broker.consumer([queue], name="greedy")
    assert list(greedy.fetch(200, 0.05)) == []
    broker.publish([outgoing(queue, f"{n}") for n in range(100)])
    deadline = time.monotonic() + PATIENCE
    held: list[Delivery] = []
    while broker.size(queue.name).ready < 80:
        held += greedy.fetch(1, 0.05)
        greedy.settle([Settlement(held.pop(), ACK)])
        time.sleep(0.1)
        assert time.monotonic() < deadline
    greedy.close()


def test_a_queue_that_goes_with_its_last_consumer_stays_while_we_do(opened: OpenBroker) -> None:
    """Whatever is asked for, and also while nobody fetches."""
    queue, broker = Broadcast(f"fan-{classic().name}"), opened()
    consumer = broker.consumer([queue], name="w")
    assert queue.exchange is not None
    message = Outgoing(envelope("a"), queue.exchange.name, "")
    for limit in (1, 50, 2, 300, 1, 999):
        broker.publish([message])
        [delivery] = take(consumer, 1)
        consumer.fetch(limit, 0)
        consumer.settle([Settlement(delivery, Return())])
        again = take(consumer, 1)
        consumer.settle([Settlement(each, ACK) for each in again])
    broker.publish([message])
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        assert list(consumer.renew()) == []
        time.sleep(0.1)
    assert ids(take(consumer, 1)) == ["a"]
    consumer.close()


def test_a_message_of_a_queue_of_our_own_can_wait(opened: OpenBroker) -> None:
    queue, broker = new_queue(exclusive=True), opened()
    consumer = broker.consumer([queue], name="w")
    broker.publish([outgoing(queue, "a")])
    until = datetime.now(UTC) + timedelta(seconds=1.2)
    consumer.settle([Settlement(each, Defer(until)) for each in take(consumer, 1)])
    assert ids(take(consumer, 1)) == ["a"]
    assert datetime.now(UTC) >= until
    consumer.close()


def test_a_window_that_grows_and_shrinks_reaches_every_message(opened: OpenBroker) -> None:
    queue, broker = classic(), opened()
    consumer = broker.consumer([queue], name="w")
    total = 6000
    broker.publish([outgoing(queue, f"{n}") for n in range(total)])
    window, held, seen = 1, [], Counter[str]()
    while len(seen) < total:
        window = window * 3 % 1000 + 1
        if window > len(held):
            held += consumer.fetch(window - len(held), 0.5)
        half = len(held) // 2 + 1
        seen.update(ids(held[:half]))
        assert consumer.settle([Settlement(each, ACK) for each in held[:half]]) == []
        held = held[half:]
    assert set(seen.values()) == {1}
    consumer.close()


def test_a_single_active_consumer_gets_as_much_as_it_asks_for(opened: OpenBroker) -> None:
    queue = new_queue(queue_arguments={"x-single-active-consumer": True})
    broker = opened()
    broker.publish([outgoing(queue, f"{n}") for n in range(20)])
    consumer = broker.consumer([queue], name="w")
    held = [*take(consumer, 1), *take(consumer, 9), *take(consumer, 10)]
    assert ids(held) == [f"{n}" for n in range(20)]
    consumer.close()


def test_a_queue_that_wants_no_acknowledgement_is_settled_when_handed_out(
    opened: OpenBroker, vhost: str
) -> None:
    queue, broker = new_queue(no_ack=True), opened()
    broker.publish([outgoing(queue, id) for id in "abc"])
    consumer = broker.consumer([queue], name="w")
    a, b = take(consumer, 2)
    assert consumer.settle([Settlement(a, ACK), Settlement(b, Return())]) == []
    consumer.close()
    again = broker.consumer([queue], name="again")
    assert sorted(ids(take(again, 2))) == ["b", "c"]
    again.close()


def test_consumer_arguments_are_passed_on(opened: OpenBroker) -> None:
    queue, broker = classic(), opened()
    low = broker.consumer([Queue(queue.name, consumer_arguments={"x-priority": -5})], name="low")
    high = broker.consumer([Queue(queue.name, consumer_arguments={"x-priority": 5})], name="high")
    waiting = InThread(lambda: low.fetch(10, 0.5))
    also = InThread(lambda: take(high, 5))
    time.sleep(0.1)
    broker.publish([outgoing(queue, f"{n}") for n in range(5)])
    assert len(also.result()) == 5
    assert list(waiting.result()) == []
    low.close()
    high.close()


# -- threads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [6000])
def test_fetch_settle_renew_and_fence_side_by_side(opened: OpenBroker, count: int) -> None:
    queue, broker = classic(), opened(lease=0.5)
    consumer = broker.consumer([queue], name="w")
    broker.publish([outgoing(queue, f"{n}") for n in range(count)])
    fetched: queue_module.SimpleQueue[list[Delivery]] = queue_module.SimpleQueue()
    done = threading.Event()
    seen: Counter[str] = Counter()

    def fetch() -> None:
        while not done.is_set():
            fetched.put(list(consumer.fetch(64, 1.0)))

    def renew() -> None:
        while not done.is_set():
            assert list(consumer.renew()) == []
            assert list(consumer.fence([])) == []

    threads = [InThread(fetch), InThread(renew)]
    while len(seen) < count:
        batch = fetched.get(timeout=PATIENCE)
        assert list(consumer.fence(batch)) == []
        # Some come again: returned ones are exchanged for copies while others go on.
        again = [each for each in batch if not each.redelivered and int(each.envelope.task_id) % 50 == 0]
        acked = [each for each in batch if each not in again]
        assert consumer.settle([Settlement(each, Return()) for each in again]) == []
        assert consumer.settle([Settlement(each, ACK) for each in acked]) == []
        seen.update(ids(acked))
    done.set()
    consumer.wake()
    for each in threads:
        each.result()
    assert set(seen.values()) == {1}
    consumer.close()
    assert broker.size(queue.name) == QueueSize(0, 0, 0)


def test_closing_beside_a_waiting_fetch_ends_it(opened: OpenBroker) -> None:
    consumer = opened().consumer([classic()], name="w")
    waiting = InThread(lambda: consumer.fetch(1, 10 * PATIENCE))
    time.sleep(0.05)
    consumer.close()
    assert list(waiting.result()) == []
    assert list(consumer.fetch(1, PATIENCE)) == []
    assert list(consumer.renew()) == []
    consumer.wake()


def test_a_server_that_is_gone_does_not_keep_a_consumer_from_leaving(opened: OpenBroker, vhost: str) -> None:
    queue = classic()
    with Proxy(vhost) as proxy:
        broker = opened(proxy.url, publish_timeout=0.5)
        consumer = broker.consumer([queue], name="w")
        broker.publish([outgoing(queue, "a")])
        take(consumer, 1)
        proxy.stall()
        began = time.monotonic()
        consumer.close()
        assert time.monotonic() - began < 5
        broker.close()
    again = opened().consumer([queue], name="w")
    assert ids(take(again, 1)) == ["a"]
    again.close()


def test_the_server_lists_who_we_are(opened: OpenBroker, vhost: str) -> None:
    consumer = opened().consumer([classic()], name="node@host")
    listed = subprocess.run(
        ["rabbitmqctl", "-q", "list_connections", "vhost", "client_properties"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    [mine] = [line for line in listed.splitlines() if "celeriac worker node@host" in line]
    assert mine.startswith(vhost.rpartition("/")[2])
    assert str(os.getpid()) in mine
    consumer.close()


def test_a_server_that_refuses_is_named(opened: OpenBroker) -> None:
    with pytest.raises(ConnectionLost, match="cannot be reached"):
        opened(f"amqp://127.0.0.1:{free_port()}").consumer([classic()], name="w")
    broken: Any = new_queue(queue_arguments={"x-queue-type": "nonsense"})
    with pytest.raises(OperationalError, match="x-queue-type"):
        opened().consumer([broken], name="w")
