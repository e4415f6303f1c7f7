from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.errors import DecodeError
from celeriac.wire.envelope import Envelope, from_virtual, to_virtual, unplain

# Captured from Celery 5.7 (wire-protocol §1.5).
CAPTURED = (
    '{"body":"W1syLCAzXSwge30sIHsiY2FsbGJhY2tzIjogbnVsbCwgImVycmJhY2tzIjogbnVsbCwgImNoYWluIjogbnVsbCwgImNob3JkIjog'
    'bnVsbH1d","content-encoding":"utf-8","content-type":"application/json",'
    '"headers":{"lang":"py","task":"tasks.add","id":"cef9ceb9-144b-4760-8fc8-640a5ccc1134","shadow":null,"eta":null,'
    '"expires":null,"group":null,"group_index":null,"retries":0,"timelimit":[null,null],'
    '"root_id":"cef9ceb9-144b-4760-8fc8-640a5ccc1134","parent_id":null,"argsrepr":"(2, 3)","kwargsrepr":"{}",'
    '"origin":"gen17852@vm","ignore_result":false,"replaced_task_nesting":0,"stamped_headers":null,"stamps":{}},'
    '"properties":{"correlation_id":"cef9ceb9-144b-4760-8fc8-640a5ccc1134",'
    '"reply_to":"d5f5b07e-1140-3e1b-8c6f-019e1fda8f97","delivery_mode":2,'
    '"delivery_info":{"exchange":"","routing_key":"inv_q"},"priority":0,"body_encoding":"base64",'
    '"delivery_tag":"02f57592-cba1-4033-a0bc-17b52261ef51"}}'
)
TAG = "02f57592-cba1-4033-a0bc-17b52261ef51"


def test_celerys_envelope_is_read():
    envelope = from_virtual(CAPTURED.encode())
    assert json.loads(envelope.body) == [
        [2, 3],
        {},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ]
    assert (envelope.content_type, envelope.content_encoding) == ("application/json", "utf-8")
    assert envelope.task_id == "cef9ceb9-144b-4760-8fc8-640a5ccc1134"
    assert envelope.properties["delivery_info"] == {"exchange": "", "routing_key": "inv_q"}
    assert envelope.properties["delivery_tag"] == TAG


def test_the_envelope_is_written_as_celery_does():
    captured = json.loads(CAPTURED)
    properties = captured["properties"]
    ours = {name: properties[name] for name in ("correlation_id", "reply_to", "delivery_mode", "priority")}
    envelope = Envelope(
        base64.b64decode(captured["body"]), "application/json", "utf-8", captured["headers"], ours
    )
    document = to_virtual(envelope, exchange="", routing_key="inv_q", delivery_tag=TAG)
    assert json.loads(document) == captured
    assert list(json.loads(document)["properties"]) == list(properties)
    outer, headers = json.loads(document), json.loads(document)["headers"]
    assert (list(outer), list(headers)) == (list(captured), list(captured["headers"]))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(deadline=None)
@given(
    st.binary(),
    st.text(max_size=9),
    st.dictionaries(st.text(max_size=5), values, max_size=4),
    st.integers(0, 9),
)
def test_envelopes_come_back(body: bytes, content_type: str, headers: dict[str, Any], priority: int):
    envelope = Envelope(body, content_type, "binary", headers, {"priority": priority, "mine": 1})
    got = from_virtual(to_virtual(envelope, exchange="x", routing_key="k", delivery_tag="t"))
    assert got == Envelope(
        body,
        content_type,
        "binary",
        headers,
        {
            "priority": priority,
            "mine": 1,
            "delivery_info": {"exchange": "x", "routing_key": "k"},
            "delivery_tag": "t",
        },
    )


def test_headers_of_the_sender_keep_celerys_extension_types():
    headers = {"due": datetime(2026, 1, 2, tzinfo=UTC), "price": Decimal("1.5")}
    envelope = Envelope(b"", "application/json", "utf-8", headers, {})
    document = to_virtual(envelope, exchange="", routing_key="q", delivery_tag="t")
    assert json.loads(document)["headers"]["price"] == {"__type__": "decimal", "__value__": "1.5"}
    assert from_virtual(document).headers == headers


def test_stamps_keep_celerys_extension_types():
    envelope = Envelope(b"", "application/json", "utf-8", {"stamps": {"due": datetime(2026, 1, 2)}}, {})
    document = to_virtual(envelope, exchange="", routing_key="q", delivery_tag="t")
    assert from_virtual(document).headers == envelope.headers


@pytest.mark.parametrize("properties", [{}, {"body_encoding": "utf-8"}, {"body_encoding": None}])
def test_a_body_need_not_be_base64(properties: dict[str, Any]):
    document = {"body": "é", "content-type": "text/plain", "properties": properties}
    envelope = from_virtual(json.dumps(document).encode())
    assert envelope.body == "é".encode()
    assert "body_encoding" not in envelope.properties


def test_a_foreign_envelope_may_hold_what_only_the_standard_library_reads():
    envelope = from_virtual(b'{"body": "", "headers": {"x": Infinity}, "properties": null}')
    assert envelope.headers == {"x": float("inf")}
    assert envelope.properties == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"body": 5}',
        b'{"body": "", "headers": []}',
        b'{"body": "", "properties": "x"}',
        b'{"body": "", "content-type": 5}',
        b'{"body": "x", "properties": {"body_encoding": "base64"}}',
        b'{"body": "\xff"}',
        b'{"body": "\\ud800"}',
        # could not go to an executor
        b'{"body": "", "headers": {"x": "\\ud800"}}',
        b'{"body": "", "headers": {"x": 123456789012345678901234567890}}',
        b'{"body": "", "headers": {"x": {"__type__": "colour", "__value__": 1}}}',
        b'{"body": "", "headers": {"__type__": "decimal", "__value__": "1"}}',
    ],
)
def test_what_is_no_envelope_is_a_decode_error(data: bytes):
    with pytest.raises(DecodeError):
        from_virtual(data)


@settings(deadline=None)
@given(
    st.binary(max_size=30)
    | st.dictionaries(st.sampled_from(["body", "headers", "properties", "content-type"]), values).map(
        lambda document: json.dumps(document).encode()
    )
)
def test_any_bytes_are_read_or_refused(data: bytes):
    try:
        envelope = from_virtual(data)
    except DecodeError:
        return
    assert unplain((envelope.headers, envelope.properties)) is None


def test_unplain_says_why():
    assert unplain({"a": [1, None, "x", b"y", datetime(2026, 1, 1)]}) is None
    assert "object" in (unplain(object()) or "")
    assert unplain("\ud800")
    assert unplain(2**70)
