"""What a consumer is to the server: a holder with a heartbeat, under a name that is never used twice."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from celeriac.redis.bindings import Bindings
from celeriac.redis.layout import Layout
from celeriac.redis.links import Argument, Links
from celeriac.redis.scripts import Script
from celeriac.topology import Queue

__all__ = ["HALF_BURIED", "Beats", "Registration"]

_REGISTER = Script("queues.lua", "register.lua")
_RENEW = Script("queues.lua", "renew.lua")
_RELEASE = Script("queues.lua", "release.lua")
_HAND_OVER = Script("queues.lua", "hand_over.lua")
#: The beat of who is being struck off: it is never renewed again.
HALF_BURIED = -1
#: Messages that are put back in one go.
_PART = 1000


class Beats(NamedTuple):
    """What the server knows of us and of others."""

    #: How many messages we hold.
    held: int
    #: Heartbeat counter of each (queue, holder).
    all: Mapping[tuple[str, str], int]


class Registration:
    """Registers with some queues, renews, buries others, leaves. Any thread.

    `holder` is a random name. Who was taken for dead registers anew, under another one: so it is part of the fence.
    `lease`: seconds.
    """

    def __init__(
        self, links: Links, layout: Layout, bindings: Bindings, queues: Sequence[Queue], *, lease: float
    ) -> None:
        self._links = links
        self._layout = layout
        self._bindings = bindings
        self._declared = queues
        self._queues = [queue.name for queue in queues]
        #: Milliseconds after a heartbeat from which on nobody counts on us to look after a schedule.
        self._silence = max(1, round(2000 * lease))
        self._registering = threading.Lock()
        self._has_left = False
        self.holder = ""

    def register(self, before: str) -> None:
        """Be known under a new name. Of the threads that find the name `before` gone, the first does it."""
        with self._registering:
            if self.holder != before or self._has_left:
                return
            if before:
                # A server that forgot us may have come back empty.
                self._bindings.write(self._declared)
            holder = secrets.token_hex(8)
            self._links.run(_REGISTER, self._blocks(holder), [self._layout.sep, holder, self._silence])
            self.holder = holder
            if before:
                # Some queues may know it still.
                for queue in self._queues:
                    self._release(queue, before, beat="", counted=False)

    def beat(self) -> Beats:
        """Count a heartbeat, and read everyone's; registers anew where ours is gone."""
        while not self._has_left:
            holder = self.holder
            args: list[Argument] = [self._layout.sep, holder, self._silence]
            reply = self._links.run(_RENEW, self._blocks(holder), args)
            if reply[0]:
                return Beats(reply[1], self._beats(reply[2:]))
            self.register(holder)
        return Beats(0, {})

    def _blocks(self, holder: str) -> list[str]:
        return [key for queue in self._queues for key in self._layout.block(queue, holder)]

    def _beats(self, reply: Sequence[Sequence[bytes]]) -> dict[tuple[str, str], int]:
        beats: dict[tuple[str, str], int] = {}
        for queue, pairs in zip(self._queues, reply, strict=True):
            for holder, beat in zip(pairs[::2], pairs[1::2], strict=True):
                beats[queue, holder.decode()] = int(beat)
        return beats

    def bury(self, queue: str, holder: str, beat: int, until: float = math.inf) -> bool:
        """Put back what a dead holder holds of a queue, unless its counter moved on.

        False where that was not done by the monotonic instant `until`: again then, with the beat `HALF_BURIED`.
        """
        return self._release(queue, holder, beat=str(beat), counted=True, until=until)

    def leave(self) -> None:
        """Put back what we hold, and the schedules that nobody is left to look after. It is for good."""
        with self._registering:
            # A heartbeat that is under way must not take it for a loss.
            self._has_left = True
        for queue in self._queues:
            self._release(queue, self.holder, beat="", counted=False)
            while self._links.run(_HAND_OVER, self._layout.block(queue), [self._layout.sep]) > 0:
                pass

    def _release(self, queue: str, holder: str, *, beat: str, counted: bool, until: float = math.inf) -> bool:
        keys, wake = self._layout.block(queue, holder), self._layout.wake(holder)
        claims: list[str] = []
        while True:
            args = [self._layout.sep, holder, wake, beat, int(counted), *claims[:_PART]]
            left, done = self._links.run(_RELEASE, keys, args)
            if left <= 0:
                return True
            if done and time.monotonic() >= until:
                return False
            beat = str(HALF_BURIED)
            # It holds no more than at the first time: what it holds is sorted once.
            claims = claims[done:] or self._claims(queue, holder)[::-1]

    def _claims(self, queue: str, holder: str) -> list[str]:
        """What a holder holds, the oldest first."""
        [claims] = self._links.ask(("HKEYS", self._layout.held(queue, holder)))
        return sorted(map(bytes.decode, claims), key=_number)

    def held(self, known: set[tuple[str, str]]) -> Iterator[tuple[str, str, bytes]]:
        """What the server says we hold beside the `known` (queue, claim): queue, claim and bytes of each."""
        for queue in self._queues:
            key = self._layout.held(queue, self.holder)
            unknown = [each for each in self._claims(queue, self.holder) if (queue, each) not in known]
            for claim in unknown:
                [data] = self._links.ask(("HGET", key, claim))
                if data is not None:
                    yield queue, claim, data


def _number(claim: str) -> int:
    return int(claim.partition(":")[0])
