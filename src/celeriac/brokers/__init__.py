"""Message servers: where tasks wait for a worker. `open_broker` finds the one for a URL."""

from __future__ import annotations

from celeriac.backends.schemes import Schemes
from celeriac.brokers.base import Broker, BrokerOptions

__all__ = ["open_broker"]

_PLANNED = (
    "azureservicebus", "azurestoragequeues", "confluentkafka", "consul", "etcd", "filesystem",
    "gcpubsub", "ironmq", "mariadb", "mongodb", "mysql", "postgresql", "pyro", "qpid", "sqs", "zookeeper",
)  # fmt: skip

_SCHEMES = Schemes(
    kind="broker",
    known={
        "memory": "celeriac.brokers.memory:MemoryBroker",
        "sqlite": "celeriac.brokers.sql:SQLBroker",
        **dict.fromkeys(
            ("redis", "rediss", "unix", "sentinel", "valkey", "valkeys"), "celeriac.brokers.redis:RedisBroker"
        ),
        **dict.fromkeys(("amqp", "amqps", "pyamqp", "librabbitmq"), "celeriac.brokers.amqp:AMQPBroker"),
    },
    planned=_PLANNED,
    prefixes={"sqla", "sqlalchemy"},
    entry_points="celeriac.brokers",
)


def open_broker(url: str, options: BrokerOptions) -> Broker:
    """The broker that `url` names; nothing is connected yet.

    Raises `ImproperlyConfigured` for a scheme that nobody serves, `MissingExtra` where its driver is missing.
    """
    url, cls = _SCHEMES.find(url)
    return cls(url, options)
