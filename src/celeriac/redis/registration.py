"""What a consumer is to the server: a holder with a heartbeat, under a name that is never used twice."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from celeriac.redis.layout import Layout
from celeriac.redis.links import Argument, Links
from celeriac.redis.scripts import Script

__all__ = ["Beats", "Registration"]

_RENEW = Script("queues.lua", "renew.lua")
_RELEASE = Script("queues.lua", "release.lua")
_HAND_OVER = Script("queues.lua", "hand_over.lua")


class Beats(NamedTuple):
    """What the server knows of us and of others."""

    #: How many messages we hold.
    held: int
    #: Heartbeat counter of each (queue, holder).
    all: Mapping[tuple[str, str], int]


class Registration:
    """Registers with some queues, renews, buries others, leaves. Any thread.

    `holder` is a random name. Who was taken for dead registers anew, under another one: so it is part of the fence.
    """

    def __init__(self, links: Links, layout: Layout, queues: Sequence[str]) -> None:
        self._links = links
        self._layout = layout
        self._queues = queues
        self._registering = threading.Lock()
        self._has_left = False
        self.holder = ""

    def register(self, before: str) -> None:
        """Be known under a new name. Of the threads that find the name `before` gone, the first does it."""
        with self._registering:
            if self.holder != before or self._has_left:
                return
            holder = secrets.token_hex(8)
            beats = [self._layout.block(queue)[0] for queue in self._queues]
            self._links.ask(*(("HSET", key, holder, 1) for key in beats))
            self.holder = holder
            if before:
                # Some queues may know it still.
                for queue in self._queues:
                    self._release(queue, before, beat="", counted=False)

    def beat(self) -> Beats:
        """Count a heartbeat, and read everyone's; registers anew where ours is gone."""
        while not self._has_left:
            holder = self.holder
            keys = [key for queue in self._queues for key in self._layout.block(queue, holder)]
            reply = self._links.run(_RENEW, keys, [self._layout.sep, holder])
            if reply[0]:
                return Beats(reply[1], self._beats(reply[2:]))
            self.register(holder)
        return Beats(0, {})

    def _beats(self, reply: Sequence[Sequence[bytes]]) -> dict[tuple[str, str], int]:
        beats: dict[tuple[str, str], int] = {}
        for queue, pairs in zip(self._queues, reply, strict=True):
            for holder, beat in zip(pairs[::2], pairs[1::2], strict=True):
                beats[queue, holder.decode()] = int(beat)
        return beats

    def bury(self, queue: str, holder: str, beat: int) -> None:
        """Put back what a dead holder holds of a queue, unless its counter moved on."""
        self._release(queue, holder, beat=str(beat), counted=True)

    def leave(self) -> None:
        """Put back what we hold, and the schedules that nobody is left to look after. It is for good."""
        with self._registering:
            # A heartbeat that is under way must not take it for a loss.
            self._has_left = True
        for queue in self._queues:
            self._release(queue, self.holder, beat="", counted=False)
            while self._links.run(_HAND_OVER, self._layout.block(queue), [self._layout.sep]) > 0:
                pass

    def _release(self, queue: str, holder: str, *, beat: str, counted: bool) -> None:
        keys = self._layout.block(queue, holder)
        wake = self._layout.wake(holder)
        while True:
            args: list[Argument] = [self._layout.sep, holder, wake, beat, int(counted)]
            if self._links.run(_RELEASE, keys, args) <= 0:
                return
            beat = "-1"

    def held(self, known: set[tuple[str, str]]) -> Iterator[tuple[str, str, bytes]]:
        """What the server says we hold beside the `known` (queue, claim): queue, claim and bytes of each."""
        for queue in self._queues:
            key = self._layout.held(queue, self.holder)
            [claims] = self._links.ask(("HKEYS", key))
            unknown = sorted(
                (each for each in map(bytes.decode, claims) if (queue, each) not in known), key=_number
            )
            for claim in unknown:
                [data] = self._links.ask(("HGET", key, claim))
                if data is not None:
                    yield queue, claim, data


def _number(claim: str) -> int:
    return int(claim.partition(":")[0])
