from __future__ import annotations

import json
import math
import pickle
import sys
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from types import ModuleType
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celeriac.errors import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    ImproperlyConfigured,
    MissingExtra,
    SoftTimeLimitExceeded,
)
from celeriac.wire import codecs

JSON_ONLY = codecs.accepted(["json"])
unhurried = settings(deadline=None)


# -- json as Celery writes it --------------------------------------------------------------------------------


def test_json_has_the_separators_and_content_type_of_celery():
    assert codecs.encode([(2, 3), {}, {"chain": None}], "json") == (
        b'[[2, 3], {}, {"chain": null}]',
        "application/json",
        "utf-8",
    )


def test_json_escapes_what_is_not_ascii():
    assert codecs.dumps("é😀", "json") == b'"\\u00e9\\ud83d\\ude00"'


EXTENDED = [
    (
        datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        b'{"__type__": "datetime", "__value__": "2026-01-02T03:04:05.000006+00:00"}',
    ),
    (datetime(2026, 1, 2), b'{"__type__": "datetime", "__value__": "2026-01-02T00:00:00"}'),
    (date(2026, 1, 2), b'{"__type__": "date", "__value__": "2026-01-02"}'),
    (time(3, 4, 5), b'{"__type__": "time", "__value__": "03:04:05"}'),
    (Decimal("1.10"), b'{"__type__": "decimal", "__value__": "1.10"}'),
    (
        UUID("cef9ceb9-144b-4760-8fc8-640a5ccc1134"),
        b'{"__type__": "uuid", "__value__": {"hex": "cef9ceb9144b47608fc8640a5ccc1134"}}',
    ),
    (b"text", b'{"__type__": "bytes", "__value__": "text"}'),
    (b"\xff\x00", b'{"__type__": "base64", "__value__": "/wA="}'),
]


@pytest.mark.parametrize(("value", "data"), EXTENDED)
def test_json_extension_types_are_celerys_both_ways(value: object, data: bytes):
    assert codecs.dumps(value, "json") == data
    back = codecs.loads(data, "json")
    assert back == value
    assert type(back) is type(value)


@unhurried
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary()
        | st.datetimes(
            timezones=st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=-7, minutes=-30)))
        )
        | st.dates()
        | st.times()
        | st.decimals(allow_nan=False)
        | st.uuids(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_json_gives_back_what_it_was_given(value: object):
    assert codecs.loads(codecs.dumps(value, "json"), "json") == value


def test_json_takes_what_an_object_says_of_itself():
    class Money:
        def __json__(self) -> object:
            return {"amount": Decimal(3)}

    assert codecs.loads(codecs.dumps([Money()], "json"), "json") == [{"amount": Decimal(3)}]


def test_json_makes_text_of_django_lazy_strings(monkeypatch: pytest.MonkeyPatch):
    class Promise:
        def __str__(self) -> str:
            return "hello"

    functional = ModuleType("django.utils.functional")
    functional.Promise = Promise  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "django.utils.functional", functional)
    assert codecs.dumps(Promise(), "json") == b'"hello"'


def test_json_leaves_objects_alone_that_only_look_marked():
    for value in (
        {"__type__": "datetime"},
        {"__type__": "date", "__value__": "x", "more": 1},
        {"__value__": 1},
    ):
        assert codecs.loads(codecs.dumps(value, "json"), "json") == value


@pytest.mark.parametrize(
    "data",
    [
        b'{"__type__": "colour", "__value__": "red"}',
        b'{"__type__": ["datetime"], "__value__": "red"}',
        b'{"__type__": "datetime", "__value__": "red"}',
        b'{"__type__": "decimal", "__value__": "red"}',
        b'{"__type__": "uuid", "__value__": {"no": 1}}',
        b'{"__type__": "bytes", "__value__": 5}',
        b"",
        b"[1,]",
        b"\xff",
        b"9" * 5000,
        b"[" * 100_000,
    ],
)
def test_json_that_cannot_be_read_is_a_decode_error(data: bytes):
    with pytest.raises(DecodeError, match="not valid json"):
        codecs.loads(data, "json")


def test_the_mark_of_an_extension_type_may_be_escaped():
    data = b'{"\\u005f_type__": "decimal", "__value__": "1"}'
    assert codecs.loads(data, "json") == Decimal(1)


# -- the fast way reads what the standard library reads ------------------------------------------------------

numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
strings = st.text(max_size=8).map(json.dumps) | st.from_regex(
    r'"([ -!#-\[\]-~]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}|[éあ😀])*"', fullmatch=True
)
json_texts = st.recursive(
    numbers | strings | st.sampled_from(["null", "true", "false", "NaN", "Infinity", "-Infinity"]),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{' , '.join(items)}]")
        # Keys from a few, so that they repeat.
        | st.lists(st.tuples(st.sampled_from(['"a"', '"b"', '"\\u0061"']), inner), max_size=4).map(
            lambda pairs: "{" + ",\n".join(f"{key}:{value}" for key, value in pairs) + "}"
        )
    ),
    max_leaves=12,
)


def outcome(read: object, data: bytes) -> str:
    """What reading gives, told apart to the sign of zero."""
    try:
        return repr(read(data))  # type: ignore[operator]
    except ValueError:
        return "refused"


@settings(deadline=None, max_examples=500)
@given(json_texts)
@example("1e400")
@example("-0")
@example("-0.0")
@example("1.7976931348623159e308")
@example("123456789012345678901234567890")
@example('{"a": 1, "\\u0061": 2}')
@example('"\\ud800"')
def test_json_is_read_as_the_standard_library_reads_it(text: str):
    data = text.encode()
    assert outcome(lambda d: codecs.loads(d, "json"), data) == outcome(lambda d: json.loads(d.decode()), data)


@unhurried
@given(st.binary(max_size=40))
def test_any_bytes_are_read_as_the_standard_library_reads_them(data: bytes):
    assert outcome(lambda d: codecs.loads(d, "json"), data) == outcome(lambda d: json.loads(d.decode()), data)


# -- what cannot be encoded ----------------------------------------------------------------------------------


class Bad(Enum):
    ONE = 1


def circular() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


class Broken:
    def __json__(self) -> object:
        raise ZeroDivisionError("inside __json__")

    def __reduce__(self) -> str:
        raise ZeroDivisionError("inside __reduce__")


@pytest.mark.parametrize(
    ("value", "codec", "reason"),
    [
        (object(), "json", "object is not JSON serializable"),
        ({1, 2}, "json", "set is not JSON serializable"),
        (Bad.ONE, "json", "Bad is not JSON serializable"),
        ({(1, 2): 3}, "json", "keys must be str"),
        (circular(), "json", "Circular"),
        (Broken(), "json", "inside __json__"),
        (Broken(), "pickle", "inside __reduce__"),
        (lambda: None, "pickle", "pickle"),
        (object(), "yaml", "cannot represent"),
        (object(), "msgpack", "serialize"),
        (3, "raw", "expected bytes or str, got int"),
    ],
)
def test_what_a_codec_cannot_encode_is_an_encode_error_with_the_reason(
    value: object, codec: str, reason: str
):
    with pytest.raises(EncodeError, match=reason) as caught:
        codecs.encode(value, codec)
    assert str(caught.value).startswith(f"{codec} cannot encode it: ")


def test_a_time_limit_that_strikes_inside_a_codec_stays_what_it_is():
    class Slow:
        def __json__(self) -> object:
            raise SoftTimeLimitExceeded(10)

    with pytest.raises(SoftTimeLimitExceeded):
        codecs.dumps(Slow(), "json")


def test_json_keeps_nan_as_celery_does():
    assert codecs.dumps(math.nan, "json") == b"NaN"
    assert math.isnan(codecs.loads(b"[NaN]", "json")[0])


# -- the others ----------------------------------------------------------------------------------------------

PLAIN = {"args": [1, -2.5, "é", None, True], "kwargs": {}, "deep": [[{"a": "b"}]]}


@pytest.mark.parametrize(
    ("codec", "content_type", "content_encoding"),
    [
        ("json", "application/json", "utf-8"),
        ("pickle", "application/x-python-serialize", "binary"),
        ("yaml", "application/x-yaml", "utf-8"),
        ("msgpack", "application/x-msgpack", "binary"),
    ],
)
def test_every_codec_gives_back_plain_values(codec: str, content_type: str, content_encoding: str):
    encoded = codecs.encode(PLAIN, codec)
    assert encoded[1:] == (content_type, content_encoding)
    assert codecs.decode(*encoded, accept=codecs.accepted([codec])) == PLAIN
    assert codecs.loads(codecs.dumps(PLAIN, codec), codec) == PLAIN


@pytest.mark.parametrize("codec", ["json", "yaml", "msgpack"])
def test_tuples_become_lists(codec: str):
    assert codecs.loads(codecs.dumps((1, (2,)), codec), codec) == [1, [2]]


def test_pickle_writes_protocol_4():
    assert codecs.dumps([1], "pickle").startswith(b"\x80\x04\x95")


def test_yaml_sorts_keys_and_builds_no_objects():
    assert codecs.dumps({"b": 1, "a": 2}, "yaml") == b"a: 2\nb: 1\n"
    with pytest.raises(DecodeError, match="not valid yaml"):
        codecs.loads(b"!!python/object/apply:os.getcwd []", "yaml")


def test_msgpack_keeps_bytes_apart_from_text():
    assert codecs.loads(codecs.dumps([b"\xff", "x", {1: 2}], "msgpack"), "msgpack") == [b"\xff", "x", {1: 2}]


def test_raw_carries_text_and_bytes_as_they_are():
    assert codecs.encode("é", "raw") == ("é".encode(), "application/data", "utf-8")
    assert codecs.encode(b"\xff", "raw") == (b"\xff", "application/data", "binary")
    assert codecs.loads(b"\xff", "raw") == b"\xff"


@unhurried
@given(st.binary(max_size=60), st.sampled_from(["pickle", "yaml", "msgpack"]))
def test_garbage_is_a_decode_error_in_every_codec(data: bytes, codec: str):
    # Some of it happens to be valid; but nothing else than DecodeError may come.
    with suppress(DecodeError):
        codecs.loads(data, codec)


@pytest.mark.parametrize(("codec", "module"), [("yaml", "yaml"), ("msgpack", "msgpack")])
def test_a_codec_without_its_library_names_the_extra(
    codec: str, module: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'celeriac\[{codec}\]'"):
        codecs.encode(1, codec)


# -- what is let in ------------------------------------------------------------------------------------------


class Trap:
    """Unpickling it leaves a trace."""

    sprung = False

    @classmethod
    def spring(cls) -> Trap:
        cls.sprung = True
        return cls()

    def __reduce__(self) -> tuple[object, ...]:
        return Trap.spring, ()


def test_pickle_is_not_touched_unless_it_is_allowed():
    Trap.sprung = False
    data = pickle.dumps(Trap())
    with pytest.raises(ContentDisallowed, match=r"x-python-serialize.*allows application/json"):
        codecs.decode(data, "application/x-python-serialize", "binary", accept=JSON_ONLY)
    assert not Trap.sprung
    codecs.decode(data, "application/x-python-serialize", "binary", accept=codecs.accepted(["pickle"]))
    assert Trap.sprung


def test_accepted_takes_names_and_content_types():
    assert codecs.accepted(["json", "application/x-yaml", "application/x-mine"]) == {
        "application/json",
        "application/x-yaml",
        "application/x-mine",
    }
    with pytest.raises(ImproperlyConfigured, match=r"unknown serializer 'jsn'; known are .*json"):
        codecs.accepted(["jsn"])


def test_an_accepted_content_type_without_codec_is_a_decode_error():
    with pytest.raises(DecodeError, match="no codec is registered for content of type 'application/x-mine'"):
        codecs.decode(b"x", "application/x-mine", "utf-8", accept=codecs.accepted(["application/x-mine"]))


@pytest.mark.parametrize("content_type", ["application/data", "application/text", "text/plain"])
def test_text_and_bytes_need_no_permission(content_type: str):
    nothing: frozenset[str] = frozenset()
    assert codecs.decode("é".encode(), content_type, "utf-8", accept=nothing) == "é"
    assert codecs.decode(b"\xff", content_type, "binary", accept=nothing) == b"\xff"
    for content_encoding in ("utf-8", "no such encoding"):
        with pytest.raises(DecodeError, match="not text"):
            codecs.decode(b"\xff", content_type, content_encoding, accept=nothing)


def test_a_registered_codec_is_used_and_its_failures_are_ours():
    def read(data: bytes) -> str:
        return {b"ok": "fine"}[data]

    codecs.register("test-codec", lambda value: f"<{value}>", read, "application/x-test")
    assert codecs.encode("é", "test-codec") == ("<é>".encode(), "application/x-test", "utf-8")
    accept = codecs.accepted(["test-codec"])
    assert codecs.decode(b"ok", "application/x-test", "utf-8", accept=accept) == "fine"
    with pytest.raises(DecodeError, match="not valid test-codec: KeyError"):
        codecs.decode(b"no", "application/x-test", "utf-8", accept=accept)


def test_an_unknown_codec_is_named():
    with pytest.raises(ImproperlyConfigured, match="unknown serializer 'xml'"):
        codecs.encode(1, "xml")
