"""Servers for tests: found or started, with room of one's own, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import amqp
import pytest
import redis

from celeriac.testing import servers as module
from celeriac.testing.guard import descendants
from celeriac.testing.plugin import skipped_without_server
from celeriac.testing.servers import (
    PrivateRabbitMQ,
    PrivateRedis,
    ServerMissing,
    Servers,
    free_port,
    make_certificates,
)
from support import eventually, is_dead


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbitMQ]:
    with skipped_without_server():
        server = PrivateRabbitMQ(tmp_path_factory.mktemp("rabbitmq"), consumer_timeout=7)
    with server:
        yield server


@pytest.fixture
def private(tmp_path: Path) -> Iterator[PrivateRedis]:
    with skipped_without_server():
        server = PrivateRedis(tmp_path / "redis", appendonly="always")
    with server:
        yield server


@pytest.fixture
def no_standard_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STANDARD_REDIS", f"redis://localhost:{free_port()}")
    monkeypatch.setattr(module, "_STANDARD_RABBITMQ", f"amqp://guest:guest@localhost:{free_port()}//")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, no_standard_ports: None) -> None:
    monkeypatch.setattr("shutil.which", lambda name, **_: None)


def log_in(url: str) -> amqp.Connection:
    parts = urlsplit(url)
    connection = amqp.Connection(f"{parts.hostname}:{parts.port or 5672}", virtual_host=parts.path[1:])
    connection.connect()
    return connection


# -- a Redis of one's own ------------------------------------------------------------------------------------


def test_a_private_redis_serves(private: PrivateRedis) -> None:
    with redis.Redis.from_url(private.url) as client:
        assert client.ping()
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_it_was_told_survives_where_that_was_asked_for(private: PrivateRedis, end: str) -> None:
    with redis.Redis.from_url(private.url) as client:
        client.set("a", "b")
    url, processes = private.url, private.processes()
    getattr(private, end)()
    assert not private.running
    assert all(map(is_dead, processes))
    private.start()
    assert private.url == url
    with redis.Redis.from_url(private.url) as client:
        assert client.get("a") == b"b"


def test_a_paused_server_does_not_answer(private: PrivateRedis) -> None:
    with redis.Redis.from_url(private.url, socket_timeout=0.1, retry=None) as client:
        assert client.ping()
        private.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        private.resume()
        eventually(client.ping, within=5)


def test_a_paused_server_can_be_ended(private: PrivateRedis) -> None:
    private.pause()
    private.restart()
    private.pause()
    private.kill()


def test_users_and_passwords(tmp_path: Path) -> None:
    users = {"app": "on >se/cret ~app:* &* +@all"}
    with PrivateRedis(tmp_path, password="pass word", users=users) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.set("other", 1)
        with redis.Redis.from_url(server.url_of("app", "se/cret")) as client:
            assert client.set("app:a", 1)
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.set("other", 2)
        with redis.Redis(port=server.port, retry=None) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_encrypted(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    with PrivateRedis(tmp_path / "redis", tls=certificates) as server:
        assert server.url.startswith("rediss://")
        with redis.Redis.from_url(server.url, ssl_ca_certs=str(certificates.authority)) as client:
            assert client.ping()


def test_more_settings(private: PrivateRedis, tmp_path: Path) -> None:
    with (
        PrivateRedis(tmp_path / "replica", config={"replicaof": f"127.0.0.1 {private.port}"}) as replica,
        redis.Redis.from_url(replica.url) as client,
    ):
        assert client.info("replication")["role"] == "slave"


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    server = PrivateRedis(tmp_path, config={"no-such-setting": "1"})
    with pytest.raises(RuntimeError, match=r"(?s)ended with status 1.*no-such-setting"):
        server.start()
    assert not server.running


def test_a_server_is_started_once(private: PrivateRedis) -> None:
    with pytest.raises(RuntimeError, match="runs already"):
        private.start()


# -- a RabbitMQ of one's own ---------------------------------------------------------------------------------


def test_a_private_rabbitmq_serves(rabbitmq: PrivateRabbitMQ) -> None:
    with log_in(rabbitmq.add_vhost("room")) as connection:
        connection.channel().queue_declare("q")
    assert "q" in rabbitmq.rabbitmqctl("list_queues", "-p", "room")
    assert "{consumer_timeout,7000}" in rabbitmq.rabbitmqctl("environment")


def test_what_rabbitmqctl_says_is_told(rabbitmq: PrivateRabbitMQ) -> None:
    with pytest.raises(RuntimeError, match="list_nonsense"):
        rabbitmq.rabbitmqctl("list_nonsense")


def test_rabbitmq_is_killed_with_all_it_started_and_comes_back(rabbitmq: PrivateRabbitMQ) -> None:
    url, processes = rabbitmq.add_vhost("kept"), rabbitmq.processes()
    assert len(processes) > 2
    rabbitmq.kill()
    assert all(map(is_dead, processes))
    rabbitmq.start()
    log_in(url).close()


# -- the end of whoever started them -------------------------------------------------------------------------

_STARTS = """
import os, sys, time
from pathlib import Path
from celeriac.testing.servers import PrivateRedis
server = PrivateRedis(Path(sys.argv[1])).start()
if sys.argv[2] == "forked":
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
print(*server.processes(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["alone", "forked"])
def test_a_server_ends_with_its_parent_however_that_ends(tmp_path: Path, how: str) -> None:
    """Also where a child of the parent, forked later, lives on."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _STARTS, str(tmp_path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    processes = [int(each) for each in parent.stdout.readline().split()]
    assert len(processes) == 1
    assert not is_dead(processes[0])
    parent.kill()
    parent.wait()
    try:
        eventually(lambda: all(map(is_dead, processes)), within=5)
    finally:
        if how == "forked":
            os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


def test_descendants_are_told_parents_first(tmp_path: Path) -> None:
    tree = subprocess.Popen(["sh", "-c", "sh -c 'sleep 60; :' ; :"], start_new_session=True)
    try:
        eventually(lambda: len(descendants(tree.pid)) == 2)
        first, second = descendants(tree.pid)
        assert descendants(first) == [second]
    finally:
        os.killpg(tree.pid, signal.SIGKILL)
        tree.wait()


# -- room of one's own ---------------------------------------------------------------------------------------


def test_every_database_is_another_and_empty_before_and_after(private: PrivateRedis) -> None:
    with Servers({"REDIS_URL": private.url}) as servers:
        with servers.redis_database() as one, servers.redis_database() as two:
            assert one != two
            for url in (one, two):
                with redis.Redis.from_url(url) as client:
                    assert client.dbsize() == 0
                    client.set("a", "b")
        with servers.redis_database() as url, redis.Redis.from_url(url) as client:
            assert url == one
            assert client.dbsize() == 0


def test_databases_that_hold_keys_are_not_touched(private: PrivateRedis) -> None:
    place = urlsplit(private.url)
    for number in (15, 14):
        with redis.Redis(port=place.port or 0, db=number) as client:
            client.set("somebody", "else's")
    with Servers({"REDIS_URL": private.url}) as servers, servers.redis_database() as url:
        assert url.endswith("/13")
    with Servers({"REDIS_URL": place._replace(path="/15").geturl()}) as servers:
        with pytest.raises(ServerMissing, match="none that holds keys"), servers.redis_database():
            pass
    with redis.Redis(port=place.port or 0, db=15) as client:
        assert client.get("somebody") == b"else's"


def test_a_database_that_another_session_uses_is_not_touched(private: PrivateRedis) -> None:
    code = f"""
import sys
from celeriac.testing.servers import Servers
with Servers({{"REDIS_URL": {private.url!r}}}) as servers, servers.redis_database() as url:
    print(url, flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    taken = other.stdout.readline().strip()
    try:
        with Servers({"REDIS_URL": private.url}) as servers, servers.redis_database() as url:
            assert url != taken
    finally:
        other.communicate()
    with Servers({"REDIS_URL": private.url}) as servers, servers.redis_database() as url:
        assert url == taken


def test_a_redis_that_is_named_and_does_not_answer_is_told() -> None:
    url = f"redis://:hunter2@localhost:{free_port()}"
    with Servers({"REDIS_URL": url}) as servers, pytest.raises(ServerMissing) as caught:
        with servers.redis_database():
            pass
    assert "no Redis server answers at redis://:**@localhost" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_where_no_redis_runs_one_is_started(no_standard_ports: None) -> None:
    with skipped_without_server(), Servers({}) as servers:
        with servers.redis_database() as one, servers.redis_database() as two:
            assert urlsplit(one).port == urlsplit(two).port
            assert one != two
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(one).port or 0), 1)


def test_a_vhost_is_deleted_afterwards(celeriac_servers: Servers) -> None:
    with skipped_without_server(), celeriac_servers.rabbitmq_vhost() as url:
        with log_in(url) as connection:
            connection.channel().queue_declare("q")
    with pytest.raises(amqp.NotAllowed):
        log_in(url)


@pytest.mark.usefixtures("no_standard_ports")
def test_where_no_rabbitmq_runs_one_is_started(
    rabbitmq: PrivateRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(PrivateRabbitMQ):
        """The one of this module: a second one would take seconds."""

        def __init__(self, folder: Path) -> None:
            self.__dict__ |= rabbitmq.__dict__

        def __exit__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(module, "PrivateRabbitMQ", Started)
    with Servers({}) as servers, servers.rabbitmq_vhost() as url:
        log_in(url).close()
        assert urlsplit(url).port == rabbitmq.port
    assert "celeriac-tests" not in rabbitmq.rabbitmqctl("list_vhosts")


def test_a_rabbitmq_that_is_named_but_cannot_be_administered_is_used_as_it_is(
    rabbitmq: PrivateRabbitMQ,
) -> None:
    url = rabbitmq.url
    with Servers({"AMQP_URL": url}) as servers, servers.rabbitmq_vhost() as room:
        assert room == url


def test_a_rabbitmq_that_is_named_and_does_not_answer_is_told() -> None:
    url = f"amqp://me:hunter2@localhost:{free_port()}//"
    with Servers({"AMQP_URL": url}) as servers, pytest.raises(ServerMissing) as caught:
        with servers.rabbitmq_vhost():
            pass
    assert "no RabbitMQ server answers at amqp://me:**@localhost" in str(caught.value)


# -- no server -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(
    ("room", "package"), [("redis_database", "redis-server"), ("rabbitmq_vhost", "rabbitmq-server")]
)
@pytest.mark.parametrize("ci", [True, False])
def test_a_missing_server_is_a_skip_and_in_ci_a_failure(
    monkeypatch: pytest.MonkeyPatch, room: str, package: str, ci: bool
) -> None:
    if ci:
        monkeypatch.setenv("CI", "true")
    else:
        monkeypatch.delenv("CI", raising=False)
    outcome = pytest.fail.Exception if ci else pytest.skip.Exception
    with Servers({}) as servers, pytest.raises(outcome, match=f"apt-get install {package}"):
        with skipped_without_server(), getattr(servers, room)():
            pass
