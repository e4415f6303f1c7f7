"""How one consumer gets at messages: it claims them, and is told by the server when there may be more.

All that is waited for lies on one connection (RESP3): the claim, the look that arms the server's tracking of the keys
that were looked at, and its pushes when they change. Tracking lives and dies with that connection, so a consumer that
is not told is one that was told that its connection broke.

So that a message does not wake everyone, few of those who wait are *sentries*, who watch the lists; the others sleep,
each with a key of its own that whoever claims something touches when it pays to wake one (``claim.lua``). Everyone
claims every few seconds in any case: what could go wrong there costs seconds.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoScriptError

from celeriac.redis.layout import Layout
from celeriac.redis.line import Line, Push
from celeriac.redis.links import Argument, Links
from celeriac.redis.scripts import Script
from celeriac.topology import Queue

__all__ = ["Claimed", "Claimer"]

_CLAIM = Script("queues.lua", "claim.lua")
_ARM = Script("arm.lua")
_SLEEPER = 2
#: Seconds that a wait lasts at most: at first, and once nothing came for that long. Less than REST in ``queues.lua``.
_PATIENCE = (1.0, 5.0)
#: Seconds between two looks of who is not told: from, to.
_POLLING = (0.005, 0.1)


class Claimed(NamedTuple):
    """What a claim brought."""

    #: Queue, claim and bytes of each message.
    messages: list[tuple[str, str, bytes]]
    #: When the next scheduled message is due, in seconds since 1970; None too for who will be woken then.
    next_due: float | None


class Claimer:
    """Claims and waits for one consumer, one thread at a time; `wake` from any, and from signal handlers.

    `timeout`: seconds that an operation may take; `tracking`: whether to be told by the server; where it refuses, and
    where this is False, it is looked again and again. Raises `ConnectionLost` and `OperationalError`; after that it may
    be used again.
    """

    def __init__(
        self, links: Links, layout: Layout, queues: Sequence[Queue], *, timeout: float, tracking: bool
    ) -> None:
        self._links = links
        self._layout = layout
        self._timeout = timeout
        self._tracking = tracking
        self._names = [queue.name for queue in queues]
        if layout.order == "sorted":
            self._names.sort()
        self._ready = [key for name in self._names for key in layout.all_ready(name)]
        self._nexts = [layout.next_due(name) for name in self._names]
        self._channels, self._patterns = _listened(layout, queues)
        #: What fanout exchanges brought: queue and bytes.
        self.broadcasts: deque[tuple[str, bytes]] = deque()
        self._line: Line | None = None
        #: Held where the line changes hands, for a moment: reentrant, because a signal handler may wake.
        self._changing = threading.RLock()
        self._holder = ""
        self._blocks: dict[str, list[str]] = {}
        self._number = 0
        self._role = 0
        #: As the server has it: seconds since 1970, or nothing.
        self._next_due = b""
        self._was_idle = False
        self._told = False
        self._woken = False
        self._quiet_waits = 0
        self._next_look = _POLLING[0]

    # -- claiming ----------------------------------------------------------------------------------------------

    def claim(self, holder: str, limit: int, now: float) -> Claimed | None:
        """Claim at most `limit` messages for `holder`; None where it is not registered with all its queues."""
        if holder != self._holder:
            self._holder = holder
            self._blocks = {name: self._layout.block(name, holder) for name in self._names}
        line = self._opened()
        names = list(self._names)
        keys = [key for name in names for key in self._blocks[name]]
        args: list[Argument] = [
            *(self._layout.sep, holder, self._layout.wake(holder), repr(now), limit, self._number),
            *(self._mode, *self._layout.steps),
        ]
        self._number += limit
        # Until we hear otherwise: where the answer is lost we may be known as one who waits.
        self._was_idle = True
        reply = self._run(line, _CLAIM, keys, args) if self._tracking else self._links.run(_CLAIM, keys, args)
        if reply[0] == -1:
            return None
        found: list[Any]
        self._role, self._next_due, *found = reply
        messages: list[tuple[str, str, bytes]] = [
            (names[queue], claim.decode(), data)
            for queue, claim, data in zip(found[::3], found[1::3], found[2::3], strict=True)
        ]
        self._was_idle = not messages
        if messages:
            self._quiet_waits, self._next_look = 0, _POLLING[0]
            if self._layout.order == "round_robin":
                self._names.append(self._names.pop(0))
        # Sentries look after what becomes due: they wake who sleeps.
        is_awaited = self._next_due and self._role != _SLEEPER
        return Claimed(messages, float(self._next_due) if is_awaited else None)

    @property
    def _mode(self) -> str:
        if not self._tracking:
            return "poll"
        return "idle" if self._was_idle else "busy"

    def _run(
        self,
        line: Line,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Argument],
        *before: tuple[Argument, ...],
    ) -> Any:
        """The reply of a script on our line."""
        rest = (len(keys), *keys, *args)
        with self._breaking():
            reply = self._asked(line, (*before, ("EVALSHA", script.sha, *rest)))
            if isinstance(reply, NoScriptError):
                reply = self._asked(line, (*before, ("EVAL", script.text, *rest)))
            if isinstance(reply, Exception):
                raise reply
        return reply

    def _asked(self, line: Line, commands: Sequence[tuple[Argument, ...]]) -> Any:
        """The last of the replies to commands. What changed before it is no news, what changes after it is."""
        line.send(*commands)
        deadline = time.monotonic() + self._timeout
        last, missing = None, len(commands)
        while missing:
            left = deadline - time.monotonic()
            if left <= 0:
                raise redis.TimeoutError(f"no answer for {self._timeout:.2g} s")
            for item in line.receive(left):
                if isinstance(item, Push):
                    self._hear(item)
                    continue
                last, missing = item, missing - 1
                if not missing:
                    self._told = False
        return last

    # -- waiting -----------------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> None:
        """Wait until there may be something to claim, something was broadcast, or somebody wakes us; `timeout` seconds
        at most. To be called after a claim that brought nothing."""
        line = self._opened()
        if not self._tracking:
            self._poll(line, timeout)
            return
        deadline = time.monotonic() + min(timeout, self._patience())
        if self._is_ready(line):
            return
        while not (self._told or self._woken or self.broadcasts):
            left = deadline - time.monotonic()
            if left <= 0:
                self._quiet_waits += 1
                return
            with self._breaking():
                found = line.receive(left)
            for item in found:
                self._hear(item)
        self._quiet_waits = 0

    def _patience(self) -> float:
        first, later = _PATIENCE
        # Not all at the same time.
        return first if not self._quiet_waits else later * random.uniform(0.8, 1.0)

    def _is_ready(self, line: Line) -> bool:
        """Arm the server's tracking; whether something can be claimed already."""
        if self._role == _SLEEPER:
            keys, instants = [self._layout.wake(self._holder)], 0
        else:
            keys, instants = [*self._ready, *self._nexts], len(self._nexts)
        args = [instants, self._next_due]
        return bool(self._run(line, _ARM, keys, args, ("CLIENT", "CACHING", "YES")))

    def _poll(self, line: Line, timeout: float) -> None:
        if self.broadcasts or self._woken:
            return
        with self._breaking():
            found = line.receive(min(timeout, self._next_look))
        for item in found:
            self._hear(item)
        self._next_look = min(self._next_look * 1.5, _POLLING[1])

    def _hear(self, item: Any) -> None:
        """Take in a push, or on a connection without pushes the answer to a subscription."""
        kind: bytes
        rest: list[Any]
        kind, *rest = item
        if kind == b"invalidate":
            self._told = True
        elif kind == b"message":
            channel, data = rest
            self.broadcasts += [(queue, data) for queue in self._channels.get(channel, ())]
        elif kind == b"pmessage":
            pattern, _, data = rest
            self.broadcasts += [(queue, data) for queue in self._patterns.get(pattern, ())]

    def take_wake(self) -> bool:
        """Whether somebody called `wake` since the last time."""
        woken, self._woken = self._woken, False
        return woken

    def wake(self) -> None:
        """End the present wait, or the next one."""
        self._woken = True
        with self._changing:
            if self._line is not None:
                self._line.wake()

    # -- the line ----------------------------------------------------------------------------------------------

    def _opened(self) -> Line:
        if self._line is not None:
            return self._line
        with self._links.server.errors():
            line = self._open()
            try:
                self._subscribe(line)
            except BaseException:
                line.close()
                raise
        with self._changing:
            self._line = line
        return line

    def _open(self) -> Line:
        if self._tracking:
            line: Line | None = None
            try:
                line = Line(self._links.server, timeout=self._timeout)
                line.ask(("CLIENT", "TRACKING", "ON", "OPTIN"))
            except redis.ResponseError:
                # An old server, a proxy, or a user who may not.
                self._tracking = False
                if line is not None:
                    line.close()
            except BaseException:
                if line is not None:
                    line.close()
                raise
            else:
                return line
        return Line(self._links.server, timeout=self._timeout, protocol=2)

    def _subscribe(self, line: Line) -> None:
        commands = [
            *(("SUBSCRIBE", channel) for channel in self._channels),
            *(("PSUBSCRIBE", pattern) for pattern in self._patterns),
        ]
        if commands:
            line.send(*commands)
        deadline, missing = time.monotonic() + self._timeout, len(commands)
        while missing:
            left = deadline - time.monotonic()
            if left <= 0:
                raise redis.TimeoutError(f"no answer for {self._timeout:.2g} s")
            for item in line.receive(left):
                if isinstance(item, Exception):
                    raise item
                if item[0] in (b"subscribe", b"psubscribe"):
                    missing -= 1
                else:
                    self._hear(item)

    @contextmanager
    def _breaking(self) -> Generator[None]:
        """A line on which something failed is at an end."""
        try:
            with self._links.server.errors():
                yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up. Not while another thread waits: `wake` it first."""
        with self._changing:
            line, self._line = self._line, None
        if line is not None:
            line.close()


def _listened(
    layout: Layout, queues: Sequence[Queue]
) -> tuple[dict[bytes, list[str]], dict[bytes, list[str]]]:
    """Channels, and patterns of channels, that bring messages for queues on fanout exchanges; whatever their key."""
    channels: dict[bytes, list[str]] = {}
    patterns: dict[bytes, list[str]] = {}
    for queue in queues:
        for binding in queue.all_bindings():
            if binding.exchange.type == "fanout":
                channel = layout.channel(binding.exchange.name, "")
                channels.setdefault(channel.encode(), []).append(queue.name)
                pattern = re.sub(r"([*?\[\]\\])", r"\\\1", channel) + "/*"
                patterns.setdefault(pattern.encode(), []).append(queue.name)
    return channels, patterns
