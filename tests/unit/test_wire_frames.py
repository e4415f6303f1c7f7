from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.topology import Binding, Exchange, Queue
from celeriac.wire import frames
from celeriac.wire.disposition import ACK, DeadLetter, Defer, Return
from celeriac.wire.envelope import Envelope, Outgoing
from celeriac.wire.record import Record

NOW = datetime(2026, 11, 20, 17, 3, 35, 96526, tzinfo=UTC)
ENVELOPE = Envelope(
    b"[[1], {}, {}]",
    "application/json",
    "utf-8",
    {"task": "t", "id": "1", "timelimit": [None, 3.5], "stamps": {"n": 2**63}, "due": NOW},
    {"priority": 3, "reply_to": ""},
)
QUEUE = Queue(
    "q",
    Exchange("x", "topic", arguments={"a": 1}),
    "a.#",
    (Binding(Exchange("h", "headers"), arguments={"x-match": "any"}),),
    expires=2.5,
    queue_arguments={"x-max-priority": 10},
)
OUTGOING = Outgoing(ENVELOPE, "x", "a.b", 5, NOW, QUEUE)
RECORD = Record(task_id="1", state="FAILURE", result=b"\xff", date_done=NOW, children=[[["2", None], None]])


@pytest.mark.parametrize(
    "call",
    [
        frames.Call(1, ENVELOPE, "q"),
        frames.Call(2**40, None, "q", 3, True, True, frames.Verdict("timeout", "30")),
    ],
)
def test_calls_arrive_as_they_were_sent(call: frames.Call):
    assert frames.decode_call(frames.encode(call)) == call


@pytest.mark.parametrize(
    ("value", "decode"),
    [
        (frames.Interrupt(1, 2.5), frames.decode_down),
        (frames.Interrupt(1, 2.5, True), frames.decode_down),
        (frames.Parcel(1, ENVELOPE), frames.decode_down),
        (frames.Ready(99), frames.decode_up),
        (frames.Update(1, RECORD), frames.decode_up),
        (frames.Outcome(1, "SUCCESS", ACK, RECORD, [OUTGOING, OUTGOING], 0.25), frames.decode_up),
        (frames.Outcome(1, "RETRY", Defer(NOW, ENVELOPE)), frames.decode_up),
        (frames.Outcome(1, "FAILURE", DeadLetter("why")), frames.decode_up),
        (frames.Outcome(1, "REJECTED", Return(counted=True)), frames.decode_up),
        (frames.Boot("proj", "w@h", include=["a"], overrides={"x": [1]}), frames.decode_nursery_down),
        (frames.Spawn(3), frames.decode_nursery_down),
        (frames.Spawned(3, 99), frames.decode_nursery_up),
        (frames.Exited(99, -9), frames.decode_nursery_up),
        (frames.LoadFailed("no", "Traceback"), frames.decode_nursery_up),
        (
            frames.Manifest("m", {"a": [1]}, {"t": frames.TaskInfo(rate_limit="10/m")}, ["b"]),
            frames.decode_nursery_up,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_frames_arrive_as_they_were_sent(value: Any, decode: Any):
    assert decode(frames.encode(value)) == value


def test_a_frame_of_the_other_direction_is_refused():
    with pytest.raises(msgspec.ValidationError):
        frames.decode_down(frames.encode(frames.Ready(1)))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(0, 400)))
def test_a_stream_is_cut_into_the_same_frames_however_it_arrives(payloads: list[bytes], cuts: list[int]):
    stream = b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    buffer = frames.FrameBuffer()
    got = [one for start, end in pairwise(edges) for one in buffer.feed(stream[start:end])]
    assert got == payloads


def test_a_value_is_framed_with_its_length():
    data = frames.frame(frames.Ready(7))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    (payload,) = frames.FrameBuffer().feed(data)
    assert frames.decode_up(payload) == frames.Ready(7)
