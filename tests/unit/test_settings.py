from __future__ import annotations

import copy
import datetime
import enum
import pickle
import re
import sys
import textwrap
import types
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from celeriac.errors import ImproperlyConfigured
from celeriac.settings import FIELDS, Settings
from celeriac.settings.names import did_you_mean, nearest, old_names, resolve
from celeriac.settings.sources import find_module, find_object
from celeriac.topology import Binding, Exchange, Queue
from celeriac.urls import mask_url

OWN = {"worker_lease", "task_max_deliveries", "broker_publish_timeout", "result_get_timeout"}
#: Read by Celery's code though it does not declare them.
UNDECLARED = {
    *(
        f"{program}_{option}"
        for program in ("worker", "beat", "events")
        for option in ("logfile", "pidfile", "uid", "gid", "umask", "executable")
    ),
    "cassandra_secure_bundle_path",
    "db_reuse_max",
    "dynamodb_endpoint_url",
    "firestore_project",
    "gcs_threadpool_maxsize",
    "override_backends",
    "redis_backend_credential_provider",
    "redis_backend_health_check_interval",
    "redis_client_name",
    "result_backend_thread_safe",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("CELERIAC", "CELERY"):
        for name in ("BROKER_URL", "RESULT_BACKEND"):
            monkeypatch.delenv(f"{prefix}_{name}", raising=False)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Write a module with this source; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def make(source: str, name: str = "") -> str:
        name = name or f"conf_{len(made)}_{abs(hash(request.node.nodeid))}"
        tmp_path.joinpath(f"{name}.py").write_text(textwrap.dedent(source))
        made.append(name)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


def refusal(**changes: Any) -> str:
    with pytest.raises(ImproperlyConfigured) as info:
        Settings(changes)
    return str(info.value)


# -- the table ------------------------------------------------------------------------------------------------------


def test_every_setting_of_celery_5_7_exists() -> None:
    assert len(FIELDS.keys() - OWN - UNDECLARED) == 207
    assert FIELDS.keys() >= OWN | UNDECLARED


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("accept_content", ("json",)),
        ("enable_utc", True),
        ("imports", ()),
        ("timezone", None),
        ("broker_url", None),
        ("broker_transport_options", {}),
        ("broker_connection_timeout", 4),
        ("broker_native_delayed_delivery_queue_type", "quorum"),
        ("broker_pool_limit", 10),
        ("broker_use_ssl", False),
        ("task_acks_on_failure_or_timeout", True),
        ("task_acks_on_failure", None),
        ("task_create_missing_queues", True),
        ("task_create_missing_queue_type", "classic"),
        ("task_default_delivery_mode", 2),
        ("task_default_queue", "celery"),
        ("task_default_exchange", None),
        ("task_default_exchange_type", "direct"),
        ("task_protocol", 2),
        (
            "task_publish_retry_policy",
            {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2},
        ),
        ("task_queues", None),
        ("task_repr_maxlevels", 3),
        ("task_serializer", "json"),
        ("task_time_limit", None),
        ("worker_concurrency", None),
        ("worker_log_format", "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"),
        (
            "worker_task_log_format",
            "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s",
        ),
        ("worker_lost_wait", 10.0),
        ("worker_pool", "prefork"),
        ("worker_prefetch_multiplier", 4),
        ("worker_redirect_stdouts_level", "WARNING"),
        ("result_backend", None),
        ("result_cache_max", -1),
        ("result_expires", 86400.0),
        ("result_chord_join_timeout", 3.0),
        ("result_backend_max_retries", float("inf")),
        ("beat_scheduler", "celery.beat:PersistentScheduler"),
        ("beat_max_loop_interval", 0),
        ("control_queue_exclusive", True),
        ("control_queue_ttl", 300.0),
        ("event_queue_prefix", "celeryev"),
        ("security_digest", "sha256"),
        ("database_engine_options", {"pool_pre_ping": True, "pool_recycle": 3600}),
        ("redis_socket_timeout", 120.0),
        ("cassandra_options", {}),
        ("elasticsearch_save_meta_as_text", True),
        ("azureblockblob_read_timeout", 120),
        ("cosmosdbsql_consistency_level", "Session"),
        ("gcs_ttl", 0),
    ],
)
def test_default_is_celerys(name: str, default: Any) -> None:
    assert getattr(Settings(), name) == default
    assert FIELDS[name].celery_default == default


def test_defaults_that_are_not_celerys() -> None:
    deviating = {name: (f.default, f.celery_default) for name, f in FIELDS.items() if f.deviates}
    assert deviating == {
        "broker_heartbeat": (6, 120),
        "broker_connection_max_retries": (None, 100),
        "task_acks_late": (True, False),
        "worker_hijack_root_logger": (False, True),
        "worker_redirect_stdouts": (False, True),
        "result_get_timeout": (600.0, None),
    }


def test_own_settings() -> None:
    conf = Settings()
    assert (conf.worker_lease, conf.task_max_deliveries, conf.broker_publish_timeout) == (10.0, 5, 5.0)


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("BROKER_URL", "broker_url"),
        ("CELERYD_CONCURRENCY", "worker_concurrency"),
        ("CELERY_ALWAYS_EAGER", "task_always_eager"),
        ("CELERY_EAGER_PROPAGATES_EXCEPTIONS", "task_eager_propagates"),
        ("CELERY_TASK_RESULT_EXPIRES", "result_expires"),
        ("CELERYD_TASK_TIME_LIMIT", "task_time_limit"),
        ("CELERY_RESULT_DBURI", "database_url"),
        ("CELERY_SEND_EVENTS", "worker_send_task_events"),
        ("CELERYBEAT_SCHEDULE", "beat_schedule"),
        ("ENABLE_UTC", "enable_utc"),
        ("RESULT_ACCEPT_CONTENT", "result_accept_content"),
        ("S3_BUCKET", "s3_bucket"),
        # as Celery's documentation has them
        ("CELERYD_TIME_LIMIT", "task_time_limit"),
        ("CELERY_RESULT_EXPIRES", "result_expires"),
        ("CELERY_TASK_ALWAYS_EAGER", "task_always_eager"),
    ],
)
def test_old_name_means(old: str, name: str) -> None:
    assert resolve(old) == name


def test_no_spelling_means_two_settings() -> None:
    spellings = [field.old for field in FIELDS.values() if field.old]
    assert len(set(spellings)) == len(spellings)
    namespaced = {f"CELERY_{name.upper()}": name for name in FIELDS}
    assert {key: old_names()[key] for key in namespaced} == namespaced


@pytest.mark.parametrize("field", FIELDS.values(), ids=lambda field: field.name)
def test_field_is_documented_and_its_default_valid(field: Any) -> None:
    assert field.doc.endswith(".")
    assert field.section
    assert field.convert(field.default) == field.default
    assert field.convert(field.celery_default) == field.celery_default


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("task_time_limit", "seconds"),
        ("result_expires", "seconds"),
        ("worker_max_memory_per_child", "KiB"),
        ("result_backend_max_sleep_between_retries_ms", "milliseconds"),
        ("worker_concurrency", ""),
    ],
)
def test_field_has_a_unit(name: str, unit: str) -> None:
    assert FIELDS[name].unit == unit


# -- one value ------------------------------------------------------------------------------------------------------


class Color(enum.StrEnum):
    JSON = "json"


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("task_acks_late", False, False),
        ("task_acks_late", 0, False),
        ("task_acks_late", "no", False),
        ("task_track_started", "True", True),
        ("task_acks_on_failure", None, None),
        ("worker_prefetch_multiplier", 1, 1),
        ("worker_prefetch_multiplier", 2.0, 2),
        ("worker_prefetch_multiplier", "3", 3),
        ("task_time_limit", 60, 60),
        ("task_time_limit", 0.5, 0.5),
        ("task_time_limit", "60", 60),
        ("task_time_limit", "1.5", 1.5),
        ("task_time_limit", timedelta(minutes=2), 120.0),
        ("task_time_limit", None, None),
        ("result_expires", timedelta(days=2), 172800.0),
        ("result_backend_max_retries", float("inf"), float("inf")),
        ("task_default_queue", "web", "web"),
        ("task_serializer", Color.JSON, "json"),
        ("worker_state_db", Path("/tmp/state"), "/tmp/state"),
        ("imports", ["a", "b.c"], ("a", "b.c")),
        ("imports", "a", ("a",)),
        ("imports", "a, b", ("a", "b")),
        ("accept_content", {"json"}, ("json",)),
        ("broker_url", "redis://a", "redis://a"),
        ("broker_url", ["amqp://a", "amqp://b"], "amqp://a;amqp://b"),
        ("broker_use_ssl", True, True),
        ("broker_use_ssl", {"ca_certs": "x"}, {"ca_certs": "x"}),
        ("worker_concurrency", "auto", "auto"),
        ("worker_concurrency", "4", 4),
        ("task_protocol", "1", 1),
        ("task_default_delivery_mode", "transient", 1),
        ("task_default_delivery_mode", "2", 2),
        ("task_default_queue_type", "quorum", "quorum"),
        ("task_default_rate_limit", "10/m", "10/m"),
        ("task_default_rate_limit", 2.5, 2.5),
        ("worker_uid", 1000, 1000),
        ("worker_uid", "www-data", "www-data"),
        ("worker_redirect_stdouts_level", "info", "INFO"),
        ("worker_redirect_stdouts_level", 40, "ERROR"),
        ("timezone", "Europe/London", "Europe/London"),
        ("timezone", ZoneInfo("Asia/Tokyo"), "Asia/Tokyo"),
        ("timezone", datetime.UTC, "UTC"),
        ("security_key_password", "x", b"x"),
        ("worker_consumer", "a.b:C", "a.b:C"),
        ("worker_consumer", Path, Path),
        ("database_engine_callback", print, print),
    ],
)
def test_value_is_kept_as(name: str, given: Any, kept: Any) -> None:
    value = Settings({name: given})[name]
    assert value == kept
    assert type(value) is type(kept)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("task_acks_late", "perhaps", "expected true or false, got 'perhaps' (str)"),
        ("task_acks_late", 2, "expected true or false, got 2 (int)"),
        ("task_acks_late", None, "expected true or false, got NoneType"),
        ("worker_prefetch_multiplier", "many", "expected a whole number, at least 0, got 'many' (str)"),
        ("worker_prefetch_multiplier", 1.5, "got 1.5 (float)"),
        ("worker_prefetch_multiplier", True, "got True (bool)"),
        ("worker_prefetch_multiplier", -1, "at least 0, got -1 (int)"),
        ("task_max_deliveries", 0, "at least 1, got 0"),
        ("task_time_limit", "soon", "expected seconds (a number or a timedelta), at least 0 or None, got 'soon'"),
        ("task_time_limit", timedelta(seconds=-1), "at least 0"),
        ("task_time_limit", float("nan"), "got nan"),
        ("result_backend_max_retries", [], "expected a number"),
        ("worker_max_memory_per_child", float("inf"), "KiB (a whole number)"),
        ("task_default_queue", None, "expected a string, got NoneType"),
        ("task_default_queue", 5, "expected a string, got 5 (int)"),
        ("imports", 7, "expected a list of names"),
        ("imports", [1], "expected a list of names"),
        ("imports", {"a": 1}, "expected a list of names"),
        ("broker_url", 7, "expected a URL"),
        ("broker_transport_options", "x", "expected a dict"),
        ("broker_transport_options", {1: 2}, "expected a dict with names as keys"),
        ("task_protocol", 3, "expected 1 or 2, got 3"),
        ("task_default_delivery_mode", "durable", "expected 2 ('persistent') or 1 ('transient')"),
        ("task_default_queue_type", "stream", "expected 'classic' or 'quorum', got 'stream'"),
        ("task_default_exchange_type", "directt", "'direct' or 'topic'"),
        ("task_default_rate_limit", "10/d", "expected a rate such as '10/m'"),
        ("task_default_rate_limit", -1, "at least 0"),
        ("worker_concurrency", "all", "expected a whole number or 'auto'"),
        ("worker_redirect_stdouts_level", "WARNIN", "there is no log level 'WARNIN': did you mean 'WARNING'?"),
        ("timezone", "Europe/Londn", "there is no time zone 'Europe/Londn': did you mean 'Europe/London'?"),
        ("timezone", "Europe", "there is no time zone 'Europe'"),
        ("timezone", datetime.timezone(timedelta(hours=1)), "expected the name of a time zone"),
        ("worker_consumer", 3, "expected a class, or its path"),
        ("database_engine_callback", "x", "expected a function"),
        ("task_queues", 5, "expected a list of queues"),
        ("task_queues", [5], "not a queue: 5"),
        ("task_queues", {"web": {"rooting_key": "x"}}, "queue 'web'"),
        ("worker_state_db", 5, "expected a path or None"),
    ],
)  # fmt: skip
def test_wrong_value_is_refused(name: str, given: Any, says: str) -> None:
    message = refusal(**{name: given})
    assert message.startswith(f"{name}: ")
    assert says in message


def test_refusal_does_not_show_secrets() -> None:
    assert "hunter2" not in refusal(redis_password=["hunter2"])
    assert "hunter2" not in refusal(worker_concurrency="redis://me:hunter2@host")


def test_refusal_of_something_long_is_short() -> None:
    assert len(refusal(worker_concurrency="x" * 1000)) < 250


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([Queue("a"), "b"], (Queue("a"), Queue("b"))),
        ("a,b", (Queue("a"), Queue("b"))),
        ({"a": Queue("a")}, (Queue("a"),)),
        (
            {"a": {"exchange": "x", "exchange_type": "topic", "binding_key": "a.#"}, "b": {"max_priority": 9}},
            (Queue("a", Exchange("x", "topic"), "a.#"), Queue("b", max_priority=9)),
        ),
        ([{"name": "a", "bindings": [{"exchange": "x", "routing_key": "k"}]}],
         (Queue("a", bindings=(Binding(Exchange("x"), "k"),)),)),
        ([types.SimpleNamespace(name="k", exchange=types.SimpleNamespace(name="e", type="fanout"), routing_key="")],
         (Queue("k", Exchange("e", "fanout")),)),
    ],
)  # fmt: skip
def test_queues_are_read_from(given: Any, kept: Any) -> None:
    assert Settings(task_queues=given).task_queues == kept


# -- names ----------------------------------------------------------------------------------------------------------


def mutations(name: str) -> list[str]:
    middle = len(name) // 2
    other = "x" if name.islower() else "X"
    swapped = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    return [
        *(name[:i] + name[i + 1 :] for i in range(0, len(name), 2)),
        *(name[:i] + other + name[i + 1 :] for i in range(1, len(name), 2)),
        name[:middle] + other + name[middle:],
        name + other,
        swapped,
    ]


@pytest.mark.parametrize("name", [*FIELDS, *(field.old for field in FIELDS.values() if field.old)])
def test_name_with_one_wrong_letter_is_an_error_that_names_the_right_one(name: str) -> None:
    conf = Settings()
    for wrong in mutations(name):
        if resolve(wrong):
            continue
        with pytest.raises(ImproperlyConfigured, match=re.escape(repr(name))) as info:
            conf[wrong] = 1
        assert repr(wrong) in str(info.value)


@pytest.mark.parametrize("name", FIELDS)
def test_namespaced_name_with_one_wrong_letter_is_an_error_that_names_the_right_one(name: str) -> None:
    right = f"CELERY_{name.upper()}"
    for wrong in (f"{right}X", f"{right[:-1]}_", f"CELERY_X{name.upper()}"):
        with pytest.raises(ImproperlyConfigured, match=re.escape(repr(right))):
            Settings().load({wrong: 1}, namespace="CELERY")


@pytest.mark.parametrize(
    "source",
    [
        lambda conf: setattr(conf, "task_ack_late", True),
        lambda conf: conf.__setitem__("task_ack_late", True),
        lambda conf: conf.update(task_ack_late=True),
        lambda conf: conf.update({"task_ack_late": True}),
        lambda conf: conf.load({"task_ack_late": True}),
        lambda conf: conf.load(types.SimpleNamespace(task_ack_late=True)),
        lambda conf: conf.load(type("Config", (), {"task_ack_late": True})),
    ],
)
def test_misspelt_name_is_refused_at_every_door(source: Any) -> None:
    conf = Settings()
    with pytest.raises(
        ImproperlyConfigured, match="unknown setting 'task_ack_late': did you mean 'task_acks_late'"
    ):
        source(conf)
    assert conf.changes == conf.unknown == {}


def test_foreign_keys_are_kept() -> None:
    conf = Settings(redbeat_redis_url="redis://x")
    conf.ONCE = {"backend": "x"}  # type: ignore[attr-defined]
    assert conf.unknown == {"redbeat_redis_url": "redis://x", "ONCE": {"backend": "x"}}
    assert conf["ONCE"] == conf.ONCE == {"backend": "x"}  # type: ignore[attr-defined]
    assert conf.get("redbeat_redis_url") == "redis://x"
    assert conf.get("redbeat_lock_key", "none") == "none"
    assert "ONCE" in conf
    assert "ONCE" in list(conf)
    del conf["ONCE"]
    assert "ONCE" not in conf


def test_unknown_name_cannot_be_read() -> None:
    conf = Settings()
    with pytest.raises(
        AttributeError, match="there is no setting 'task_ack_late': did you mean 'task_acks_late'"
    ):
        _ = conf.task_ack_late  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        conf["task_ack_late"]


def test_two_spellings_of_one_setting_are_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="'BROKER_URL' and 'broker_url' are the same setting"):
        Settings({"BROKER_URL": "a", "broker_url": "b"})


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("abcd", ["abcd"], ["abcd"]),
        ("abcx", ["abcd", "abcdef"], ["abcd"]),
        ("abcx", ["abcd", "abce"], ["abcd", "abce"]),
        ("bacd", ["abcd"], ["abcd"]),
        ("axyd", ["abcd"], ["abcd"]),
        ("xyzd", ["abcd"], []),
        ("", ["ab", "abc"], ["ab"]),
    ],
)
def test_nearest(word: str, known: list[str], near: list[str]) -> None:
    assert nearest(word, known) == near


def test_did_you_mean_nothing() -> None:
    assert did_you_mean("zebra", ["task", "queue"]) == ""


# -- attributes, items, batches -------------------------------------------------------------------------------------


def test_every_spelling_reads_and_writes_the_same_setting() -> None:
    conf = Settings()
    conf.task_serializer = "yaml"
    conf.accept_content = ("json", "yaml")
    assert conf["task_serializer"] == conf["CELERY_TASK_SERIALIZER"] == conf.get("task_serializer") == "yaml"
    conf["CELERY_TASK_SERIALIZER"] = "json"
    assert conf.task_serializer == "json"
    assert conf.CELERY_TASK_SERIALIZER == "json"  # type: ignore[attr-defined]


def test_assignment_is_converted_and_checked() -> None:
    conf = Settings()
    conf.task_time_limit = timedelta(minutes=1)  # type: ignore[assignment]
    assert conf.task_time_limit == 60
    with pytest.raises(ImproperlyConfigured, match="task_time_limit"):
        conf.task_time_limit = "x"  # type: ignore[assignment]
    assert conf.task_time_limit == 60


def test_refused_batch_changes_nothing() -> None:
    conf = Settings(worker_concurrency=2)
    with pytest.raises(ImproperlyConfigured):
        conf.update(worker_concurrency=3, task_time_limit="x")
    with pytest.raises(ImproperlyConfigured):
        conf.update(worker_concurrency=3, task_time_limit=1, task_soft_time_limit=2)
    with pytest.raises(ImproperlyConfigured):
        conf.load({"task_soft_time_limit": 2, "task_time_limit": 1})
    assert conf.changes == {"worker_concurrency": 2}


def test_deleted_setting_has_its_default_again() -> None:
    conf = Settings(worker_concurrency=2)
    del conf.worker_concurrency
    assert conf.worker_concurrency is None
    assert not conf.is_set("worker_concurrency")
    with pytest.raises(KeyError):
        del conf["nothing"]


def test_methods_are_no_settings() -> None:
    with pytest.raises(AttributeError, match="'update' is not a setting"):
        Settings().update = 1  # type: ignore[method-assign]


def test_is_set_tells_what_somebody_said() -> None:
    conf = Settings(task_serializer="json")
    conf.load({"CELERYD_CONCURRENCY": 1})
    assert conf.is_set("task_serializer")
    assert conf.is_set("CELERY_TASK_SERIALIZER")
    assert conf.is_set("worker_concurrency")
    assert not conf.is_set("result_serializer")
    assert conf.changes == {"task_serializer": "json", "worker_concurrency": 1}


def test_dict_changed_in_place_counts_as_set_and_is_not_shared() -> None:
    conf, other = Settings(), Settings()
    conf.beat_schedule["x"] = {"task": "t", "schedule": 1}
    assert conf.is_set("beat_schedule")
    assert list(conf.changes) == ["beat_schedule"]
    assert other.beat_schedule == FIELDS["beat_schedule"].default == {}
    del conf.beat_schedule
    assert conf.beat_schedule == {}


def test_users_own_dict_is_kept() -> None:
    schedule: dict[str, Any] = {}
    conf = Settings(beat_schedule=schedule)
    schedule["later"] = {}
    assert conf.beat_schedule == {"later": {}}


def test_settings_are_a_mapping() -> None:
    conf = Settings(worker_concurrency=3, extension_key=1)
    assert len(conf) == len(FIELDS) + 1
    assert dict(conf)["worker_concurrency"] == 3
    assert dict(conf)["task_serializer"] == "json"
    assert list(conf)[-1] == "extension_key"
    assert "CELERYD_CONCURRENCY" in conf
    assert "nothing" not in conf
    assert 5 not in conf


def test_settings_can_be_copied_and_pickled() -> None:
    conf = Settings(worker_concurrency=3, extension_key=1)
    for other in (copy.deepcopy(conf), pickle.loads(pickle.dumps(conf))):
        other.worker_concurrency = 4
        assert (other.extension_key, other.changes) == (1, {"worker_concurrency": 4})
    assert conf.worker_concurrency == 3


# -- sources --------------------------------------------------------------------------------------------------------

SOURCE = """
    import os
    from datetime import timezone
    from celeriac.topology import Queue

    def route_task(name, *args, **kwargs):
        return None

    class task_router:
        pass

    _private = task_ack_late = None
    del task_ack_late
    task_serializer = "json"
    task_queues = [Queue("a")]
    task_routes = (route_task,)
    worker_consumer = task_router
    result_expires = 60
    my_extension = 1
"""


def test_module_is_read_by_name(module: Any) -> None:
    conf = Settings()
    conf.load(module(SOURCE))
    assert conf.changes.keys() == {
        "task_serializer",
        "task_queues",
        "task_routes",
        "worker_consumer",
        "result_expires",
    }
    assert conf.unknown == {"my_extension": 1}


def test_module_object_is_read(module: Any) -> None:
    conf = Settings()
    conf.load(find_module(module("task_serializer = 'json'")))
    assert conf.changes == {"task_serializer": "json"}


@pytest.mark.parametrize("path", ["{}:Production", "{}.Production", "{}:holder.settings"])
def test_attribute_of_a_module_is_read_by_name(module: Any, path: str) -> None:
    name = module("""
        class Base:
            task_track_started = True
        class Production(Base):
            worker_concurrency = 2
            def method(self): ...
        class holder:
            settings = {"task_track_started": True, "worker_concurrency": 2}
    """)
    conf = Settings()
    conf.load(path.format(name))
    assert conf.changes == {"task_track_started": True, "worker_concurrency": 2}
    assert conf.unknown == {}


def test_object_is_read() -> None:
    class Config:
        def __init__(self) -> None:
            self.CELERYD_CONCURRENCY = 2

        @property
        def BROKER_URL(self) -> str:  # noqa: N802
            return "redis://x"

    conf = Settings()
    conf.load(Config())
    assert conf.changes == {"broker_url": "redis://x", "worker_concurrency": 2}


def test_namespace_selects_and_strips() -> None:
    conf = Settings()
    conf.load(
        {
            "CELERY_BROKER_URL": "redis://x",
            "CELERY_TASK_ALWAYS_EAGER": True,
            "CELERY_MY_EXTENSION": 1,
            "BROKER_URL": "redis://y",
            "task_serializer": "yaml",
            "TIME_ZONE": "Mars",
        },
        namespace="CELERY",
    )
    assert conf.changes == {"broker_url": "redis://x", "task_always_eager": True}
    assert conf.unknown == {"my_extension": 1}


def test_namespace_touches_no_other_attribute() -> None:
    class Django:
        CELERY_TASK_TRACK_STARTED = True

        @property
        def SECRET(self) -> str:  # noqa: N802
            raise RuntimeError

    conf = Settings()
    conf.load(Django(), namespace="CELERY")
    assert conf.changes == {"task_track_started": True}


def test_old_name_in_a_namespace_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"'CELERY_ACKS_LATE' is .* it is 'CELERY_TASK_ACKS_LATE'"):
        Settings().load({"CELERY_ACKS_LATE": True}, namespace="CELERY")


def test_other_namespace_and_lower_case() -> None:
    conf = Settings()
    conf.load({"proj_worker_concurrency": 2}, namespace="proj")
    assert conf.worker_concurrency == 2


def test_old_and_new_names_are_not_mixed() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"'task_serializer' .* 'BROKER_URL' .*now 'broker_url'"):
        Settings().load({"task_serializer": "json", "BROKER_URL": "redis://x"})


def test_old_names_alone_are_fine() -> None:
    conf = Settings()
    conf.load({"CELERY_ACKS_LATE": False, "CELERYD_CONCURRENCY": 2, "BROKER_URL": "redis://x"})
    assert conf.changes == {"broker_url": "redis://x", "task_acks_late": False, "worker_concurrency": 2}


def test_what_the_program_sets_wins_over_what_it_loads() -> None:
    conf = Settings(broker_url="redis://keyword")
    conf.load({"broker_url": "redis://file", "worker_concurrency": 1, "extension": 1})
    conf.worker_concurrency = 2
    conf["extension"] = 2
    conf.load({"broker_url": "redis://file", "worker_concurrency": 1, "extension": 1})
    assert (conf.broker_url, conf.worker_concurrency, conf["extension"]) == ("redis://keyword", 2, 2)


def test_loading_again_replaces_what_was_loaded() -> None:
    conf = Settings()
    conf.load({"worker_concurrency": 1, "beat_schedule": {"x": 1}, "extension": 1})
    conf.load({"task_track_started": True})
    assert conf.changes == {"task_track_started": True}
    assert conf.unknown == {}
    assert (conf.worker_concurrency, conf.beat_schedule) == (None, {})


def test_missing_module_is_named(module: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="there is no module 'no_such_conf'"):
        Settings().load("no_such_conf")
    with pytest.raises(ImproperlyConfigured, match=r"there is no module .* did you mean 'celeryconfig'"):
        Settings().load("celeryconfig.py")
    name = module("x = 1")
    with pytest.raises(ImproperlyConfigured, match=f"the module '{name}' has no attribute 'Config'"):
        Settings().load(f"{name}:Config")
    with pytest.raises(ImproperlyConfigured, match=f"there is no '{name}:x.y'"):
        Settings().load(f"{name}:x.y")
    with pytest.raises(ImproperlyConfigured, match=f"there is no '{name}.py'|did you mean '{name}'"):
        Settings().load(f"{name}.py")


def test_missing_module_may_be_missing_if_silent() -> None:
    conf = Settings()
    conf.load("no_such_conf", silent=True)
    assert conf.changes == {}


@pytest.mark.parametrize("silent", [False, True])
def test_import_error_inside_the_module_comes_through(module: Any, silent: bool) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        Settings().load(module("import no_such_dependency"), silent=silent)


@pytest.mark.parametrize("path", ["", ".relative", ":attribute"])
def test_path_that_names_no_module(path: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="there is no module"):
        find_object(path)


def test_module_is_named_by_the_environment(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = Settings()
    monkeypatch.setenv("MY_CONFIG", module("CELERY_TASK_TRACK_STARTED = True"))
    conf.load_envvar("MY_CONFIG", namespace="CELERY")
    assert conf.task_track_started


def test_environment_that_names_no_module() -> None:
    conf = Settings()
    conf.load_envvar("NO_SUCH_VARIABLE", silent=True)
    with pytest.raises(ImproperlyConfigured, match="'NO_SUCH_VARIABLE' is not set"):
        conf.load_envvar("NO_SUCH_VARIABLE")


# -- contradictions -------------------------------------------------------------------------------------------------

CONTRADICTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"task_soft_time_limit": 20, "task_time_limit": 10}, "task_soft_time_limit", "task_time_limit"),
    ({"control_queue_durable": True}, "control_queue_exclusive", "control_queue_durable"),
    (
        {"event_queue_durable": True, "event_queue_exclusive": True},
        "event_queue_exclusive",
        "event_queue_durable",
    ),
    ({"task_serializer": "pickle"}, "task_serializer", "accept_content"),
    ({"result_serializer": "yaml"}, "result_serializer", "accept_content"),
    (
        {"result_serializer": "json", "result_accept_content": ["yaml"]},
        "result_serializer",
        "result_accept_content",
    ),
    (
        {"task_default_queue_type": "quorum", "task_queue_max_priority": 9},
        "task_default_queue_type",
        "task_queue_max",
    ),
    (
        {"task_create_missing_queue_type": "quorum", "task_queue_max_priority": 9},
        "task_create_missing_queue_type",
        "task_queue_max_priority",
    ),
    ({"task_queues": ["a"], "task_create_missing_queues": False}, "task_default_queue", "task_queues"),
]


@pytest.mark.parametrize(("changes", "one", "other"), CONTRADICTIONS)
def test_contradiction_names_both(changes: dict[str, Any], one: str, other: str) -> None:
    for take in (Settings, Settings().update, Settings().load):
        with pytest.raises(ImproperlyConfigured, match=f"(?s){one}.*{other}|{other}.*{one}"):
            take(changes)


@pytest.mark.parametrize(("changes", "one", "other"), CONTRADICTIONS)
def test_single_assignments_are_checked_together(changes: dict[str, Any], one: str, other: str) -> None:
    conf = Settings()
    for name, value in changes.items():
        conf[name] = value
    with pytest.raises(ImproperlyConfigured, match=one):
        conf.check()


def test_loaded_and_given_settings_may_contradict_each_other() -> None:
    conf = Settings(task_time_limit=10)
    with pytest.raises(ImproperlyConfigured, match="task_time_limit"):
        conf.load({"task_soft_time_limit": 20})


@pytest.mark.parametrize(
    "changes",
    [
        {"task_soft_time_limit": 10, "task_time_limit": 10},
        {"control_queue_durable": True, "control_queue_exclusive": False},
        {"task_serializer": "pickle", "accept_content": ["json", "application/x-python-serialize"]},
        {"task_serializer": "my-own"},
        {"result_serializer": "json", "result_accept_content": ["application/json"]},
        {"task_queues": ["a", "celery"], "task_create_missing_queues": False},
        {"task_queues": ["a"], "task_create_missing_queues": False, "task_default_queue": "a"},
    ],
)
def test_no_contradiction(changes: dict[str, Any]) -> None:
    Settings(changes).check()


# -- what is not there yet ------------------------------------------------------------------------------------------


def test_settings_of_later_versions_are_told() -> None:
    conf = Settings(beat_schedule={"x": {}}, worker_send_task_events=True, task_time_limit=5)
    assert conf.not_yet() == ["worker_send_task_events", "beat_schedule"]


def test_default_of_a_later_setting_is_not_told() -> None:
    assert Settings(worker_send_task_events=False, beat_schedule={}).not_yet() == []


@pytest.mark.parametrize(
    "name",
    ["task_routes", "task_serializer", "task_acks_late", "task_soft_time_limit", "result_backend", "worker_concurrency",
     "worker_pool", "worker_prefetch_multiplier", "worker_log_format", "database_table_names", "worker_lease",
     "broker_heartbeat", "broker_use_ssl", "redis_host", "result_failure_expires", "result_persistent"],
)  # fmt: skip
def test_supported(name: str) -> None:
    assert not FIELDS[name].later


@pytest.mark.parametrize("prefix", ["beat_", "event_", "control_", "security_", "mongodb_", "s3_"])
def test_later(prefix: str) -> None:
    assert {field.later for name, field in FIELDS.items() if name.startswith(prefix)} == {True}


# -- where messages and results go ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "environment", "broker", "backend"),
    [
        ({}, {}, "sqlite:///celeriac.db", "sqlite:///celeriac.db"),
        ({"broker_url": "redis://a"}, {}, "redis://a", "disabled://"),
        ({"broker_url": "redis://a", "result_backend": "redis://b"}, {}, "redis://a", "redis://b"),
        ({"result_backend": "disabled"}, {}, "sqlite:///celeriac.db", "disabled://"),
        ({"result_backend": "rpc://"}, {}, "sqlite:///celeriac.db", "rpc://"),
        (
            {"result_backend": "database", "database_url": "sqlite:///x"},
            {},
            "sqlite:///celeriac.db",
            "db+sqlite:///x",
        ),
        ({"broker_url": "redis://a"}, {"CELERIAC_BROKER_URL": "redis://e"}, "redis://e", "disabled://"),
        (
            {},
            {"CELERIAC_BROKER_URL": "redis://e", "CELERY_BROKER_URL": "redis://c"},
            "redis://e",
            "disabled://",
        ),
        ({"broker_url": "redis://a"}, {"CELERY_BROKER_URL": "redis://c"}, "redis://c", "disabled://"),
        (
            {"result_backend": "x://"},
            {"CELERIAC_RESULT_BACKEND": "redis://e"},
            "sqlite:///celeriac.db",
            "redis://e",
        ),
        (
            {"result_backend": "x://"},
            {"CELERY_RESULT_BACKEND": "redis://c"},
            "sqlite:///celeriac.db",
            "redis://c",
        ),
        ({"broker_url": "redis://a"}, {"CELERIAC_BROKER_URL": ""}, "redis://a", "disabled://"),
    ],
)
def test_effective_urls(
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    environment: dict[str, str],
    broker: str,
    backend: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    conf = Settings(changes)
    assert (conf.effective_broker_url, conf.effective_result_backend) == (broker, backend)


# -- between processes, and for people ------------------------------------------------------------------------------


def test_plain_settings_survive_the_way_through_msgpack() -> None:
    queue = Queue(
        "a", Exchange("x", "topic", arguments={"y": 1}), "a.#", (Binding(Exchange("z"), "k"),), max_priority=9
    )
    conf = Settings(
        task_queues=[queue, Queue("b")],
        task_routes={"a.*": {"queue": "a"}},
        task_time_limit=timedelta(seconds=5),
        security_key_password=b"\xff",
        imports=["m"],
        extension={"deep": [1, {"x": None}]},
    )
    conf.load({"CELERYD_CONCURRENCY": 3})
    conf.broker_transport_options["visibility_timeout"] = 5
    values, rest = conf.plain()
    other = Settings.from_plain(msgspec.msgpack.decode(msgspec.msgpack.encode(values)))
    assert rest == []
    assert other.changes == conf.changes
    assert other.unknown == conf.unknown


def test_what_is_not_plain_is_named() -> None:
    conf = Settings(
        task_routes=[re.compile("x")],
        worker_consumer=Path,
        database_engine_callback=print,
        beat_schedule={"x": {"schedule": timedelta(1)}},
        extension=object(),
        huge=2**64,
        keyed={1: 2},
        worker_concurrency=1,
    )
    assert conf.plain() == (
        {"worker_concurrency": 1},
        [
            "task_routes",
            "worker_consumer",
            "beat_schedule",
            "database_engine_callback",
            "extension",
            "huge",
            "keyed",
        ],
    )


def test_table_has_no_secrets() -> None:
    secret = "hunter2"
    conf = Settings(
        broker_url=f"amqp://me:{secret}@host//;amqp://me:{secret}@other//",
        broker_password=secret,
        redis_password=secret,
        s3_access_key_id=secret,
        s3_secret_access_key=secret,
        security_key_password=secret,
        broker_transport_options={
            "sentinel_kwargs": {"password": secret},
            "fallback": [f"redis://:{secret}@h"],
        },
        database_engine_options={"connect_args": {"sslpassword": "x", "Password": secret}},
        mongodb_backend_settings={"options": {"authToken": "x", "token": secret}},
        my_api_token=secret,
        OTHER_SECRET=secret,
        extension_urls=(f"redis://:{secret}@h",),
    )
    assert secret not in repr(conf.table())
    assert secret not in repr(conf)
    assert repr(conf.table(mask=False)).count(secret) == 14


def test_table_shows_what_is_no_secret() -> None:
    conf = Settings(
        task_default_routing_key="web", worker_concurrency=2, extension=1, redis_password="", cassandra_keyspace="k",
        task_routes={"a": {"routing_key": "x"}},
    )  # fmt: skip
    assert conf.table() == {
        "task_default_routing_key": "web",
        "task_routes": {"a": {"routing_key": "x"}},
        "worker_concurrency": 2,
        "redis_password": "",
        "cassandra_keyspace": "k",
        "extension": 1,
    }


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:pw@localhost:6379/0", "redis://:**@localhost:6379/0"),
        ("amqp://guest:guest@localhost//", "amqp://guest:**@localhost//"),
        ("amqp://guest@localhost:5672//", "amqp://guest@localhost:5672//"),
        ("amqp://a:b@h;amqp://c:d@i", "amqp://a:**@h;amqp://c:**@i"),
        ("amqp://a:b;c@h", "amqp://a:**@h"),
        ("amqp://a:p/w@h/v", "amqp://a:**@h/v"),
        ("amqp://a:p?w@h/v", "amqp://a:**@h/v"),
        ("amqp://a:p@w/x@h/v", "amqp://a:**@h/v"),
        ("amqp://a:p#w@h/v", "amqp://a:**@h/v"),
        ("db+postgresql://u:p@h/db?sslmode=require", "db+postgresql://u:**@h/db?sslmode=require"),
        ("redis://h:6379/0?x=a@b", "redis://h:6379/0?x=a@b"),
        ("redis://u:p@h/0?x=a@b", "redis://u:**@h/0?x=a@b"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=**&db=1"),
        (
            "mongodb://h/?authToken=t;ssl_keyfile_password=p",
            "mongodb://h/?authToken=**;ssl_keyfile_password=**",
        ),
        ("sqlite:///celeriac.db", "sqlite:///celeriac.db"),
        ("sqlite:////home/me@work/x.db", "sqlite:////home/me@work/x.db"),
        ("memory://", "memory://"),
        ("not a url", "not a url"),
        ("", ""),
        ("proj.backends:Mine", "proj.backends:Mine"),
    ],
)
def test_mask_url(url: str, masked: str) -> None:
    assert mask_url(url) == masked
