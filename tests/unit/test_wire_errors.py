from __future__ import annotations

import builtins
import json
import pickle
import sys
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac import errors
from celeriac.errors import SecurityError
from celeriac.wire import codecs
from celeriac.wire.errors import from_meta, to_meta


class Custom(Exception):
    class Nested(ValueError):
        pass


class Picky(Exception):
    """Its arguments do not fit its constructor."""

    def __init__(self, *, code: int) -> None:
        super().__init__("code", code)


class Unpicklable(Exception):
    def __reduce__(self) -> str:
        raise TypeError("not me")


# -- out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exc", "document"),
    [
        # captured from Celery 5.7
        (
            ValueError("boom", 42),
            '{"exc_type":"ValueError","exc_message":["boom",42],"exc_module":"builtins"}',
        ),
        (KeyError("x"), '{"exc_type":"KeyError","exc_message":["x"],"exc_module":"builtins"}'),
        (
            errors.TaskRevokedError("terminated"),
            '{"exc_type":"TaskRevokedError","exc_message":["terminated"],"exc_module":"celery.exceptions"}',
        ),
        (
            errors.ChordError("Dependency bc0a522e raised ValueError('x')"),
            (
                '{"exc_type":"ChordError","exc_message":["Dependency bc0a522e raised ValueError(\'x\')"],'
                '"exc_module":"celery.exceptions"}'
            ),
        ),
    ],
)
def test_exceptions_are_written_as_celery_writes_them(exc: Exception, document: str):
    assert json.dumps(to_meta(exc, "json"), separators=(",", ":")) == document


def test_what_cannot_be_encoded_of_an_exception_is_shown():
    thing = object()
    meta = to_meta(ValueError("kept", thing, {1: 2}), "json")
    assert meta["exc_message"] == ["kept", repr(thing), {1: 2}]
    # Keys become text, as always in JSON.
    assert codecs.loads(codecs.dumps(meta, "json"), "json")["exc_message"][2] == {"1": 2}


def test_pickle_keeps_the_exception_itself():
    exc = Custom("x", {1, 2})
    assert to_meta(exc, "pickle") is exc


@pytest.mark.parametrize("exc", [Unpicklable("x"), Picky(code=5), errors.TimeLimitExceeded(30)])
def test_pickle_falls_back_to_data(exc: Exception):
    meta = to_meta(exc, "pickle")
    assert meta["exc_type"] == type(exc).__name__
    assert pickle.loads(pickle.dumps(meta)) == meta


# -- and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["json", "yaml", "msgpack", "pickle"])
@pytest.mark.parametrize(
    "exc",
    [
        ValueError("boom", 42),
        ZeroDivisionError("division by zero"),
        Custom("x"),
        Custom.Nested(["y"]),
        errors.Retry("again", None, 5),
        errors.Reject("no", requeue=True),
        errors.WorkerLostError("signal 9"),
        KeyboardInterrupt(),
    ],
)
def test_exceptions_come_back_as_they_were(exc: BaseException, codec: str):
    back = from_meta(codecs.loads(codecs.dumps(to_meta(exc, codec), codec), codec))
    assert type(back) is type(exc)
    assert back.args == exc.args


CELERY_MODULES = {
    "celery.exceptions": [
        *("ImproperlyConfigured", "SecurityError", "InvalidTaskError", "TaskError", "NotRegistered"),
        *("QueueNotFound", "AlreadyRegistered", "MaxRetriesExceededError", "TaskRevokedError", "ChordError"),
        *("TimeoutError", "TaskPredicate", "Retry", "Ignore", "Reject"),
    ],
    "billiard.exceptions": ["TimeLimitExceeded", "SoftTimeLimitExceeded", "WorkerLostError", "Terminated"],
    "kombu.exceptions": ["EncodeError", "DecodeError", "ContentDisallowed", "OperationalError"],
}


@pytest.mark.parametrize(
    ("module", "name"), [(m, name) for m, names in CELERY_MODULES.items() for name in names]
)
def test_our_exceptions_travel_under_the_names_of_celery(module: str, name: str):
    cls: type[Exception] = getattr(errors, name)
    meta = to_meta(cls("why"), "json")
    assert (meta["exc_type"], meta["exc_module"]) == (name, module)
    assert type(from_meta(meta)) is cls
    # Code that imports them from celery.exceptions names that module.
    assert type(from_meta({**meta, "exc_module": "celery.exceptions"})) is cls


def test_the_root_of_celerys_errors_is_ours():
    assert to_meta(errors.CeleriacError(), "json")["exc_type"] == "CeleryError"
    back = from_meta({"exc_type": "CeleryError", "exc_message": [], "exc_module": "celery.exceptions"})
    assert type(back) is errors.CeleriacError


def test_a_subclass_of_ours_keeps_its_own_name():
    class Mine(errors.TaskError):
        pass

    meta = to_meta(Mine("x"), "json")
    assert meta["exc_module"] == __name__


# -- what is not there ---------------------------------------------------------------------------------------


def test_a_class_that_is_not_imported_is_replaced_by_one_of_its_name():
    meta = {"exc_type": "Outer.Missing", "exc_message": ["a", 1], "exc_module": "no.such.module"}
    exc = from_meta(meta)
    assert isinstance(exc, Exception)
    assert (type(exc).__name__, type(exc).__qualname__) == ("Missing", "Outer.Missing")
    assert type(exc).__module__ == "no.such.module"
    assert exc.args == ("a", 1)
    assert type(from_meta(meta)) is type(exc)
    assert to_meta(exc, "json") == meta


def test_no_module_is_imported_for_a_name_on_the_wire():
    assert "this" not in sys.modules
    exc = from_meta({"exc_type": "Zen", "exc_message": [], "exc_module": "this"})
    assert type(exc).__module__ == "this"
    assert "this" not in sys.modules


def test_no_lazy_module_is_asked_for_a_name_on_the_wire(monkeypatch: pytest.MonkeyPatch):
    lazy = ModuleType("lazy_module")

    def load(name: str) -> type[Exception]:
        raise AssertionError(f"{name} was loaded")

    lazy.__getattr__ = load  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy_module", lazy)
    assert (
        type(from_meta({"exc_type": "Late", "exc_message": [], "exc_module": "lazy_module"})).__name__
        == "Late"
    )


def test_a_local_class_is_replaced_by_one_of_its_name():
    class Local(Exception):
        pass

    exc = from_meta(to_meta(Local("x"), "json"))
    assert type(exc).__name__ == "Local"
    assert exc.args == ("x",)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "int"),
        ("os", "system"),
        ("os", "path"),
        (__name__, "Picky.__init__"),
    ],
)
def test_a_name_of_something_else_is_refused(module: str, name: str):
    assert module in sys.modules
    with pytest.raises(SecurityError, match=f"{module}.{name}"):
        from_meta({"exc_type": name, "exc_message": ["echo"], "exc_module": module})


def test_a_constructor_that_refuses_leaves_the_text():
    exc = from_meta(to_meta(Picky(code=7), "json"))
    assert type(exc) is Exception
    assert str(exc) == "Picky('code', 7)"


def test_a_message_that_is_no_list_is_the_only_argument():
    assert from_meta({"exc_type": "ValueError", "exc_message": "x", "exc_module": "builtins"}).args == ("x",)


def test_old_metas_name_no_module():
    exc = from_meta({"exc_type": "SomeError", "exc_message": ["x"]})
    assert type(exc).__name__ == "SomeError"
    assert exc.args == ("x",)


@pytest.mark.parametrize("value", [None, "text", 5, [], {}, {"exc_type": 3}])
def test_what_is_no_exception_comes_back_inside_one(value: object):
    exc = from_meta(value)
    assert type(exc) is Exception
    assert exc.args == (value,)


scalars = st.none() | st.integers() | st.text(st.characters(), max_size=8)


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "exc_type": scalars | st.sampled_from([*dir(builtins), "a.b", ".", "\x00", "x y"]),
            "exc_message": scalars | st.lists(scalars, max_size=3),
            "exc_module": scalars | st.sampled_from(["builtins", "sys", "os"]),
        },
    )
)
def test_any_meta_gives_an_exception_or_is_refused(meta: dict[str, object]):
    try:
        exc = from_meta(meta)
    except SecurityError:
        return
    assert isinstance(exc, BaseException)
