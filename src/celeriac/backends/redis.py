"""Results in Redis: the keys, documents and channels of Celery's Redis backend, which its clients and workers share.

What is stored is published too, so that who waits is told at once. Which record may replace which is decided in Redis
(``redis/put.lua``), so that nothing comes between looking and storing; the broker's unit on the same server has the
same functions in its script.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar
from weakref import WeakSet

from celeriac.backends.base import BackendOptions, BackendTraits, ResultBackend, Watcher, supersedes
from celeriac.errors import DecodeError, OperationalError
from celeriac.redis.links import Links
from celeriac.redis.results import FINISH_ONE, JOIN_ONE, PUT_BATCH, PUT_IF, Put, Results
from celeriac.redis.revocations import Revocations
from celeriac.redis.server import RedisServer
from celeriac.redis.watching import RedisWatcher, Subscribers
from celeriac.wire.record import Group, Record

__all__ = ["RedisBackend"]

#: Records, and their bytes, that one script stores: the server does nothing else meanwhile.
_RECORDS, _BYTES = 500, 1_000_000
#: Documents that are read, and keys that are deleted, by one command.
_AT_ONCE = 500
_SETTING = "redis_"
_SETTING_OF_BACKEND = "redis_backend_"


class RedisBackend(ResultBackend):
    """Records in a Redis server. Watchers hold one connection each while they wait, and share the idle ones."""

    schemes: ClassVar[tuple[str, ...]] = (
        *("redis", "rediss", "unix", "redis+socket", "sentinel", "valkey", "valkeys"),
    )
    traits: ClassVar[BackendTraits] = BackendTraits(persistent=True, push=True, opaque=False)

    def __init__(self, url: str, options: BackendOptions) -> None:
        super().__init__(_whole(url, options.transport), options)
        transport = _transport(options.transport)
        self.results = Results(transport, options.expires)
        self.server = RedisServer.of(
            self.url,
            transport=transport,
            ssl=options.transport.get("redis_backend_use_ssl"),
            timeout=options.timeout,
            prefix=self.results.prefix,
        )
        limit = transport.get("max_connections")
        self._links = Links(self.server, timeout=self.server.timeout, limit=limit and int(limit))
        self._revocations = Revocations(self._links, options.clock)
        self._subscribers = Subscribers(self.server)
        self._watchers: WeakSet[RedisWatcher] = WeakSet()

    # -- records ----------------------------------------------------------------------------------------------

    def put(self, records: Sequence[Record]) -> None:
        puts = [(record, self.results.put(record)) for record in records]
        for part in _bounded(puts):
            keys = [put.key for _, put in part]
            values = [value for _, put in part for value in put[1:]]
            outcomes: list[int] = self._links.run(PUT_BATCH, keys, values)
            if min(outcomes) < 0:
                for (record, put), outcome in zip(part, outcomes, strict=True):
                    if outcome < 0:
                        self._put_after_reading(record, put)

    def _put_after_reading(self, record: Record, put: Put) -> None:
        """Store a record where there is a document that Lua cannot read."""
        deadline = time.monotonic() + self.options.timeout
        while time.monotonic() < deadline:
            [present] = self._links.ask(("GET", put.key))
            if present is not None and not supersedes(record, self.results.read(record.task_id, present)):
                return
            if self._links.run(PUT_IF, [put.key], [present or b"", put.document, put.ttl]):
                return
        raise OperationalError(
            f"the result of task {record.task_id} cannot be stored: others change it all the time"
        )

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        documents: list[bytes | None] = []
        for at in range(0, len(ids), _AT_ONCE):
            [some] = self._links.ask(("MGET", *map(self.results.key, ids[at : at + _AT_ONCE])))
            documents += some
        return [
            None if document is None else self.results.read(id, document)
            for id, document in zip(ids, documents, strict=True)
        ]

    def forget(self, ids: Sequence[str]) -> None:
        for at in range(0, len(ids), _AT_ONCE):
            self._links.ask(("DEL", *map(self.results.key, ids[at : at + _AT_ONCE])))

    def watcher(self) -> Watcher:
        watcher = RedisWatcher(self._links, self.results, self._subscribers)
        self._watchers.add(watcher)
        return watcher

    # -- groups and chords ------------------------------------------------------------------------------------

    def save_group(self, group: Group) -> None:
        ttl = ("PX", self.results.ttl) if self.results.ttl else ()
        key = self.results.group_key(group.group_id)
        self._links.ask(("SET", key, self.results.put_group(group), *ttl))

    def load_group(self, group_id: str) -> Group | None:
        [document] = self._links.ask(("GET", self.results.group_key(group_id)))
        try:
            return None if document is None else self.results.read_group(group_id, document)
        except DecodeError as exc:
            raise OperationalError(f"group {group_id} cannot be read: {exc}") from exc

    def forget_group(self, group_id: str) -> None:
        self._links.ask(("DEL", self.results.group_key(group_id)))

    def join(self, chord: str, index: int, record: Record, size: int) -> Sequence[Record] | None:
        keys = self.results.chord_keys(chord)
        try:
            part = self.results.part(record)
            arguments = [index, record.task_id, part, size, self.results.ttl_of_chords]
            parts: list[bytes] | None = self._links.run(JOIN_ONE, keys, arguments)
            return None if parts is None else [self.results.read_part(part) for part in parts]
        except DecodeError as exc:
            raise OperationalError(f"a part of chord {chord} cannot be read: {exc}") from exc

    def finish_chord(self, chord: str) -> bool:
        keys = self.results.chord_keys(chord)
        return bool(self._links.run(FINISH_ONE, keys, [self.results.ttl_of_chords]))

    # -- revocations ------------------------------------------------------------------------------------------

    def revoke(self, ids: Sequence[str], *, until: datetime) -> None:
        self._revocations.revoke(ids, until)

    def revoked(self, after: int) -> tuple[int, Mapping[str, datetime]]:
        return self._revocations.revoked(after)

    def close(self) -> None:
        for watcher in list(self._watchers):
            watcher.wake()
        self._subscribers.close()
        self._revocations.close()
        self._links.close()
        self.server.close()


def _whole(url: str, options: Mapping[str, Any]) -> str:
    """A URL that says only what kind of server it is (``redis://``, ``redis``), with what settings say of it."""
    scheme, _, rest = url.partition("://")
    if rest:
        return url
    host, port, db = (options.get(f"redis_{name}") for name in ("host", "port", "db"))
    return f"{scheme}://{host or 'localhost'}:{port or 6379}/{db or 0}"


def _transport(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under the names that the driver has for them: ``redis_socket_timeout`` is ``socket_timeout``."""
    own = {
        name.removeprefix(_SETTING_OF_BACKEND).removeprefix(_SETTING): value
        for name, value in options.items()
        if name.startswith(_SETTING)
    }
    return {**own, **{name: value for name, value in options.items() if not name.startswith(_SETTING)}}


def _bounded(puts: Sequence[tuple[Record, Put]]) -> Iterator[Sequence[tuple[Record, Put]]]:
    """Parts of a batch that are small enough for one script; what is too large for one is one alone."""
    part: list[tuple[Record, Put]] = []
    size = 0
    for each in puts:
        length = len(each[1].document)
        if part and (len(part) == _RECORDS or size + length > _BYTES):
            yield part
            part, size = [], 0
        part.append(each)
        size += length
    if part:
        yield part
