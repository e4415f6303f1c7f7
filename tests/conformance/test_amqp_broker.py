"""RabbitMQ against the suite, with classic and with quorum queues."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from amqp_support import vhost
from celeriac.brokers import open_broker
from celeriac.brokers.base import Broker, BrokerOptions
from celeriac.testing.conformance.broker import BrokerConformance
from celeriac.topology import Queue

__all__ = ["vhost"]


class TestAMQPBroker(BrokerConformance):
    real_time = True

    @pytest.fixture
    def server(self, vhost: str) -> str:
        return vhost

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        return open_broker(server, options)

    @pytest.fixture
    def queue(self) -> Queue:
        return Queue(f"q-{uuid4().hex[:12]}", max_priority=9)


class TestQuorumQueues(TestAMQPBroker):
    """They know no priorities, and count deliveries by themselves."""

    def open(self, server: Any, options: BrokerOptions) -> Broker:
        broker = super().open(server, options)
        broker.traits = replace(broker.traits, priorities=False)
        return broker

    @pytest.fixture
    def queue(self) -> Queue:
        return Queue(f"q-{uuid4().hex[:12]}", queue_arguments={"x-queue-type": "quorum"})

    def test_returned_messages_come_again_first_and_in_order(self) -> None:
        pytest.skip("a quorum queue puts what is returned at its end")
