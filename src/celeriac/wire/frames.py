"""What a worker and its executors say to each other: msgpack frames.

Two sockets join a worker and one executor (see `executor.link` and `worker.link`):

* the *inbox*, a ``SOCK_SEQPACKET`` pair that carries one `Call` per packet. The kernel's queue is the
  inbox, so each call is received exactly once, and the worker can read unstarted ones back itself.
* the *line*, a stream of length-prefixed frames: `Ready`, `Outcome` and `Update` upwards, `Interrupt` and
  `Parcel` downwards.

An executor that is to stop sees the end of its inbox; one whose line ends has lost its worker and exits.

A third, the *nursery line*, carries `Boot` and `Spawn` down and `Manifest`, `LoadFailed`, `Spawned`, `Exited` up.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from celeriac.wire.disposition import Disposition
from celeriac.wire.envelope import Envelope, Outgoing
from celeriac.wire.record import Record

__all__ = [
    "INBOX_LIMIT",
    "Boot",
    "Call",
    "Exited",
    "FrameBuffer",
    "Interrupt",
    "LoadFailed",
    "Manifest",
    "Outcome",
    "Parcel",
    "Ready",
    "Spawn",
    "Spawned",
    "TaskInfo",
    "Update",
    "Verdict",
    "decode_call",
    "decode_down",
    "decode_nursery_down",
    "decode_nursery_up",
    "decode_up",
    "encode",
    "frame",
]

#: Largest call (bytes) that travels as one inbox packet; a larger one goes over the line as a `Parcel`.
INBOX_LIMIT = 64 * 1024


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """How a call ended without running: `invoke` skips the function and does the rest."""

    kind: Literal["expired", "revoked", "lost", "timeout", "unknown"]
    #: What the exception says: seconds of the limit, how the executor died.
    detail: str = ""


class Call(msgspec.Struct, frozen=True, array_like=True, tag="call"):
    """One delivery on its way to an executor. `number` is the worker's own, never reused.

    An `envelope` of None says that this call is too large for the inbox: its `Parcel` is on the line.
    """

    number: int
    envelope: Envelope | None
    queue: str
    attempts: int = 1
    redelivered: bool = False
    #: The delivery is settled before the call is sent (``acks_late=False``).
    settled: bool = False
    verdict: Verdict | None = None


class Outcome(msgspec.Struct, frozen=True, array_like=True, tag="outcome"):
    """What became of a call, and what follows: decided in the executor, carried out by the worker."""

    number: int
    state: str
    disposition: Disposition
    record: Record | None = None
    follow: list[Outgoing] = []
    #: Seconds the call took, start to outcome.
    runtime: float = 0.0


class Update(msgspec.Struct, frozen=True, array_like=True, tag="update"):
    """A state on the way: STARTED, or `Task.update_state`."""

    number: int
    record: Record


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """An executor can take calls."""

    pid: int


class Interrupt(msgspec.Struct, frozen=True, array_like=True, tag="interrupt"):
    """Raise `SoftTimeLimitExceeded` in this call, if it still runs.

    `hard`: raise `TimeLimitExceeded`; for executors that cannot be killed (a thread of the worker's process).
    """

    number: int
    seconds: float
    hard: bool = False


class Parcel(msgspec.Struct, frozen=True, array_like=True, tag="parcel"):
    """The envelope of a call that does not fit the inbox; sent before the call itself."""

    number: int
    envelope: Envelope


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker must know of a task: options that act outside the executor."""

    acks_late: bool = True
    rate_limit: str | float | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None
    reject_on_worker_lost: bool | None = None
    ignore_result: bool = False

    @property
    def unlimited(self) -> bool:
        """The task has no time limits of its own."""
        return self.time_limit is None and self.soft_time_limit is None


class Manifest(msgspec.Struct, frozen=True, array_like=True, tag="manifest"):
    """What the loaded app looks like from outside: plain settings and tasks."""

    main: str
    settings: dict[str, Any]
    tasks: dict[str, TaskInfo]
    #: Settings that are not plain values and stay in the executors, by name.
    unplain: list[str] = []


class LoadFailed(msgspec.Struct, frozen=True, array_like=True, tag="load-failed"):
    """The app could not be loaded: one line for people, and the traceback."""

    message: str
    traceback: str


class Boot(msgspec.Struct, frozen=True, array_like=True, tag="boot"):
    """First frame to a nursery: which app to load, and how."""

    app: str
    hostname: str
    include: list[str] = []
    #: Settings given on the command line, applied over the app's own.
    overrides: dict[str, Any] = {}
    loglevel: str = "WARNING"
    logfile: str | None = None
    color: bool | None = None


class Spawn(msgspec.Struct, frozen=True, array_like=True, tag="spawn"):
    """Fork an executor. Its two sockets travel with this frame as ancillary data: inbox, line."""

    index: int


class Spawned(msgspec.Struct, frozen=True, array_like=True, tag="spawned"):
    index: int
    pid: int


class Exited(msgspec.Struct, frozen=True, array_like=True, tag="exited"):
    """An executor is dead and reaped. `status` as `os.waitstatus_to_exitcode` gives it: -9 is SIGKILL."""

    pid: int
    status: int


_encoder = msgspec.msgpack.Encoder()
_call = msgspec.msgpack.Decoder(Call)
_down: msgspec.msgpack.Decoder[Interrupt | Parcel] = msgspec.msgpack.Decoder(Interrupt | Parcel)
_up: msgspec.msgpack.Decoder[Outcome | Update | Ready] = msgspec.msgpack.Decoder(Outcome | Update | Ready)
_nursery_up: msgspec.msgpack.Decoder[Manifest | LoadFailed | Spawned | Exited] = msgspec.msgpack.Decoder(
    Manifest | LoadFailed | Spawned | Exited
)
_nursery_down: msgspec.msgpack.Decoder[Boot | Spawn] = msgspec.msgpack.Decoder(Boot | Spawn)

encode = _encoder.encode
decode_call = _call.decode
decode_down = _down.decode
decode_up = _up.decode
decode_nursery_up = _nursery_up.decode
decode_nursery_down = _nursery_down.decode


def frame(value: msgspec.Struct) -> bytes:
    """`value` as one frame of a stream: four bytes of length, big endian, then msgpack."""
    data = _encoder.encode(value)
    return len(data).to_bytes(4, "big") + data


class FrameBuffer:
    """Cuts a byte stream into frames. Not thread-safe: one reader."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was received; return the frames that are now whole, without their length."""
        buffer = self._data
        buffer += data
        frames: list[bytes] = []
        at, end = 0, len(buffer)
        while end - at >= 4:
            size = int.from_bytes(buffer[at : at + 4], "big")
            if end - at - 4 < size:
                break
            frames.append(bytes(buffer[at + 4 : at + 4 + size]))
            at += 4 + size
        del buffer[:at]
        return frames
