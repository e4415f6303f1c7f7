"""Broadcasts between celeriac's bus and a real Celery worker: its answers to remote control, and its events."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from celeriac.brokers import open_broker
from celeriac.brokers.base import BrokerOptions
from celeriac.brokers.bus import Bus, Listener
from celeriac.topology import Exchange, Queue
from celeriac.wire.envelope import Envelope, Outgoing

PIDBOX = Exchange("celery.pidbox", "fanout", durable=False)
REPLIES = Exchange("reply.celery.pidbox", "direct", durable=False)
EVENTS = Exchange("celeryev", "topic")


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        return f"{server.url.removesuffix('/0')}/5"
    return request.getfixturevalue("vhost")


@pytest.fixture(scope="module")
def node(url: str, celery: Path, folder: Path) -> Iterator[str]:
    """Name of a Celery worker that sends events and obeys remote control."""
    name = f"w-{uuid4().hex[:6]}@bus"
    command = [str(celery), "-m", "celery", "-b", url, "worker", "-E", "-P", "solo", "-n", name, "-l", "info"]
    with subprocess.Popen(
        [*command, "--without-gossip", "--without-mingle", "-Q", name],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen: list[str] = []
        for line in process.stdout:
            seen.append(line)
            if "ready." in line:
                break
        else:
            pytest.fail(f"Celery did not start:\n{''.join(seen)}")
        # Somebody has to read on, or it waits for us.
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        yield name
        process.kill()
        reader.join(10)


@pytest.fixture
def bus(url: str) -> Iterator[Bus]:
    broker = open_broker(url, BrokerOptions())
    bus = broker.bus()
    assert bus is not None
    yield bus
    broker.close()


def control(method: str, oid: str, **selection: Any) -> Outgoing:
    command = {
        "method": method,
        "arguments": {},
        "destination": None,
        "pattern": None,
        "matcher": None,
        "ticket": str(uuid4()),
        "reply_to": {"exchange": REPLIES.name, "routing_key": oid},
        **selection,
    }
    headers = {"clock": 1, "expires": time.time() + 10}
    body = json.dumps(command).encode()
    return Outgoing(
        Envelope(body, "application/json", "utf-8", headers, {"delivery_mode": 2}), PIDBOX.name, ""
    )


def answer_of(listener: Listener) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for envelope in listener.receive(5):
            return json.loads(envelope.body)
    pytest.fail("no answer came")


def replies(oid: str) -> Queue:
    return Queue(
        f"{oid}.{REPLIES.name}", REPLIES, oid, durable=False, exclusive=True, auto_delete=True, expires=10.0,
        no_ack=True,
    )  # fmt: skip


def test_a_celery_worker_answers_our_ping(bus: Bus, node: str) -> None:
    oid = str(uuid4())
    with bus.listen(replies(oid)) as listener:
        bus.send([control("ping", oid)])
        assert answer_of(listener) == {node: {"ok": "pong"}}
        bus.send([control("active_queues", oid, destination=[node])])
        (queues,) = answer_of(listener).values()
        assert [each["name"] for each in queues] == [node]


def test_events_of_a_celery_worker_arrive(bus: Bus, node: str) -> None:
    queue = Queue(
        f"celeryev.{uuid4()}", EVENTS, "worker.#", durable=False, exclusive=True, auto_delete=True, expires=60.0,
        message_ttl=5.0, no_ack=True,
    )  # fmt: skip
    with bus.listen(queue) as listener:
        event = answer_of(listener)
    assert event["type"] == "worker-heartbeat"
    assert event["hostname"] == node
    assert event["sw_ident"] == "py-celery"


def test_celery_hears_our_answer(bus: Bus, url: str, celery: Path, folder: Path) -> None:
    """The other way round: Celery's `inspect ping` asks, and we are the worker."""
    mailbox = Queue(
        "us@bus.celery.pidbox", PIDBOX, durable=False, exclusive=True, auto_delete=True, expires=10.0,
        message_ttl=300.0, no_ack=True,
    )  # fmt: skip
    with bus.listen(mailbox) as listener:
        with subprocess.Popen(
            [str(celery), "-m", "celery", "-b", url, "inspect", "ping", "-d", "us@bus", "-j", "-t", "10"],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            asked = answer_of(listener)
            assert (asked["method"], asked["destination"]) == ("ping", ["us@bus"])
            body = json.dumps({"us@bus": {"ok": "pong"}}).encode()
            to = asked["reply_to"]
            envelope = Envelope(
                body,
                "application/json",
                "utf-8",
                {"ticket": asked["ticket"], "clock": 2},
                {"delivery_mode": 1},
            )
            bus.send([Outgoing(envelope, to["exchange"], to["routing_key"])])
            printed, _ = process.communicate(timeout=30)
    assert json.loads(printed) == {"us@bus": {"ok": "pong"}}


EVENT_READER = """
import sys
from celery import Celery
app = Celery(broker=sys.argv[1])
def seen(event):
    if event["hostname"] == "us@bus":
        print("seen", flush=True)
with app.connection_for_read() as connection:
    receiver = app.events.Receiver(connection, handlers={"worker-heartbeat": seen})
    print("listening", flush=True)
    receiver.capture(limit=None, timeout=30)
"""


def test_celery_hears_our_events(bus: Bus, url: str, celery: Path, folder: Path) -> None:
    event = {
        "type": "worker-heartbeat", "hostname": "us@bus", "utcoffset": 0, "pid": 1, "clock": 5, "freq": 2.0,
        "timestamp": time.time(),
    }  # fmt: skip
    envelope = Envelope(
        json.dumps(event).encode(), "application/json", "utf-8", {"hostname": "us@bus"}, {"delivery_mode": 1}
    )
    with subprocess.Popen(
        [str(celery), "-c", EVENT_READER, url], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        heard: list[str] = []
        reader = threading.Thread(target=lambda: heard.append(process.stdout.readline()))
        reader.start()
        deadline = time.monotonic() + 20
        # It listens a moment after it says so.
        while reader.is_alive() and time.monotonic() < deadline:
            bus.send([Outgoing(envelope, EVENTS.name, "worker.heartbeat")])
            reader.join(0.5)
        process.kill()
        reader.join()
    assert heard == ["seen\n"]
