"""The settings of single kinds of result stores."""

from __future__ import annotations

from celeriac.settings.field import section, setting
from celeriac.settings.kinds import ClassPath, Hook, Names, Options, Path, Seconds, Tls

__all__ = ["CloudSettings", "DatabaseSettings", "OtherStoreSettings", "RedisSettings"]


@section("Database results")
class DatabaseSettings:
    database_url: str | None = setting(
        None, "CELERY_RESULT_DBURI", "The database, where `result_backend` is just `database`."
    )
    database_engine_options: Options = setting(
        {"pool_pre_ping": True, "pool_recycle": 3600},
        "CELERY_RESULT_ENGINE_OPTIONS",
        "Arguments of SQLAlchemy's `create_engine`.",
    )
    database_engine_callback: Hook | None = setting(
        None, "DATABASE_ENGINE_CALLBACK", "A function that is called with the engine when it is made."
    )
    database_short_lived_sessions: bool = setting(
        False,
        "CELERY_RESULT_DB_SHORT_LIVED_SESSIONS",
        "Connect anew for each operation. Without effect: a connection is held for one operation only.",
    )
    database_table_schemas: Options | None = setting(
        None, "DATABASE_TABLE_SCHEMAS", "Schemas of the tables: a dict with `task` and `group`."
    )
    database_table_names: Options | None = setting(
        None, "CELERY_RESULT_DB_TABLENAMES", "Names of the tables: a dict with `task` and `group`."
    )
    database_create_tables_at_setup: bool = setting(
        True,
        "DATABASE_CREATE_TABLES_AT_SETUP",
        "Create tables that are missing when the database is first used.",
    )
    db_reuse_max: int | None = setting(
        None,
        "CELERY_DB_REUSE_MAX",
        "Django: tasks before its database connections are opened anew.",
        later=True,
        least=0,
    )


@section("Redis results")
class RedisSettings:
    redis_backend_use_ssl: Tls | None = setting(
        None, "CELERY_REDIS_BACKEND_USE_SSL", "TLS options (`ssl_*`) of the connection."
    )
    redis_db: int | None = setting(None, "CELERY_REDIS_DB", "Database number, where no URL says it.", least=0)
    redis_host: str | None = setting(None, "CELERY_REDIS_HOST", "Host, where no URL says it.")
    redis_max_connections: int | None = setting(
        None, "CELERY_REDIS_MAX_CONNECTIONS", "Most connections of a process.", least=1
    )
    redis_username: str | None = setting(None, "CELERY_REDIS_USERNAME", "Who to log in as.")
    redis_password: str | None = setting(None, "CELERY_REDIS_PASSWORD", "With which password.")
    redis_port: int | None = setting(None, "CELERY_REDIS_PORT", "Port, where no URL says it.", least=0)
    redis_socket_timeout: Seconds | None = setting(
        120.0,
        "CELERY_REDIS_SOCKET_TIMEOUT",
        "How long an answer may take. None: as long as it takes.",
    )
    redis_socket_connect_timeout: Seconds | None = setting(
        None,
        "CELERY_REDIS_SOCKET_CONNECT_TIMEOUT",
        "How long connecting may take. None: as the one above.",
    )
    redis_retry_on_timeout: bool = setting(
        False, "CELERY_REDIS_RETRY_ON_TIMEOUT", "Ask once more when an answer took too long.", later=True
    )
    redis_socket_keepalive: bool = setting(
        False, "CELERY_REDIS_SOCKET_KEEPALIVE", "TCP keepalive on the connection."
    )
    redis_backend_health_check_interval: Seconds | None = setting(
        None, "", "A connection idle for longer is pinged before use.", later=True
    )
    redis_backend_credential_provider: ClassPath | None = setting(
        None, "", "A class that gives user and password.", later=True
    )
    redis_client_name: str | None = setting(None, "", "Name of the connections in `CLIENT LIST`.")


@section("Other result stores")
class OtherStoreSettings:
    cache_backend: str | None = setting(
        None, "CELERY_CACHE_BACKEND", "The cache, where `result_backend` is just `cache`.", later=True
    )
    cache_backend_options: Options = setting(
        {}, "CELERY_CACHE_BACKEND_OPTIONS", "Options of its client.", later=True
    )
    cassandra_entry_ttl: Seconds | None = setting(
        None, "CASSANDRA_ENTRY_TTL", "How long a result is kept. None: for ever.", later=True
    )
    cassandra_keyspace: str | None = setting(None, "CASSANDRA_KEYSPACE", "Keyspace of the table.", later=True)
    cassandra_port: int | None = setting(None, "CASSANDRA_PORT", "Port. None: 9042.", later=True, least=0)
    cassandra_read_consistency: str | None = setting(
        None, "CASSANDRA_READ_CONSISTENCY", "Consistency level of reads. None: `LOCAL_QUORUM`.", later=True
    )
    cassandra_servers: Names | None = setting(None, "CASSANDRA_SERVERS", "Hosts to begin with.", later=True)
    cassandra_bundle_path: Path | None = setting(
        None, "CASSANDRA_BUNDLE_PATH", "Another name of `cassandra_secure_bundle_path`.", later=True
    )
    cassandra_secure_bundle_path: Path | None = setting(
        None, "", "File that says how to connect to Astra, in place of hosts.", later=True
    )
    cassandra_table: str | None = setting(
        None, "CASSANDRA_TABLE", "Table (column family) of results.", later=True
    )
    cassandra_write_consistency: str | None = setting(
        None, "CASSANDRA_WRITE_CONSISTENCY", "Consistency level of writes. None: `LOCAL_QUORUM`.", later=True
    )
    cassandra_auth_provider: str | None = setting(
        None, "CASSANDRA_AUTH_PROVIDER", "Class in `cassandra.auth` that logs in.", later=True
    )
    cassandra_auth_kwargs: Options | None = setting(
        None, "CASSANDRA_AUTH_KWARGS", "Its arguments.", later=True
    )
    cassandra_options: Options = setting(
        {}, "CASSANDRA_OPTIONS", "Arguments of the driver's `Cluster`.", later=True
    )
    couchbase_backend_settings: Options | None = setting(
        None,
        "CELERY_COUCHBASE_BACKEND_SETTINGS",
        "`host`, `username`, `password`, `bucket`, `port`.",
        later=True,
    )
    arangodb_backend_settings: Options | None = setting(
        None,
        "CELERY_ARANGODB_BACKEND_SETTINGS",
        "`host`, `username`, `password`, `database`, `collection`, `port`, `http_protocol`.",
        later=True,
    )
    mongodb_backend_settings: Options | None = setting(
        None,
        "CELERY_MONGODB_BACKEND_SETTINGS",
        "`database`, `taskmeta_collection`, `max_pool_size`, `options`.",
        later=True,
    )
    elasticsearch_retry_on_timeout: bool | None = setting(
        None, "CELERY_ELASTICSEARCH_RETRY_ON_TIMEOUT", "Ask another node when one took too long.", later=True
    )
    elasticsearch_max_retries: int | None = setting(
        None, "CELERY_ELASTICSEARCH_MAX_RETRIES", "How often.", later=True, least=0
    )
    elasticsearch_timeout: Seconds | None = setting(
        None, "CELERY_ELASTICSEARCH_TIMEOUT", "How long an answer may take.", later=True
    )
    elasticsearch_save_meta_as_text: bool = setting(
        True,
        "CELERY_ELASTICSEARCH_SAVE_META_AS_TEXT",
        "Store results as text; off: as JSON that can be searched.",
        later=True,
    )


@section("Results in the cloud")
class CloudSettings:
    s3_access_key_id: str | None = setting(None, "S3_ACCESS_KEY_ID", "Access key.", later=True)
    s3_secret_access_key: str | None = setting(None, "S3_SECRET_ACCESS_KEY", "Its secret.", later=True)
    s3_bucket: str | None = setting(None, "S3_BUCKET", "Bucket of the results.", later=True)
    s3_base_path: str | None = setting(None, "S3_BASE_PATH", "Prefix of their keys.", later=True)
    s3_endpoint_url: str | None = setting(
        None, "S3_ENDPOINT_URL", "A server other than Amazon's.", later=True
    )
    s3_region: str | None = setting(None, "S3_REGION", "Region of the bucket.", later=True)
    azureblockblob_container_name: str = setting(
        "celery", "AZUREBLOCKBLOB_CONTAINER_NAME", "Container of the results.", later=True
    )
    azureblockblob_retry_initial_backoff_sec: Seconds = setting(
        2, "AZUREBLOCKBLOB_RETRY_INITIAL_BACKOFF_SEC", "First pause between attempts.", later=True
    )
    azureblockblob_retry_increment_base: int = setting(
        2, "AZUREBLOCKBLOB_RETRY_INCREMENT_BASE", "Base by which the pauses grow.", later=True, least=0
    )
    azureblockblob_retry_max_attempts: int = setting(
        3, "AZUREBLOCKBLOB_RETRY_MAX_ATTEMPTS", "Most attempts.", later=True, least=0
    )
    azureblockblob_base_path: str = setting(
        "", "AZUREBLOCKBLOB_BASE_PATH", "Prefix of the blobs' names.", later=True
    )
    azureblockblob_connection_timeout: Seconds = setting(
        20, "AZUREBLOCKBLOB_CONNECTION_TIMEOUT", "How long connecting may take.", later=True
    )
    azureblockblob_read_timeout: Seconds = setting(
        120, "AZUREBLOCKBLOB_READ_TIMEOUT", "How long an answer may take.", later=True
    )
    gcs_bucket: str | None = setting(None, "GCS_BUCKET", "Bucket of the results.", later=True)
    gcs_project: str | None = setting(None, "GCS_PROJECT", "Project of the bucket.", later=True)
    gcs_base_path: str = setting("", "GCS_BASE_PATH", "Prefix of the blobs' names.", later=True)
    gcs_ttl: Seconds = setting(0, "GCS_TTL", "How long a result is kept. 0: for ever.", later=True)
    gcs_threadpool_maxsize: int | None = setting(
        None, "", "Most connections of a process.", later=True, least=1
    )
    firestore_project: str | None = setting(
        None, "", "Project of the Firestore that counts chords. None: `gcs_project`.", later=True
    )
    cosmosdbsql_database_name: str = setting(
        "celerydb", "COSMOSDBSQL_DATABASE_NAME", "Database of the results.", later=True
    )
    cosmosdbsql_collection_name: str = setting(
        "celerycol", "COSMOSDBSQL_COLLECTION_NAME", "Collection in it.", later=True
    )
    cosmosdbsql_consistency_level: str = setting(
        "Session", "COSMOSDBSQL_CONSISTENCY_LEVEL", "Consistency level of reads and writes.", later=True
    )
    cosmosdbsql_max_retry_attempts: int = setting(
        9, "COSMOSDBSQL_MAX_RETRY_ATTEMPTS", "Most attempts.", later=True, least=0
    )
    cosmosdbsql_max_retry_wait_time: Seconds = setting(
        30, "COSMOSDBSQL_MAX_RETRY_WAIT_TIME", "How long all of them may take.", later=True
    )
    dynamodb_endpoint_url: str | None = setting(None, "", "A server other than Amazon's.", later=True)
