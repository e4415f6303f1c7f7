"""The Redis backend against the suite: as it is set up usually, and in the ways that its code takes other turns for."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec
import pytest

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions, ResultBackend, Watcher
from celeriac.testing.conformance.backend import BackendConformance
from celeriac.testing.conformance.watching import WatchTests
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.servers import PrivateRedis, make_certificates
from celeriac.wire import codecs
from celeriac.wire.record import Group, Record
from redis_support import client_of


class OnRedis:
    """How these suites open a backend."""

    transport: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture
    def server(self, redis_url: str) -> str:
        return redis_url

    def open(self, server: Any, options: BackendOptions) -> ResultBackend:
        return open_backend(server, replace(options, transport={**options.transport, **self.transport}))


class TestRedisBackend(OnRedis, BackendConformance):
    pass


class TestWithAPrefix(OnRedis, BackendConformance):
    transport: ClassVar[Mapping[str, Any]] = {"global_keyprefix": "mine"}


# -- other servers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """A server without RESP3, as Redis 5 and some proxies are."""
    folder = tmp_path_factory.mktemp("redis")
    with skipped_without_server(), PrivateRedis(folder, config={"rename-command": 'HELLO ""'}) as server:
        yield server


class TestWithoutRESP3(OnRedis, BackendConformance):
    """What is subscribed to is asked for elsewhere. Nobody tells that something was revoked (see
    `tests/unit/test_redis_revocations.py`), so that others may learn it later."""

    @pytest.fixture
    def server(self, old_server: PrivateRedis) -> Iterator[str]:
        yield old_server.url
        with client_of(old_server.url) as client:
            client.flushall()

    test_revocations_are_told_once_by_position = None


@pytest.fixture(scope="module")
def tls_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    certificates = make_certificates(tmp_path_factory.mktemp("certificates"))
    with (
        skipped_without_server(),
        PrivateRedis(tmp_path_factory.mktemp("redis"), tls=certificates) as server,
    ):
        yield f"{server.url}?ssl_ca_certs={quote(str(certificates.authority))}"


class TestOverTLS(OnRedis, WatchTests):
    @pytest.fixture
    def server(self, tls_url: str) -> str:
        return tls_url


@pytest.fixture(scope="module")
def socket_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("redis")
    with skipped_without_server(), PrivateRedis(folder, config={"unixsocket": str(folder / "s")}):
        yield folder / "s"


class TestOverASocketFile(OnRedis, WatchTests):
    @pytest.fixture
    def server(self, socket_file: Path) -> str:
        return f"redis+socket://{socket_file}?virtual_host=3"


# -- other serializers ---------------------------------------------------------------------------------------------


class Recoded(ResultBackend):
    """A backend whose users' values are in another codec than the suite's, which is JSON."""

    schemes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, inner: ResultBackend, codec: str) -> None:
        super().__init__(inner.url, inner.options)
        self.inner = inner
        self.codec = codec
        self.traits = inner.traits  # type: ignore[misc]

    def there(self, record: Record) -> Record:
        return self._in(self.codec, record)

    def back(self, record: Record) -> Record:
        assert record.codec == self.codec
        return self._in("json", record)

    @staticmethod
    def _in(codec: str, record: Record) -> Record:
        values = {name: getattr(record, name) for name in ("result", "args", "kwargs")}
        values = {
            name: value and encoded(codecs.loads(value, record.codec), codec)
            for name, value in values.items()
        }
        return msgspec.structs.replace(record, codec=codec, **values)

    def put(self, records: Sequence[Record]) -> None:
        self.inner.put([self.there(each) for each in records])

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        return [each and self.back(each) for each in self.inner.get(ids)]

    def watcher(self) -> Watcher:
        return RecodedWatcher(self, self.inner.watcher())

    def forget(self, ids: Sequence[str]) -> None:
        self.inner.forget(ids)

    def save_group(self, group: Group) -> None:
        self.inner.save_group(group)

    def load_group(self, group_id: str) -> Group | None:
        return self.inner.load_group(group_id)

    def forget_group(self, group_id: str) -> None:
        self.inner.forget_group(group_id)

    def join(self, chord: str, index: int, record: Record, size: int) -> Sequence[Record] | None:
        parts = self.inner.join(chord, index, self.there(record), size)
        return parts and [self.back(part) for part in parts]

    def finish_chord(self, chord: str) -> bool:
        return self.inner.finish_chord(chord)

    def revoke(self, ids: Sequence[str], *, until: datetime) -> None:
        self.inner.revoke(ids, until=until)

    def revoked(self, after: int) -> tuple[int, Mapping[str, datetime]]:
        return self.inner.revoked(after)

    def close(self) -> None:
        self.inner.close()


def encoded(value: Any, codec: str) -> bytes:
    """As the suite writes its JSON."""
    return json.dumps(value, ensure_ascii=False).encode() if codec == "json" else codecs.dumps(value, codec)


class RecodedWatcher(Watcher):
    def __init__(self, backend: Recoded, inner: Watcher) -> None:
        self._backend = backend
        self._inner = inner

    def add(self, ids: Collection[str]) -> None:
        self._inner.add(ids)

    def discard(self, ids: Collection[str]) -> None:
        self._inner.discard(ids)

    def wait(self, timeout: float | None) -> Sequence[Record]:
        return [self._backend.back(each) for each in self._inner.wait(timeout)]

    def wake(self) -> None:
        self._inner.wake()

    def close(self) -> None:
        self._inner.close()


class InAnotherSerializer(OnRedis, BackendConformance):
    codec: ClassVar[str]

    def open(self, server: Any, options: BackendOptions) -> ResultBackend:
        options = replace(options, transport={"result_serializer": self.codec})
        return Recoded(open_backend(server, options), self.codec)

    # Thousands of documents in these formats take long, and say no more than a few.
    test_many_at_once = None
    test_a_watcher_takes_thousands = None


class TestPickle(InAnotherSerializer):
    codec = "pickle"


class TestMsgpack(InAnotherSerializer):
    codec = "msgpack"


class TestYAML(InAnotherSerializer):
    codec = "yaml"
