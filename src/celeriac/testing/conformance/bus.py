"""What every bus has to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol
from uuid import uuid4

import pytest

from celeriac.brokers.base import Broker, BrokerOptions
from celeriac.brokers.bus import Bus, Listener
from celeriac.testing.conformance.harness import MOMENT, PATIENCE, InThread, in_fork
from celeriac.topology import Exchange, Queue
from celeriac.wire.envelope import Envelope, Outgoing

__all__ = ["BusConformance"]


class Listen(Protocol):
    """Makes a listener that the test's end closes."""

    def __call__(self, exchange: Exchange, key: str = "", *, on: Bus | None = None) -> Listener: ...


class BusConformance:
    """The contract of `celeriac.brokers.bus` as tests. Subclass it, and override `open` (and `server`)."""

    @pytest.fixture
    def server(self) -> Any:
        return None

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        """A broker on `server`; called again by tests that want a second one on the same."""
        raise NotImplementedError

    @pytest.fixture
    def broker(self, server: Any) -> Iterator[Broker]:
        broker = self.open(server, BrokerOptions())
        yield broker
        broker.close()

    @pytest.fixture
    def bus(self, broker: Broker) -> Bus:
        bus = broker.bus()
        assert bus is not None
        return bus

    @pytest.fixture
    def other(self, server: Any, broker: Broker) -> Iterator[Bus]:
        """What another process would open; the same where nothing leaves the process."""
        opened = self.open(server, BrokerOptions()) if broker.traits.persistent else broker
        bus = opened.bus()
        assert bus is not None
        yield bus
        if opened is not broker:
            opened.close()

    @pytest.fixture
    def listen(self, bus: Bus) -> Iterator[Listen]:
        opened: list[Listener] = []

        def listen(exchange: Exchange, key: str = "", *, on: Bus | None = None) -> Listener:
            queue = Queue(
                f"l-{uuid4()}", exchange, key, durable=False, exclusive=True, auto_delete=True, no_ack=True,
                expires=10.0, message_ttl=300.0,
            )  # fmt: skip
            opened.append((on or bus).listen(queue))
            return opened[-1]

        yield listen
        for each in opened:
            each.close()

    @pytest.fixture
    def fanout(self) -> Exchange:
        return Exchange(f"f-{uuid4()}.pidbox", "fanout", durable=False)

    @pytest.fixture
    def topic(self) -> Exchange:
        return Exchange(f"t-{uuid4()}", "topic")

    @pytest.fixture
    def direct(self) -> Exchange:
        return Exchange(f"reply.d-{uuid4()}.pidbox", "direct", durable=False)

    def test_everybody_who_listens_is_told(
        self, bus: Bus, other: Bus, listen: Listen, fanout: Exchange
    ) -> None:
        here, there = listen(fanout), listen(fanout, on=other)
        bus.send([said("a", fanout), said("b", fanout)])
        assert heard(here, 2) == ["a", "b"]
        assert heard(there, 2) == ["a", "b"]

    def test_nobody_need_listen(self, bus: Bus, listen: Listen, fanout: Exchange) -> None:
        bus.send([said("a", fanout)])
        late = listen(fanout)
        bus.send([said("b", fanout)])
        assert heard(late, 1) == ["b"]

    def test_an_envelope_comes_as_it_was_sent(self, bus: Bus, listen: Listen, fanout: Exchange) -> None:
        listener = listen(fanout)
        envelope = Envelope(
            b'{"method": "ping"}', "application/json", "utf-8", {"clock": 3, "expires": 1.5}, {}
        )
        bus.send([Outgoing(envelope, fanout.name)])
        (came,) = received(listener, 1)
        assert (came.body, came.content_type, came.content_encoding) == (
            envelope.body,
            envelope.content_type,
            envelope.content_encoding,
        )
        assert came.headers == envelope.headers

    def test_a_topic_reaches_those_whose_pattern_fits(
        self, bus: Bus, listen: Listen, topic: Exchange
    ) -> None:
        everything, workers = listen(topic, "#"), listen(topic, "worker.#")
        bus.send([said("t", topic, "task.sent"), said("w", topic, "worker.online")])
        assert heard(everything, 2) == ["t", "w"]
        assert heard(workers, 1) == ["w"]

    def test_an_answer_reaches_who_asked(
        self, bus: Bus, other: Bus, listen: Listen, direct: Exchange
    ) -> None:
        mine, yours = listen(direct, "mine"), listen(direct, "yours")
        other.send(
            [said("to me", direct, "mine"), said("to you", direct, "yours"), said("to none", direct, "x")]
        )
        assert heard(mine, 1) == ["to me"]
        assert heard(yours, 1) == ["to you"]

    def test_nothing_after_the_timeout(self, listen: Listen, fanout: Exchange) -> None:
        listener = listen(fanout)
        began = time.monotonic()
        assert list(listener.receive(MOMENT)) == []
        assert time.monotonic() - began >= MOMENT * 0.9
        assert list(listener.receive(0)) == []

    @pytest.mark.parametrize("kind", ["fanout", "direct"])
    def test_who_waits_is_told(
        self, bus: Bus, listen: Listen, fanout: Exchange, direct: Exchange, kind: str
    ) -> None:
        exchange = fanout if kind == "fanout" else direct
        listener = listen(exchange, "me")
        waiting = InThread(lambda: heard(listener, 1))
        bus.send([said("a", exchange, "me")])
        assert waiting.result() == ["a"]

    @pytest.mark.parametrize("kind", ["fanout", "direct"])
    def test_a_wake_ends_the_wait(
        self, listen: Listen, fanout: Exchange, direct: Exchange, kind: str
    ) -> None:
        listener = listen(fanout if kind == "fanout" else direct, "me")
        waiting = InThread(lambda: listener.receive(10 * PATIENCE))
        listener.wake()
        assert list(waiting.result()) == []

    def test_closing_ends_the_wait_and_may_be_repeated(
        self, bus: Bus, listen: Listen, fanout: Exchange
    ) -> None:
        listener = listen(fanout)
        waiting = InThread(lambda: listener.receive(10 * PATIENCE))
        listener.close()
        assert list(waiting.result()) == []
        listener.close()
        bus.send([said("a", fanout)])

    def test_many_threads_may_send(self, bus: Bus, listen: Listen, fanout: Exchange) -> None:
        listener = listen(fanout)

        def send(number: int) -> None:
            for each in range(20):
                bus.send([said(f"{number}.{each}", fanout)])

        threads = [threading.Thread(target=send, args=(number,)) for number in range(5)]
        for each in threads:
            each.start()
        came = heard(listener, 100)
        for each in threads:
            each.join()
        assert sorted(came) == sorted(f"{n}.{i}" for n in range(5) for i in range(20))

    def test_after_a_fork_the_child_has_its_own_way(
        self, bus: Bus, broker: Broker, listen: Listen, fanout: Exchange
    ) -> None:
        if not broker.traits.persistent:
            pytest.skip("it stays within the process")
        listener = listen(fanout)
        bus.send([said("before", fanout)])
        in_fork(lambda: bus.send([said("child", fanout)]))
        bus.send([said("after", fanout)])
        assert heard(listener, 3) == ["before", "child", "after"]


def said(word: str, exchange: Exchange, key: str = "") -> Outgoing:
    return Outgoing(Envelope(word.encode(), "text/plain", "utf-8", {}, {}), exchange.name, key)


def received(listener: Listener, number: int) -> list[Envelope]:
    came: list[Envelope] = []
    while len(came) < number:
        now = listener.receive(PATIENCE)
        assert now, f"only {len(came)} of {number} came"
        came += now
    return came


def heard(listener: Listener, number: int) -> list[str]:
    return [each.body.decode() for each in received(listener, number)]
