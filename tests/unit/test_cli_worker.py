"""The worker's command line becomes `WorkerOptions`."""

from __future__ import annotations

import os
import socket
from typing import Any

import click
import pytest

from celeriac.cli.options import General
from celeriac.cli.worker import command, worker_options
from celeriac.errors import ImproperlyConfigured
from celeriac.worker.options import WorkerOptions

HOST = socket.gethostname()


def parsed(*argv: str, general: General | None = None) -> WorkerOptions:
    context = command.make_context("worker", list(argv), auto_envvar_prefix="CELERIAC_WORKER")
    given: Any = context.params
    return worker_options(general or General(app="proj"), given)


def test_without_options_everything_is_left_to_the_settings() -> None:
    assert parsed() == WorkerOptions(app="proj", hostname=f"celery@{HOST}")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["-n", "w1"], {"hostname": f"w1@{HOST}"}),
        (["-n", "w1@%h"], {"hostname": f"w1@{HOST}"}),
        (["-l", "info"], {"loglevel": "INFO"}),
        (["--loglevel=FATAL"], {"loglevel": "CRITICAL"}),
        (["-c", "3"], {"concurrency": 3}),
        (["-c", "auto"], {"concurrency": os.cpu_count()}),
        (["--autoscale", "2,8"], {"concurrency": 8}),
        (["--autoscale", "8", "-c", "3"], {"concurrency": 3}),
        (["-P", "solo"], {"pool": "solo"}),
        (["-P", "processes"], {"pool": "prefork"}),
        (["-Q", "a,b", "-X", "c,"], {"queues": ("a", "b"), "exclude_queues": ("c",)}),
        (["-I", "x.y, z"], {"include": ("x.y", "z")}),
        (["--purge"], {"purge": True}),
        (["--discard"], {"purge": True}),
        (["--time-limit", "5", "--soft-time-limit=2.5"], {"time_limit": 5.0, "soft_time_limit": 2.5}),
        (["--max-tasks-per-child", "100"], {"max_tasks_per_child": 100}),
        (["--prefetch-multiplier", "1"], {"overrides": {"worker_prefetch_multiplier": 1}}),
        (["worker.lease=5", "-B", "enable_utc=(bool)no"], {"overrides": {"worker_lease": "5", "enable_utc": False}}),
        (["-f", "%n-%h%I.log", "-n", "w1@box.lan"], {"hostname": "w1@box.lan", "logfile": "w1-box.lan.log"}),
        (["--pidfile", "/run/%p.%d.%%i", "-n", "w1@box.lan"], {"pidfile": "/run/w1@box.lan.lan.%i"}),
    ],
)  # fmt: skip
def test_an_option_reaches_the_worker(argv: list[str], expected: dict[str, Any]) -> None:
    options = parsed(*argv)
    assert {name: getattr(options, name) for name in expected} == expected


def test_options_for_what_is_so_anyway_or_comes_later_change_nothing() -> None:
    line = (
        "-Ofair --disable-prefetch --pool-start-method fork --without-gossip --without-mingle --without-heartbeat "
        "--heartbeat-interval 5 -E -B -s x.db --scheduler x:Y -S y.db --max-memory-per-child 9 -D --executable p"
    )
    assert parsed(*line.split()) == parsed()


def test_general_options_reach_the_worker() -> None:
    options = parsed(general=General(app="proj:app", no_color=True))
    assert (options.app, options.color) == ("proj:app", False)


def test_a_worker_needs_an_app() -> None:
    with pytest.raises(click.UsageError, match="-A proj"):
        parsed(general=General())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-c", "0"], "'0' is neither a number above 0 nor auto"),
        (["-c", "many"], "many"),
        (["--autoscale", "1,2,3"], "not max,min"),
        (["--autoscale", "x"], "not max,min"),
        (["--time-limit", "-1"], "-1"),
        (["--umask", "9"], "octal"),
        (["-l", "loud"], "'loud' is not one of"),
        (["-P", "gevent"], "later release"),
        (["-P", "preforc"], "'preforc' is not one of"),
        (["word"], "neither an option nor a setting"),
    ],
)
def test_a_wrong_value_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        parsed(*argv)
    assert message in caught.value.format_message()


@pytest.mark.parametrize("word", ["worker.lese=5", "worker.lease=soon"])
def test_a_wrong_setting_is_refused_before_anything_starts(word: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="worker_lease"):
        parsed(word)


def test_every_option_can_be_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERIAC_WORKER_LOGLEVEL", "debug")
    monkeypatch.setenv("CELERY_WORKER_LOGLEVEL", "error")
    monkeypatch.setenv("CELERY_WORKER_QUEUES", "a,b")
    monkeypatch.setenv("CELERY_WORKER_PURGE", "1")
    monkeypatch.setenv("CELERY_WORKER_CONCURRENCY", "7")
    options = parsed("-c", "2")
    assert (options.loglevel, options.queues, options.purge) == ("DEBUG", ("a", "b"), True)
    assert options.concurrency == 2
