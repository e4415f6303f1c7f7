"""Results as they lie in Redis: Celery's keys, documents and times to live (wire-protocol §7, §9)."""

from __future__ import annotations

import json
import pickle
import sys
import types
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgpack
import msgspec
import pytest
import yaml

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions
from celeriac.backends.redis import RedisBackend
from celeriac.errors import ConnectionLost, DecodeError, ImproperlyConfigured, OperationalError
from celeriac.redis.results import Results
from celeriac.states import FAILURE, PENDING, RETRY, REVOKED, STARTED, SUCCESS
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.servers import PrivateRedis
from celeriac.wire import errors as wire_errors
from celeriac.wire.record import Group, Record
from redis_support import client_of, commands_of

DONE = datetime(2026, 11, 20, 17, 3, 35, 96526, UTC)
KEY = "celery-task-meta-t"
GROUP = "celery-taskset-meta-g"

Open = Callable[..., RedisBackend]


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with client_of(redis_url) as client:
        yield client


@pytest.fixture
def opened(redis_url: str) -> Iterator[Open]:
    backends: list[RedisBackend] = []

    def opened(expires: float | None = 86400.0, **transport: Any) -> RedisBackend:
        backend = open_backend(redis_url, BackendOptions(expires=expires, transport=transport))
        assert isinstance(backend, RedisBackend)
        backends.append(backend)
        return backend

    yield opened
    for each in backends:
        each.close()


def record(state: str = SUCCESS, **fields: Any) -> Record:
    return Record(**{"task_id": "t", "state": state, "result": b"5", "children": [], **fields})


# -- documents -----------------------------------------------------------------------------------------------------


def test_a_result_lies_where_celery_looks_for_it(opened: Open, client: Any) -> None:
    opened().put([record(date_done=DONE)])
    assert client.keys() == [KEY.encode()]
    assert client.get(KEY) == (
        b'{"status":"SUCCESS","result":5,"traceback":null,"children":[],'
        b'"date_done":"2026-11-20T17:03:35.096526+00:00","task_id":"t"}'
    )
    assert 86_000 < client.ttl(KEY) <= 86_400


def test_what_is_stored_is_published_under_the_name_of_its_key(opened: Open, client: Any) -> None:
    with client.pubsub() as listener:
        listener.subscribe(KEY)
        listener.get_message(timeout=5)
        for state in (STARTED, RETRY, SUCCESS):
            opened().put([record(state)])
            assert listener.get_message(timeout=5)["data"] == client.get(KEY)
        opened().put([record(FAILURE)])
        assert listener.get_message(timeout=0.05) is None


def test_the_first_record_of_a_task_costs_two_commands(opened: Open, client: Any) -> None:
    backend = opened()
    backend.put([record(task_id="other")])  # the server knows the script from now on
    with commands_of(client) as commands:
        backend.put([record(task_id="a"), record(task_id="b")])
    [script, *rest] = commands
    assert script[0] == "EVALSHA"
    assert [(name, key) for name, key, *_ in rest] == [
        ("SET", "celery-task-meta-a"),
        ("PUBLISH", "celery-task-meta-a"),
        ("SET", "celery-task-meta-b"),
        ("PUBLISH", "celery-task-meta-b"),
    ]
    assert rest[0][-3:] == ["NX", "PX", "86400000"]


def test_many_are_read_by_one_command(opened: Open, client: Any) -> None:
    backend = opened()
    with commands_of(client) as commands:
        assert backend.get(["a", "b", "c"]) == [None, None, None]
    assert commands == [["MGET", *(f"celery-task-meta-{id}" for id in "abc")]]


def test_times_to_live(opened: Open, client: Any) -> None:
    backend = opened(expires=None, result_failure_expires=60.0)
    backend.put([record(), record(FAILURE, task_id="failed"), record(REVOKED, task_id="revoked")])
    ttls = [client.ttl(f"celery-task-meta-{id}") for id in ("t", "failed", "revoked")]
    assert ttls == [-1, 60, -1]
    backend = opened(expires=0.4)
    backend.put([record(STARTED, task_id="short")])
    assert 0 < client.pttl("celery-task-meta-short") <= 400


@pytest.mark.parametrize(
    ("prefix", "key"),
    [("", KEY), ("app", f"app_{KEY}"), *((f"app{end}", f"app{end}{KEY}") for end in (":", "_", "-", "."))],
)
def test_the_prefix_of_keys(opened: Open, client: Any, prefix: str, key: str) -> None:
    backend = opened(global_keyprefix=prefix)
    backend.put([record()])
    backend.save_group(Group(group_id="g", result=[["g", None], []]))
    assert set(client.keys()) == {key.encode(), key.replace(KEY, GROUP).encode()}


META = {
    "status": SUCCESS,
    "result": {"a": [1, "ä"]},
    "traceback": None,
    "children": [[["child", None], None]],
    "date_done": "2026-11-20T17:03:35.096526+00:00",
    "name": "tasks.add",
    "args": [2, 3],
    "kwargs": {},
    "worker": "w1@cap",
    "retries": 0,
    "queue": "q",
    "task_id": "t",
}

#: How Celery writes a meta, by `result_serializer`.
CELERYS: Mapping[str, tuple[str, Callable[[Any], bytes]]] = {
    "json": ("json", lambda meta: json.dumps(meta).encode()),
    "msgpack": ("msgpack", msgpack.packb),
    "yaml": ("yaml", lambda meta: yaml.safe_dump(meta).encode()),
    **{f"pickle {n}": ("pickle", lambda meta, n=n: pickle.dumps(meta, protocol=n)) for n in range(6)},
}


def compressed(document: bytes) -> bytes:
    return b"\x00celery-compressed\x00application/x-gzip\x00" + zlib.compress(document)


@pytest.mark.parametrize("form", CELERYS)
@pytest.mark.parametrize("pack", [bytes, compressed])
def test_celerys_documents_are_read(
    opened: Open, client: Any, form: str, pack: Callable[[bytes], bytes]
) -> None:
    serializer, dumps = CELERYS[form]
    client.set(KEY, pack(dumps(META)))
    [found] = opened(result_serializer=serializer).get(["t"])
    assert found is not None
    assert (found.state, found.codec, found.date_done, found.worker) == (SUCCESS, serializer, DONE, "w1@cap")
    assert found.children == META["children"]


def test_json_is_read_whatever_the_serializer_is(opened: Open) -> None:
    opened().put([record()])
    for serializer in ("pickle", "msgpack", "yaml"):
        assert opened(result_serializer=serializer).get(["t"]) == [record()]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"{", "cannot be read"),
        (b"", "cannot be read"),
        (b"[1]", "not a task result"),
        (pickle.dumps(META), "cannot be read"),
        (b"\x00celery-compressed\x00application/x-nothing\x00?", "unknown compression"),
        (b"\x00celery-compressed\x00application/x-gzip\x00?", "damaged"),
        (json.dumps({"status": 5, "task_id": "t"}).encode(), "not a task result"),
    ],
)
def test_what_cannot_be_read_is_a_failure_that_says_so(
    opened: Open, client: Any, document: bytes, reason: str
) -> None:
    backend = opened()
    client.set(KEY, document)
    backend.put([record(task_id="other")])
    broken, other = backend.get(["t", "other"])
    assert other == record(task_id="other")
    assert broken is not None
    assert broken.state == FAILURE
    error = wire_errors.from_meta(json.loads(broken.result))
    assert isinstance(error, DecodeError)
    assert reason in str(error)
    assert "task t cannot be read with result_serializer 'json'" in str(error)


def test_a_pickled_result_is_stored_by_who_has_not_got_its_class(
    opened: Open, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("users_module")
    exec("class Point:\n  def __init__(self, x): self.x = x", module.__dict__)
    monkeypatch.setitem(sys.modules, "users_module", module)
    result = pickle.dumps(module.Point(5))
    backend = opened(result_serializer="pickle")
    monkeypatch.delitem(sys.modules, "users_module")
    backend.put([record(result=result, codec="pickle", name="n", args=result)])
    monkeypatch.setitem(sys.modules, "users_module", module)
    meta = pickle.loads(client.get(KEY))
    assert (meta["status"], meta["result"].x, meta["args"].x, meta["kwargs"]) == (SUCCESS, 5, 5, None)
    [found] = backend.get(["t"])
    assert found is not None
    assert pickle.loads(found.result).x == 5


def test_what_cannot_be_stored_is_a_failure_that_says_so(opened: Open) -> None:
    backend = opened(result_serializer="msgpack")
    backend.put([record(result=b"\xc1", codec="msgpack"), record(task_id="other")])
    broken, other = backend.get(["t", "other"])
    assert other == record(task_id="other")
    assert broken is not None
    assert "how task t ended cannot be stored" in str(wire_errors.from_meta(json.loads(broken.result)))


# -- what replaces what --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", CELERYS)
@pytest.mark.parametrize("pack", [bytes, compressed])
@pytest.mark.parametrize("state", [SUCCESS, FAILURE, PENDING, RETRY, STARTED, "SUCCESSFUL"])
def test_only_success_stays(
    opened: Open, client: Any, form: str, pack: Callable[[bytes], bytes], state: str
) -> None:
    serializer, dumps = CELERYS[form]
    document = pack(dumps({**META, "status": state}))
    client.set(KEY, document)
    opened(result_serializer=serializer).put([record(FAILURE)])
    assert (client.get(KEY) == document) == (state == SUCCESS)


@pytest.mark.parametrize("form", CELERYS)
def test_what_users_return_is_not_taken_for_the_state(opened: Open, client: Any, form: str) -> None:
    serializer, dumps = CELERYS[form]
    for result in (
        {"status": SUCCESS},
        "\nstatus: SUCCESS\n",
        '"status": "SUCCESS"',
        [["status", "SUCCESS"]],
    ):
        document = dumps({**META, "status": FAILURE, "result": result})
        client.set(KEY, document)
        opened(result_serializer=serializer).put([record(STARTED)])
        assert client.get(KEY) != document


@pytest.mark.parametrize("codec", ["json", "msgpack", "yaml", "pickle"])
def test_a_retry_does_not_go_back(opened: Open, codec: str) -> None:
    def of(state: str, retries: int) -> Record:
        value = (
            msgpack.packb(None)
            if codec == "msgpack"
            else pickle.dumps(None)
            if codec == "pickle"
            else b"null"
        )
        return record(state, retries=retries, codec=codec, result=value)

    backend = opened(result_serializer=codec)

    def after(*records: Record) -> tuple[str, int]:
        backend.put(records)
        [found] = backend.get(["t"])
        assert found is not None
        return found.state, found.retries

    assert after(of(RETRY, 2)) == (RETRY, 2)
    assert after(of(STARTED, 1), of(RETRY, 1)) == (RETRY, 2)
    assert after(of(STARTED, 2)) == (STARTED, 2)
    assert after(of(RETRY, 3)) == (RETRY, 3)
    assert after(of(FAILURE, 1)) == (FAILURE, 1)
    assert after(of(RETRY, 1), of(RETRY, 2), of(RETRY, 1)) == (RETRY, 2)


def test_documents_in_another_order_are_understood_too(opened: Open, client: Any) -> None:
    document = json.dumps({"task_id": "t", "result": {"status": FAILURE}, "status": SUCCESS}).encode()
    client.set(KEY, document)
    opened().put([record(FAILURE)])
    assert client.get(KEY) == document


def test_large_batches_are_stored_in_parts(opened: Open, client: Any) -> None:
    backend = opened()
    backend.put([record()])
    large = [record(task_id=f"{n}", result=b'"%s"' % (b"x" * 300_000)) for n in range(10)]
    with commands_of(client) as commands:
        backend.put(large)
    assert [command[0] for command in commands].count("EVALSHA") == 4
    assert backend.get([each.task_id for each in large]) == large


# -- groups and chords ---------------------------------------------------------------------------------------------


def test_a_group_lies_where_celery_looks_for_it(opened: Open, client: Any) -> None:
    backend = opened()
    backend.save_group(Group(group_id="g", result=[["g", None], [[["m", None], None]]]))
    assert json.loads(client.get(GROUP)) == {"result": [["g", None], [[["m", None], None]]]}
    assert 86_000 < client.ttl(GROUP) <= 86_400
    opened(expires=None).save_group(Group(group_id="g", result=[]))
    assert client.ttl(GROUP) == -1


@pytest.mark.parametrize("form", CELERYS)
@pytest.mark.parametrize("pack", [bytes, compressed])
def test_celerys_groups_are_read(
    opened: Open, client: Any, form: str, pack: Callable[[bytes], bytes]
) -> None:
    serializer, dumps = CELERYS[form]
    client.set(GROUP, pack(dumps({"result": [["g", None], [[["m", None], None]]]})))
    expected = Group(group_id="g", result=[["g", None], [[["m", None], None]]])
    backend = opened(result_serializer=serializer)
    found = backend.load_group("g")
    assert found == expected
    client.set(GROUP, pack(dumps({"result": 5})))
    with pytest.raises(OperationalError, match="group g"):
        backend.load_group("g")


def test_a_chord_lies_in_celerys_keys(opened: Open, client: Any) -> None:
    backend = opened()
    assert backend.join("g", 1, record(result=b'{"a": 1}'), 2) is None
    assert client.zrange(f"{GROUP}.j", 0, -1, withscores=True) == [(b'[1,"t","SUCCESS",{"a": 1}]', 1.0)]
    assert client.smembers(f"{GROUP}.d") == {b"t:1"}
    assert all(86_000 < client.ttl(key) <= 86_400 for key in client.scan_iter())
    client.zadd(f"{GROUP}.j", {b'[1, "u", "FAILURE", {"exc_type": "ValueError"}]': 0})  # by a Celery worker
    parts = backend.join("g", 1, record(), 2)
    assert parts is not None
    assert [(part.task_id, part.state, part.result) for part in parts] == [
        ("u", FAILURE, b'{"exc_type": "ValueError"}'),
        ("t", SUCCESS, b'{"a": 1}'),
    ]
    assert backend.finish_chord("g")
    assert client.keys() == [f"{GROUP}.c".encode()]
    assert client.get(f"{GROUP}.c") == b"done"
    assert 86_000 < client.ttl(f"{GROUP}.c") <= 86_400


def test_a_chord_that_a_celery_worker_goes_on_with_is_left_to_it(opened: Open, client: Any) -> None:
    client.set(f"{GROUP}.c", "a token of its own")
    assert opened().join("g", 0, record(), 1) is None


def test_members_that_were_added_to_a_chord_are_waited_for(opened: Open, client: Any) -> None:
    backend = opened()
    client.set(f"{GROUP}.t", 1)
    assert backend.join("g", 0, record(), 1) is None
    parts = backend.join("g", 1, record(task_id="u"), 1)
    assert parts is not None
    assert [part.task_id for part in parts] == ["t", "u"]


def test_chords_have_a_time_to_live_of_their_own(opened: Open, client: Any) -> None:
    backend = opened(result_chord_expires=60.0)
    backend.save_group(Group(group_id="g", result=[]))
    backend.join("g", 0, record(), 2)
    assert {client.ttl(f"{GROUP}{end}") for end in (".j", ".d")} == {60}
    assert client.ttl(GROUP) > 86_000
    opened(expires=None).finish_chord("g")
    assert client.ttl(f"{GROUP}.c") == -1


def test_a_part_that_cannot_be_read_is_an_error(opened: Open, client: Any) -> None:
    client.zadd(f"{GROUP}.j", {b"[1]": 0})
    with pytest.raises(OperationalError, match="part of chord g"):
        opened().join("g", 1, record(), 2)


def test_results_that_only_the_standard_library_writes_are_parts_too(opened: Open, client: Any) -> None:
    client.zadd(f"{GROUP}.j", {b'[1, "u", "SUCCESS", NaN]': 0})
    parts = opened().join("g", 1, record(), 2)
    assert parts is not None
    assert [part.result for part in parts] == [b"NaN", b"5"]


# -- errors and options --------------------------------------------------------------------------------------------


def test_keys_of_another_kind_are_an_error(opened: Open, client: Any) -> None:
    client.lpush(KEY, "x")
    with pytest.raises(OperationalError, match="WRONGTYPE"):
        opened().put([record()])


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    users = {"results": "on >of:days ~celery-task* &* +@all"}
    with skipped_without_server(), PrivateRedis(tmp_path_factory.mktemp("redis"), users=users) as server:
        yield server


def test_a_server_that_only_reads_is_lost(private: PrivateRedis) -> None:
    backend = open_backend(private.url, BackendOptions())
    with client_of(private.url) as client:
        client.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(ConnectionLost, match="read only"):
                backend.put([record()])
            with pytest.raises(ConnectionLost, match="read only"):
                backend.forget(["t"])
        finally:
            client.replicaof("NO", "ONE")
    backend.put([record()])
    assert backend.get(["t"]) == [record()]
    backend.close()


def test_a_server_that_does_not_answer_is_lost(private: PrivateRedis) -> None:
    backend = open_backend(private.url, BackendOptions(timeout=0.2))
    private.pause()
    try:
        for operation in (
            lambda: backend.put([record()]),
            lambda: backend.get(["t"]),
            lambda: backend.join("g", 0, record(), 1),
            lambda: backend.revoked(0),
        ):
            with pytest.raises(ConnectionLost):
                operation()
    finally:
        private.resume()
    backend.close()


def test_settings_of_redis_are_heard(private: PrivateRedis) -> None:
    login = {"redis_username": "results", "redis_password": "of:days"}
    backend = open_backend(private.url, BackendOptions(transport={**login, "redis_client_name": "mine"}))
    backend.put([record()])
    with client_of(private.url) as client:
        [mine] = [each for each in client.client_list() if each["name"] == "mine"]
        assert mine["user"] == "results"
    with pytest.raises(OperationalError, match="may not do"):
        backend.revoke(["t"], until=DONE)
    backend.close()


@pytest.mark.parametrize("url", ["redis", "redis://"])
def test_settings_say_where_the_server_is_that_a_url_leaves_out(url: str) -> None:
    settings = {"redis_host": "somewhere", "redis_port": 1234, "redis_db": 5}
    server = open_backend(url, BackendOptions(transport=settings)).server
    assert (str(server.address), server.db) == ("somewhere:1234", 5)
    assert str(open_backend(url, BackendOptions()).server.address) == "localhost:6379"
    server = open_backend("redis://here/3", BackendOptions(transport=settings)).server
    assert (str(server.address), server.db) == ("here:6379", 3)


def test_an_option_that_is_none_is_named() -> None:
    with pytest.raises(ImproperlyConfigured, match="socket_timeout"):
        open_backend("redis://", BackendOptions(transport={"redis_socket_timeout": "soon"}))


def test_results_need_no_server_to_be_described() -> None:
    results = Results({}, 1.5)
    put = results.put(msgspec.structs.replace(record(RETRY), retries=3))
    assert (put.key, put.ttl, put.guard) == (KEY.encode(), b"1500", b"3")
    assert results.put(record()).guard == b""
    assert results.task_id(put.key) == "t"
