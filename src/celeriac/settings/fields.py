"""The settings of an app, but for those of single result stores (`celeriac.settings.stores`).

One attribute is one setting: its type is what reading it gives, the declaration holds default, name before
Celery 4, and meaning. The documentation of settings is generated from here.
"""

from __future__ import annotations

from typing import Any

from celeriac.settings.field import section, setting
from celeriac.settings.kinds import (
    Account,
    ClassPath,
    Concurrency,
    DeliveryMode,
    ExchangeType,
    KiB,
    Level,
    Milliseconds,
    Names,
    Options,
    Path,
    Protocol,
    Queues,
    QueueType,
    RateLimit,
    Seconds,
    StartMethod,
    TimeZone,
    Tls,
    Url,
)

__all__ = [
    "BeatSettings",
    "BrokerSettings",
    "ControlSettings",
    "GeneralSettings",
    "ProgramSettings",
    "ResultSettings",
    "SecuritySettings",
    "TaskSettings",
    "WorkerSettings",
]


@section("General")
class GeneralSettings:
    accept_content: Names = setting(
        ("json",),
        "CELERY_ACCEPT_CONTENT",
        "Content that is decoded: names of serializers or MIME types. Anything else is never looked into but "
        "dead-lettered. `pickle` lets whoever can publish run code here.",
    )
    enable_utc: bool = setting(
        True,
        "ENABLE_UTC",
        "Instants in messages are in UTC. If off, naive ones are in `timezone`; celeriac sends UTC either way.",
    )
    imports: Names = setting(
        (), "CELERY_IMPORTS", "Modules a worker imports when it starts: where tasks are."
    )
    include: Names = setting(
        (),
        "CELERY_INCLUDE",
        "More modules to import, after `imports`; `-I` on the command line adds to them.",
    )
    timezone: TimeZone | None = setting(
        None,
        "CELERY_TIMEZONE",
        "Time zone (IANA name) of naive instants and of schedules. None: UTC, or this machine's if `enable_utc` "
        "is off.",
    )


@section("Broker")
class BrokerSettings:
    broker_url: Url | None = setting(
        None,
        "BROKER_URL",
        "The message server; several URLs are tried in turn. The environment's CELERIAC_BROKER_URL, then "
        "CELERY_BROKER_URL, wins over it. None: the embedded database `sqlite:///celeriac.db` in the working "
        "directory (Celery: `amqp://guest@localhost//`).",
    )
    broker_read_url: Url | None = setting(
        None, "BROKER_READ_URL", "Another server for workers to fetch from. None: `broker_url`.", later=True
    )
    broker_write_url: Url | None = setting(
        None, "BROKER_WRITE_URL", "Another server to publish to. None: `broker_url`.", later=True
    )
    broker_transport: str | None = setting(
        None, "BROKER_TRANSPORT", "The URL's scheme, where the server is given in parts.", later=True
    )
    broker_transport_options: Options = setting(
        {}, "BROKER_TRANSPORT_OPTIONS", "Options of one kind of broker, beside its URL."
    )
    broker_connection_timeout: Seconds | None = setting(
        4,
        "BROKER_CONNECTION_TIMEOUT",
        "How long opening a connection may take. None: as the driver has it.",
    )
    broker_connection_retry: bool = setting(
        True,
        "BROKER_CONNECTION_RETRY",
        "A worker that lost its broker tries to find it again; else it exits.",
    )
    broker_connection_retry_on_startup: bool | None = setting(
        None,
        "BROKER_CONNECTION_RETRY_ON_STARTUP",
        "The same, for a broker that is away when the worker starts. None: as `broker_connection_retry`.",
    )
    broker_connection_max_retries: int | None = setting(
        None,
        "BROKER_CONNECTION_MAX_RETRIES",
        "Attempts to connect before a worker gives up. None: for ever.",
        celery=100,
        least=0,
    )
    broker_channel_error_retry: bool = setting(
        False, "BROKER_CHANNEL_ERROR_RETRY", "Begin again after errors of an AMQP channel, too.", later=True
    )
    broker_failover_strategy: str | None = setting(
        None,
        "BROKER_FAILOVER_STRATEGY",
        "Which of several URLs is next: `round-robin` or `shuffle`. None: `round-robin`.",
    )
    broker_heartbeat: Seconds | None = setting(
        6,
        "BROKER_HEARTBEAT",
        "Interval of AMQP heartbeats; a dead worker's messages are handed out again after two of them. 0 or "
        "None: off.",
        celery=120,
    )
    broker_heartbeat_checkrate: float = setting(
        3.0,
        "BROKER_HEARTBEAT_CHECKRATE",
        "How often in each `broker_heartbeat` they are looked at.",
        later=True,
    )
    broker_login_method: str | None = setting(
        None, "BROKER_LOGIN_METHOD", "SASL mechanism of AMQP, such as `PLAIN` or `EXTERNAL`."
    )
    broker_native_delayed_delivery_queue_type: QueueType = setting(
        "quorum",
        "BROKER_NATIVE_DELAYED_DELIVERY_QUEUE_TYPE",
        "Type of the queues in which messages for later wait on RabbitMQ.",
    )
    broker_pool_limit: int | None = setting(
        10,
        "BROKER_POOL_LIMIT",
        "Connections a process may hold open to publish. 0 or None: one for each use.",
        least=0,
    )
    broker_pool_acquire_timeout: Seconds | None = setting(
        None,
        "BROKER_POOL_ACQUIRE_TIMEOUT",
        "How long to wait for one of them to be free. None: as long as `broker_publish_timeout` lasts.",
        later=True,
    )
    broker_publish_timeout: Seconds = setting(
        5.0,
        "",
        "How long publishing may take in all, retries included, before `PublishFailed` is raised. Not in Celery.",
    )
    broker_use_ssl: Tls = setting(
        False,
        "BROKER_USE_SSL",
        "Talk TLS to the broker; a dict gives certificates and how to verify.",
    )
    broker_host: str | None = setting(
        None, "BROKER_HOST", "Host, where the server is given in parts.", later=True
    )
    broker_port: int | None = setting(None, "BROKER_PORT", "Its port.", later=True, least=0)
    broker_user: str | None = setting(None, "BROKER_USER", "Who to log in as.", later=True)
    broker_password: str | None = setting(None, "BROKER_PASSWORD", "With which password.", later=True)
    broker_vhost: str | None = setting(None, "BROKER_VHOST", "Virtual host, or database number.", later=True)


@section("Tasks")
class TaskSettings:
    task_acks_late: bool = setting(
        True,
        "CELERY_ACKS_LATE",
        "A message leaves the broker together with the record of its outcome, so that no crash loses a task; one "
        "that was running then runs again. Off: it leaves before the task starts.",
        celery=False,
    )
    task_acks_on_failure_or_timeout: bool = setting(
        True,
        "CELERY_ACKS_ON_FAILURE_OR_TIMEOUT",
        "What `task_acks_on_failure` and `task_acks_on_timeout` are where they are not set. Deprecated.",
    )
    task_acks_on_failure: bool | None = setting(
        None,
        "CELERY_ACKS_ON_FAILURE",
        "A task that raised is done; off: its message is rejected (late acks only).",
    )
    task_acks_on_timeout: bool | None = setting(
        None, "CELERY_ACKS_ON_TIMEOUT", "The same, for one that its time limit ended."
    )
    task_always_eager: bool = setting(
        False,
        "CELERY_ALWAYS_EAGER",
        "`delay` runs the task here and now and returns when it is done; for tests.",
    )
    task_annotations: Any = setting(
        None,
        "CELERY_ANNOTATIONS",
        "Task attributes changed from outside: a dict of task name (or `*`) to a dict of attributes, an object "
        "with `annotate`, or a list of these.",
    )
    task_compression: str | None = setting(
        None,
        "CELERY_MESSAGE_COMPRESSION",
        "How message bodies are compressed: `zlib`, `bzip2`, `lzma`, `brotli`, `zstd`. None: not at all.",
    )
    task_create_missing_queues: bool = setting(
        True,
        "CELERY_CREATE_MISSING_QUEUES",
        "A queue that `task_queues` does not name is made up when a call or worker names it; off: `QueueNotFound`.",
    )
    task_create_missing_queue_type: QueueType = setting(
        "classic", "CELERY_CREATE_MISSING_QUEUE_TYPE", "RabbitMQ's type of queues made up so.", later=True
    )
    task_create_missing_queue_exchange_type: ExchangeType | None = setting(
        None,
        "CELERY_CREATE_MISSING_QUEUE_EXCHANGE_TYPE",
        "Type of the exchange of such a queue. None: `direct`.",
    )
    task_inherit_parent_priority: bool = setting(
        False,
        "CELERY_INHERIT_PARENT_PRIORITY",
        "Calls made inside a task have its priority, if they give no other.",
    )
    task_default_delivery_mode: DeliveryMode = setting(
        2,
        "CELERY_DEFAULT_DELIVERY_MODE",
        "2 (`persistent`): messages survive a restart of the broker; 1 (`transient`): they may not.",
    )
    task_default_queue: str = setting(
        "celery", "CELERY_DEFAULT_QUEUE", "Queue of calls that no route and no option sends elsewhere."
    )
    task_default_queue_type: QueueType = setting(
        "classic", "CELERY_DEFAULT_QUEUE_TYPE", "RabbitMQ's type of that queue.", later=True
    )
    task_default_exchange: str | None = setting(
        None, "CELERY_DEFAULT_EXCHANGE", "Exchange of queues declared without one. None: named as the queue."
    )
    task_default_exchange_type: ExchangeType = setting(
        "direct", "CELERY_DEFAULT_EXCHANGE_TYPE", "Type of that exchange."
    )
    task_default_routing_key: str | None = setting(
        None,
        "CELERY_DEFAULT_ROUTING_KEY",
        "Routing key of queues declared without one. None: the queue's name.",
    )
    task_default_rate_limit: RateLimit | None = setting(
        None,
        "CELERY_DEFAULT_RATE_LIMIT",
        "How often a worker starts a task of one name, where it has no `rate_limit`: `10/m`, `5/s`, or a number "
        "for each second. None: as often as it can.",
        later=True,
        least=0,
    )
    task_default_priority: int | None = setting(
        None,
        "CELERY_DEFAULT_PRIORITY",
        "Priority of calls that give none; a higher one is handed out first. None: 0.",
        least=0,
    )
    task_eager_propagates: bool = setting(
        False,
        "CELERY_EAGER_PROPAGATES_EXCEPTIONS",
        "What a task raises, `delay` raises too, under `task_always_eager`.",
    )
    task_ignore_result: bool = setting(False, "CELERY_IGNORE_RESULT", "Results are not stored.")
    task_max_deliveries: int = setting(
        5,
        "",
        "How often a message is handed out before it is dead-lettered with state FAILURE: a task that kills its "
        "worker must not do so for ever. What a worker gives back unstarted does not count. Not in Celery.",
        least=1,
    )
    task_store_eager_result: bool = setting(
        False, "CELERY_STORE_EAGER_RESULT", "Results are stored under `task_always_eager`, too."
    )
    task_protocol: Protocol = setting(
        2,
        "CELERY_TASK_PROTOCOL",
        "Version of the message format to send; both are read. 1 is for Celery before 4.",
    )
    task_publish_retry: bool = setting(
        True,
        "CELERY_TASK_PUBLISH_RETRY",
        "Publishing is tried again until `broker_publish_timeout`; off: the first error is raised.",
    )
    task_publish_retry_policy: Options = setting(
        {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2},
        "CELERY_TASK_PUBLISH_RETRY_POLICY",
        "Pace of these attempts: `max_retries`, and seconds `interval_start`, `interval_step`, `interval_max`.",
    )
    task_queues: Queues | None = setting(
        None,
        "CELERY_QUEUES",
        "The queues of this app: `Queue` objects (kombu's too), names, or a dict of name to options. A worker "
        "consumes all of them. None: one, `task_default_queue`.",
    )
    task_queue_max_priority: int | None = setting(
        None,
        "CELERY_QUEUE_MAX_PRIORITY",
        "`x-max-priority` of queues that do not give it, which RabbitMQ asks for to have priorities at all.",
        later=True,
        least=0,
    )
    task_reject_on_worker_lost: bool | None = setting(
        None,
        "CELERY_REJECT_ON_WORKER_LOST",
        "A task whose executor died runs again, up to `task_max_deliveries` times. None and True: so it does. "
        "Off: it fails with `WorkerLostError` at once.",
    )
    task_retry_on_worker_lost: bool = setting(
        False,
        "CELERY_RETRY_ON_WORKER_LOST",
        "Such a run counts as a retry, after the task's `default_retry_delay`.",
        later=True,
    )
    task_remote_tracebacks: bool = setting(
        False,
        "CELERY_REMOTE_TRACEBACKS",
        "Exceptions out of `get` carry the traceback of the worker.",
        later=True,
    )
    task_repr_maxlevels: int = setting(
        3,
        "CELERY_REPR_MAXLEVELS",
        "How deep containers are shown in `argsrepr` and `kwargsrepr`, for people.",
        least=0,
    )
    task_routes: Any = setting(
        None,
        "CELERY_ROUTES",
        "Where calls go: a dict of task name, glob or compiled regex to queue name or options; a function "
        "`(name, args, kwargs, options, task)`; the path of one; or a list of these, of which the first answer "
        "holds.",
    )
    task_send_sent_event: bool = setting(
        False, "CELERY_SEND_TASK_SENT_EVENT", "A `task-sent` event for each call.", later=True
    )
    task_serializer: str = setting(
        "json", "CELERY_TASK_SERIALIZER", "How arguments are encoded: `json`, `pickle`, `yaml`, `msgpack`."
    )
    task_soft_time_limit: Seconds | None = setting(
        None,
        "CELERYD_TASK_SOFT_TIME_LIMIT",
        "`SoftTimeLimitExceeded` is raised inside a task that runs longer, so that it can clean up. None: never.",
    )
    task_time_limit: Seconds | None = setting(
        None, "CELERYD_TASK_TIME_LIMIT", "A task that runs longer is ended from outside. None: never."
    )
    task_store_errors_even_if_ignored: bool = setting(
        False, "CELERY_STORE_ERRORS_EVEN_IF_IGNORED", "Failures are stored though results are not."
    )
    task_track_started: bool = setting(
        False, "CELERY_TRACK_STARTED", "Record STARTED when a task begins: one more write for each."
    )
    task_allow_error_cb_on_chord_header: bool = setting(
        False,
        "CELERY_ALLOW_ERROR_CB_ON_CHORD_HEADER",
        "The errback of a chord is that of each task in its header, too.",
        later=True,
    )


@section("Worker")
class WorkerSettings:
    worker_agent: ClassPath | None = setting(
        None, "CELERYD_AGENT", "A class that runs beside the worker.", later=True
    )
    worker_autoscaler: ClassPath = setting(
        "celery.worker.autoscale:Autoscaler",
        "CELERYD_AUTOSCALER",
        "Who decides on growing and shrinking.",
        later=True,
    )
    worker_cancel_long_running_tasks_on_connection_loss: bool = setting(
        False,
        "CELERYD_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS",
        "End running tasks when the broker is lost, as they will be handed out again.",
        later=True,
    )
    worker_soft_shutdown_timeout: Seconds = setting(
        0.0,
        "CELERYD_SOFT_SHUTDOWN_TIMEOUT",
        "How long running tasks may take to finish in a shutdown before they go back to the queue. 0: no such "
        "limit in a warm shutdown, no such time in a cold one.",
        later=True,
    )
    worker_enable_soft_shutdown_on_idle: bool = setting(
        False, "CELERYD_ENABLE_SOFT_SHUTDOWN_ON_IDLE", "Wait that long though nothing runs.", later=True
    )
    worker_concurrency: Concurrency | None = setting(
        None, "CELERYD_CONCURRENCY", "Number of executors. None, 0 and `auto`: one for each core.", least=0
    )
    worker_consumer: ClassPath = setting(
        "celery.worker.consumer:Consumer",
        "CELERYD_CONSUMER",
        "Celery's class that fetches; celeriac has nothing to put in its place.",
        later=True,
    )
    worker_direct: bool = setting(
        False,
        "CELERY_WORKER_DIRECT",
        "Each worker also consumes a queue of its own, `<node name>.dq2`.",
        later=True,
    )
    worker_disable_rate_limits: bool = setting(
        False, "CELERY_DISABLE_RATE_LIMITS", "Rate limits of tasks are not obeyed.", later=True
    )
    worker_deduplicate_successful_tasks: bool = setting(
        False,
        "CELERYD_DEDUPLICATE_SUCCESSFUL_TASKS",
        "A message that is handed out again though its success is recorded is not run. Without effect: celeriac "
        "always looks.",
    )
    worker_enable_remote_control: bool = setting(
        True, "CELERY_ENABLE_REMOTE_CONTROL", "Listen to `inspect` and `control`."
    )
    worker_hijack_root_logger: bool = setting(
        False,
        "CELERYD_HIJACK_ROOT_LOGGER",
        "Take the handlers off the root logger and put the worker's there. Off: the root logger is never touched, "
        "and where the program has set it up, what the worker logs goes there.",
        celery=True,
    )
    worker_lease: Seconds = setting(
        10.0,
        "",
        "A worker that gave no sign of life for so long is dead, and what it held is handed out again. It says "
        "nothing of how long a task may run. Not in Celery.",
        least=0.5,
    )
    worker_log_color: bool | None = setting(
        None, "CELERYD_LOG_COLOR", "Log lines are coloured by level. None: on a terminal."
    )
    worker_log_datefmt: str | None = setting(
        None, "CELERYD_LOG_DATEFMT", "Format of `%(asctime)s`. None: `2026-01-31 23:59:59,123`."
    )
    worker_log_format: str = setting(
        "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s",
        "CELERYD_LOG_FORMAT",
        "Format of log lines.",
    )
    worker_lost_wait: Seconds = setting(
        10.0,
        "CELERYD_WORKER_LOST_WAIT",
        "How long to wait for the result of an executor that died. Without effect: its pipe is read to the end.",
    )
    worker_max_memory_per_child: KiB | None = setting(
        None,
        "CELERYD_MAX_MEMORY_PER_CHILD",
        "An executor that uses more is replaced after its task.",
        later=True,
        least=0,
    )
    worker_max_tasks_per_child: int | None = setting(
        None,
        "CELERYD_MAX_TASKS_PER_CHILD",
        "An executor is replaced after so many tasks. None: never.",
        least=0,
    )
    worker_pool: str = setting(
        "prefork",
        "CELERYD_POOL",
        "How calls overlap: `prefork`, `solo`; `threads`, `asyncio`, `gevent`, `eventlet` follow.",
    )
    worker_pool_putlocks: bool = setting(
        True, "CELERYD_POOL_PUTLOCKS", "Without effect: executors share no locks."
    )
    worker_pool_restarts: bool = setting(
        False, "CELERYD_POOL_RESTARTS", "Allow the remote command `pool_restart`.", later=True
    )
    worker_pool_start_method: StartMethod = setting(
        "fork",
        "CELERYD_POOL_START_METHOD",
        "How executors come to be. `spawn`: each imports the app itself.",
        later=True,
    )
    worker_proc_alive_timeout: Seconds = setting(
        4.0,
        "CELERYD_PROC_ALIVE_TIMEOUT",
        "How long an executor may take to come up before it is replaced.",
        later=True,
    )
    worker_prefetch_multiplier: int = setting(
        4,
        "CELERYD_PREFETCH_MULTIPLIER",
        "Messages fetched for each executor. Read and kept; celeriac fetches as much as keeps its executors busy "
        "for some milliseconds, and gives back what it cannot start.",
        least=0,
    )
    worker_eta_task_limit: int | None = setting(
        None,
        "CELERYD_ETA_TASK_LIMIT",
        "Most tasks for later that a worker holds. Without effect: they wait in the broker.",
        least=0,
    )
    worker_enable_prefetch_count_reduction: bool = setting(
        True,
        "CELERYD_ENABLE_PREFETCH_COUNT_REDUCTION",
        "Fetch less after a reconnect, while tasks from before still run. Without effect: see "
        "`worker_prefetch_multiplier`.",
    )
    worker_disable_prefetch: bool = setting(
        False, "CELERYD_DISABLE_PREFETCH", "Fetch a message only when an executor is free for it.", later=True
    )
    worker_redirect_stdouts: bool = setting(
        False,
        "CELERY_REDIRECT_STDOUTS",
        "What tasks print is logged, by the logger `celeriac.redirected`.",
        celery=True,
        later=True,
    )
    worker_redirect_stdouts_level: Level = setting(
        "WARNING", "CELERY_REDIRECT_STDOUTS_LEVEL", "At this level.", later=True
    )
    worker_send_task_events: bool = setting(
        False,
        "CELERY_SEND_EVENTS",
        "Workers tell monitors what happens to tasks, as `-E` has it.",
        later=True,
    )
    worker_state_db: Path | None = setting(
        None, "CELERYD_STATE_DB", "A file in which revocations outlive the worker.", later=True
    )
    worker_task_log_datefmt: str | None = setting(
        None, "CELERYD_TASK_LOG_DATEFMT", "As `worker_log_datefmt`, for what tasks log."
    )
    worker_task_log_format: str = setting(
        "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s",
        "CELERYD_TASK_LOG_FORMAT",
        "Format of what tasks log with `get_task_logger`.",
    )
    worker_timer: ClassPath | None = setting(
        None,
        "CELERYD_TIMER",
        "Celery's class of timers; celeriac has nothing to put in its place.",
        later=True,
    )
    worker_timer_precision: Seconds = setting(
        1.0,
        "CELERYD_TIMER_PRECISION",
        "Longest sleep of Celery's timer. Without effect: a due task wakes a worker.",
    )
    worker_detect_quorum_queues: bool = setting(
        True, "CELERYD_DETECT_QUORUM_QUEUES", "Treat RabbitMQ's quorum queues as what they are.", later=True
    )


@section("Results")
class ResultSettings:
    result_accept_content: Names | None = setting(
        None, "RESULT_ACCEPT_CONTENT", "As `accept_content`, for results. None: the same."
    )
    result_backend: str | None = setting(
        None,
        "CELERY_RESULT_BACKEND",
        "Where results are stored: a URL, the path of a class, or `disabled`. The environment's "
        "CELERIAC_RESULT_BACKEND, then CELERY_RESULT_BACKEND, wins over it. None: beside the messages in the "
        "embedded database, nowhere with any other broker.",
    )
    result_cache_max: int = setting(
        -1,
        "CELERY_MAX_CACHED_RESULTS",
        "Results a client keeps in memory. 0: no limit; -1: none.",
        least=-1,
    )
    result_compression: str | None = setting(
        None,
        "CELERY_RESULT_COMPRESSION",
        "How stored results are compressed, as `task_compression`.",
        later=True,
    )
    result_exchange: str = setting(
        "celeryresults", "CELERY_RESULT_EXCHANGE", "Exchange of results sent as messages.", later=True
    )
    result_exchange_type: ExchangeType = setting(
        "direct", "CELERY_RESULT_EXCHANGE_TYPE", "Its type.", later=True
    )
    result_expires: Seconds | None = setting(
        86400.0,
        "CELERY_TASK_RESULT_EXPIRES",
        "A result may be deleted after so long: a day. None or 0: never.",
    )
    result_get_timeout: Seconds | None = setting(
        600.0,
        "",
        "How long `get` waits where it is given no timeout, before `TimeoutError`: nobody will ever answer for an "
        "unknown id. None: for ever, as in Celery, which has no such setting.",
        celery=None,
    )
    result_chord_expires: Seconds | None = setting(
        None,
        "CELERY_RESULT_CHORD_EXPIRES",
        "How long an unfinished chord is kept. None: as `result_expires`.",
    )
    result_failure_expires: Seconds | None = setting(
        None,
        "CELERY_RESULT_FAILURE_EXPIRES",
        "How long failures are kept. None: as `result_expires`.",
    )
    result_persistent: bool | None = setting(
        None,
        "CELERY_RESULT_PERSISTENT",
        "Results sent as messages survive a restart of the broker.",
    )
    result_extended: bool = setting(
        False,
        "CELERY_RESULT_EXTENDED",
        "Store name, arguments, worker, retries and queue of the task with its result.",
    )
    result_serializer: str = setting("json", "CELERY_RESULT_SERIALIZER", "As `task_serializer`, for results.")
    result_backend_transport_options: Options = setting(
        {}, "CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS", "Options of one kind of result store, beside its URL."
    )
    result_chord_retry_interval: Seconds = setting(
        1.0,
        "CELERY_RESULT_CHORD_RETRY_INTERVAL",
        "How often to look whether a chord is complete, where its store cannot tell.",
        later=True,
    )
    result_chord_join_timeout: Seconds | None = setting(
        3.0,
        "CELERY_RESULT_CHORD_JOIN_TIMEOUT",
        "How long collecting the parts of a complete chord may take.",
        later=True,
    )
    result_backend_max_sleep_between_retries_ms: Milliseconds = setting(
        10_000,
        "CELERY_RESULT_BACKEND_MAX_SLEEP_BETWEEN_RETRIES_MS",
        "Longest pause between attempts to reach a result store.",
        later=True,
        least=0,
    )
    result_backend_max_retries: float = setting(
        float("inf"), "CELERY_RESULT_BACKEND_MAX_RETRIES", "How many such attempts.", later=True, least=0
    )
    result_backend_base_sleep_between_retries_ms: Milliseconds = setting(
        10,
        "CELERY_RESULT_BACKEND_BASE_SLEEP_BETWEEN_RETRIES_MS",
        "The first pause between them; each next one doubles.",
        later=True,
        least=0,
    )
    result_backend_always_retry: bool = setting(
        False, "CELERY_RESULT_BACKEND_ALWAYS_RETRY", "Make such attempts at all.", later=True
    )
    result_backend_thread_safe: bool = setting(
        False, "", "One store object for all threads. Without effect: celeriac's are made for that."
    )
    override_backends: Options = setting(
        {}, "", "More result stores: a dict of URL scheme to the path of a class.", later=True
    )


@section("Beat")
class BeatSettings:
    beat_enable_remote_control: bool = setting(
        False, "CELERYBEAT_ENABLE_REMOTE_CONTROL", "The scheduler answers remote commands.", later=True
    )
    beat_remote_control_max_tick_age: Seconds | None = setting(
        None,
        "CELERYBEAT_REMOTE_CONTROL_MAX_TICK_AGE",
        "It calls itself stuck when its last tick is older. None: twice its interval, and a minute at least.",
        later=True,
    )
    beat_max_loop_interval: Seconds = setting(
        0,
        "CELERYBEAT_MAX_LOOP_INTERVAL",
        "Longest sleep of the scheduler before it looks at its schedule again. 0: as the scheduler has it.",
        later=True,
    )
    beat_schedule: Options = setting(
        {},
        "CELERYBEAT_SCHEDULE",
        "Periodic tasks: a dict of name to `task`, `schedule`, `args`, `kwargs`, `options`, `relative`.",
        later=True,
    )
    beat_scheduler: ClassPath = setting(
        "celery.beat:PersistentScheduler", "CELERYBEAT_SCHEDULER", "Who keeps the schedule.", later=True
    )
    beat_schedule_filename: Path = setting(
        "celerybeat-schedule",
        "CELERYBEAT_SCHEDULE_FILENAME",
        "The file in which Celery's scheduler keeps last runs.",
        later=True,
    )
    beat_sync_every: int = setting(
        0,
        "CELERYBEAT_SYNC_EVERY",
        "Tasks published before that file is written. 0: by time.",
        later=True,
        least=0,
    )
    beat_cron_starting_deadline: Seconds | None = setting(
        None,
        "CELERYBEAT_CRON_STARTING_DEADLINE",
        "How late a crontab's run may still be made up for. None: however late.",
        later=True,
    )


@section("Remote control and events")
class ControlSettings:
    control_queue_ttl: Seconds = setting(
        300.0, "CONTROL_QUEUE_TTL", "How long a remote command waits for a worker.", later=True
    )
    control_queue_expires: Seconds = setting(
        10.0, "CONTROL_QUEUE_EXPIRES", "How long a queue of replies outlives who asked.", later=True
    )
    control_queue_exclusive: bool = setting(
        True, "CONTROL_QUEUE_EXCLUSIVE", "A worker's queue of commands belongs to its connection.", later=True
    )
    control_queue_durable: bool = setting(
        False, "CONTROL_QUEUE_DURABLE", "It survives a restart of the broker.", later=True
    )
    control_exchange: str = setting(
        "celery", "CONTROL_EXCHANGE", "Start of the names of its exchanges.", later=True
    )
    event_queue_expires: Seconds | None = setting(
        60.0, "CELERY_EVENT_QUEUE_EXPIRES", "How long a queue of events outlives its monitor.", later=True
    )
    event_queue_ttl: Seconds | None = setting(
        5.0, "CELERY_EVENT_QUEUE_TTL", "How long an event waits for its monitor.", later=True
    )
    event_queue_prefix: str = setting(
        "celeryev", "CELERY_EVENT_QUEUE_PREFIX", "Start of a monitor's queue name.", later=True
    )
    event_queue_exclusive: bool = setting(
        True, "CELERY_EVENT_QUEUE_EXCLUSIVE", "A monitor's queue belongs to its connection.", later=True
    )
    event_queue_durable: bool = setting(
        False, "CELERY_EVENT_QUEUE_DURABLE", "It survives a restart of the broker.", later=True
    )
    event_serializer: str = setting(
        "json", "CELERY_EVENT_SERIALIZER", "As `task_serializer`, for events.", later=True
    )
    event_exchange: str = setting("celeryev", "CELERY_EVENT_EXCHANGE", "Exchange of events.", later=True)


@section("Signed messages")
class SecuritySettings:
    security_certificate: Path | None = setting(
        None,
        "CELERY_SECURITY_CERTIFICATE",
        "File (PEM) of the certificate messages are signed with.",
        later=True,
    )
    security_cert_store: str | None = setting(
        None, "CELERY_SECURITY_CERT_STORE", "Glob of the certificates that are trusted.", later=True
    )
    security_key: Path | None = setting(
        None, "CELERY_SECURITY_KEY", "File (PEM) of the private key.", later=True
    )
    security_key_password: bytes | None = setting(
        None, "CELERY_SECURITY_KEY_PASSWORD", "Password of that file.", later=True
    )
    security_digest: str = setting("sha256", "CELERY_SECURITY_DIGEST", "Hash that is signed.", later=True)


@section("Programs")
class ProgramSettings:
    worker_logfile: Path | None = setting(
        None, "", "Where `celeriac worker` logs to. None: standard error.", later=True
    )
    worker_pidfile: Path | None = setting(None, "", "Where it writes its process id.", later=True)
    worker_uid: Account | None = setting(None, "", "User it changes to.", later=True)
    worker_gid: Account | None = setting(None, "", "Group it changes to.", later=True)
    worker_umask: Account | None = setting(None, "", "Mask of the files it makes.", later=True)
    worker_executable: Path | None = setting(None, "", "Python it runs, when detached.", later=True)
    beat_logfile: Path | None = setting(None, "", "The same for `celeriac beat`.", later=True)
    beat_pidfile: Path | None = setting(None, "", "The same for `celeriac beat`.", later=True)
    beat_uid: Account | None = setting(None, "", "The same for `celeriac beat`.", later=True)
    beat_gid: Account | None = setting(None, "", "The same for `celeriac beat`.", later=True)
    beat_umask: Account | None = setting(None, "", "The same for `celeriac beat`.", later=True)
    beat_executable: Path | None = setting(None, "", "The same for `celeriac beat`.", later=True)
    events_logfile: Path | None = setting(None, "", "The same for `celeriac events`.", later=True)
    events_pidfile: Path | None = setting(None, "", "The same for `celeriac events`.", later=True)
    events_uid: Account | None = setting(None, "", "The same for `celeriac events`.", later=True)
    events_gid: Account | None = setting(None, "", "The same for `celeriac events`.", later=True)
    events_umask: Account | None = setting(None, "", "The same for `celeriac events`.", later=True)
    events_executable: Path | None = setting(None, "", "The same for `celeriac events`.", later=True)
