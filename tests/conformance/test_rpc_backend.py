"""Results as messages: the suite, in which who puts a record sends it to itself; what travels; what gets lost."""

from __future__ import annotations

import dataclasses
import json
import pickle
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import redis

from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.backends.rpc import NoGroups, RPCBackend
from celeriac.brokers import open_broker
from celeriac.brokers.base import BrokerOptions
from celeriac.errors import ConnectionLost, ContentDisallowed, ImproperlyConfigured
from celeriac.states import FAILURE, STARTED, SUCCESS
from celeriac.testing.conformance.backend import BackendConformance
from celeriac.testing.conformance.harness import PATIENCE, InThread, in_fork
from celeriac.testing.conformance.results import record, states
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.proxy import Proxy
from celeriac.testing.servers import Servers
from celeriac.topology import Exchange, Queue
from celeriac.wire import codecs
from celeriac.wire.envelope import Envelope, Outgoing
from celeriac.wire.record import Group, Record
from support import eventually


@pytest.fixture(scope="module")
def vhost(celeriac_servers: Servers) -> Iterator[str]:
    """One for all tests here: making one takes as long as many tests, and they use names of their own."""
    with skipped_without_server(), celeriac_servers.rabbitmq_vhost() as url:
        yield url


@pytest.fixture(params=["redis", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue("redis_url" if request.param == "redis" else "vhost")


class ToItself(RPCBackend):
    """Client and worker in one. `put` returns when all has come."""

    def put(self, records: Sequence[Record]) -> None:
        last = Record(task_id=str(uuid4()), state=SUCCESS, result=b"null")
        super().put([to(self, each) for each in [*records, last]])
        assert list(self.watch([last.task_id], PATIENCE))
        self.forget([last.task_id])


def to(client: RPCBackend, record: Record) -> Record:
    return msgspec.structs.replace(record, reply_to=client.reply_to)


class TestRPCOverMemory(BackendConformance):
    @pytest.fixture
    def server(self) -> str:
        return "memory://"

    def open(self, server: Any, options: BackendOptions) -> ResultBackend:
        broker = open_broker(server, BrokerOptions())
        options = dataclasses.replace(
            options,
            transport={**options.transport, "accept_content": ["json", "pickle"]},
            open_broker=lambda: broker,
        )
        return ToItself("rpc://", options)


class TestRPCOverRedis(TestRPCOverMemory):
    @pytest.fixture
    def server(self, redis_url: str) -> str:
        return redis_url


class TestRPCOverRabbitMQ(TestRPCOverMemory):
    @pytest.fixture
    def server(self, vhost: str) -> str:
        return vhost


@contextmanager
def rpc_on(url: str, *, expires: float | None = 86400.0, **transport: Any) -> Iterator[RPCBackend]:
    options = BackendOptions(
        expires=expires, transport=transport, open_broker=lambda: open_broker(url, BrokerOptions())
    )
    with closing(RPCBackend("rpc://", options)) as backend:
        yield backend


def ended(client: RPCBackend, *ids: str) -> list[Record]:
    """The final records of these; all came."""
    found = list(client.watch(ids, PATIENCE))
    assert len(found) == len(ids)
    return found


# -- what travels ----------------------------------------------------------------------------------------------


def test_a_worker_tells_the_client_each_state(url: str) -> None:
    with rpc_on(url) as client, rpc_on(url) as worker:
        one = record(result=b"5")
        worker.put([to(client, msgspec.structs.replace(one, state=STARTED))])
        eventually(lambda: states(client, one.task_id) == [STARTED])
        worker.put([to(client, one)])
        assert ended(client, one.task_id)[0].result == b"5"
        assert worker.get([one.task_id]) == [None]


def test_a_result_is_the_message_that_celery_sends(url: str) -> None:
    with closing(open_broker(url, BrokerOptions())) as broker, rpc_on(url, expires=60.0) as worker:
        queue = Queue(str(uuid4()), Exchange(), auto_delete=True, expires=60.0, no_ack=True)
        bus = broker.bus()
        assert bus is not None
        with bus.listen(queue) as listener:
            one = record(result=b"5", reply_to=queue.name)
            worker.put([one])
            (came,) = listener.receive(PATIENCE)
    assert json.loads(came.body) == {
        "status": "SUCCESS",
        "result": 5,
        "traceback": None,
        "children": None,
        "date_done": None,
        "task_id": one.task_id,
    }
    assert (came.content_type, came.content_encoding) == ("application/json", "utf-8")
    assert came.headers == {}
    wanted = {"correlation_id": one.task_id, "delivery_mode": 1, "priority": 0, "expiration": "60000"}
    assert came.properties | wanted == came.properties


def test_persistent_results_and_results_for_ever(redis_url: str) -> None:
    with rpc_on(redis_url, expires=None, result_persistent=True) as client:
        client.put([to(client, one := record())])
        assert ended(client, one.task_id)[0].state == SUCCESS


def test_other_serializers_travel_where_they_are_accepted(url: str) -> None:
    with rpc_on(url, result_accept_content=["json", "pickle"]) as client:
        client.put([to(client, one := record(result=pickle.dumps({1: 2}), codec="pickle"))])
        (found,) = ended(client, one.task_id)
        assert (found.codec, pickle.loads(found.result)) == ("pickle", {1: 2})


def test_what_is_not_accepted_is_for_who_asks_to_refuse(url: str) -> None:
    with rpc_on(url) as client:
        client.put([to(client, one := record(result=pickle.dumps(1), codec="pickle"))])
        (found,) = ended(client, one.task_id)
        with pytest.raises(ContentDisallowed):
            codecs.loads(found.result, found.codec, accept=codecs.accepted(["json"]))


def test_what_cannot_be_read_is_dropped(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with closing(open_broker(redis_url, BrokerOptions())) as broker, rpc_on(redis_url) as client:
        bus = broker.bus()
        assert bus is not None
        for content_type in ("application/json", "application/unheard-of"):
            rubbish = Envelope(b"{", content_type, "utf-8", {}, {"correlation_id": "bad"})
            bus.send([Outgoing(rubbish, "", client.reply_to)])
        client.put([to(client, one := record())])
        ended(client, one.task_id)
    assert caplog.text.count("dropped what came as the result of task bad") == 2


def test_records_for_nobody_go_nowhere(redis_url: str) -> None:
    with rpc_on(redis_url) as worker, redis.Redis.from_url(redis_url) as client:
        worker.put([record(), record(reply_to="")])
        assert client.keys() == []
        worker.put([record(reply_to="gone")])
        assert 0 < client.pttl("gone") <= 86_400_000


def test_results_are_kept_up_to_a_number(redis_url: str) -> None:
    with rpc_on(redis_url, result_cache_max=3) as client:
        records = [record() for _ in range(5)]
        client.put([to(client, each) for each in records])
        ended(client, records[-1].task_id)
        kept = [each is not None for each in client.get([each.task_id for each in records])]
    assert kept == [False, False, True, True, True]


# -- what it is not --------------------------------------------------------------------------------------------


def test_groups_are_refused_with_a_word_of_what_helps(redis_url: str) -> None:
    with rpc_on(redis_url) as backend:
        for refused in (
            lambda: backend.save_group(Group(group_id="g", result=[])),
            lambda: backend.load_group("g"),
            lambda: backend.join("g", 0, record(), 1),
            lambda: backend.finish_chord("g"),
        ):
            with pytest.raises(NoGroups, match="redis://"):
                refused()
        backend.forget_group("g")


@pytest.mark.parametrize("options", [BackendOptions(), None])
def test_a_broker_without_a_bus_is_refused(options: BackendOptions | None, tmp_path: Any) -> None:
    sqlite = BackendOptions(open_broker=lambda: open_broker(f"sqlite:///{tmp_path}/c.db", BrokerOptions()))
    with pytest.raises(ImproperlyConfigured, match="Redis or RabbitMQ"):
        RPCBackend("rpc://", options or sqlite)


# -- processes, threads and broken connections -----------------------------------------------------------------


def test_nothing_is_left_behind(redis_url: str) -> None:
    before = threading.active_count()
    with rpc_on(redis_url) as client, redis.Redis.from_url(redis_url) as server:
        client.put([to(client, one := record())])
        ended(client, one.task_id)
        assert threading.active_count() == before + 1
        client.close()
        assert threading.active_count() == before
        assert server.keys() == []
        assert states(client, one.task_id) == [SUCCESS]


def test_a_forked_child_has_a_queue_of_its_own(url: str) -> None:
    with rpc_on(url) as client:
        mine = client.reply_to

        def child() -> None:
            assert client.reply_to != mine
            client.put([to(client, one := record())])
            ended(client, one.task_id)
            client.put([record("to the parent", reply_to=mine)])
            client.close()

        in_fork(child)
        assert ended(client, "to the parent")
        assert client.reply_to == mine


def test_threads_share_one_queue(url: str) -> None:
    with rpc_on(url) as client:

        def use() -> str:
            client.put([to(client, one := record())])
            ended(client, one.task_id)
            return client.reply_to

        assert len({each.result() for each in [InThread(use) for _ in range(5)]}) == 1


def test_results_come_again_after_the_connection_was_lost(url: str) -> None:
    with Proxy(url) as proxy, rpc_on(proxy.url) as client, rpc_on(url) as worker:
        reply_to = client.reply_to
        proxy.cut()

        def is_back() -> bool:
            # What is sent before it listens again is lost, as always.
            one = record(reply_to=reply_to)
            worker.put([one])
            return bool(list(client.watch([one.task_id], 0.2)))

        eventually(is_back)


def test_a_call_waits_for_a_broker_that_is_away_for_a_moment(url: str) -> None:
    with Proxy(url) as proxy, rpc_on(proxy.url) as client:
        proxy.refuse()
        waiting = InThread(lambda: client.reply_to)
        proxy.resume()
        assert waiting.result()


def test_a_broker_that_is_away_is_an_error(url: str) -> None:
    broker = BrokerOptions()
    with Proxy(url) as proxy:
        proxy.refuse()
        options = BackendOptions(timeout=0.2, open_broker=lambda: open_broker(proxy.url, broker))
        with closing(RPCBackend("rpc://", options)) as client:
            with pytest.raises(ConnectionLost):
                _ = client.reply_to
            with pytest.raises(ConnectionLost):
                client.put([record(reply_to="somebody", state=FAILURE)])
