"""The SQLite file: what is refused, what goes wrong with it, and that it works again afterwards."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celeriac.backends import open_backend
from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.brokers import open_broker
from celeriac.brokers.base import Broker, BrokerOptions, Completion, QueueSize, Settlement
from celeriac.errors import ConnectionLost, ImproperlyConfigured, OperationalError, PublishFailed
from celeriac.sql import open_database
from celeriac.testing.conformance.harness import envelope, ids, in_fork, outgoing, take
from celeriac.topology import Queue
from celeriac.wire.disposition import ACK
from celeriac.wire.envelope import Outgoing
from celeriac.wire.record import Record

QUEUE = Queue("q")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "celeriac.db"


@pytest.fixture
def broker(file: Path) -> Iterator[Broker]:
    broker = open_broker(f"sqlite:///{file}", BrokerOptions(publish_timeout=0.2))
    yield broker
    broker.close()


@pytest.fixture
def backend(file: Path) -> Iterator[ResultBackend]:
    backend = open_backend(f"sqlite:///{file}", BackendOptions(timeout=0.2))
    yield backend
    backend.close()


def open_connections(file: Path) -> int:
    """How often this process has the database open."""
    links = Path("/proc/self/fd").iterdir()
    return sum(os.path.realpath(link) == str(file) for link in links)


# -- URLs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:x?mode=memory"]
)
def test_a_database_in_memory_is_refused_and_memory_named(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="memory://"):
        open_broker(url, BrokerOptions())
    with pytest.raises(ImproperlyConfigured, match="memory://"):
        open_backend(url, BackendOptions())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://celeriac.db", "three slashes"),
        ("sqlite://host/celeriac.db", "three slashes"),
        ("sqlite:///celeriac.db?timeout=5", "synchronous"),
        ("sqlite:///celeriac.db?synchronous=sometimes", "synchronous"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, reason: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=reason):
        open_broker(url, BrokerOptions())


def test_databases_of_other_kinds_are_not_supported_yet() -> None:
    with pytest.raises(ImproperlyConfigured, match="postgresql"):
        open_broker("postgresql://localhost/tasks", BrokerOptions())


def test_opening_touches_no_file(file: Path, broker: Broker, backend: ResultBackend) -> None:
    assert not file.exists()


def test_every_way_to_a_file_is_one_database(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = file.with_name("link.db")
    link.symlink_to(file)
    monkeypatch.chdir(file.parent)
    database = open_database(f"sqlite:///{file}")
    assert open_database("sqlite:///celeriac.db") is database
    assert open_database(f"sqlite+pysqlite:///{link}") is database
    assert open_database("sqlite:///other.db") is not database


@pytest.mark.parametrize(("option", "mode"), [("", 1), ("?synchronous=full", 2), ("?synchronous=off", 0)])
def test_the_synchronous_mode_is_an_option_of_the_url(file: Path, option: str, mode: int) -> None:
    database = open_database(f"sqlite:///{file}{option}")
    with database.transaction(1) as transaction:
        assert transaction.rows("PRAGMA synchronous") == [(mode,)]
    database.close()


def test_the_safest_mode_that_somebody_asks_for_is_everybodys(file: Path) -> None:
    database = open_database(f"sqlite:///{file}?synchronous=off")
    for option, mode in (("", 0), ("?synchronous=full", 2), ("?synchronous=normal", 2)):
        assert open_database(f"sqlite:///{file}{option}") is database
        with database.transaction(1) as transaction:
            assert transaction.rows("PRAGMA synchronous") == [(mode,)]
    database.close()


# -- connections ----------------------------------------------------------------------------------------------------


def test_broker_and_backend_share_connections_and_close_them_all(
    file: Path, broker: Broker, backend: ResultBackend
) -> None:
    broker.publish([outgoing(QUEUE)])
    backend.put([Record(task_id="a", state="SUCCESS", result=b"1")])
    backend.get(["a"])
    assert 1 <= open_connections(file) <= 2
    broker.close()
    assert open_connections(file) == 0
    assert not file.with_name("celeriac.db-wal").exists()


def test_who_lets_go_of_a_database_closes_it(file: Path) -> None:
    broker = open_broker(f"sqlite:///{file}", BrokerOptions())
    broker.publish([outgoing(QUEUE)])
    assert open_connections(file) > 0
    del broker
    gc.collect()
    assert open_connections(file) == 0


def test_a_consumer_leaves_nothing_beside_the_file(file: Path, broker: Broker) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    assert file.with_name("celeriac.db-run").is_dir()
    assert list(consumer.fetch(1, 0.01)) == []
    consumer.close()
    broker.close()
    assert os.listdir(file.parent) == ["celeriac.db"]


def test_threads_that_ended_leave_no_connections_behind(file: Path, broker: Broker) -> None:
    for _ in range(10):
        thread = threading.Thread(target=lambda: broker.publish([outgoing(QUEUE)]))
        thread.start()
        thread.join()
    assert open_connections(file) <= 2
    assert broker.size("q").ready == 10


def test_a_fork_in_the_middle_of_another_threads_transaction(file: Path, broker: Broker) -> None:
    database = open_database(f"sqlite:///{file}")
    broker.publish([outgoing(QUEUE, "before")])
    with database.transaction(1) as transaction:
        transaction.run("DELETE FROM celeriac_message")

        def child() -> None:
            assert broker.size("q") == QueueSize(1, 0, 0)
            with pytest.raises(PublishFailed, match="locked"):
                broker.publish([outgoing(QUEUE, "child")])

        in_fork(child)
    assert broker.size("q") == QueueSize(0, 0, 0)
    in_fork(lambda: broker.publish([outgoing(QUEUE, "child")]))
    assert broker.size("q") == QueueSize(1, 0, 0)


def test_a_forked_child_that_ends_properly_does_not_disturb_its_parent(file: Path, broker: Broker) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    broker.publish([outgoing(QUEUE, "a")])
    [delivery] = take(consumer, 1)

    def child() -> None:
        gc.collect()
        broker.publish([outgoing(QUEUE, "b")])
        broker.close()

    in_fork(child)
    assert ids(take(consumer, 1)) == ["b"]
    assert list(consumer.settle([Settlement(delivery, ACK)])) == []
    consumer.close()


# -- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(file: Path, broker: Broker) -> Iterator[sqlite3.Connection]:
    """Somebody else is in a transaction that writes."""
    broker.declare([QUEUE])
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


def test_a_locked_file_fails_a_publish_in_time_and_names_the_messages(
    file: Path, broker: Broker, locked: sqlite3.Connection
) -> None:
    began = time.monotonic()
    with pytest.raises(PublishFailed, match=r"celeriac\.db is locked: another program .* 0\.2 s") as failed:
        broker.publish([outgoing(QUEUE, "a"), outgoing(QUEUE, "b")])
    assert 0.2 <= time.monotonic() - began < 2
    assert failed.value.ids == ("a", "b")
    assert not failed.value.unroutable


def test_a_publish_waits_for_a_lock_that_is_released(broker: Broker, locked: sqlite3.Connection) -> None:
    patient = open_broker(broker.url, BrokerOptions(publish_timeout=20))
    thread = threading.Thread(target=lambda: patient.publish([outgoing(QUEUE, "a")]))
    thread.start()
    locked.execute("COMMIT")
    thread.join()
    assert broker.size("q").ready == 1


def test_a_thread_that_keeps_the_lock_of_this_process_fails_others_in_time(
    file: Path, broker: Broker
) -> None:
    broker.declare([QUEUE])
    with open_database(broker.url).transaction(1):
        with pytest.raises(PublishFailed, match="locked"):
            broker.publish([outgoing(QUEUE)])
    broker.publish([outgoing(QUEUE)])
    assert broker.size("q").ready == 1


def test_a_locked_file_fails_every_other_operation_too_and_loses_nothing(
    broker: Broker, backend: ResultBackend, locked: sqlite3.Connection
) -> None:
    locked.execute("COMMIT")
    consumer = broker.consumer([QUEUE], name="w")
    backend.revoked(0)
    broker.publish([outgoing(QUEUE, "a"), outgoing(QUEUE, "b")])
    [delivery] = take(consumer, 1)
    locked.execute("BEGIN IMMEDIATE")
    for attempt in (
        lambda: consumer.fetch(1, 1),
        lambda: consumer.settle([Settlement(delivery, ACK)]),
        consumer.renew,
        lambda: backend.put([Record(task_id="a", state="SUCCESS", result=b"1")]),
        lambda: broker.purge("q"),
    ):
        with pytest.raises(ConnectionLost, match="locked"):
            attempt()
    assert broker.size("q") == QueueSize(1, 0, 1)  # reading goes on
    assert list(backend.get(["a"])) == [None]
    locked.execute("COMMIT")
    assert list(consumer.settle([Settlement(delivery, ACK)])) == []
    assert ids(take(consumer, 1)) == ["b"]
    consumer.close()


def test_a_missing_directory_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    broker = open_broker(f"sqlite:///{tmp_path}/none/celeriac.db", BrokerOptions())
    with pytest.raises(ImproperlyConfigured, match=r"there is no directory .*/none$"):
        broker.publish([outgoing(QUEUE)])
    (tmp_path / "none").mkdir()
    broker.publish([outgoing(QUEUE)])
    assert broker.size("q").ready == 1
    broker.close()


def test_a_directory_that_goes_away_is_an_outage(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    broker = open_broker(f"sqlite:///{home}/celeriac.db", BrokerOptions())
    broker.publish([outgoing(QUEUE)])
    home.rename(tmp_path / "away")
    with pytest.raises(PublishFailed, match="no directory"):
        broker.publish([outgoing(QUEUE)])
    (tmp_path / "away").rename(home)
    broker.publish([outgoing(QUEUE)])
    assert broker.size("q").ready == 2
    broker.close()


def test_a_directory_in_place_of_the_file_is_a_mistake(tmp_path: Path) -> None:
    broker = open_broker(f"sqlite:///{tmp_path}", BrokerOptions())
    with pytest.raises(ImproperlyConfigured, match="it is a directory"):
        broker.publish([outgoing(QUEUE)])


def test_another_kind_of_file_is_a_mistake_and_is_left_as_it_is(file: Path, broker: Broker) -> None:
    text = b"This is no database, but somebody's letter. " * 100
    file.write_bytes(text)
    with pytest.raises(ImproperlyConfigured, match=r"celeriac\.db is not an SQLite database"):
        broker.publish([outgoing(QUEUE)])
    assert file.read_bytes() == text


def test_a_damaged_file_is_told_in_one_line(file: Path, broker: Broker, backend: ResultBackend) -> None:
    broker.publish([outgoing(QUEUE) for _ in range(500)])
    backend.revoked(0)
    broker.close()
    with open(file, "r+b") as raw:
        raw.seek(4096)
        raw.write(os.urandom(file.stat().st_size - 4096))
    with pytest.raises(OperationalError, match=r"celeriac\.db is damaged .* \.recover") as failed:
        broker.size("q")
    assert "\n" not in str(failed.value)
    assert not isinstance(failed.value, ConnectionLost)


def as_nobody(function: Callable[[], None]) -> None:
    """Run a test as a user to whom permissions apply."""

    def child() -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        function()

    in_fork(child)


def test_a_file_that_may_not_be_written_is_told_and_works_again() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        file = Path(folder, "celeriac.db")
        broker = open_broker(f"sqlite:///{file}", BrokerOptions())

        def use_it() -> None:
            broker.publish([outgoing(QUEUE)])
            broker.close()
            file.chmod(0o444)
            with pytest.raises(PublishFailed, match="read-only"):
                broker.publish([outgoing(QUEUE)])
            for each in Path(folder).iterdir():
                each.chmod(0o644)
            broker.publish([outgoing(QUEUE)])
            assert broker.size("q").ready == 2
            broker.close()
            file.chmod(0)
            with pytest.raises(OperationalError, match="let this user write it"):
                broker.size("q")
            file.chmod(0o644)
            assert broker.size("q").ready == 2

        as_nobody(use_it)


def mount(path: Path, *options: str) -> None:
    subprocess.run(["mount", *options, str(path)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount(disk, "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"a small file system takes root: {exc}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_read_only_disk_is_told_and_works_again(disk: Path) -> None:
    broker = open_broker(f"sqlite:///{disk}/celeriac.db", BrokerOptions())
    broker.publish([outgoing(QUEUE)])
    broker.close()
    mount(disk, "-o", "remount,ro")
    with pytest.raises(OperationalError, match=r"read-only|let this user write"):
        broker.publish([outgoing(QUEUE)])
    mount(disk, "-o", "remount,rw")
    broker.publish([outgoing(QUEUE)])
    assert broker.size("q").ready == 2
    broker.close()


def test_a_full_disk_loses_nothing_and_works_again(disk: Path) -> None:
    url = f"sqlite:///{disk}/celeriac.db"
    broker, backend = open_broker(url, BrokerOptions()), open_backend(url, BackendOptions())
    consumer = broker.consumer([QUEUE], name="w")
    unit = consumer.unit(backend)
    backend.revoked(0)
    broker.publish([outgoing(QUEUE, "first")])
    [delivery] = take(consumer, 1)
    published: list[str] = []

    def publish_until_it_fails() -> None:
        body = os.urandom(20_000)
        for number in range(1000):
            broker.publish([Outgoing(envelope(f"{number}", body), "", "q", queue=QUEUE)])
            published.append(f"{number}")

    with pytest.raises(PublishFailed, match=r"no space left for .*celeriac\.db|disk is full") as failed:
        publish_until_it_fails()
    assert failed.value.ids == (f"{len(published)}",)
    big = Record(task_id="first", state="SUCCESS", result=os.urandom(500_000))
    with pytest.raises(ConnectionLost, match=r"no space|disk is full"):
        unit.complete([Completion(Settlement(delivery, ACK), big)])
    assert list(backend.get(["first"])) == [None]
    assert broker.size("q") == QueueSize(len(published), 0, 1)

    mount(disk, "-o", "remount,size=8m")
    assert list(unit.complete([Completion(Settlement(delivery, ACK), big)])) == []
    broker.publish([outgoing(QUEUE, "last")])
    assert ids(take(consumer, len(published) + 1)) == [*published, "last"]
    consumer.close()
    broker.close()


# -- another file in its place --------------------------------------------------------------------------------------


def test_a_deleted_file_is_made_anew_and_not_written_to_its_ghost(file: Path, broker: Broker) -> None:
    broker.publish([outgoing(QUEUE, "lost with the file")])
    for path in file.parent.glob("celeriac.db*"):
        path.unlink()
    broker.publish([outgoing(QUEUE, "a")])
    assert broker.size("q") == QueueSize(1, 0, 0)
    with sqlite3.connect(file) as other:
        assert other.execute("SELECT count(*) FROM celeriac_message").fetchall() == [(1,)]
    other.close()


def test_a_consumer_whose_file_was_replaced_goes_on_with_the_new_one(file: Path, broker: Broker) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    broker.publish([outgoing(QUEUE, "old")])
    [old] = take(consumer, 1)
    for path in file.parent.glob("celeriac.db*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    broker.publish([outgoing(QUEUE, "new")])
    [new] = take(consumer, 1)
    assert new.envelope.task_id == "new"
    assert list(consumer.renew()) == [old]
    assert list(consumer.settle([Settlement(new, ACK)])) == []
    consumer.close()
