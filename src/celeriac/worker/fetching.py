"""The thread that borrows messages from the broker, and the one reconnect loop of a worker."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from celeriac.backends.base import ResultBackend
from celeriac.brokers.base import Consumer, Delivery
from celeriac.clock import Clock
from celeriac.errors import OperationalError
from celeriac.settings import Settings
from celeriac.states import SUCCESS

__all__ = ["Backoff", "Fetched", "Fetcher", "Retries", "Revocations"]

logger = logging.getLogger("celeriac.worker")

#: Deliveries asked for at once at most.
_BATCH = 500
#: Seconds one fetch waits; bounds how long a lost wake-up can go unnoticed.
_WAIT = 5.0


class Backoff:
    """Growing pauses with jitter: 0.1, 0.2, 0.4 … `ceiling` seconds, each ± a quarter; `retries` of them, None:
    for ever."""

    def __init__(self, ceiling: float = 5.0, *, retries: int | None = None) -> None:
        self._ceiling = ceiling
        self._retries = retries
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        self._failures += 1
        return min(self._ceiling, 0.05 * 2 ** min(self._failures, 30)) * random.uniform(0.75, 1.25)

    def after(self, exc: BaseException) -> float:
        """The same; raises `exc` when all retries are used up."""
        if self._retries is not None and self._failures >= self._retries:
            raise exc
        return self.next()

    def reset(self) -> bool:
        """It worked. True if it had failed before."""
        failed, self._failures = self._failures > 0, 0
        return failed


class Retries(NamedTuple):
    """How often a worker tries to find a broker that is away; None: until it is back."""

    running: int | None
    on_startup: int | None

    @classmethod
    def of(cls, settings: Settings) -> Retries:
        """What ``broker_connection_retry`` and its like say."""
        most = settings.broker_connection_max_retries
        running = most if settings.broker_connection_retry else 0
        on_startup = settings.broker_connection_retry_on_startup
        return cls(running, running if on_startup is None else most if on_startup else 0)


class Revocations:
    """Ids of tasks that must not run, as the result backend remembers them. Used by one thread."""

    def __init__(self, backend: ResultBackend, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock
        self._position = 0
        self._until: dict[str, datetime] = {}

    def refresh(self) -> Collection[str]:
        """Take in what was revoked since the last look, drop what no longer holds, return the rest."""
        self._position, news = self._backend.revoked(self._position)
        if news:
            now = self._clock.now()
            self._until = {id: until for id, until in {**self._until, **news}.items() if until > now}
        return self._until.keys()


class Fetched(msgspec.Struct, frozen=True):
    """A batch of deliveries, and what the result backend knows about them."""

    deliveries: Sequence[Delivery]
    revoked: Collection[str]
    #: Ids among those that were handed out before whose SUCCESS is recorded.
    succeeded: Collection[str]


class Fetcher:
    """1. Waits until the loop has `room`, fetches at most that much, asks the backend what it knows.
    2. Hands the batch to `deliver`, on this thread; it is the caller's to pass it on to the loop.
    3. When the broker is lost, tries again with growing pauses until it is back, and says so once.

    `start` and `stop` are called by the worker; after `stop` returned nothing more is delivered.
    """

    def __init__(
        self,
        consumer: Consumer,
        backend: ResultBackend | None,
        *,
        clock: Clock,
        retries: int | None = None,
        deliver: Callable[[Fetched], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        self._consumer = consumer
        self._backend = backend
        self._revocations = Revocations(backend, clock) if backend is not None else None
        self._deliver = deliver
        self._crashed = crashed
        self._retries = retries
        self._room = 0
        #: Fetched, but not taken into account by the loop yet.
        self._under_way = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="celeriac-fetch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def set_room(self, room: int) -> None:
        """How many more deliveries the worker can use now. Called on the loop."""
        with self._changed:
            self._room = room - self._under_way
            if self._room > 0:
                self._changed.notify()

    def arrived(self, number: int) -> None:
        """The loop has taken that many deliveries into account. Called on the loop."""
        with self._changed:
            self._under_way -= number

    def stop(self) -> None:
        """Fetch no more. Idempotent; waits for a fetch under way to return."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._consumer.wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _main(self) -> None:
        backoff = Backoff(retries=self._retries)
        try:
            while limit := self._wait_for_room():
                try:
                    fetched = self._fetch(limit)
                except OperationalError as exc:
                    self._pause(backoff, exc)
                    continue
                if backoff.reset():
                    logger.info("connection to the broker is back")
                if fetched is not None:
                    self._deliver(fetched)
        except BaseException as exc:  # noqa: BLE001 boundary: a bug here must end the worker, not hang it
            self._crashed(exc)

    def _wait_for_room(self) -> int:
        """The number of deliveries to ask for; 0 to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._room > 0)
            return 0 if self._stopping else min(self._room, _BATCH)

    def _fetch(self, limit: int) -> Fetched | None:
        deliveries = self._consumer.fetch(limit, _WAIT)
        if not deliveries:
            return None
        with self._changed:
            self._room -= len(deliveries)
            self._under_way += len(deliveries)
        return Fetched(deliveries, *self._known(deliveries))

    def _known(self, deliveries: Sequence[Delivery]) -> tuple[Collection[str], Collection[str]]:
        """Revoked ids, and those of messages that were handed out before, and done. A backend that is away is
        no reason to hold work up: then nothing is known."""
        if self._backend is None or self._revocations is None:
            return (), ()
        try:
            revoked = self._revocations.refresh()
            again = [each.envelope.task_id for each in deliveries if each.redelivered or each.attempts > 1]
            records = self._backend.get(again) if again else ()
        except OperationalError as exc:
            logger.warning("result backend: %s", exc)
            return (), ()
        return revoked, {each.task_id for each in records if each is not None and each.state == SUCCESS}

    def _pause(self, backoff: Backoff, exc: OperationalError) -> None:
        delay = backoff.after(exc)
        logger.error("broker: %s; next try in %.1fs", exc, delay)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, delay)
