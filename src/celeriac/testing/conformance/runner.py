"""What every runner has to do. Subclass `RunnerConformance` and say how to make one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from celeriac.errors import SoftTimeLimitExceeded
from celeriac.executor.link import Link
from celeriac.executor.runners.base import Guard, Runner
from celeriac.wire.disposition import ACK
from celeriac.wire.envelope import Envelope
from celeriac.wire.frames import (
    INBOX_LIMIT,
    Call,
    FrameBuffer,
    Interrupt,
    Outcome,
    Parcel,
    decode_call,
    decode_up,
    encode,
    frame,
)

__all__ = ["RunnerConformance", "Seat"]


class Seat:
    """The worker's side of a runner under test: its sockets, and the thread it runs on."""

    def __init__(self, runner: Runner, run: Callable[[Call, Guard], str]) -> None:
        self.runner = runner
        self.inbox, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.line, their_line = socket.socketpair()
        self.line.settimeout(20)
        self.link = Link(self.theirs.dup(), their_line)
        self._frames = FrameBuffer()
        self._run = run
        self._threads = [
            threading.Thread(target=runner.run, args=(self.link, self._invoke)),
            threading.Thread(target=self.link.listen, args=(runner.interrupt,)),
        ]
        for each in self._threads:
            each.start()

    def _invoke(self, call: Call, guard: Guard) -> Outcome:
        return Outcome(call.number, self._run(call, guard), ACK)

    def call(self, number: int, body: bytes = b"") -> None:
        envelope = Envelope(body, "application/json", "utf-8", {}, {})
        packet = encode(Call(number, envelope, "q"))
        if len(packet) > INBOX_LIMIT:
            self.line.sendall(frame(Parcel(number, envelope)))
            packet = encode(Call(number, None, "q"))
        self.inbox.send(packet)

    def outcomes(self, count: int) -> list[Outcome]:
        """Wait for that many outcomes."""
        found: list[Outcome] = []
        while len(found) < count:
            data = self.line.recv(65536)
            assert data, "the line ended before all outcomes came"
            found += [got for each in self._frames.feed(data) if isinstance(got := decode_up(each), Outcome)]
        return found

    def take_back(self) -> list[int]:
        """Read the unstarted calls out of the inbox."""
        numbers: list[int] = []
        while True:
            try:
                numbers.append(decode_call(self.theirs.recv(2 * INBOX_LIMIT, socket.MSG_DONTWAIT)).number)
            except BlockingIOError:
                return numbers

    def end(self) -> None:
        """No more calls: the runner has to return."""
        self.inbox.close()
        self._threads[0].join(20)
        assert not self._threads[0].is_alive(), "the runner did not return at the end of its inbox"
        self.line.close()
        self._threads[1].join(20)
        self.theirs.close()
        self.link.close()


class RunnerConformance:
    """Every sentence of `Runner`'s descriptions, as a test."""

    def make_runner(self) -> Runner:
        """A new runner."""
        raise NotImplementedError

    @pytest.fixture
    def seats(self) -> Iterator[Callable[[Callable[[Call, Guard], str]], Seat]]:
        opened: list[Seat] = []

        def open_seat(run: Callable[[Call, Guard], str]) -> Seat:
            opened.append(Seat(self.make_runner(), run))
            return opened[-1]

        yield open_seat
        for each in opened:
            each.end()

    def test_each_call_is_answered_once(self, seats: Callable[..., Seat]) -> None:
        def run(call: Call, guard: Guard) -> str:
            return "SUCCESS"

        seat = seats(run)
        for number in range(1, 101):
            seat.call(number)
        assert sorted(each.number for each in seat.outcomes(100)) == list(range(1, 101))

    def test_no_more_than_its_slots_run_at_once(self, seats: Callable[..., Seat]) -> None:
        running, most, lock = 0, 0, threading.Lock()

        def run(call: Call, guard: Guard) -> str:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.001)  # the work itself: leaves room for another call to overlap
            with lock:
                running -= 1
            return "SUCCESS"

        seat = seats(run)
        for number in range(1, 51):
            seat.call(number)
        seat.outcomes(50)
        assert most <= seat.runner.slots

    def test_calls_that_were_not_started_can_be_taken_back(self, seats: Callable[..., Seat]) -> None:
        started, release = threading.Semaphore(0), threading.Event()

        def run(call: Call, guard: Guard) -> str:
            started.release()
            assert release.wait(20)
            return "SUCCESS"

        seat = seats(run)
        slots = seat.runner.slots
        for number in range(1, slots + 6):
            seat.call(number)
        for _ in range(slots):
            assert started.acquire(timeout=20)
        assert seat.take_back() == list(range(slots + 1, slots + 6))
        release.set()
        assert sorted(each.number for each in seat.outcomes(slots)) == list(range(1, slots + 1))

    def test_a_call_too_large_for_the_inbox_arrives_whole(self, seats: Callable[..., Seat]) -> None:
        sizes: list[int] = []

        def run(call: Call, guard: Guard) -> str:
            assert call.envelope is not None
            sizes.append(len(call.envelope.body))
            return "SUCCESS"

        seat = seats(run)
        seat.call(1, b"x" * 1_000_000)
        seat.outcomes(1)
        assert sizes == [1_000_000]

    def test_an_interrupt_is_raised_inside_the_guard(self, seats: Callable[..., Seat]) -> None:
        started = threading.Event()

        def run(call: Call, guard: Guard) -> str:
            try:
                with guard():
                    started.set()
                    while True:
                        pass
            except SoftTimeLimitExceeded:
                return "INTERRUPTED"

        seat = seats(run)
        seat.call(1)
        assert started.wait(20)
        seat.line.sendall(frame(Interrupt(1, 0.5)))
        assert [each.state for each in seat.outcomes(1)] == ["INTERRUPTED"]

    def test_an_interrupt_of_another_call_does_nothing(self, seats: Callable[..., Seat]) -> None:
        started, release = threading.Event(), threading.Event()

        def run(call: Call, guard: Guard) -> str:
            with guard():
                started.set()
                assert release.wait(20)
            return "SUCCESS"

        seat = seats(run)
        seat.call(7)
        assert started.wait(20)
        seat.line.sendall(frame(Interrupt(6, 0.5)))
        release.set()
        assert [each.state for each in seat.outcomes(1)] == ["SUCCESS"]

    def test_no_interrupt_outside_the_guard(self, seats: Callable[..., Seat]) -> None:
        started = threading.Event()

        def run(call: Call, guard: Guard) -> str:
            with guard():
                pass
            started.set()
            # A tight loop of bytecodes: a late exception would be raised in it.
            end = time.monotonic() + 0.2
            while time.monotonic() < end:
                pass
            return "SUCCESS"

        seat = seats(run)
        seat.call(1)
        assert started.wait(20)
        seat.line.sendall(frame(Interrupt(1, 0.5)))
        assert [each.state for each in seat.outcomes(1)] == ["SUCCESS"]
