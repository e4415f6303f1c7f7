from __future__ import annotations

import base64
import itertools
import json
import sys
from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from celeriac.errors import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    ImproperlyConfigured,
    InvalidTaskError,
    SoftTimeLimitExceeded,
    WireError,
)
from celeriac.wire import codecs
from celeriac.wire.compression import compress
from celeriac.wire.envelope import Envelope, unplain
from celeriac.wire.message import Message, decode, encode, encode_v1, safe_repr

JSON = codecs.accepted(["json"])
EVERYTHING = codecs.accepted(["json", "pickle", "yaml", "msgpack", "raw"])
NOW = datetime(2026, 11, 20, 17, 26, 48, 713809, tzinfo=UTC)
ID = "cef9ceb9-144b-4760-8fc8-640a5ccc1134"
REPLY_TO = "d5f5b07e-1140-3e1b-8c6f-019e1fda8f97"


def sent(body: object, headers: dict[str, Any] | None = None, **properties: Any) -> Envelope:
    """What a JSON client sends."""
    return Envelope(json.dumps(body).encode(), "application/json", "utf-8", headers or {}, properties)


def v2(*, body: object = ([], {}, {}), **headers: Any) -> Envelope:
    return sent(body, {"lang": "py", "task": "tasks.add", "id": ID, **headers})


# -- as Celery 5.7 writes it (wire-protocol §1.5, §1.6, §1.10) -----------------------------------------------

PLAIN_BODY = (
    "W1syLCAzXSwge30sIHsiY2FsbGJhY2tzIjogbnVsbCwgImVycmJhY2tzIjog"
    "bnVsbCwgImNoYWluIjogbnVsbCwgImNob3JkIjogbnVsbH1d"
)
PLAIN_HEADERS = (
    '{"lang":"py","task":"tasks.add","id":"cef9ceb9-144b-4760-8fc8-640a5ccc1134","shadow":null,"eta":null,'
    '"expires":null,"group":null,"group_index":null,"retries":0,"timelimit":[null,null],'
    '"root_id":"cef9ceb9-144b-4760-8fc8-640a5ccc1134","parent_id":null,"argsrepr":"(2, 3)","kwargsrepr":"{}",'
    '"origin":"gen17852@vm","ignore_result":false,"replaced_task_nesting":0,"stamped_headers":null,"stamps":{}}'
)
PLAIN = Message(
    task="tasks.add",
    id=ID,
    args=(2, 3),
    origin="gen17852@vm",
    ignore_result=False,
    reply_to=REPLY_TO,
)


def test_a_plain_call_is_celerys_to_the_byte():
    envelope = encode(PLAIN)
    assert base64.b64encode(envelope.body).decode() == PLAIN_BODY
    assert json.dumps(envelope.headers, separators=(",", ":")) == PLAIN_HEADERS
    assert (envelope.content_type, envelope.content_encoding) == ("application/json", "utf-8")
    assert envelope.properties == {
        "correlation_id": ID,
        "reply_to": REPLY_TO,
        "delivery_mode": 2,
        "priority": 0,
    }


def test_celerys_plain_call_is_read():
    envelope = Envelope(
        base64.b64decode(PLAIN_BODY),
        "application/json",
        "utf-8",
        json.loads(PLAIN_HEADERS),
        {
            "correlation_id": ID,
            "reply_to": REPLY_TO,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "inv_q"},
            "priority": 0,
            "delivery_tag": "02f57592-cba1-4033-a0bc-17b52261ef51",
        },
    )
    assert decode(envelope, accept=JSON) == msgspec.structs.replace(
        PLAIN, args=[2, 3], root_id=ID, argsrepr="(2, 3)", kwargsrepr="{}"
    )


def test_options_are_where_celery_puts_them():
    envelope = encode(
        Message(
            task="tasks.add",
            id=ID,
            args=(1,),
            priority=9,
            expires=NOW + timedelta(seconds=60),
            time_limit=30,
            soft_time_limit=20,
            shadow="nice",
            headers={"my": "hdr"},
            properties={"MessageGroupId": "g"},
        ),
        now=NOW,
    )
    assert envelope.headers["shadow"] == "nice"
    assert envelope.headers["expires"] == "2026-11-20T17:27:48.713809+00:00"
    assert envelope.headers["timelimit"] == [30, 20]
    assert list(envelope.headers)[-2:] == ["stamps", "my"]
    assert envelope.properties == {
        "correlation_id": ID,
        "reply_to": "",
        "delivery_mode": 2,
        "expiration": "60000",
        "priority": 9,
        "MessageGroupId": "g",
    }


CHAINED = (
    '[[1, 2], {}, {"callbacks": null, "errbacks": null, "chain": [{"task": "tasks.add", "args": [3], "kwargs": {},'
    ' "options": {"task_id": "9e072aea", "reply_to": "d5f5b07e"}, "subtask_type": null, "immutable": false}],'
    ' "chord": null}]'
)
CHORD_MEMBER = (
    '[[2, 2], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": {"task": "tasks.xsum", "args": [],'
    ' "kwargs": {}, "options": {"task_id": "aa1af200", "reply_to": "d5f5b07e", "group_id": "8eb38013"},'
    ' "subtask_type": null, "immutable": false}}]'
)
LINKED = (
    '[[], {}, {"callbacks": [{"task": "t.x", "args": [1], "kwargs": {}, "options": {"a": "v", "stamped_headers":'
    ' ["a"]}, "subtask_type": null, "immutable": false}], "errbacks": [{"task": "t.x", "args": ["err"], "kwargs":'
    ' {}, "options": {}, "subtask_type": null, "immutable": true}], "chain": [], "chord": null}]'
)


@pytest.mark.parametrize("body", [CHAINED, CHORD_MEMBER, LINKED])
def test_what_hangs_on_a_task_is_read_and_written_as_celery_does(body: str):
    envelope = v2(
        group="8eb38013", group_index=1, stamped_headers=["tag", "ver"], stamps={"tag": "b", "ver": [1]}
    )
    message = decode(msgspec.structs.replace(envelope, body=body.encode()), accept=JSON)
    again = encode(message)
    assert again.body.decode() == body
    for name in ("group", "group_index", "stamped_headers", "stamps"):
        assert again.headers[name] == envelope.headers[name]


V1_BODY = (
    '{"task": "t.x", "id": "11111111-1111-1111-1111-111111111111", "args": [1], "kwargs": {"k": 2}, "group": null,'
    ' "group_index": null, "retries": 0, "eta": "2026-11-20T17:26:58.717395+00:00",'
    ' "expires": "2026-11-20T17:27:48.717395+00:00", "utc": true, "callbacks": null, "errbacks": null,'
    ' "timelimit": [null, null], "taskset": null, "chord": null}'
)
V1 = Message(
    task="t.x",
    id="11111111-1111-1111-1111-111111111111",
    args=[1],
    kwargs={"k": 2},
    eta=datetime(2026, 11, 20, 17, 26, 58, 717395, tzinfo=UTC),
    expires=datetime(2026, 11, 20, 17, 27, 48, 717395, tzinfo=UTC),
    argsrepr="[1]",
    kwargsrepr="{'k': 2}",
)


def test_protocol_1_is_celerys_to_the_byte():
    envelope = encode_v1(V1, now=NOW)
    assert envelope.body.decode() == V1_BODY
    assert envelope.headers == {}
    assert envelope.properties["correlation_id"] == V1.id
    assert envelope.properties["expiration"] == "60004"


def test_protocol_1_is_read():
    envelope = Envelope(V1_BODY.encode(), "application/json", "utf-8", {"my": "hdr"}, {"priority": 3})
    assert decode(envelope, accept=JSON) == msgspec.structs.replace(V1, headers={"my": "hdr"}, priority=3)


def test_protocol_1_says_taskset_for_group():
    assert encode_v1(msgspec.structs.replace(V1, group="g")).body.endswith(b'"taskset": "g", "chord": null}')
    body = {"task": "t.x", "id": "1", "group": "new", "taskset": "old"}
    assert decode(sent(body), accept=JSON).group == "old"


def test_protocol_1_nests_a_chain_in_links():
    def signature(name: str, **options: object) -> dict[str, Any]:
        return {"task": name, "args": [], "kwargs": {}, "options": options}

    # The last of a chain runs next: a, then b, then c.
    chain = [signature("c"), signature("b", link=[signature("x")], queue="q"), signature("a")]
    body = json.loads(encode_v1(Message(task="t", id="1", callbacks=[signature("y")], chain=chain)).body)
    y, a = body["callbacks"]
    assert y == signature("y")
    (b,) = a["options"]["link"]
    assert (a["task"], b["task"], b["options"]["queue"]) == ("a", "b", "q")
    assert [each["task"] for each in b["options"]["link"]] == ["x", "c"]
    assert chain[1]["options"]["link"] == [signature("x")]


def test_in_the_hybrid_of_both_protocols_headers_win():
    body = {"task": "no", "id": "no", "args": [1], "kwargs": {"a": 2}, "retries": 5, "chord": {"task": "b"}}
    message = decode(v2(body=body, retries=1, group=None), accept=JSON)
    assert (message.task, message.id, message.retries) == ("tasks.add", ID, 1)
    assert (message.args, message.kwargs, message.chord) == ([1], {"a": 2}, {"task": "b"})


# -- round trip ----------------------------------------------------------------------------------------------

words = st.text(max_size=10)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
instants = st.datetimes(
    min_value=datetime(1970, 1, 2), max_value=datetime(9999, 1, 1), timezones=st.just(UTC)
)
signatures = st.fixed_dictionaries(
    {"task": words, "args": st.lists(plain, max_size=2), "options": st.just({})}
)
counts = st.integers(0, 2**31 - 1)
own_names = st.from_regex(r"x-[a-z]{1,5}", fullmatch=True)
messages = st.builds(
    Message,
    task=words,
    id=words.filter(bool),
    args=st.lists(plain, max_size=4),
    kwargs=st.dictionaries(words, plain, max_size=3),
    shadow=st.none() | words,
    eta=st.none() | instants,
    expires=st.none() | instants,
    group=st.none() | words,
    group_index=st.none() | counts,
    retries=counts,
    time_limit=st.none() | st.integers(0, 9999) | st.floats(0, 9999),
    soft_time_limit=st.none() | st.integers(0, 9999),
    root_id=words.filter(bool),
    parent_id=st.none() | words,
    argsrepr=words,
    kwargsrepr=words,
    origin=st.none() | words,
    ignore_result=st.none() | st.booleans(),
    replaced_task_nesting=counts,
    stamped_headers=st.none() | st.lists(words, max_size=2),
    stamps=st.dictionaries(words, plain, max_size=2),
    reply_to=words,
    priority=st.integers(0, 255),
    delivery_mode=st.sampled_from([1, 2]),
    callbacks=st.none() | st.lists(signatures, max_size=2),
    errbacks=st.none() | st.lists(signatures, max_size=2),
    chain=st.none() | st.lists(signatures, max_size=2),
    chord=st.none() | signatures,
    headers=st.dictionaries(own_names, plain, max_size=2),
    properties=st.dictionaries(own_names, plain, max_size=2),
)


@settings(deadline=None)
@given(
    messages,
    st.sampled_from(["json", "pickle", "msgpack", "yaml"]),
    st.sampled_from([None, "zlib", "bzip2", "xz", "brotli", "zstd"]),
)
def test_what_was_encoded_is_decoded(message: Message, codec: str, compression: str | None):
    envelope = encode(message, codec=codec, compression=compression)
    assert decode(envelope, accept=EVERYTHING) == message


@settings(deadline=None)
@given(messages)
def test_protocol_1_keeps_what_it_has_room_for(message: Message):
    envelope = encode_v1(message)
    kept = (
        "task",
        "id",
        "args",
        "kwargs",
        "eta",
        "expires",
        "retries",
        "errbacks",
        "chord",
        "time_limit",
        "headers",
    )
    got = decode(envelope, accept=JSON)
    assert {name: getattr(got, name) for name in kept} == {name: getattr(message, name) for name in kept}


def test_pickled_arguments_may_be_anything():
    value = (1, {2, 3}, NOW, complex(1, 2))
    message = Message(task="t", id="1", args=value, kwargs={"d": OrderedDict(a=1)})
    got = decode(encode(message, codec="pickle"), accept=codecs.accepted(["pickle"]))
    assert tuple(got.args) == value
    assert got.kwargs == {"d": OrderedDict(a=1)}


def test_compression_is_the_last_header_and_undone_before_decoding():
    envelope = encode(Message(task="t", id="1", args=("x" * 500,), headers={"my": 1}), compression="gzip")
    assert list(envelope.headers)[-1] == "compression"
    assert envelope.headers["compression"] == "application/x-gzip"
    assert envelope.body.startswith(b"\x78\x9c")
    got = decode(envelope, accept=JSON)
    assert got.args == ["x" * 500]
    assert got.headers == {"my": 1}


def test_the_root_of_a_lone_task_is_itself():
    assert encode(Message(task="t", id="1")).headers["root_id"] == "1"
    assert encode(Message(task="t", id="1", root_id="0")).headers["root_id"] == "0"


def test_headers_of_the_sender_may_take_the_place_of_the_protocols():
    assert encode(Message(task="t", id="1", headers={"shadow": "mine"})).headers["shadow"] == "mine"


def test_unknown_headers_and_properties_are_the_senders_own():
    envelope = v2(my="hdr", celery_beat_task=True, compression=None)
    envelope.properties.update(
        {"delivery_tag": 1, "delivery_info": {}, "expiration": "5", "origin": "gen1@h"}
    )
    message = decode(envelope, accept=JSON)
    assert message.headers == {"my": "hdr", "celery_beat_task": True}
    assert message.properties == {"origin": "gen1@h"}


@pytest.mark.parametrize(
    ("seconds", "expiration"),
    [(60, "60000"), (0.0015, "2"), (0, "0"), (-5, "0"), (86400 * 365, "31536000000")],
)
def test_expiration_counts_milliseconds_and_not_below_zero(seconds: float, expiration: str):
    message = Message(task="t", id="1", expires=NOW + timedelta(seconds=seconds))
    assert encode(message, now=NOW).properties["expiration"] == expiration


def test_expiration_counts_from_the_systems_clock_by_itself():
    expires = datetime.now(UTC) + timedelta(hours=1)
    expiration = encode(Message(task="t", id="1", expires=expires)).properties["expiration"]
    assert 3_500_000 < int(expiration) <= 3_600_000


# -- times ---------------------------------------------------------------------------------------------------

NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-11-20T17:05:17.664175+00:00", datetime(2026, 11, 20, 17, 5, 17, 664175, UTC)),
        ("2026-11-20T17:05:17Z", datetime(2026, 11, 20, 17, 5, 17, tzinfo=UTC)),
        ("2026-11-20T17:05:17+05:30", datetime(2026, 11, 20, 11, 35, 17, tzinfo=UTC)),
        ("20261120T170517Z", datetime(2026, 11, 20, 17, 5, 17, tzinfo=UTC)),
        ("2026-11-20 17:05", datetime(2026, 11, 20, 22, 5, tzinfo=UTC)),
        ("2026-11-20", datetime(2026, 11, 20, 5, tzinfo=UTC)),
    ],
)
def test_times_are_iso_8601_and_in_the_given_timezone_without_an_offset(text: str, instant: datetime):
    message = decode(v2(eta=text, expires=text), accept=JSON, timezone=NEW_YORK)
    assert message.eta == message.expires == instant
    assert message.eta is not None
    assert message.eta.tzinfo is UTC


@pytest.mark.parametrize(("utc", "hour"), [({}, 17), ({"utc": True}, 17), ({"utc": False}, 22)])
def test_protocol_1_says_whether_its_times_are_utc(utc: dict[str, bool], hour: int):
    body = {"task": "t", "id": "1", "eta": "2026-11-20T17:00:00", **utc}
    eta = decode(sent(body), accept=JSON, timezone=NEW_YORK).eta
    assert eta == datetime(2026, 11, 20, hour, tzinfo=UTC)


def test_times_are_written_with_the_offset_they_have():
    eta = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert encode(Message(task="t", id="1", eta=eta)).headers["eta"] == "2026-01-01T12:00:00+02:00"


# -- what cannot be sent -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (
            Message(task="tasks.add", id="1", args=(1, object())),
            r"argument 2 of tasks\.add \(args\[1\]\): json cannot",
        ),
        (
            Message(task="tasks.add", id="1", kwargs={"a": 1, "x": {1}}),
            r"argument 'x' of tasks\.add \(kwargs\['x'\]\)",
        ),
        (Message(task="tasks.add", id="1", callbacks=[{"args": {1}}]), r"callbacks of tasks\.add: .*set"),
        (
            Message(task="tasks.add", id="1", headers={"h": object()}),
            r"header 'h' of tasks\.add is not a plain value",
        ),
        (Message(task="tasks.add", id="1", stamps={"s": "\ud800"}), r"stamp 's' of tasks\.add is not"),
        (Message(task="tasks.add", id="1", properties={"p": 2**70}), r"property 'p' of tasks\.add is not"),
    ],
)
@pytest.mark.parametrize("encoder", [encode, encode_v1])
def test_what_cannot_be_encoded_is_named(encoder: Any, message: Message, named: str):
    with pytest.raises(EncodeError, match=named):
        encoder(message)


def test_arguments_that_only_fail_together_still_fail():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(EncodeError, match=r"json cannot encode it|argument 1 of t "):
        encode(Message(task="t", id="1", args=(deep,), argsrepr=""))


def test_an_unknown_codec_or_compression_is_a_configuration_error():
    with pytest.raises(ImproperlyConfigured, match="unknown serializer 'xml'"):
        encode(PLAIN, codec="xml")
    with pytest.raises(ImproperlyConfigured, match="unknown compression 'rar'"):
        encode(PLAIN, compression="rar")


# -- what others may send ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (sent([[], {}, {}]), "not a task message"),
        (sent({"no": "task"}), "not a task message"),
        (sent("hello"), "not a task message"),
        (sent(None, {"task": "t", "id": "1"}), "not a task message"),
        (v2(body=[[], {}]), r"\[args, kwargs, embed\], not 2 items"),
        (v2(body=[[], {}, []]), "third item"),
        (v2(body=["abc", {}, {}]), r"array.*\$\.args"),
        (v2(body=[[], [], {}]), r"object.*\$\.kwargs"),
        (v2(body=[[], {}, {"chain": {}}]), r"\$\.chain"),
        (v2(body=[[], {}, {"callbacks": ["x"]}]), r"\$\.callbacks"),
        (v2(id=None), r"\$\.id"),
        (v2(id=5), r"\$\.id"),
        (v2(task=None), r"\$\.task"),
        (v2(retries="many"), r"\$\.retries"),
        (v2(retries=-1), r"\$\.retries"),
        (v2(retries=2**31), r"\$\.retries"),
        (v2(timelimit=5), "timelimit"),
        (v2(timelimit=[1, 2, 3]), "timelimit"),
        (v2(timelimit=["a", None]), r"\$\.time_limit"),
        (v2(eta="tomorrow"), "eta must be an ISO 8601 time, not 'tomorrow'"),
        (v2(eta=1795194215.0), "eta must be an ISO 8601 time"),
        (v2(expires="0001-01-01T00:00:00+14:00"), "expires must be an ISO 8601 time"),
        (v2(stamps=["x"]), r"\$\.stamps"),
        (sent([[], {}, {}], {"task": "t", "id": "1"}, priority="high"), r"\$\.priority"),
        (sent({"task": "t", "id": "\ud800"}), "surrogates"),
        (sent({"task": "t", "id": "1", "retries": 2**70}), "not a valid task message"),
    ],
)
def test_a_message_that_is_no_task_call_says_why(envelope: Envelope, reason: str):
    with pytest.raises(InvalidTaskError, match=reason):
        decode(envelope, accept=JSON)


def test_nulls_of_foreign_clients_mean_the_default():
    message = decode(v2(retries=None, timelimit=None, stamps=None, replaced_task_nesting=None), accept=JSON)
    assert (message.retries, message.time_limit, message.stamps) == (0, None, {})


def test_arguments_are_shown_where_the_sender_did_not():
    message = decode(v2(body=[[1, "a"], {"k": None}, {}]), accept=JSON)
    assert (message.argsrepr, message.kwargsrepr) == ("[1, 'a']", "{'k': None}")


def test_the_correlation_id_stands_in_for_a_missing_id():
    envelope = sent([[], {}, {}], {"task": "t"}, correlation_id="c")
    assert decode(envelope, accept=JSON).id == "c"


def test_content_that_is_not_accepted_is_refused():
    with pytest.raises(ContentDisallowed):
        decode(encode(PLAIN, codec="pickle"), accept=JSON)


def test_damaged_compression_and_bodies_are_decode_errors():
    envelope = encode(PLAIN, compression="zlib")
    with pytest.raises(DecodeError, match="damaged"):
        decode(msgspec.structs.replace(envelope, body=b"x"), accept=JSON)
    with pytest.raises(DecodeError, match="not valid json"):
        decode(msgspec.structs.replace(envelope, body=compress(b"{", "zlib")[0]), accept=JSON)
    with pytest.raises(DecodeError, match="unknown compression"):
        decode(v2(compression=["rar"]), accept=JSON)


def test_a_receiver_without_the_library_says_which_extra_it_lacks(monkeypatch: pytest.MonkeyPatch):
    envelope = encode(PLAIN, compression="brotli")
    monkeypatch.setitem(sys.modules, "brotli", None)
    with pytest.raises(DecodeError, match=r"celeriac\[brotli\]"):
        decode(envelope, accept=JSON)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)
header_names = st.sampled_from([*json.loads(PLAIN_HEADERS), "compression", "x"])
property_names = st.sampled_from(
    ["correlation_id", "reply_to", "priority", "delivery_mode", "expiration", "x"]
)
content_types = st.sampled_from([*sorted(EVERYTHING), "text/plain", "application/x-unknown"])
v1_bodies = st.dictionaries(st.sampled_from([*json.loads(V1_BODY), "x"]), anything)
v2_bodies = st.tuples(
    st.lists(anything, max_size=2) | anything,
    st.dictionaries(st.text(max_size=3), anything, max_size=2) | anything,
    st.dictionaries(st.sampled_from(["callbacks", "errbacks", "chain", "chord", "x"]), anything) | anything,
)


def is_read_or_refused(envelope: Envelope) -> None:
    """Decode; what is accepted must be fit to be sent again, as a retry is."""
    # What a broker or frame has carried is plain.
    assume(unplain((envelope.headers, envelope.properties)) is None)
    try:
        message = decode(envelope, accept=EVERYTHING)
    except WireError:
        return
    assert decode(encode(message, codec="pickle"), accept=EVERYTHING).id == message.id


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=80),
    content_types,
    st.sampled_from(["utf-8", "binary", "", "latin-1", "nonsense"]),
    st.dictionaries(header_names, anything, max_size=4),
    st.dictionaries(property_names, anything, max_size=3),
)
def test_random_bytes_are_refused_in_order(
    body: bytes, content_type: str, content_encoding: str, headers: dict[str, Any], properties: dict[str, Any]
):
    is_read_or_refused(Envelope(body, content_type, content_encoding, headers, properties))


@settings(deadline=None, max_examples=500)
@given(
    anything | v1_bodies | v2_bodies,
    st.sampled_from(["json", "pickle", "msgpack"]),
    st.booleans(),
    st.dictionaries(header_names, anything, max_size=4),
    st.dictionaries(property_names, anything, max_size=3),
)
def test_mutated_messages_are_read_or_refused_in_order(
    body: object, codec: str, with_headers: bool, mutated: dict[str, Any], properties: dict[str, Any]
):
    try:
        encoded = codecs.encode(body, codec)
    except EncodeError:
        return  # not a body that this codec can send
    headers = {**json.loads(PLAIN_HEADERS), **mutated} if with_headers else mutated
    is_read_or_refused(Envelope(*encoded, headers, properties))


# -- safe_repr -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_safe_repr_is_repr_for_what_is_small(value: object):
    assert safe_repr(value, levels=10) == repr(value)


@pytest.mark.parametrize("value", [set(), {1}, frozenset(), frozenset({1}), OrderedDict(a=[1]), NOW, 10**100])
def test_safe_repr_is_repr_for_other_values(value: object):
    assert safe_repr(value) == repr(value)


def test_safe_repr_goes_three_containers_deep():
    assert safe_repr(([[1]],)) == "([[1]],)"
    assert safe_repr(([[[1], (), {}]],)) == "([[[...], (), {}]],)"
    assert safe_repr({"a": {"b": {"c": {"d": 1}}}}) == "{'a': {'b': {'c': {...}}}}"
    assert safe_repr([[1]], levels=1) == "[[...]]"


def test_safe_repr_ends_where_a_value_holds_itself():
    value: list[Any] = []
    value.append(value)
    assert safe_repr(value) == "[[[[...]]]]"


@pytest.mark.parametrize(
    "value",
    ["x" * 5000, b"x" * 5000, ["x" * 5000], list(range(5000)), dict.fromkeys(range(5000)), [["y" * 600] * 3]],
)
def test_safe_repr_is_cut_at_1024_characters(value: object):
    text = safe_repr(value)
    assert len(text) == 1024
    assert text.endswith("...")
    assert text[:1021] == repr(value)[:1021]


def test_safe_repr_looks_at_no_more_items_than_it_shows():
    looked = itertools.count()

    class Item:
        def __repr__(self) -> str:
            next(looked)
            return "x" * 100

    safe_repr([Item() for _ in range(10_000)])
    assert next(looked) <= 12


def test_safe_repr_survives_a_broken_repr():
    class Broken:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    assert safe_repr([1, Broken(), 10**5000]) == (
        "[1, <Broken object, its repr raised ZeroDivisionError>, <int object, its repr raised ValueError>]"
    )


def test_safe_repr_does_not_swallow_a_time_limit():
    class Slow:
        def __repr__(self) -> str:
            raise SoftTimeLimitExceeded(10)

    with pytest.raises(SoftTimeLimitExceeded):
        safe_repr([Slow()])


def test_safe_repr_can_always_be_sent():
    class Odd:
        def __repr__(self) -> str:
            return "\ud800 é"

    assert safe_repr(Odd()) == "\\ud800 é"
