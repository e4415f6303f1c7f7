"""Publishing within a transaction of the user's own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from celeriac.brokers import open_broker
from celeriac.brokers.base import Broker, BrokerOptions, QueueSize
from celeriac.errors import OperationalError, PublishFailed
from celeriac.testing.conformance.harness import PATIENCE, InThread, envelope, ids, outgoing, take
from celeriac.topology import Exchange, Queue
from celeriac.wire.envelope import Outgoing

QUEUE = Queue("q")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/app.db"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": 1})
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def broker(url: str, engine: Engine) -> Iterator[Broker]:
    broker = open_broker(url, BrokerOptions(publish_timeout=1))
    yield broker
    broker.close()


def test_a_commit_makes_the_order_and_its_task_visible_together(engine: Engine, broker: Broker) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    with Session(engine) as session:
        session.add(Order(id=1))
        broker.publish_in(session, [outgoing(QUEUE, "a")])
        assert list(consumer.fetch(1, 0)) == []
        session.commit()
    assert ids(take(consumer, 1)) == ["a"]
    consumer.close()


def test_a_rollback_takes_both_back(engine: Engine, broker: Broker) -> None:
    broker.declare([QUEUE])
    with Session(engine) as session:
        session.add(Order(id=1))
        broker.publish_in(session, [outgoing(QUEUE)])
        session.rollback()
    assert broker.size("q") == QueueSize(0, 0, 0)


def test_a_savepoint_takes_its_part_back(engine: Engine, broker: Broker) -> None:
    # SQLite's driver begins transactions late by default, SQLAlchemy's documentation says how to have savepoints.
    sqlalchemy.event.listen(engine, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
    sqlalchemy.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    broker.declare([QUEUE])
    with engine.begin() as connection:
        broker.publish_in(connection, [outgoing(QUEUE, "kept")])
        savepoint = connection.begin_nested()
        broker.publish_in(connection, [outgoing(QUEUE, "taken back")])
        savepoint.rollback()
    consumer = broker.consumer([QUEUE], name="w")
    assert ids(take(consumer, 1)) == ["kept"]
    assert list(consumer.fetch(1, 0)) == []
    consumer.close()


def test_a_waiting_consumer_notices_the_commit(engine: Engine, broker: Broker) -> None:
    consumer = broker.consumer([QUEUE], name="w")
    waiting = InThread(lambda: consumer.fetch(1, PATIENCE))
    with engine.begin() as connection:
        broker.publish_in(connection, [outgoing(QUEUE, "a")])
    assert ids(waiting.result()) == ["a"]
    consumer.close()


def test_the_first_message_ever_can_be_published_in_a_transaction_that_has_written(
    engine: Engine, broker: Broker
) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        session.flush()
        broker.publish_in(session, [outgoing(QUEUE, "a")])
        session.commit()
    consumer = broker.consumer([QUEUE], name="w")
    assert ids(take(consumer, 1)) == ["a"]
    consumer.close()


def test_the_first_message_ever_can_be_rolled_back(engine: Engine, broker: Broker) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        session.flush()
        broker.publish_in(session, [outgoing(QUEUE, "a")])
        session.rollback()
    broker.publish([outgoing(QUEUE, "b")])
    assert broker.size("q") == QueueSize(1, 0, 0)


def test_a_queue_that_a_rolled_back_message_brought_along_is_brought_again(
    engine: Engine, broker: Broker
) -> None:
    bound = Queue("bound", Exchange("x", "topic"), "a.#")
    for end in ("rollback", "commit"):
        with engine.connect() as connection:
            broker.publish_in(connection, [Outgoing(envelope(), "x", "a.b", queue=bound)])
            getattr(connection, end)()
    assert broker.size("bound") == QueueSize(1, 0, 0)


def test_a_scoped_session_is_a_session(engine: Engine, broker: Broker) -> None:
    session = scoped_session(sessionmaker(engine))
    broker.publish_in(session, [outgoing(QUEUE)])
    session.commit()
    session.remove()
    assert broker.size("q") == QueueSize(1, 0, 0)


def test_a_database_that_is_named_in_another_way_is_the_same(
    engine: Engine, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broker = open_broker("sqlite:///app.db", BrokerOptions())
    with engine.begin() as connection:
        broker.publish_in(connection, [outgoing(QUEUE)])
    assert broker.size("q") == QueueSize(1, 0, 0)
    broker.close()


@pytest.mark.parametrize("other", ["sqlite:///{}/other.db", "sqlite://"])
def test_a_transaction_on_another_database_is_refused(broker: Broker, tmp_path: Path, other: str) -> None:
    engine = sqlalchemy.create_engine(other.format(tmp_path))
    with engine.begin() as connection, pytest.raises(TypeError, match=r"tasks that are in .*app\.db"):
        broker.publish_in(connection, [outgoing(QUEUE)])
    engine.dispose()


def test_a_connection_of_the_driver_is_refused(broker: Broker, tmp_path: Path) -> None:
    raw = sqlite3.connect(tmp_path / "app.db")
    with pytest.raises(TypeError, match="not a SQLAlchemy Connection or Session: Connection"):
        broker.publish_in(raw, [outgoing(QUEUE)])
    raw.close()


def test_an_asynchronous_session_is_told_how_to(broker: Broker) -> None:
    class AsyncSession:  # SQLAlchemy's own cannot be imported without greenlet
        def run_sync(self) -> None: ...

    with pytest.raises(TypeError, match=r"AsyncSession\.run_sync"):
        broker.publish_in(AsyncSession(), [outgoing(QUEUE)])


def test_unroutable_messages_are_named_and_the_others_are_in_the_transaction(
    engine: Engine, broker: Broker
) -> None:
    broker.declare([QUEUE])
    with engine.begin() as connection:
        with pytest.raises(PublishFailed) as failed:
            broker.publish_in(connection, [outgoing(QUEUE, "a"), Outgoing(envelope("b"), "none", "key")])
        assert (failed.value.ids, failed.value.unroutable) == (("b",), True)
    assert broker.size("q") == QueueSize(1, 0, 0)


def test_a_database_that_is_locked_is_an_error_of_ours(
    engine: Engine, broker: Broker, tmp_path: Path
) -> None:
    broker.declare([QUEUE])
    with sqlite3.connect(tmp_path / "app.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with engine.connect() as connection:
            with pytest.raises(
                OperationalError, match="cannot publish within the transaction: database is locked"
            ):
                broker.publish_in(connection, [outgoing(QUEUE)])
            connection.rollback()
        other.execute("COMMIT")
    other.close()


def test_other_statements_of_the_transaction_stay_as_they_are(engine: Engine, broker: Broker) -> None:
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO orders (id) VALUES (:id)"), {"id": 5})
        broker.publish_in(connection, [outgoing(QUEUE) for _ in range(100)])
        assert connection.execute(text("SELECT id FROM orders")).scalars().all() == [5]
    assert broker.size("q") == QueueSize(100, 0, 0)
