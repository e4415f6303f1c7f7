"""What Redis and RabbitMQ themselves can do here and now, by hand: the drivers alone, one process, no task queue.

The figures of a shared machine move by a factor of two within minutes; their ratio to these hardly does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import amqp
import redis

#: A message as it is sent: an envelope in JSON with a body in base64; on RabbitMQ a part of it is properties.
ENVELOPE = b"x" * 900
#: A result as it is stored.
RESULT = b"x" * 160
BATCH = 64
PIPELINE = 100
PREFETCH = 200
#: Seconds that a result is kept.
KEPT = 86_400


def redis_rates(url: str, count: int) -> dict[str, float]:
    """Operations a second with redis-py; the database is emptied."""
    with redis.Redis.from_url(url, protocol=2) as client:
        rates = {
            "LPUSH": count / 4 / _timed(_push_one_by_one, client, count // 4),
            "LPUSH in pipelines": count / _timed(_push, client, count),
            "take, store results": count / _timed(_take, client),
        }
        client.flushdb()
    return rates


def _push_one_by_one(client: redis.Redis, count: int) -> None:
    for _ in range(count):
        client.lpush("bench.one-by-one", ENVELOPE)


def _push(client: redis.Redis, count: int) -> None:
    for _ in range(0, count, PIPELINE):
        pipeline = client.pipeline(transaction=False)
        for _ in range(PIPELINE):
            pipeline.lpush("bench", ENVELOPE)
        pipeline.execute()


def _take(client: redis.Redis) -> None:
    """Take a batch, store a result for each in one transaction, until none is left."""
    while taken := client.rpop("bench", BATCH):
        pipeline = client.pipeline()
        for _ in taken:
            pipeline.set(f"celery-task-meta-{uuid4()}", RESULT, ex=KEPT)
        pipeline.execute()


def rabbitmq_rates(url: str, count: int) -> dict[str, float]:
    """Messages a second with py-amqp, persistent, through a queue of its own."""
    confirmed = count // 10
    with connect(url, confirm_publish=True) as connection:
        channel = connection.channel()
        queue = channel.queue_declare(durable=True, exclusive=False, auto_delete=False).queue
        rates = {"publish, confirmed": confirmed / _timed(_publish, channel, queue, confirmed)}
    with connect(url) as connection:
        channel = connection.channel()
        rates["publish"] = count / _timed(_publish, channel, queue, count)
        rates["consume and ack"] = (count + confirmed) / _timed(_consume, channel, queue, count + confirmed)
        channel.queue_delete(queue)
    return rates


def connect(url: str, **options: Any) -> amqp.Connection:
    """A connection, for a ``with``."""
    parts = urlsplit(url)
    return amqp.Connection(
        f"{parts.hostname}:{parts.port or 5672}",
        userid=unquote(parts.username or "guest"),
        password=unquote(parts.password or "guest"),
        virtual_host=unquote(parts.path[1:]) or "/",
        connect_timeout=10,
        read_timeout=30,
        write_timeout=30,
        **options,
    )


def _publish(channel: Any, queue: str, count: int) -> None:
    for _ in range(count):
        channel.basic_publish(amqp.Message(ENVELOPE, delivery_mode=2), routing_key=queue)


def _consume(channel: Any, queue: str, count: int) -> None:
    left = count

    def take(message: Any) -> None:
        nonlocal left
        left -= 1
        channel.basic_ack(message.delivery_tag)

    channel.basic_qos(0, PREFETCH, False)
    tag = channel.basic_consume(queue, callback=take)
    while left:
        channel.connection.drain_events(timeout=30)
    channel.basic_cancel(tag)


def _timed(work: Callable[..., None], *args: Any) -> float:
    started = time.perf_counter()
    work(*args)
    return time.perf_counter() - started
