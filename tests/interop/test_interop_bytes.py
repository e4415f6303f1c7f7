"""Bytes: what celeriac puts on the wire is what Celery puts there, key by key and in its order."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import amqp
import pytest

from celeriac.wire.compression import decompress
from interop.documents import lines
from interop.fleet import KINDS, Fleet
from support import eventually

ETA, EXPIRES = datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC), datetime(2030, 1, 2, tzinfo=UTC)
LINK = {"task": "add", "args": (1,), "kwargs": {"y": 2}}
FIXED_LINK = {"task": "writes", "args": ("x",), "immutable": True, "options": {"queue": "q", "countdown": 1}}

#: (command, arguments, options): calls as both clients are told to make them.
CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "plain": ("call", ("add", (2, 3)), {}),
    "keywords": ("call", ("add", (), {"y": 3, "x": "ünï"}), {}),
    "by name": ("send", ("add", (2, 3)), {}),
    "unknown here": ("send", ("elsewhere.task", (2,), {"a": None}), {}),
    "unknown here, ignored": ("send", ("elsewhere.task", ()), {"ignore_result": True}),
    "no arguments": ("call", ("describe",), {}),
    "ignored by the task": ("call", ("silent", ("k",)), {}),
    "ignored by the call": ("call", ("add", (1, 1)), {"ignore_result": True}),
    "every plain type": (
        "call",
        ("echo", (None, True, 1.5, 10**20, "ünï\u2028\U0001f600", [], {}, {"a": [{}]})),
        {},
    ),
    "extension types": (
        "call",
        ("echo", (ETA, date(2026, 1, 1), Decimal("1.10"), uuid.UUID(int=7), b"t", b"\xff")),
        {},
    ),
    "deep": ("call", ("echo", ([[[[[1]]]]], {"a": {"b": {"c": {"d": 1}}}})), {}),
    "deep keywords": ("call", ("echo", (), {"a": {"b": {"c": {"d": 1}}}}), {}),
    "tuples and sets": ("call", ("echo", ((1, (2,)), [()])), {"serializer": "pickle"}),
    "long": ("call", ("echo", ("x" * 3000, "y" * 3000), {"long": "z" * 3000}), {}),
    "many": ("call", ("echo", (list(range(2000)),)), {}),
    "long text in a list": ("call", ("echo", (["x" * 3000],)), {}),
    "pickle": ("call", ("echo", ("a", 1, {"k": b"\xff"})), {"serializer": "pickle"}),
    "yaml": (
        "call",
        ("echo", ("ünï", 1, {"z": 1, "a": [None]}), {"k": date(2026, 1, 1)}),
        {"serializer": "yaml"},
    ),
    "msgpack": ("call", ("echo", ("ünï", 1, {"k": b"\xff"})), {"serializer": "msgpack"}),
    "zlib": ("call", ("echo", ("x" * 300,)), {"compression": "zlib"}),
    "bzip2": ("call", ("echo", ("x" * 300,)), {"compression": "bzip2"}),
    "lzma": ("call", ("echo", ("x" * 300,)), {"compression": "lzma"}),
    "brotli": ("call", ("echo", ("x" * 300,)), {"compression": "brotli"}),
    "zstd": ("call", ("echo", ("x" * 300,)), {"compression": "zstd"}),
    "priority": ("call", ("add", (1, 1)), {"priority": 7}),
    "priority of nothing": ("call", ("add", (1, 1)), {"priority": 0}),
    "eta": ("call", ("add", (1, 1)), {"eta": ETA}),
    "eta as text": ("call", ("add", (1, 1)), {"eta": "2030-01-02T03:04:05Z"}),
    "expires": ("call", ("add", (1, 1)), {"expires": EXPIRES}),
    "shadow": ("call", ("add", (1, 1)), {"shadow": "nice"}),
    "limits": ("call", ("add", (1, 1)), {"time_limit": 30, "soft_time_limit": 20.5}),
    "headers": ("call", ("add", (1, 1)), {"headers": {"tenant": 7, "x": {"y": [None]}}}),
    "headers that are the protocol's": ("call", ("add", (1, 1)), {"headers": {"lang": "xx", "mine": 1}}),
    "reprs": ("call", ("add", (1, 1)), {"argsrepr": "(secret)", "kwargsrepr": "{}"}),
    "transient": ("call", ("add", (1, 1)), {"delivery_mode": 1}),
    "property": ("call", ("add", (1, 1)), {"MessageGroupId": "g"}),
    "workflow": (
        "call",
        ("add", (1, 1)),
        {"root_id": "r", "parent_id": "p", "group_id": "g", "group_index": 3},
    ),
    "stamps": ("call", ("add", (1, 1)), {"stamped_headers": ["tag"], "tag": "blue"}),
    "retried": ("call", ("add", (1, 1)), {"retries": 2, "replaced_task_nesting": 1}),
    "link": ("call", ("add", (1, 1)), {"link": [LINK]}),
    "links": ("call", ("add", (1, 1)), {"link": [LINK, FIXED_LINK], "link_error": [FIXED_LINK]}),
    "reply_to": ("call", ("add", (1, 1)), {"reply_to": "somewhere"}),
}


#: Parts of a message in which the two differ on purpose, by case: what people read, and what Celery lets leak.
DIFFERENT: dict[str, set[str]] = {
    "by name": {"ignore_result"},
    **{case: {"argsrepr"} for case in ("every plain type", "extension types", "pickle", "msgpack")},
    **{case: {"argsrepr", "kwargsrepr"} for case in ("long", "many", "long text in a list")},
    "eta as text": {"eta"},  # the same instant, with the offset that ours writes
    "reprs": {"argsrepr of properties", "kwargsrepr of properties"},
}
#: Compressed by whichever version of the library each side has.
OF_A_LIBRARY = ("application/zstd", "application/x-brotli")


def comparable(message: dict[str, Any], case: str) -> list[str]:
    """A message without what is every sender's own, or differs on purpose."""
    different = DIFFERENT.get(case, set())
    headers, properties = message["headers"], message["properties"]
    if "origin" in headers:
        assert headers.pop("origin").startswith("gen")
    if "delivery_tag" in properties:
        uuid.UUID(properties.pop("delivery_tag"))
    if "expiration" in properties:
        properties["expiration"] = round(int(properties["expiration"]) / 10_000)
    for name in different & headers.keys():
        del headers[name]
    for name in different:
        properties.pop(name.removesuffix(" of properties"), None)
    own = {"MessageGroupId": properties.pop("MessageGroupId", None)}
    body = message["body"]
    if headers.get("compression") in OF_A_LIBRARY:
        body = decompress(body, headers["compression"])
    if "link" in case:
        body = json.loads(body)
    return [*lines({**message, "body": body}), *lines(own)]


def taken_from_redis(fleet: Fleet, queue: str, priority: int = 0) -> dict[str, Any]:
    step = priority // 3 * 3
    data = fleet.redis.rpop(f"{queue}\x06\x16{step}" if step else queue)
    assert data is not None, f"nothing in {queue}: {fleet.redis.keys()}"
    document = json.loads(data)
    return {**document, "body": base64.b64decode(document["body"])}


@pytest.mark.parametrize("case", CALLS)
def test_message_on_redis(on_redis: Fleet, case: str) -> None:
    command, arguments, options = CALLS[case]
    queue = on_redis.queue("bytes")
    options = {**options, "task_id": str(uuid.uuid4()), "queue": queue}
    messages = []
    for kind in KINDS:
        getattr(on_redis.client(kind), command)(*arguments, **options)
        messages.append(comparable(taken_from_redis(on_redis, queue, options.get("priority", 0)), case))
    assert messages[1] == messages[0]


@pytest.fixture(scope="module")
def channel(vhost: str) -> Iterator[Any]:
    """A channel of py-amqp, which takes from queues what is in them."""
    url = urlsplit(vhost)
    host = f"{url.hostname}:{url.port}"
    with amqp.Connection(
        host, userid=url.username, password=url.password, virtual_host=url.path[1:]
    ) as connection:
        yield connection.channel()


def taken_from_rabbitmq(channel: Any, queue: str) -> dict[str, Any]:
    found: list[Any] = []
    eventually(
        lambda: found.append(channel.basic_get(queue, no_ack=True)) or found[-1], what=f"a message in {queue}"
    )
    properties = {"priority": 0, **found[-1].properties}  # which Celery leaves out
    headers = properties.pop("application_headers")
    return {
        "headers": headers,
        "content-type": properties.pop("content_type"),
        "content-encoding": properties.pop("content_encoding"),
        "properties": dict(sorted(properties.items())),
        "body": found[-1].body if isinstance(found[-1].body, bytes) else found[-1].body.encode(),
        "delivery": {k: found[-1].delivery_info[k] for k in ("exchange", "routing_key")},
    }


@pytest.mark.parametrize("case", [each for each in CALLS if not each.startswith("eta")])
def test_message_on_rabbitmq(on_rabbitmq: Fleet, channel: Any, case: str) -> None:
    command, arguments, options = CALLS[case]
    queue = on_rabbitmq.queue("bytes")
    options = {**options, "task_id": str(uuid.uuid4()), "queue": queue}
    messages = []
    for kind in KINDS:
        getattr(on_rabbitmq.client(kind), command)(*arguments, **options)
        messages.append(comparable(taken_from_rabbitmq(channel, queue), case))
    assert messages[1] == messages[0]


@pytest.mark.parametrize("shape", ["two", "three, one immutable", "linked"])
def test_chain(on_redis: Fleet, shape: str) -> None:
    queue = on_redis.queue("bytes")

    def step(task: str, *args: Any, **more: Any) -> dict[str, Any]:
        own = {"queue": queue, "task_id": str(uuid.uuid4())}
        return {"task": task, "args": args, **more, "options": {**own, **more.get("options", {})}}

    steps = [step("add", 1, 2), step("add", 3, kwargs={})]
    options: dict[str, Any] = {}
    if shape == "three, one immutable":
        steps.append(step("writes", "k", immutable=True, options={"countdown": 5, "priority": 3}))
    elif shape == "linked":
        options = {"link": [FIXED_LINK], "link_error": [FIXED_LINK]}
    messages = []
    for kind in KINDS:
        on_redis.client(kind).chain(*steps, **options)
        found = comparable(taken_from_redis(on_redis, queue), "links")
        messages.append(
            sorted(found) if shape == "linked" else found
        )  # of its options, only this order differs
    assert messages[1] == messages[0]


@pytest.mark.parametrize(
    "case", ["plain", "keywords", "expires", "eta", "limits", "link", "workflow", "pickle"]
)
def test_message_of_protocol_1(on_redis: Fleet, case: str) -> None:
    command, arguments, options = CALLS[case]
    queue = on_redis.queue("bytes")
    options = {**options, "task_id": str(uuid.uuid4()), "queue": queue}
    messages = []
    for kind in KINDS:
        client = on_redis.client(kind)
        client.configure(task_protocol=1)
        getattr(client, command)(*arguments, **options)
        client.configure(task_protocol=2)
        messages.append(comparable(taken_from_redis(on_redis, queue), case))
    assert messages[1] == messages[0]


# -- what workers publish ------------------------------------------------------------------------------------------


def published_by_workers(on_redis: Fleet, task: str, *args: Any, **options: Any) -> list[list[str]]:
    """What either worker puts into a queue that nobody reads, when it runs this call."""
    messages = []
    queue = on_redis.queue("bytes")
    for kind in KINDS:
        on_redis.worker(kind)
        task_id = str(uuid.uuid4())
        on_redis.client("celery").call(task, args, queue=on_redis.queue(kind), task_id=task_id, **options)
        eventually(lambda: on_redis.redis.exists(queue), what=f"{task} of {kind}")
        message = taken_from_redis(on_redis, queue)
        for each in (message["headers"], message["properties"]):
            each.pop("eta", None)
            each.pop("argsrepr", None)
        message["properties"].pop("origin", None)  # Celery lets it leak
        text = json.dumps({**message, "body": message["body"].decode()}).replace(task_id, "<id>")
        messages.append(comparable({**(again := json.loads(text)), "body": again["body"].encode()}, "link"))
    return messages


@pytest.mark.parametrize("parent", ["p", None])
def test_retry(on_redis: Fleet, parent: str | None) -> None:
    """Its parent stays what it was; that of a task without one is the task itself."""
    options = {
        "headers": {"tenant": 7},
        "shadow": "nice",
        "time_limit": 30,
        "soft_time_limit": 20,
        "root_id": "r",
        "parent_id": parent,
        "group_id": "g",
        "group_index": 1,
        "link": [FIXED_LINK],
        "link_error": [FIXED_LINK],
        "expires": EXPIRES,
    }
    theirs, ours = published_by_workers(on_redis, "retry_at", [on_redis.queue("bytes")], **options)
    assert ours == theirs


def test_callback(on_redis: Fleet) -> None:
    link = {"task": "echo", "args": (1,), "options": {"queue": on_redis.queue("bytes"), "task_id": "linked"}}
    theirs, ours = published_by_workers(on_redis, "add", 1, 2, link=[link], priority=0, root_id="r")
    assert ours == theirs


def test_errback(on_redis: Fleet) -> None:
    link = {"task": "errback_old", "options": {"queue": on_redis.queue("bytes"), "task_id": "linked"}}
    theirs, ours = published_by_workers(on_redis, "fail", "OwnError", link_error=[link], root_id="r")
    own = (".headers.group",)  # Celery makes a group of its error callbacks, also of one
    assert [line for line in ours if not line.startswith(own)] == [
        line for line in theirs if not line.startswith(own)
    ]


def test_task_of_a_task(on_redis: Fleet) -> None:
    theirs, ours = published_by_workers(on_redis, "spawn", on_redis.queue("bytes"))
    own = (".headers.id", ".properties.correlation_id")
    assert [line for line in ours if not line.startswith(own)] == [
        line for line in theirs if not line.startswith(own)
    ]
