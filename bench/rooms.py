"""Room of the measurement's own on the servers, and how full it is: a Redis database, a virtual host of RabbitMQ.

Redis is a server started for this, so that its counters count nothing else; ``REDIS_URL`` names another one, of
which an empty database is taken. RabbitMQ is what ``AMQP_URL`` names, or the one of this host.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import amqp
import raw
import redis

from celeriac.testing.servers import PrivateRedis, Servers

#: The queue of every call, and the one that `producer` opens its connection with.
QUEUE, ASIDE = "celery", "bench.aside"
#: Results that are looked for at once.
WINDOW = 1_000


class Room(Protocol):
    """Where the messages of a measurement are."""

    url: str
    #: Of the server, with its name.
    version: str

    def clean(self) -> None:
        """Delete all there is."""

    def waiting(self) -> int:
        """Messages that nobody holds."""


@dataclass(frozen=True)
class Load:
    """What a Redis server has done so far."""

    #: Commands, those inside of scripts and transactions too.
    commands: int
    #: How often it read from a connection: round trips of its clients, but for requests that come in several pieces.
    reads: int


class RedisRoom:
    """A Redis database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = redis.Redis.from_url(url, protocol=2)
        self.version = f"Redis {self._client.info('server')['redis_version']}"
        #: Commands sent from here, which are nobody's load.
        self._sent = 0

    def clean(self) -> None:
        self._client.flushdb()

    def waiting(self) -> int:
        self._sent += 1
        return self._client.llen(QUEUE)

    def load(self) -> Load:
        self._sent += 1
        stats = self._client.info("stats")
        return Load(
            stats["total_commands_processed"] - self._sent, stats["total_reads_processed"] - self._sent
        )

    def existing(self, keys: Sequence[str]) -> int:
        self._sent += 1
        return self._client.exists(*keys)

    def succeeded(self, ids: Sequence[str]) -> int:
        """How many of these tasks have the state SUCCESS."""
        count = 0
        for start in range(0, len(ids), WINDOW):
            found = self._client.mget([result_key(each) for each in ids[start : start + WINDOW]])
            count += sum(json.loads(each)["status"] == "SUCCESS" for each in found if each)
        return count

    def close(self) -> None:
        self._client.close()


class Stored:
    """Counts results as they come, roughly in the order of `ids`: looks only at those that may be next."""

    def __init__(self, room: RedisRoom, ids: Sequence[str]) -> None:
        self._room = room
        self._keys = [result_key(each) for each in ids]
        self._complete = 0

    def __call__(self) -> int:
        while window := self._keys[self._complete : self._complete + WINDOW]:
            found = self._room.existing(window)
            if found < len(window):
                return self._complete + found
            self._complete += len(window)
        return self._complete


def result_key(task_id: str) -> str:
    return f"celery-task-meta-{task_id}"


class RabbitMQRoom:
    """A virtual host of RabbitMQ."""

    def __init__(self, url: str) -> None:
        self.url = url
        with raw.connect(url) as connection:
            self.version = f"RabbitMQ {connection.server_properties['version']}"

    def clean(self) -> None:
        with raw.connect(self.url) as connection:
            channel = connection.channel()
            for queue in (QUEUE, ASIDE):
                channel.queue_delete(queue)

    def waiting(self) -> int:
        with raw.connect(self.url) as connection:
            try:
                return connection.channel().queue_declare(QUEUE, passive=True).message_count
            except amqp.NotFound:
                return 0


@contextmanager
def redis_room() -> Iterator[RedisRoom]:
    with ExitStack() as stack:
        if "REDIS_URL" in os.environ:
            url = stack.enter_context(stack.enter_context(Servers()).redis_database())
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="celeriac-bench-redis-"))
            url = stack.enter_context(PrivateRedis(Path(folder))).url
        room = RedisRoom(url)
        stack.callback(room.close)
        yield room


@contextmanager
def rabbitmq_room() -> Iterator[RabbitMQRoom]:
    with Servers() as servers, servers.rabbitmq_vhost() as url:
        yield RabbitMQRoom(url)
