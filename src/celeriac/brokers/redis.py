"""Messages in Redis, in the lists where Celery has them: both sides can serve the same queues.

What waits lies in Celery's layout (wire-protocol §5). What a consumer of ours holds is moved, as it is, into a hash of
its own, so that a message is always somewhere; the hash belongs to a holder with a heartbeat, whose name is drawn at
random and never used again. So the holder's name and the number of the claim are the fence: what is settled must be
held under them in the very script that settles it. See ``celeriac/redis/queues.lua`` for the keys.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Any, ClassVar

from celeriac.backends.base import ResultBackend
from celeriac.backends.redis import RedisBackend
from celeriac.brokers.base import (
    Broker,
    BrokerOptions,
    BrokerTraits,
    Completion,
    Consumer,
    Delivery,
    QueueSize,
    Settlement,
    Unit,
)
from celeriac.brokers.lease import LeaseWatch
from celeriac.brokers.redis_bus import RedisBus
from celeriac.errors import ConnectionLost, ImproperlyConfigured, OperationalError, PublishFailed
from celeriac.redis import RedisServer, letters
from celeriac.redis.bindings import Bindings, expires_of
from celeriac.redis.claiming import Claimer
from celeriac.redis.completing import Claim, Completing, Failure
from celeriac.redis.layout import Layout
from celeriac.redis.links import Argument, Links
from celeriac.redis.posting import Posts, is_hopeless, seconds
from celeriac.redis.registration import HALF_BURIED, Registration
from celeriac.redis.results import Put
from celeriac.redis.scripts import Script
from celeriac.redis.unacked import Unacked
from celeriac.topology import Queue
from celeriac.wire.envelope import Outgoing
from celeriac.wire.record import Record

__all__ = ["RedisBroker", "RedisConsumer"]

logger = logging.getLogger("celeriac.brokers")

_SIZE = Script("queues.lua", "size.lua")
_PURGE = Script("queues.lua", "purge.lua")
#: Servers whose memory policy was looked at.
_looked_at: set[Any] = set()


class RedisBroker(Broker):
    """Queues in Redis (6 or later), or in Valkey, by itself or found by sentinels.

    Priorities are Celery's here: 0 comes first. Messages to a fanout exchange reach the consumers that listen at that
    moment, at most once; all others are delivered at least once.

    What is scheduled lies where Celery does not see it while a consumer of ours is there. The last to leave a queue
    puts it into the lists, where Celery's workers find it; so does, where the last one was killed, whoever publishes a
    scheduled message. So after a restart of the only worker its schedule comes back through the list, ahead of what is
    published then: seconds for 100 000 messages. Where that matters, restart workers one after the other.

    ``broker_transport_options``: Celery's ``visibility_timeout`` (for messages that Celery's own workers took; looked
    for every ``unacked_restore_interval`` seconds, 60), ``priority_steps``, ``sep``, ``queue_order_strategy``,
    ``global_keyprefix``, ``fanout_prefix``, ``fanout_patterns``, ``unacked_key``, ``unacked_index_key``,
    ``unacked_mutex_key``, ``unacked_mutex_expire``, ``deadletter_queue``, those of `RedisServer`; and
    ``client_tracking``: False to look for messages again and again instead of being told.
    """

    schemes: ClassVar[tuple[str, ...]] = (
        *("redis", "rediss", "unix", "redis+socket", "sentinel", "valkey", "valkeys"),
    )
    traits: ClassVar[BrokerTraits] = BrokerTraits(
        persistent=True, smaller_first=True, priority_steps=(0, 3, 6, 9), stores_fanout=False
    )

    def __init__(self, url: str, options: BrokerOptions) -> None:
        super().__init__(url, options)
        transport = options.transport
        self.server = RedisServer.of(
            url,
            transport=transport,
            ssl=options.ssl,
            connect_timeout=min(options.connect_timeout or options.publish_timeout, options.publish_timeout),
            # A lease is renewed every fifth of it: who waits longer for an answer has missed that.
            timeout=options.lease / 5,
        )
        self.layout = Layout(self.server, transport)
        self.visibility_timeout = _number(transport, "visibility_timeout", 3600.0)
        self.mutex_expires = _number(transport, "unacked_mutex_expire", 300.0)
        self.restore_interval = _number(transport, "unacked_restore_interval", 60.0)
        self.links = Links(self.server, timeout=self.server.timeout)
        publishing = Links(self.server, timeout=options.publish_timeout, limit=options.pool_limit)
        self._publishing = publishing
        unroutable = str(transport.get("deadletter_queue") or "")
        self.bindings = Bindings(self.links, self.layout)
        self._posts = Posts(
            publishing,
            self.layout,
            Bindings(publishing, self.layout),
            timeout=options.publish_timeout,
            unroutable=unroutable,
        )
        #: For what follows a task.
        self.posts = Posts(
            self.links, self.layout, self.bindings, timeout=self.server.timeout, unroutable=unroutable
        )

    def declare(self, queues: Collection[Queue]) -> None:
        self.bindings.declare(queues)

    def publish(self, batch: Sequence[Outgoing]) -> None:
        self._posts.publish(batch)

    def consumer(self, queues: Collection[Queue], *, name: str) -> RedisConsumer:
        self.declare(queues)
        self._check_memory_policy()
        return RedisConsumer(self, list({queue.name: queue for queue in queues}.values()))

    def size(self, queue: str) -> QueueSize:
        layout = self.layout
        args = [layout.sep, repr(seconds(self.options.clock.now())), layout.held(queue, ""), *layout.steps]
        return QueueSize(*self.links.run(_SIZE, layout.block(queue), args))

    def purge(self, queue: str) -> int:
        layout = self.layout
        return self.links.run(_PURGE, layout.block(queue), [layout.sep, *layout.steps])

    def bus(self) -> RedisBus:
        return RedisBus(self.links, self.layout)

    def close(self) -> None:
        self.links.close()
        self._publishing.close()

    def _check_memory_policy(self) -> None:
        """Warn, once in this process, of a server that throws messages away when its memory is full."""
        if self.server.identity in _looked_at:
            return
        _looked_at.add(self.server.identity)
        policy = self._memory_policy()
        if policy not in ("", "noeviction"):
            logger.warning(
                "Redis at %s has maxmemory-policy %s: when its memory is full it deletes messages and results. "
                "Set it to noeviction.",
                self.server.address,
                policy,
            )

    def _memory_policy(self) -> str:
        """ "" where the server does not tell."""
        try:
            [found] = self.links.ask(("CONFIG", "GET", "maxmemory-policy"))
            return found[1].decode() if len(found) == 2 else ""
        except OperationalError:
            pass  # not allowed, as with most servers that somebody else runs
        try:
            [info] = self.links.ask(("INFO", "memory"))
        except OperationalError:
            return ""
        lines = dict(line.partition(":")[::2] for line in info.decode().splitlines())
        return lines.get("maxmemory_policy", "")


def _number(options: Any, name: str, default: float) -> float:
    value = options.get(name, default)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ImproperlyConfigured(f"transport option {name!r} must be a number, not {value!r}") from None


class RedisConsumer(Consumer):
    """What one worker has borrowed from a `RedisBroker`."""

    def __init__(self, broker: RedisBroker, queues: Sequence[Queue]) -> None:
        self.broker = self._broker = broker
        self._queues = queues
        self._clock = broker.options.clock
        links, layout = broker.links, broker.layout
        self._lease = broker.options.lease
        self._registration = Registration(links, layout, broker.bindings, queues, lease=self._lease)
        self._claimer = Claimer(
            links,
            layout,
            queues,
            # What comes may be large; and leases do not depend on it.
            timeout=self._lease / 2,
            tracking=bool(broker.options.transport.get("client_tracking", True)),
        )
        self.completing = Completing(links, layout, broker.posts, self._clock)
        self._unacked = Unacked(
            links,
            layout,
            broker.bindings,
            self._clock,
            visibility_timeout=broker.visibility_timeout,
            mutex_expires=broker.mutex_expires,
        )
        #: What our caller was given and did not settle.
        self._given: dict[Claim, Delivery] = {}
        #: Settled perhaps: the answer was lost. If one of these is not held any more, it was us.
        self._unanswered: set[Delivery] = set()
        #: One fetch at a time; and while messages change hands nobody looks for claims whose reply was lost.
        self._fetching = threading.Lock()
        self._claiming = threading.Lock()
        #: The server may have given us what we do not know of.
        self._in_doubt = False
        self._broadcasts = 0
        self._watch = LeaseWatch[tuple[str, str]](self._lease)
        #: Queue and holder of those who died and are not struck off yet, and where their beat stands.
        self._dead: dict[tuple[str, str], int] = {}
        self._next_sweep = time.monotonic() + broker.restore_interval
        self._expiring = [queue for queue in queues if expires_of(queue) is not None]
        self._closed = False
        self._registration.register("")
        self.renew()  # a worker that died is observed from now on

    # -- fetching ---------------------------------------------------------------------------------------------

    def fetch(self, limit: int, timeout: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + timeout
        claimer = self._claimer
        with self._fetching:
            while not self._closed:
                deliveries, due_in = self._take(limit)
                # In this order: a wake is used up by the fetch that it ends.
                if claimer.take_wake() or deliveries:
                    return deliveries
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                claimer.wait(min(left, due_in))
        return ()

    def held(self) -> Sequence[Delivery]:
        with self._claiming:
            return self._not_given(None)

    def wake(self) -> None:
        self._claimer.wake()

    def _take(self, limit: int) -> tuple[Sequence[Delivery], float]:
        """What can be had without waiting, and the seconds until a message becomes due."""
        with self._claiming:
            if self._in_doubt and (found := self._not_given(limit)):
                return found, 0.0
            self._in_doubt = False
            if found := self._heard(limit):
                return found, 0.0
            return self._claim(limit)

    def _claim(self, limit: int) -> tuple[Sequence[Delivery], float]:
        while True:
            holder, now = self._registration.holder, seconds(self._clock.now())
            self._in_doubt = True
            claimed = self._claimer.claim(holder, limit, now)
            self._in_doubt = False
            if claimed is not None:
                break
            self._registration.register(holder)
        deliveries = [self._give(Claim(queue, id, holder), data) for queue, id, data in claimed.messages]
        if claimed.next_due is None:
            return deliveries, float("inf")
        # One that is due already was left for the next claim.
        return deliveries, max(0.001, claimed.next_due - now)

    def _heard(self, limit: int) -> list[Delivery]:
        """What came by broadcast."""
        found: list[Delivery] = []
        while self._claimer.broadcasts and len(found) < limit:
            queue, data = self._claimer.broadcasts.popleft()
            self._broadcasts += 1
            found.append(self._give(Claim(queue, f"{self._broadcasts}:0", ""), data))
        return found

    def _not_given(self, limit: int | None) -> list[Delivery]:
        """What we hold and our caller does not know of."""
        holder = self._registration.holder
        known = {(each.queue, each.id) for each in list(self._given) if each.holder == holder}
        # All are read before one is given: an error on the way must not leave some given to nobody.
        found = list(islice(self._registration.held(known), limit))
        return [self._give(Claim(queue, id, holder), data) for queue, id, data in found]

    def _give(self, claim: Claim, data: bytes) -> Delivery:
        envelope, attempts, redelivered = letters.read(data, claim.queue)
        delivery = Delivery(envelope, claim.queue, claim, attempts + 1, redelivered)
        self._given[claim] = delivery
        return delivery

    # -- settling ---------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Delivery]:
        lost, failures = self.carry_out([Completion(each) for each in settlements], None)
        if failures:
            raise OperationalError(
                f"{len(failures)} of {len(settlements)} were not settled: {failures[0].reason}"
            )
        return lost

    def carry_out(
        self, batch: Sequence[Completion], put: Callable[[Record], Put] | None
    ) -> tuple[list[Delivery], list[Failure]]:
        """Carry out completions; returns the deliveries that were lost, and what failed and is held still."""
        lost = [each for each in _deliveries(batch) if not self._knows(each)]
        missing = set(lost)
        known = [each for each in batch if each.delivery not in missing]
        try:
            failures = self.completing.complete(known, put)
        except ConnectionLost:
            self._unanswered.update(_settled(known))
            raise
        failed = [each for each in failures if each.step != "lost"]
        gone = {each.completion.delivery: None for each in failures if each.step == "lost"}
        lost += [each for each in gone if each is not None and each not in self._unanswered]
        held = {each.completion.delivery for each in failed}
        self._let_go(each for each in _settled(batch) if each not in held)
        self._let_go(lost)
        return lost, failed

    def lost(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Those of `deliveries` that are ours no longer."""
        lost = {each for each in deliveries if not self._knows(each)}
        doubtful = [each for each in deliveries if each not in lost and each not in self._unanswered]
        return [*lost, *self.completing.lost(doubtful)]

    def _knows(self, delivery: Delivery) -> bool:
        claim: Claim = delivery.tag
        ours = not claim.holder or claim.holder == self._registration.holder
        return ours and self._given.get(claim) is delivery

    def _let_go(self, deliveries: Iterable[Delivery]) -> None:
        """These are settled, or lost."""
        for each in deliveries:
            self._unanswered.discard(each)
            if self._given.get(each.tag) is each:
                del self._given[each.tag]

    def unit(self, backend: ResultBackend) -> Unit:
        if isinstance(backend, RedisBackend) and backend.server.identity == self._broker.server.identity:
            return OneScript(self, backend)
        return FencedUnit(self, backend)

    # -- leases -----------------------------------------------------------------------------------------------

    def renew(self) -> Sequence[Delivery]:
        if self._closed:
            return ()
        asked = self._clock.monotonic()
        try:
            held, beats = self._registration.beat()
        except OperationalError:
            self._watch.restart()
            raise
        if held > sum(bool(claim.holder) for claim in list(self._given)):
            self._in_doubt = True
        self._dead.update(self._watch.look(beats, asked, self._clock.monotonic()))
        self._put_off()
        self._look_after_others()
        holder = self._registration.holder
        lost = [each for each in list(self._given.values()) if each.tag.holder not in ("", holder)]
        self._let_go(lost)
        return lost

    def _put_off(self) -> None:
        """Put the end of the lists of our own queues off."""
        layout, commands = self._broker.layout, list[tuple[Argument, ...]]()
        for queue in self._expiring:
            expires = expires_of(queue) or 0
            commands += [("PEXPIRE", key, expires) for key in layout.all_ready(queue.name)]
        if commands:
            self._broker.links.ask(*commands)

    def _look_after_others(self) -> None:
        """Put back what others left behind. It must not cost us our own leases: what takes long is done bit by bit."""
        until = time.monotonic() + self._lease / 10
        for (queue, holder), beat in list(self._dead.items()):
            del self._dead[queue, holder]
            if not self._registration.bury(queue, holder, beat, until):
                self._dead[queue, holder] = HALF_BURIED
                return
        if time.monotonic() >= self._next_sweep:
            self._sweep(until)

    def _sweep(self, until: float) -> None:
        """Look after what Celery's nodes leave behind, and put the end of our own queues' bindings off."""
        restored = self._unacked.sweep(until)
        if not self._unacked.is_unfinished:
            self._next_sweep = time.monotonic() + self._broker.restore_interval
        if restored:
            logger.warning("put back %d messages that workers of Celery's did not settle in time", restored)
        bindings = self._broker.bindings
        bindings.write(self._expiring)
        bindings.sweep()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._claimer.wake()
        # A fetch that is under way ends first: what it claims goes back too.
        with self._fetching:
            self._claimer.close()
            self._registration.leave()
            # What was put back to a list that had ended would stay for ever.
            self._put_off()
            for queue in self._queues:
                if queue.is_fanout and queue.auto_delete:
                    self._delete(queue.name)
        self._given.clear()

    def _delete(self, queue: str) -> None:
        """Delete what was put back to a queue of our own: nobody will ask for it."""
        [others] = self._broker.links.ask(("EXISTS", self._broker.layout.block(queue)[0]))
        if not others:
            self._broker.purge(queue)


def _deliveries(batch: Iterable[Completion]) -> list[Delivery]:
    return list(dict.fromkeys(each.delivery for each in batch if each.delivery is not None))


def _settled(batch: Iterable[Completion]) -> list[Delivery]:
    return [each.settlement.delivery for each in batch if each.settlement is not None]


class FencedUnit(Unit):
    """Step by step, for a backend elsewhere."""

    def __init__(self, consumer: RedisConsumer, backend: ResultBackend) -> None:
        super().__init__(consumer, backend)
        self._lost = consumer.lost

    def fence(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        return self._lost(deliveries) if deliveries else ()


class OneScript(Unit):
    """The same steps in one script, for a backend in the same database: each completion is done whole or not at all."""

    def __init__(self, consumer: RedisConsumer, backend: RedisBackend) -> None:
        super().__init__(consumer, backend)
        self._carry_out = consumer.carry_out
        self._put = backend.results.put
        #: What was done of a batch that failed in part: when it is tried again, that is not done again.
        self._done: list[Completion] = []

    def complete(self, batch: Sequence[Completion]) -> Sequence[Delivery]:
        done = {id(each) for each in self._done}
        batch = [each for each in batch if id(each) not in done]
        lost, failures = self._carry_out(batch, self._put)
        if not failures:
            self._done = []
            return lost
        failed = {id(each.completion) for each in failures}
        gone = set(lost)
        # The lost ones are found to be lost again.
        self._done += [each for each in batch if id(each) not in failed and each.delivery not in gone]
        raise _error_of(failures, len(batch))


def _error_of(failures: Sequence[Failure], number: int) -> OperationalError:
    text = f"{len(failures)} of {number} tasks could not be completed: {failures[0].reason}"
    hopeless = [each for each in failures if each.step == "publish" and is_hopeless(each.reason)]
    if not hopeless:
        return OperationalError(text)
    ids = [outgoing.envelope.task_id for each in hopeless for outgoing in each.completion.follow]
    return PublishFailed(f"{len(hopeless)} of {number}: {hopeless[0].reason}", ids=ids, unroutable=True)
