"""Result backends: where the outcome of each task is kept. `open_backend` finds the one for a URL."""

from __future__ import annotations

from celeriac.backends.base import BackendOptions, ResultBackend
from celeriac.backends.schemes import Schemes

__all__ = ["open_backend"]

_PLANNED = (
    "arangodb", "azureblockblob", "cache", "cassandra", "consul", "cosmosdbsql", "couchbase", "couchdb",
    "dynamodb", "elasticsearch", "file", "filesystem", "gcs", "gs", "mariadb", "mongodb", "mysql", "postgresql",
    "s3",
)  # fmt: skip

_SCHEMES = Schemes(
    kind="result backend",
    known={
        "disabled": "celeriac.backends.disabled:DisabledBackend",
        "memory": "celeriac.backends.memory:MemoryBackend",
        "sqlite": "celeriac.backends.sql:SQLBackend",
        **dict.fromkeys(
            ("redis", "rediss", "unix", "sentinel", "valkey", "valkeys"),
            "celeriac.backends.redis:RedisBackend",
        ),
        "rpc": "celeriac.backends.rpc:RPCBackend",
    },
    planned=_PLANNED,
    prefixes={"db"},
    entry_points="celeriac.backends",
)


def open_backend(url: str, options: BackendOptions) -> ResultBackend:
    """The result backend that `url` names; nothing is connected yet.

    Raises `ImproperlyConfigured` for a scheme that nobody serves, `MissingExtra` where its driver is missing.
    """
    url, cls = _SCHEMES.find(url)
    return cls(url, options)
