"""`Bridge`: one thread publishes what coroutines hand it, in batches (group commit)."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from celeriac.aio.futures import settle, tell, twin
from celeriac.errors import CeleriacError, OperationalError, PublishFailed
from celeriac.wire.envelope import Outgoing

__all__ = ["BATCH", "Bridge"]

#: Messages, and roughly bytes, that are published at once. More make nobody faster.
BATCH, _BYTES = 1000, 1_000_000
#: What a message takes beside its body.
_OVERHEAD = 500
#: Seconds without work after which the thread ends.
_IDLE = 5.0


class Publish(Protocol):
    """`Publisher.publish`."""

    def __call__(
        self,
        batch: Sequence[Outgoing],
        *,
        retry: bool | None = None,
        retry_policy: Mapping[str, Any] | None = None,
    ) -> None: ...


class Call:
    """A message that a coroutine waits to see published."""

    __slots__ = ("future", "handed", "outgoing", "retry", "retry_policy")

    def __init__(
        self, outgoing: Outgoing, retry: bool | None, retry_policy: Mapping[str, Any] | None
    ) -> None:
        self.outgoing = outgoing
        self.retry = retry
        self.retry_policy = retry_policy
        #: None, or why it was not published: a result, so that nobody complains if it is never looked at.
        self.future: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        #: Instant (monotonic) from which its time runs.
        self.handed = 0.0

    @property
    def id(self) -> str:
        return self.outgoing.envelope.task_id

    @property
    def size(self) -> int:
        return len(self.outgoing.envelope.body) + _OVERHEAD

    def goes_with(self, other: Call) -> bool:
        """Whether both are to be tried again in the same way."""
        return self.retry == other.retry and self.retry_policy == other.retry_policy


#: A call, and why it was not published; None: it was.
Ended = tuple[Call, BaseException | None]


class _Gathering(threading.local):
    """What the event loop of this thread hands over at its next turn."""

    loop: asyncio.AbstractEventLoop | None = None
    calls: list[Call]


class Bridge:
    """Publishes for the coroutines of one app, of whatever event loops and threads.

    1. `publish` gathers the calls of one turn of an event loop; at its next turn they are handed over together.
    2. A thread takes what was handed over, up to a batch, in order, and gives it to `Publisher.publish`.
    3. Each event loop is told once per batch how its calls ended.

    The thread starts with the first call and ends after some seconds without one, or with `close`; the bridge can be
    used again then. It belongs to the process that made it.
    """

    def __init__(self, publish: Publish, timeout: Callable[[], float]) -> None:
        self._publish = publish
        #: Seconds within which a call that is not published has failed.
        self._timeout = timeout
        self._process = os.getpid()
        self._gathering = _Gathering()
        #: Guards what follows.
        self._changed = threading.Condition()
        self._waiting: deque[Call] = deque()
        self._thread: threading.Thread | None = None
        self._closing = False

    async def publish(
        self,
        outgoing: Outgoing,
        *,
        retry: bool | None = None,
        retry_policy: Mapping[str, Any] | None = None,
    ) -> None:
        """Return when the broker has the message; raises what `Publisher.publish` raises for it.

        Where this is cancelled, the message may be published all the same.
        """
        call = Call(outgoing, retry, retry_policy)
        self._gather(call)
        failure = await call.future
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback has this frame

    # -- in the event loop's thread ---------------------------------------------------------------------------

    def _gather(self, call: Call) -> None:
        loop, gathering = call.future.get_loop(), self._gathering
        if gathering.loop is loop:
            gathering.calls.append(call)
        else:
            gathering.loop, gathering.calls = loop, [call]
            loop.call_soon(self._hand_over, gathering.calls)

    def _hand_over(self, calls: list[Call]) -> None:
        if self._gathering.loop is not None and self._gathering.calls is calls:
            self._gathering.loop = None
        if os.getpid() != self._process:
            return  # a forked child with a copy of its parent's loop: the parent publishes these
        live = [call for call in calls if not call.future.done()]
        if not live:
            return
        now = time.monotonic()
        for call in live:
            call.handed = now
        try:
            with self._changed:
                self._waiting.extend(live)
                self._changed.notify()
                if self._thread is None:
                    self._start()
        except BaseException as exc:  # noqa: BLE001 no more threads, or a time limit that hits a task right here
            settle((call.future, failure) for call, failure in _failed(live, exc))

    def _start(self) -> None:
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="celeriac-publish", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._thread = None
            self._waiting.clear()
            raise

    def close(self) -> None:
        """Publish what was handed over, and end the thread."""
        with self._changed:
            thread, self._closing = self._thread, True
            self._changed.notify()
        if thread is not None:
            thread.join()

    # -- in the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        batch: list[Call] = []
        try:
            while batch := self._next_batch():
                _tell(self._publish_batch(batch))
                batch = []  # while nothing is to be done, nothing is held
        except BaseException as exc:  # noqa: BLE001 boundary: whatever it is, it must leave nobody waiting
            with self._changed:
                batch += self._waiting
                self._waiting.clear()
                self._thread = None
            _tell(_failed(batch, exc))

    def _next_batch(self) -> list[Call]:
        """Wait for calls; none when the thread has to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing, _IDLE)
            batch: list[Call] = []
            size = 0
            while self._waiting and len(batch) < BATCH:
                call = self._waiting[0]
                size += call.size
                if batch and (size > _BYTES or not call.goes_with(batch[0])):
                    break
                batch.append(self._waiting.popleft())
            if not batch:
                self._thread = None
            return batch

    def _publish_batch(self, batch: list[Call]) -> list[Ended]:
        """Publish calls that go together, and say how each ended."""
        first, started = batch[0], time.monotonic()
        try:
            self._publish(
                [call.outgoing for call in batch], retry=first.retry, retry_policy=first.retry_policy
            )
        except OperationalError as exc:
            missing = set(exc.ids) if isinstance(exc, PublishFailed) else set[str]()
            failed = [call for call in batch if not missing or call.id in missing]
            published = [call for call in batch if missing and call.id not in missing]
            failed += self._overtaken(time.monotonic() - started)
            return [*_failed(failed, exc), *((call, None) for call in published)]
        except Exception as exc:  # noqa: BLE001 boundary: one call's mistake is not that of the others
            if len(batch) == 1 or isinstance(exc, CeleriacError):
                return _failed(batch, exc)
            return [ended for call in batch for ended in self._publish_batch([call])]
        return [(call, None) for call in batch]

    def _overtaken(self, spent: float) -> list[Call]:
        """Take out the calls that would be too late if their turn took as long as the one that just failed."""
        latest = time.monotonic() + spent - self._timeout()
        late: list[Call] = []
        with self._changed:
            while self._waiting and self._waiting[0].handed < latest:
                late.append(self._waiting.popleft())
        return late


def _tell(ended: Iterable[Ended]) -> None:
    tell((call.future, failure) for call, failure in ended)


def _failed(calls: Sequence[Call], exc: BaseException) -> list[Ended]:
    """Calls that failed together."""
    if len(calls) == 1:
        return [(calls[0], exc)]
    return [(call, _alone(twin(exc), call)) for call in calls]


def _alone(exc: BaseException, call: Call) -> BaseException:
    if isinstance(exc, PublishFailed):
        exc.ids = (call.id,)
    return exc
