"""The worker: its loop, and how the parts fit together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from enum import IntEnum

from celeriac.backends.base import ResultBackend
from celeriac.brokers.base import Broker, Completion, Consumer, Delivery, Settlement
from celeriac.clock import Clock, SystemClock
from celeriac.errors import ConnectionLost, OperationalError
from celeriac.settings import Settings
from celeriac.topology import Queue
from celeriac.wire.disposition import ACK, DeadLetter, Disposition, Return
from celeriac.wire.frames import Manifest, Outcome, Update, Verdict
from celeriac.worker.admission import admit
from celeriac.worker.completion import Completer, completion_of
from celeriac.worker.dispatch import Dispatcher
from celeriac.worker.executor import Executor
from celeriac.worker.fetching import Backoff, Fetched, Fetcher, Retries
from celeriac.worker.leases import LeaseKeeper
from celeriac.worker.limits import Limits
from celeriac.worker.orphans import Orphans
from celeriac.worker.pacing import Pacer
from celeriac.worker.pool import Pool
from celeriac.worker.work import Work

__all__ = ["Shutdown", "Worker"]

logger = logging.getLogger("celeriac.worker")


class Shutdown(IntEnum):
    """How a worker ends."""

    #: Running calls end, everything else goes back to the broker.
    WARM = 1
    #: Running calls are killed and go back too.
    COLD = 2


class Worker:
    """1. `run` consumes: starts the fetch, settle and lease threads and the executors, until it is shut down.
    2. On its loop each delivery is admitted (`_arrive`), dispatched, and completed when its outcome is there.
    3. `shut_down` (any thread, signal handlers too) ends it; what is not done goes back to the broker.

    It runs no user code and decodes no body. All its state belongs to the loop; the I/O threads get batches
    and give batches back. Broker and backend are the caller's: it closes them after `run` returned.
    """

    def __init__(
        self,
        *,
        name: str,
        manifest: Manifest,
        settings: Settings,
        broker: Broker,
        backend: ResultBackend,
        queues: Sequence[Queue],
        pool: Pool,
        concurrency: int,
        soft_time_limit: float | None = None,
        time_limit: float | None = None,
        max_tasks_per_child: int | None = None,
        clock: Clock | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self._manifest, self._queues = manifest, queues
        self._broker, self._backend = broker, backend
        self._clock = clock or SystemClock()
        self._on_ready = on_ready
        self._lease = settings.worker_lease
        self._max_deliveries = settings.task_max_deliveries
        self._retries = Retries.of(settings)
        self._max_tasks_per_child = max_tasks_per_child or settings.worker_max_tasks_per_child
        self.pool, self.concurrency = pool, concurrency
        self._dispatcher = Dispatcher(
            Limits(
                soft=settings.task_soft_time_limit if soft_time_limit is None else soft_time_limit,
                hard=settings.task_time_limit if time_limit is None else time_limit,
                end=self._end_by_force,
            ),
            give_back=self._give_back,
            settle_first=self._settle_first,
        )
        self._pacer = Pacer(self._dispatcher)
        #: Every delivery this worker holds and has not settled, by the delivery and by what it calls.
        self._borrowed: dict[Delivery, Work] = {}
        self._by_key: dict[tuple[str, int] | None, Work] = {}
        self._orphans = Orphans()
        #: How many deliveries are being settled before they run; set when none is.
        self._settling_first, self._settled_first = 0, asyncio.Event()
        self._shutdown: asyncio.Future[Shutdown] | None = None
        #: A shutdown that was asked for before `run`.
        self._asked: Shutdown | None = None
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = self._draining = False
        self._cold = False

    # -- life ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until shut down. Raises what made it impossible to go on."""
        self._loop = asyncio.get_running_loop()
        self._shutdown = self._loop.create_future()
        if self._asked is not None:
            self._begin_shutdown(self._asked)
        consumer = await self._register()
        if consumer is None:
            return
        completer = Completer(consumer.unit(self._backend), consumer, call=self._call, crashed=self._crashed)
        fetcher = Fetcher(
            consumer,
            self._backend,
            clock=self._clock,
            retries=self._retries.running,
            deliver=self._deliver,
            crashed=self._crashed,
        )
        lease = LeaseKeeper(consumer, self._lease / 5, lost=self._leases_lost, crashed=self._crashed)
        self._consumer, self._completer, self._fetcher = consumer, completer, fetcher
        completer.start()
        lease.start()
        try:
            await self.pool.open(self.concurrency, self)
            fetcher.start()
            self._started = True
            self._pacer.open(fetcher.set_room)
            logger.info("%s ready.", self.name)
            if self._on_ready is not None:
                self._on_ready()
            how = await self._shutdown
            await self._wind_down(how)
        finally:
            self._dispatcher.close()
            self._pacer.close()
            await self._loop.run_in_executor(None, self._leave, lease)
        if self._failure is not None:
            raise self._failure

    async def _register(self) -> Consumer | None:
        """Be known to the broker, as soon as it is there; None if it is time to end before."""
        assert self._loop is not None and self._shutdown is not None
        backoff = Backoff(retries=self._retries.on_startup)
        while not self._shutdown.done():
            try:
                return await self._loop.run_in_executor(
                    None, lambda: self._broker.consumer(self._queues, name=self.name)
                )
            except ConnectionLost as exc:
                delay = backoff.after(exc)
                logger.error("broker: %s; next try in %.1fs", exc, delay)
                await asyncio.wait({self._shutdown}, timeout=delay)
        return None

    def shut_down(self, how: Shutdown = Shutdown.WARM) -> None:
        """Begin to end, or end faster. Any thread; returns at once."""
        self._asked = how
        self._call(lambda: self._begin_shutdown(how))

    def _begin_shutdown(self, how: Shutdown) -> None:
        assert self._shutdown is not None
        if not self._shutdown.done():
            self._shutdown.set_result(how)
        elif how is Shutdown.COLD:
            self._cold = True
            self._settled_first.set()
            self.pool.kill_all()

    async def _wind_down(self, how: Shutdown) -> None:
        """Fetch no more, give back what was not started, let the rest end."""
        assert self._loop is not None
        self._draining = True
        self._pacer.close()
        await self._loop.run_in_executor(None, self._fetcher.stop)
        self._give_back_unstarted()
        if how is Shutdown.COLD:
            self._cold = True
            self.pool.kill_all()
        await self.pool.stop()
        if self._settling_first:
            # Their messages are gone; they are published again before the settle thread ends. If the broker does
            # not answer, they are not gone, or it will be known who held them.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settled_first.wait(), 1.0 if self._cold else self._lease)

    def _give_back_unstarted(self) -> None:
        dispatcher = self._dispatcher
        unstarted = list(dispatcher.backlog)
        dispatcher.backlog.clear()
        for each in self.pool.executors:
            unstarted += dispatcher.take_back(each)
        self._give_back(unstarted)

    def _give_back(self, works: Sequence[Work]) -> None:
        """Hand work that was not started back to the broker: it was no attempt."""
        for work in works:
            self._settle(work, Return())

    def _leave(self, lease: LeaseKeeper) -> None:
        """Settle what is decided, then leave the broker: it hands out again at once what is left."""
        if self._started:
            self._fetcher.stop()
        if not self._completer.stop(timeout=1.0 if self._cold else self._lease):
            logger.error("the broker did not take the last outcomes in time; those tasks will be run again")
        lease.stop()
        try:
            self._consumer.close()
        except OperationalError as exc:
            logger.error("cannot leave the broker cleanly (%s): its messages are handed out again later", exc)

    def failed(self, exc: BaseException) -> None:
        """Something without which the worker cannot go on is broken: end, and say why."""
        if self._failure is None:
            self._failure = exc
            self._begin_shutdown(Shutdown.COLD)

    def _crashed(self, exc: BaseException) -> None:
        self._call(lambda: self.failed(exc))

    def _call(self, what: Callable[[], None]) -> None:
        """Run `what` on the loop; for other threads."""
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(what)
        except RuntimeError:
            pass  # the loop has ended: there is nothing left to do, or to report on

    # -- fetch → admit → dispatch ---------------------------------------------------------------------------

    def _deliver(self, fetched: Fetched) -> None:
        self._call(lambda: self._arrive(fetched))

    def _arrive(self, fetched: Fetched) -> None:
        """Admit a batch and queue what is to be handed to executors."""
        self._fetcher.arrived(len(fetched.deliveries))
        ready: list[Work] = []
        now = self._clock.now()
        log = logger.isEnabledFor(logging.INFO)
        for delivery in fetched.deliveries:
            admission = admit(
                delivery,
                tasks=self._manifest.tasks,
                revoked=fetched.revoked,
                succeeded=fetched.succeeded,
                max_deliveries=self._max_deliveries,
                now=now,
            )
            work = Work(delivery, admission.task, admission.info, admission.verdict)
            if delivery.redelivered:
                running = self._by_key.get(work.key)
                if running is not None and self._is_here(running, delivery):
                    continue
                work.outcome = self._orphans.take(work.key)
            self._borrowed[delivery] = work
            if work.key:
                self._by_key[work.key] = work
            if log:
                logger.info("Task %s[%s] received", work.task or "?", work.task_id)
            if work.outcome is not None:
                self._submit(work)
            elif self._draining:
                self._settle(work, Return())
            elif admission.disposition is not None:
                self._settle(work, admission.disposition)
            else:
                ready.append(work)
        if ready:
            kept, others = self._pacer.sift(ready)
            self._give_back(others)
            self._dispatcher.add(kept)
        self._pacer.update()

    def _is_here(self, running: Work, delivery: Delivery) -> bool:
        """Whether the call of a delivery runs here already, or ended and is not carried out yet."""
        if running.settled or (running.decided and (running.outcome is None or running.again is not None)):
            return False
        if running.decided:
            running.again = delivery
            self._borrowed[delivery] = running
        else:
            self._adopt(running, delivery)
        return True

    def _adopt(self, running: Work, delivery: Delivery) -> None:
        """The same call is here already, under an older claim: from now on it runs for this one."""
        logger.info("Task %s[%s] runs here already: adopted", running.task, running.task_id)
        if not running.lost:
            # If that claim still holds, it was another message of the same call.
            self._completer.submit(Completion(Settlement(running.delivery, ACK)))
        self._borrowed.pop(running.delivery, None)
        running.delivery = delivery
        running.lost = False
        self._borrowed[delivery] = running

    def _settle_first(self, work: Work, then: Callable[[bool], None]) -> None:
        work.decided = True
        self._settling_first += 1
        self._settled_first.clear()

        def settled(held: bool) -> None:
            self._settling_first -= 1
            if not self._settling_first:
                self._settled_first.set()
            if not held:
                logger.warning("Task %s[%s]: its lease was lost before it ran", work.task, work.task_id)
                self._finish(work)
            elif self._draining:
                work.settled = True
                self._settle(work, Return())
                held = False
            then(held)

        self._completer.submit(
            Completion(Settlement(work.delivery, ACK)), settled, in_doubt=self._broker.traits.leases
        )

    # -- complete -------------------------------------------------------------------------------------------

    def outcome(self, executor: Executor, outcome: Outcome) -> None:
        """An executor answered a call."""
        work = self._dispatcher.answered(executor, outcome.number, outcome.runtime)
        if work is None:
            return
        work.outcome = outcome
        executor.answered += 1
        if executor.answered == self._max_tasks_per_child:
            self._retire(executor)
        if work.lost:
            self._orphan(work)
        else:
            self._submit(work)

    def _submit(self, work: Work) -> None:
        """Have the outcome of a call carried out."""
        outcome = work.outcome
        assert outcome is not None
        work.decided = True
        completion = completion_of(
            work, outcome.disposition, self._clock, record=outcome.record, follow=outcome.follow
        )
        self._completer.submit(completion, lambda held: self._completed(work, held))

    def _retire(self, executor: Executor) -> None:
        """An executor has run as many calls as it may: it ends, and the pool starts another."""
        self._dispatcher.leave(executor)
        self._dispatcher.put_first(self._dispatcher.take_back(executor))
        executor.retire()

    def outcomes_read(self) -> None:
        """All outcomes that had come were taken: hand out more."""
        self._dispatcher.pump()
        self._pacer.update()

    def update(self, executor: Executor, update: Update) -> None:
        """A running call has a new state."""
        work = executor.handed.get(update.number)
        if work is not None and not work.lost:
            fence = None if work.settled else work.delivery
            self._completer.submit(Completion(None, update.record, fence=fence))

    def _completed(self, work: Work, held: bool) -> None:
        again, work.again = work.again, None
        if held:
            if again is not None:
                self._borrowed.pop(again, None)
                self._completer.submit(Completion(Settlement(again, ACK)))
            self._finish(work)
        elif again is not None:
            self._borrowed.pop(work.delivery, None)
            work.delivery = again
            self._submit(work)
        else:
            self._orphan(work)

    def _orphan(self, work: Work) -> None:
        """What came of a call cannot be carried out: its delivery is not ours any more."""
        if self._broker.traits.leases or work.key is None or work.outcome is None:
            logger.warning("Task %s[%s]: its lease was lost, the outcome is dropped", work.task, work.task_id)
        else:
            logger.warning("Task %s[%s]: its message went with the connection", work.task, work.task_id)
            self._orphans.keep(work.key, work.outcome)
        self._finish(work)

    def _settle(self, work: Work, disposition: Disposition) -> None:
        """Settle without an executor's outcome: put back, deferred."""
        work.decided = True
        if work.lost:
            self._finish(work)
        else:
            completion = completion_of(work, disposition, self._clock)
            self._completer.submit(completion, lambda _held: self._finish(work))

    def _finish(self, work: Work) -> None:
        """This worker has nothing more to do with a delivery."""
        self._borrowed.pop(work.delivery, None)
        if self._by_key.get(work.key) is work:
            del self._by_key[work.key]

    # -- what goes wrong ------------------------------------------------------------------------------------

    def executor_ready(self, executor: Executor) -> None:
        """An executor waits for calls."""
        self._dispatcher.join(executor)
        self._pacer.update()

    def executor_died(self, executor: Executor, how: str) -> None:
        """An executor is gone: the calls it had not started go elsewhere, the running ones lost an attempt."""
        dispatcher = self._dispatcher
        dispatcher.leave(executor)
        unstarted = dispatcher.take_back(executor)
        if executor.handed:
            logger.error("executor %d (pid %d) died: %s", executor.index, executor.pid, how)
        for work in executor.handed.values():
            dispatcher.forget(work)
            self._lost_with_executor(work, how)
        executor.handed.clear()
        if self._draining:
            self._give_back(unstarted)
        else:
            dispatcher.put_first(unstarted)
            dispatcher.pump()
            self._pacer.update()

    def _lost_with_executor(self, work: Work, how: str) -> None:
        if work.lost:
            self._finish(work)
            return
        if work.verdict is not None:
            # What is left to do of the call killed an executor, too: its hooks, or reading its body.
            reason = f"{work.verdict.kind} ({work.verdict.detail}), and its executor was {how}"
            logger.error("Task %s[%s] is dead-lettered: %s", work.task, work.task_id, reason)
            self._settle(work, DeadLetter(reason))
            return
        if self._draining and work.settled:
            logger.error(
                "Task %s[%s] was settled before it ran and is lost: %s", work.task, work.task_id, how
            )
            self._finish(work)
            return
        if work.limit_hit is not None:
            work.verdict = Verdict("timeout", str(work.limit_hit))
        elif work.settled or work.info.reject_on_worker_lost is False:
            work.verdict = Verdict("lost", how)
        elif work.delivery.attempts >= self._max_deliveries:
            work.verdict = Verdict("lost", f"{how}, as {work.delivery.attempts} executors before it")
        if work.verdict is None or self._draining:
            # A cold shutdown kills what runs: that is no fault of the task's.
            self._settle(work, Return(counted=not self._cold))
        else:
            self._dispatcher.put_first([work])

    def _end_by_force(self, executor: Executor, work: Work, seconds: float) -> None:
        """A call passed its hard limit."""
        if not self.pool.kill(executor):
            executor.interrupt(work.number, seconds, hard=True)

    def _leases_lost(self, deliveries: Sequence[Delivery]) -> None:
        """Called by the lease thread: other workers have, or will have, these messages."""
        self._completer.forget(deliveries)
        self._call(lambda: self._give_up(deliveries))

    def _give_up(self, deliveries: Sequence[Delivery]) -> None:
        lost = [work for each in deliveries if (work := self._borrowed.pop(each, None)) is not None]
        logger.warning("lost the lease of %d messages: other workers run them again", len(lost))
        for work in lost:
            work.lost = True
        waiting = [work for work in self._dispatcher.backlog if not work.lost]
        for executor in self.pool.executors:
            waiting += [work for work in self._dispatcher.take_back(executor) if not work.lost]
        self._dispatcher.backlog.clear()
        self._dispatcher.add(waiting)
        for work in lost:
            if not work.started:
                self._finish(work)
