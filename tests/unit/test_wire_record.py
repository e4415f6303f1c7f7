from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.errors import DecodeError
from celeriac.wire import codecs
from celeriac.wire.errors import to_meta as error_to_meta
from celeriac.wire.record import Record, from_document, from_meta, to_document, to_meta

DONE = datetime(2026, 11, 20, 17, 3, 35, 96526, tzinfo=UTC)

# Captured from Celery 5.7 (wire-protocol §7.1, §8), ids shortened, and the record each is.
CAPTURED = {
    "extended success": (
        (
            '{"status": "SUCCESS", "result": 5, "traceback": null, "children": [],'
            ' "date_done": "2026-11-20T17:03:35.096526+00:00", "name": "tasks.add", "args": [2, 3], "kwargs": {},'
            ' "worker": "w1@cap", "retries": 0, "queue": "inv_q", "task_id": "cef9ceb9"}'
        ),
        Record(
            task_id="cef9ceb9",
            state="SUCCESS",
            result=b"5",
            children=[],
            date_done=DONE,
            name="tasks.add",
            args=b"[2, 3]",
            kwargs=b"{}",
            worker="w1@cap",
            queue="inv_q",
        ),
    ),
    "failure": (
        (
            '{"status": "FAILURE", "result": {"exc_type": "ValueError", "exc_message": ["boom", 42], "exc_module":'
            ' "builtins"}, "traceback": "Traceback (most recent call last):\\nValueError: (\'boom\', 42)\\n",'
            ' "children": [], "date_done": "2026-11-20T17:03:35.096526+00:00", "task_id": "24d2ab18"}'
        ),
        Record(
            task_id="24d2ab18",
            state="FAILURE",
            result=codecs.dumps(error_to_meta(ValueError("boom", 42), "json"), "json"),
            traceback="Traceback (most recent call last):\nValueError: ('boom', 42)\n",
            children=[],
            date_done=DONE,
        ),
    ),
    "revoked": (
        (
            '{"status": "REVOKED", "result": {"exc_type": "TaskRevokedError", "exc_message": ["terminated"],'
            ' "exc_module": "celery.exceptions"}, "traceback": null, "children": null,'
            ' "date_done": "2026-11-20T17:03:35.096526+00:00", "task_id": "i3"}'
        ),
        Record(
            task_id="i3",
            state="REVOKED",
            result=b'{"exc_type": "TaskRevokedError", "exc_message": ["terminated"],'
            b' "exc_module": "celery.exceptions"}',
            date_done=DONE,
        ),
    ),
    "retry": (
        (
            '{"status": "RETRY", "result": {"exc_type": "KeyError", "exc_message": ["x"], "exc_module": "builtins"},'
            ' "traceback": "TB", "children": [], "date_done": null, "task_id": "i4"}'
        ),
        Record(
            task_id="i4",
            state="RETRY",
            result=b'{"exc_type": "KeyError", "exc_message": ["x"], "exc_module": "builtins"}',
            traceback="TB",
            children=[],
        ),
    ),
    "extended with stamps": (
        (
            '{"status": "SUCCESS", "result": 1, "traceback": null, "children": [[["c", ["i7", null]], null]],'
            ' "date_done": "2026-11-20T17:03:35.096526+00:00", "group_id": "g9", "parent_id": "p1", "name": "t.x",'
            ' "args": [1], "kwargs": {"a": 1}, "worker": "w@h", "retries": 0, "queue": "q", "stamped_headers":'
            ' ["tag"], "tag": ["blue"], "task_id": "i7"}'
        ),
        Record(
            task_id="i7",
            state="SUCCESS",
            result=b"1",
            children=[[["c", ["i7", None]], None]],
            date_done=DONE,
            group_id="g9",
            parent_id="p1",
            name="t.x",
            args=b"[1]",
            kwargs=b'{"a": 1}',
            worker="w@h",
            queue="q",
            stamps={"tag": ["blue"]},
        ),
    ),
}


@pytest.mark.parametrize(("document", "record"), CAPTURED.values(), ids=CAPTURED)
def test_celerys_documents_are_read(document: str, record: Record):
    assert from_document(document.encode(), "json") == record
    assert from_meta(json.loads(document), "json") == record


@pytest.mark.parametrize(("document", "record"), CAPTURED.values(), ids=CAPTURED)
def test_documents_have_celerys_keys_in_celerys_order(document: str, record: Record):
    assert json.dumps(to_meta(record)) == document
    # Only the white space between keys is not Celery's.
    assert json.dumps(json.loads(to_document(record))) == document


@pytest.mark.parametrize("result", [b"5", b"[1,  2]", b'"\\ud800"', b"[NaN]", b"this is not JSON"])
def test_the_result_is_put_into_the_document_as_it_is(result: bytes):
    document = to_document(Record(task_id="1", state="SUCCESS", result=result))
    assert document.startswith(b'{"status":"SUCCESS","result":' + result + b',"traceback":null')


def test_the_result_is_taken_out_of_the_document_as_it_is():
    record = Record(task_id="1", state="SUCCESS", result=b'[1,  {"__type__": "colour", "__value__": 1}]')
    assert from_document(to_document(record), "json") == record


def test_documents_the_fast_reader_refuses_are_read_by_the_standard_library():
    document = b'{"status": "SUCCESS", "result": [NaN, "\\ud800"], "task_id": "1"}'
    record = from_document(document, "json")
    assert record.result == b'[NaN, "\\ud800"]'
    assert (record.task_id, record.children, record.date_done) == ("1", None, None)


plain = st.none() | st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.lists(st.booleans(), max_size=2)
given_values = st.recursive(
    plain | st.decimals(allow_nan=False) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
texts = st.none() | st.text(max_size=9)
instants = st.datetimes(min_value=datetime(1900, 1, 1), timezones=st.just(UTC))


@st.composite
def records(draw: st.DrawFn, codec: str) -> Record:
    base = Record(
        task_id=draw(st.text(max_size=9)),
        state=draw(st.sampled_from(["SUCCESS", "FAILURE", "PROGRESS"])),
        result=codecs.dumps(draw(given_values), codec),
        codec=codec,
        traceback=draw(texts),
        children=draw(st.none() | st.lists(plain, max_size=2)),
        date_done=draw(st.none() | instants),
        retries=draw(st.integers(0, 99)),
        group_id=draw(texts),
        parent_id=draw(texts),
        stamps=draw(
            st.none() | st.dictionaries(st.from_regex(r"x-[a-z]+", fullmatch=True), plain, min_size=1)
        ),
    )
    if draw(st.booleans()):
        return base
    return msgspec.structs.replace(
        base,
        name=draw(st.text(max_size=9)),
        args=codecs.dumps(draw(st.lists(given_values, max_size=2)), codec),
        kwargs=codecs.dumps({"k": draw(given_values)}, codec),
        worker=draw(texts),
        queue=draw(texts),
    )


@settings(deadline=None)
@given(st.sampled_from(["json", "pickle"]).flatmap(records))
def test_records_come_back_from_documents(record: Record):
    assert from_document(to_document(record), record.codec) == record
    assert from_meta(to_meta(record), record.codec) == record


@pytest.mark.parametrize("codec", ["json", "pickle", "yaml", "msgpack"])
def test_metas_hold_values(codec: str):
    record = Record(task_id="1", state="SUCCESS", result=codecs.dumps([1, "x"], codec), codec=codec)
    assert to_meta(record)["result"] == [1, "x"]
    assert codecs.loads(to_document(record), codec)["result"] == [1, "x"]


def test_stamps_keep_their_types():
    record = Record(task_id="1", state="SUCCESS", result=b"1", stamps={"due": DONE, "price": "1"})
    document = to_document(record)
    assert codecs.loads(document, "json")["due"] == DONE
    assert from_document(document, "json") == record


def test_a_stamp_cannot_pretend_to_be_the_state():
    record = Record(task_id="1", state="FAILURE", result=b"1", stamps={"status": "SUCCESS", "task_id": "2"})
    for meta in (to_meta(record), json.loads(to_document(record))):
        assert (meta["status"], meta["task_id"]) == ("FAILURE", "1")


def test_retries_are_told_once_there_are_any():
    record = Record(task_id="1", state="RETRY", result=b"null")
    assert "retries" not in to_meta(record)
    again = msgspec.structs.replace(record, retries=2)
    assert to_meta(again)["retries"] == 2
    assert from_document(to_document(again), "json").retries == 2


@pytest.mark.parametrize(
    "date_done",
    [
        "2026-11-20T17:03:35.096526",
        "2026-11-20T17:03:35.096526Z",
        DONE.replace(tzinfo=None),
        DONE.astimezone(timezone(timedelta(hours=3))),
    ],
)
def test_dates_are_read_in_every_form_celerys_stores_have(date_done: object):
    meta: dict[str, Any] = {"status": "SUCCESS", "result": Decimal(1), "task_id": "1", "date_done": date_done}
    record = from_meta(meta, "json")
    assert record.date_done == DONE
    assert codecs.loads(record.result, "json") == Decimal(1)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"nonsense",
        b"\x80\x04",
        b"{}",
        b'{"status": "SUCCESS"}',
        b'{"status": null, "task_id": "1"}',
        b'{"status": "SUCCESS", "task_id": 1}',
        b'{"status": "SUCCESS", "task_id": "1", "traceback": 5}',
        b'{"status": "SUCCESS", "task_id": "1", "date_done": "yesterday"}',
        b'{"status": "SUCCESS", "task_id": "1", "date_done": 5}',
        b'{"status": "SUCCESS", "task_id": "1", "retries": "x"}',
        b'{"status": "SUCCESS", "task_id": "1", "children": {}}',
        b'{"status": "SUCCESS", "task_id": "1", "stamped_headers": 5}',
        b'{"status": "SUCCESS", "task_id": "1", "stamped_headers": [[]]}',
        b'{"status": "SUCCESS", "task_id": "1", "name": {"__type__": "colour", "__value__": 1}}',
    ],
)
def test_what_is_no_result_is_a_decode_error(document: bytes):
    with pytest.raises(DecodeError):
        from_document(document, "json")


@pytest.mark.parametrize("codec", ["pickle", "yaml", "msgpack"])
def test_what_is_no_result_is_a_decode_error_in_every_codec(codec: str):
    for value in (None, [], {}, {"status": 5}):
        with pytest.raises(DecodeError):
            from_document(codecs.dumps(value, codec), codec)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["status", "task_id", "result", "date_done", "children", "args", "stamped_headers", "x"]
        ),
        given_values.filter(lambda value: not isinstance(value, Decimal | bytes)),
    ),
    st.binary(max_size=20),
)
def test_any_document_is_read_or_refused(meta: dict[str, Any], tail: bytes):
    for document in (codecs.dumps(meta, "json"), codecs.dumps(meta, "json") + tail, tail):
        try:
            record = from_document(document, "json")
        except DecodeError:
            continue
        assert record.task_id == meta["task_id"]
