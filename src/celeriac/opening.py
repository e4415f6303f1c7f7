"""What the settings tell a broker and a result backend beside their URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.backends.base import BackendOptions
from celeriac.brokers import open_broker
from celeriac.brokers.base import BrokerOptions

if TYPE_CHECKING:
    from celeriac.settings import Settings

__all__ = ["backend_options", "broker_options"]

#: Settings of single kinds of result backends; each backend reads its own.
_OF_BACKENDS = (
    "arangodb_", "azureblockblob_", "cache_", "cassandra_", "cosmosdbsql_", "couchbase_", "database_", "dynamodb_",
    "elasticsearch_", "firestore_", "gcs_", "mongodb_", "redis_", "s3_",
    "accept_content", "result_accept_content", "result_cache_max", "result_chord_expires",
    "result_failure_expires", "result_persistent",
)  # fmt: skip


def broker_options(settings: Settings) -> BrokerOptions:
    """Options of the broker of these settings."""
    return BrokerOptions(
        publish_timeout=settings.broker_publish_timeout,
        lease=settings.worker_lease,
        transport=settings.broker_transport_options,
        connect_timeout=settings.broker_connection_timeout,
        ssl=settings.broker_use_ssl,
        heartbeat=settings.broker_heartbeat or None,
        login_method=settings.broker_login_method,
        failover=settings.broker_failover_strategy or "round-robin",
        pool_limit=settings.broker_pool_limit or None,
        delayed_queue_type=settings.broker_native_delayed_delivery_queue_type,
    )


def backend_options(settings: Settings) -> BackendOptions:
    """Options of the result backend of these settings: ``result_backend_transport_options``, and under their own
    names ``result_serializer`` and what somebody set of the settings of its kind (``database_table_names`` …)."""
    own = {name: value for name, value in settings.changes.items() if name.startswith(_OF_BACKENDS)}
    return BackendOptions(
        expires=settings.result_expires or None,
        transport={
            "result_serializer": settings.result_serializer,
            **own,
            **settings.result_backend_transport_options,
        },
        open_broker=lambda: open_broker(settings.effective_broker_url, broker_options(settings)),
    )
