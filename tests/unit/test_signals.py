"""Signals: who is told what, and that nobody stops anybody."""

from __future__ import annotations

import gc
import logging
from typing import Any

import pytest

from celeriac import signals
from celeriac.signals import Signal


class Listener:
    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []

    def on_signal(self, **details: Any) -> str:
        self.heard.append(details)
        return "heard"


def test_a_receiver_gets_signal_sender_and_details() -> None:
    signal, listener = Signal("s"), Listener()
    signal.connect(listener.on_signal)
    assert signal.send(sender="x", number=3) == [(listener.on_signal, "heard")]
    assert listener.heard == [{"signal": signal, "sender": "x", "number": 3}]


def test_receivers_are_called_in_the_order_they_connected() -> None:
    signal, order = Signal("s"), []

    @signal.connect
    def first(**_: Any) -> None:
        order.append(1)

    @signal.connect()
    def second(**_: Any) -> None:
        order.append(2)

    assert [receiver for receiver, _ in signal.send(sender=None)] == [first, second]
    assert order == [1, 2]


def test_a_receiver_for_one_sender_hears_of_no_other() -> None:
    signal, listener = Signal("s"), Listener()
    signal.connect(listener.on_signal, sender="mine")
    signal.send(sender="other")
    signal.send(sender="mine")
    assert [each["sender"] for each in listener.heard] == ["mine"]


class Named:
    name = "tasks.add"


@pytest.mark.parametrize(("wanted", "sender"), [("tasks.add", Named()), (Named(), "tasks.add")])
def test_a_task_is_known_by_its_name_too(wanted: Any, sender: Any) -> None:
    signal, listener = Signal("s"), Listener()
    signal.connect(listener.on_signal, sender=wanted)
    signal.send(sender=sender)
    assert len(listener.heard) == 1


def test_connecting_twice_is_connecting_once() -> None:
    signal, listener = Signal("s"), Listener()
    signal.connect(listener.on_signal)
    signal.connect(listener.on_signal)
    signal.send(sender=None)
    assert len(listener.heard) == 1


def test_a_dispatch_uid_connects_one_receiver() -> None:
    signal, first, second = Signal("s"), Listener(), Listener()
    signal.connect(first.on_signal, dispatch_uid="once")
    signal.connect(second.on_signal, dispatch_uid="once")
    signal.send(sender=None)
    assert (len(first.heard), len(second.heard)) == (1, 0)


def test_a_disconnected_receiver_hears_nothing_more() -> None:
    signal, listener = Signal("s"), Listener()
    signal.connect(listener.on_signal, sender="x")
    assert signal.disconnect(listener.on_signal) is False
    assert signal.disconnect(listener.on_signal, sender="x") is True
    signal.send(sender="x")
    assert listener.heard == []


def test_a_failing_receiver_is_logged_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    signal, listener = Signal("broken"), Listener()

    @signal.connect
    def fails(**_: Any) -> None:
        raise KeyError("oops")

    signal.connect(listener.on_signal)
    with caplog.at_level(logging.ERROR, "celeriac"):
        (receiver, failure), (_, answer) = signal.send(sender=None)
    assert (receiver, answer) == (fails, "heard")
    assert isinstance(failure, KeyError)
    assert "signal broken failed" in caplog.text


def test_a_signal_may_pass_on_what_receivers_raise() -> None:
    signal = Signal("s", raises=True)

    @signal.connect
    def fails(**_: Any) -> None:
        raise ImportError("no such module")

    with pytest.raises(ImportError, match="no such module"):
        signal.send(sender=None)
    assert signal.disconnect(fails)


def test_a_weak_receiver_goes_away_with_its_object() -> None:
    signal, listener = Signal("s"), Listener()
    signal.connect(listener.on_signal)
    del listener
    gc.collect()
    assert signal.connections == ()


def test_a_strong_receiver_stays() -> None:
    signal = Signal("s")
    signal.connect(Listener().on_signal, weak=False)
    gc.collect()
    assert [answer for _, answer in signal.send(sender=None)] == ["heard"]


def test_every_signal_of_celery_is_there() -> None:
    missing = [name for name in signals.__all__ if not hasattr(signals, name)]
    assert missing == []
    assert all(getattr(signals, name).name == name for name in signals.__all__ if name != "Signal")
