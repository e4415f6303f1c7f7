"""Bytes of AMQP: ours against those of the driver's own codec, which shares nothing with ours."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any

import pytest
from amqp import basic_message, serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.amqp.properties import decode_envelope, encode_properties, read_correlation_id
from celeriac.amqp.tables import Unencodable, decode_table, encode_shortstr, encode_table

INSTANT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

VALUES = {
    "none": None,
    "yes": True,
    "no": False,
    "zero": 0,
    "negative": -1,
    "int32": 2**31 - 1,
    "lowest int32": -(2**31),
    "int64": 2**31,
    "highest": 2**63 - 1,
    "lowest": -(2**63),
    "float": 3.25,
    "text": "grün",
    "empty": "",
    "list": [1, "a", None, [True]],
    "table": {"a": {"b": [1.5]}},
    "empty list": [],
    "empty table": {},
    "bytes": b"\xff\x00",
    "decimal": Decimal("-12.75"),
    "instant": INSTANT,
}


def test_a_table_comes_back_as_it_was() -> None:
    data = encode_table(VALUES)
    assert decode_table(b"??" + data + b"!", 2) == (VALUES, len(data) + 2)


def test_the_driver_reads_what_we_write() -> None:
    values, _ = serialization.loads("F", encode_table(VALUES), 0)
    assert values == [VALUES | {"instant": INSTANT.replace(tzinfo=None)}]


def test_we_read_what_the_driver_writes() -> None:
    # It has no form for bytes of their own.
    values = {key: value for key, value in VALUES.items() if key != "bytes"}
    assert decode_table(serialization.dumps("F", (values,)), 0)[0] == values


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=40), inner),
    max_leaves=20,
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(max_size=40), PLAIN))
def test_any_table_comes_back(table: dict[str, Any]) -> None:
    assert decode_table(encode_table(table), 0)[0] == table


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_no_bytes_lead_anywhere_but_to_a_table_or_a_value_error(data: bytes) -> None:
    try:
        decode_table(data, 0)
    except ValueError:
        pass


def test_numbers_of_every_width_are_read() -> None:
    fields = [
        (b"b", ">b", -1),
        (b"B", ">B", 255),
        (b"s", ">h", -2),
        (b"U", ">h", -2),
        (b"u", ">H", 65535),
        (b"I", ">i", -3),
        (b"i", ">I", 2**32 - 1),
        (b"l", ">q", -4),
        (b"L", ">q", 4),
        (b"f", ">f", 0.5),
        (b"d", ">d", 0.25),
    ]
    data = b"".join(b"\x01" + kind.lower() + kind + struct.pack(form, value) for kind, form, value in fields)
    data = b"".join(
        bytes((2,)) + f"{place:02}".encode() + kind + struct.pack(form, value)
        for place, (kind, form, value) in enumerate(fields)
    )
    table, _ = decode_table(struct.pack(">I", len(data)) + data, 0)
    assert list(table.values()) == [value for _, _, value in fields]


def test_text_that_is_not_utf8_stays_bytes() -> None:
    data = b"\x01kS" + struct.pack(">I", 2) + b"\xff\xfe"
    assert decode_table(struct.pack(">I", len(data)) + data, 0)[0] == {"k": b"\xff\xfe"}


def test_a_table_nested_too_deep_is_no_crash() -> None:
    inner = b""
    for _ in range(3_000):
        inner = b"A" + struct.pack(">I", len(inner)) + inner
    data = b"\x01k" + inner
    with pytest.raises(ValueError, match="not an AMQP table"):
        decode_table(struct.pack(">I", len(data)) + data, 0)


class Small(IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()


def test_classes_of_ones_own_go_as_what_they_are() -> None:
    table = {"enum": Small.ONE, "text": Text("t"), "tuple": (1, 2), 5: "number as a name"}
    expected = {"enum": 1, "text": "t", "tuple": [1, 2], "5": "number as a name"}
    assert decode_table(encode_table(table), 0)[0] == expected


def test_an_instant_without_zone_is_utc_and_others_are_converted() -> None:
    east = INSTANT.astimezone(timezone(timedelta(hours=5)))
    table = {"naive": INSTANT.replace(tzinfo=None), "east": east}
    assert decode_table(encode_table(table), 0)[0] == {"naive": INSTANT, "east": INSTANT}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2**63, "does not fit 64 bits"),
        (-(2**63) - 1, "does not fit 64 bits"),
        ({1, 2}, "no form for set"),
        (object(), "no form for object"),
        (Decimal("1e30"), "does not fit"),
        (Decimal("NaN"), "not a number"),
        (datetime(1960, 1, 1, tzinfo=UTC), "before 1970"),
    ],
)
def test_what_has_no_form_is_named(value: object, said: str) -> None:
    with pytest.raises(Unencodable, match=f"^outer: inner: .*{said}"):
        encode_table({"outer": {"inner": value}})
    with pytest.raises(Unencodable, match=f"^outer: .*{said}"):
        encode_table({"outer": [value]})


def test_names_are_limited() -> None:
    assert encode_shortstr("ü" * 127)[0] == 254
    with pytest.raises(Unencodable, match=r"256 bytes.*at most 255"):
        encode_shortstr("ü" * 128, "the name of a queue")
    with pytest.raises(Unencodable, match="header"):
        encode_table({"x" * 256: 1})


# -- properties ----------------------------------------------------------------------------------------------


def test_the_driver_reads_our_properties() -> None:
    data = encode_properties(
        "application/json",
        "utf-8",
        {"task": "t"},
        {
            "delivery_mode": 2,
            "correlation_id": "id",
            "reply_to": "",
            "expiration": "60000",
            "timestamp": INSTANT,
            "app_id": None,
            "origin": "no property of AMQP",
        },
        7,
    )
    message = basic_message.Message()
    message._load_properties(60, data, 0)
    assert message.properties == {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "application_headers": {"task": "t"},
        "delivery_mode": 2,
        "priority": 7,
        "correlation_id": "id",
        "reply_to": "",
        "expiration": "60000",
        "timestamp": int(INSTANT.timestamp()),
    }


def test_we_read_the_drivers_properties() -> None:
    properties = {
        "delivery_mode": 1,
        "priority": 3,
        "correlation_id": "c",
        "reply_to": "r",
        "expiration": "1",
        "message_id": "m",
        "timestamp": 12,
        "type": "t",
        "user_id": "u",
        "app_id": "a",
        "cluster_id": "k",
    }
    message = basic_message.Message(
        content_type="x/y", content_encoding="binary", application_headers={"h": 1}, **properties
    )
    envelope = decode_envelope(message._serialize_properties(), b"body")
    assert (envelope.content_type, envelope.content_encoding, envelope.body) == ("x/y", "binary", b"body")
    assert envelope.headers == {"h": 1}
    assert envelope.properties == properties
    assert read_correlation_id(message._serialize_properties()) == "c"


def test_a_message_without_properties() -> None:
    envelope = decode_envelope(basic_message.Message()._serialize_properties(), b"")
    assert envelope == type(envelope)(b"", "", "", {}, {})


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=100))
def test_properties_that_are_none_are_a_value_error(data: bytes) -> None:
    try:
        decode_envelope(data, b"")
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("properties", "priority", "said"),
    [
        ({}, 256, "priority must be a number from 0 to 255"),
        ({}, -1, "priority"),
        ({"delivery_mode": "persistent"}, 0, "delivery_mode"),
        ({"timestamp": -1}, 0, "timestamp"),
        ({"correlation_id": "x" * 300}, 0, "correlation_id has 300 bytes"),
    ],
)
def test_properties_that_do_not_fit_are_named(properties: dict[str, Any], priority: int, said: str) -> None:
    with pytest.raises(Unencodable, match=said):
        encode_properties("a/b", "utf-8", {}, properties, priority)
