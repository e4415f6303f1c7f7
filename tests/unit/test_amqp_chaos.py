"""Nothing is lost, whatever happens to the connections of those who publish and of those who consume."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from amqp_support import OpenBroker, new_queue, opened, vhost
from celeriac.brokers.amqp import AMQPBroker
from celeriac.brokers.base import Consumer, Delivery, Settlement
from celeriac.errors import OperationalError, PublishFailed
from celeriac.testing.conformance.harness import PATIENCE, InThread, outgoing
from celeriac.testing.proxy import Proxy
from celeriac.topology import Queue
from celeriac.wire.disposition import ACK, Ack, DeadLetter, Defer, Disposition, Return

__all__ = ["opened", "vhost"]

OPTIONS = {
    "publish_timeout": 3.0,
    "connect_timeout": 2.0,
    "heartbeat": 2.0,
    "lease": 5.0,
    "transport": {"consumer_timeout": 3.0},
}


class Run:
    """What the threads of one test know together."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.random = random.Random(5672)
        self.sent: set[str] = set()
        self.done: Counter[str] = Counter()
        self.enough = threading.Event()
        self.finished = threading.Event()

    def produce(self, broker: AMQPBroker) -> None:
        """Publish until it is enough; what failed is published again."""
        number = 0
        while not self.enough.is_set():
            size = self.random.choice([1, 1, 5, 50])
            batch = [outgoing(self.queue, f"{n}") for n in range(number, number + size)]
            number += size
            while True:
                try:
                    broker.publish(batch)
                    break
                except PublishFailed as exc:
                    batch = [each for each in batch if each.envelope.task_id in exc.ids]
            self.sent.update(f"{n}" for n in range(number))
            self.enough.wait(0.01)

    def consume(self, consumer: Consumer) -> None:
        """Settle in every way, in any order, until all is finished."""
        held: list[Delivery] = []
        while not self.finished.is_set():
            try:
                held += consumer.fetch(self.random.choice([1, 10, 64]), 0.2)
            except OperationalError:
                self.finished.wait(0.05)
            self.random.shuffle(held)
            some = self.random.randint(0, len(held))
            settlements = [Settlement(each, self.disposition()) for each in held[:some]]
            held = held[some:]
            self.settle(consumer, settlements)

    def disposition(self) -> Disposition:
        later = Defer(datetime.now(UTC) + timedelta(seconds=self.random.choice([-1, 0.3, 1.2])))
        others = [Return(), Return(counted=True), later, DeadLetter("chaos")]
        return self.random.choice(others) if self.random.random() < 0.15 else ACK

    def settle(self, consumer: Consumer, settlements: list[Settlement]) -> None:
        while settlements:
            try:
                lost = set(consumer.settle(settlements))
            except OperationalError:
                self.finished.wait(0.05)
                continue
            kept = [each for each in settlements if each.delivery not in lost]
            self.done.update(
                each.delivery.envelope.task_id
                for each in kept
                if isinstance(each.disposition, Ack | DeadLetter)
            )
            return

    def renew(self, consumer: Consumer) -> None:
        while not self.finished.wait(0.5):
            consumer.renew()

    def break_things(self, proxies: list[Proxy], seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.enough.wait(self.random.uniform(0.05, 0.6))
            proxy = self.random.choice(proxies)
            match self.random.randint(0, 9):
                case 0 | 1:
                    proxy.refuse()
                    self.enough.wait(0.2)
                    proxy.resume()
                case 2 | 3:
                    proxy.stall()
                    self.enough.wait(self.random.uniform(0.1, 1.5))
                    proxy.resume()
                case 4:
                    proxy.cut_reply(b"\x00\x3c\x00\x50")  # a confirm
                case 5:
                    proxy.cut_reply(b"\x00\x3c\x00\x3c")  # a delivery
                case _:
                    proxy.cut()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [6.0, pytest.param(60.0, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_nothing_is_lost(opened: OpenBroker, vhost: str, kind: str, seconds: float) -> None:
    run = Run(new_queue(queue_arguments={"x-queue-type": kind}))
    with Proxy(vhost) as of_producer, Proxy(vhost) as of_consumers:
        brokers = [opened(url, **OPTIONS) for url in (of_consumers.url, of_consumers.url, vhost)]
        consumers = [each.consumer([run.queue], name="w") for each in brokers]
        producer = InThread(partial(run.produce, opened(of_producer.url, **OPTIONS)))
        threads = [InThread(partial(work, each)) for each in consumers for work in (run.consume, run.renew)]
        run.break_things([of_producer, of_consumers], seconds)
        run.enough.set()
        producer.result()
        deadline = time.monotonic() + PATIENCE
        while run.sent - run.done.keys() and time.monotonic() < deadline:
            run.finished.wait(0.1)
        run.finished.set()
        for each in threads:
            each.result()
        for consumer in consumers:
            consumer.close()
    assert run.sent - run.done.keys() == set()
    assert len(run.sent) > 100
