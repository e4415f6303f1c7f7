"""Apps: registry, configuration, sending."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from celeriac import Celeriac, Task, current_app, current_task, registry, shared_task, signals
from celeriac.brokers import open_broker
from celeriac.brokers.base import BrokerOptions
from celeriac.errors import (
    AlwaysEagerIgnored,
    ConnectionLost,
    DuplicateTaskNameWarning,
    EncodeError,
    ImproperlyConfigured,
    NotRegistered,
    OperationalError,
    PublishFailed,
    QueueNotFound,
)
from celeriac.request import Request, current
from celeriac.signals import import_modules
from celeriac.testing.faults import FaultyBroker
from celeriac.topology import Exchange, Queue
from celeriac.wire import message as messages
from celeriac.wire.envelope import Outgoing
from celeriac.wire.message import Message


@pytest.fixture(autouse=True)
def own_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_current", None)
    monkeypatch.setattr(registry, "_shared", {})


@pytest.fixture
def app() -> Iterator[Celeriac]:
    with Celeriac("t", broker="memory://", backend="memory://") as app:
        yield app


@pytest.fixture
def add(app: Celeriac) -> Task[[int, int], int]:
    @app.task(name="t.add")
    def add(x: int, y: int) -> int:
        return x + y

    return add


@pytest.fixture
def sent(app: Celeriac) -> Callable[..., list[Any]]:
    """Takes the deliveries out of a queue."""

    def take(queue: str = "celery") -> list[Any]:
        consumer = app.broker.consumer([app.publisher.router.queue(queue)], name="test")
        return list(consumer.fetch(100, 0))

    return take


@pytest.fixture
def message(app: Celeriac, sent: Callable[..., list[Any]]) -> Callable[..., Message]:
    """Takes the only message out of a queue."""

    def take(queue: str = "celery") -> Message:
        (delivery,) = sent(queue)
        return messages.decode(delivery.envelope, accept=app.accepted_content)

    return take


# -- tasks -----------------------------------------------------------------------------------------------------


def test_names_come_from_the_module_or_for_scripts_from_main(
    app: Celeriac, monkeypatch: pytest.MonkeyPatch
) -> None:
    def job() -> None: ...

    assert app.task(job).name == f"{__name__}.job"
    job.__module__ = "__main__"
    assert app.task(job).name == "t.job"
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None, __file__="/x/jobs.py"))
    assert Celeriac().task(job).name == "jobs.job"
    spec = SimpleNamespace(name="pkg.__main__")
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec, __file__="/x/__main__.py"))
    assert Celeriac().task(job).name == "pkg.job"


def test_the_first_of_two_functions_keeps_the_name(app: Celeriac, add: Task) -> None:
    with pytest.warns(DuplicateTaskNameWarning, match=r"'t\.add'") as caught:
        second = app.task(name="t.add")(lambda x, y: 0)
    assert second is add
    assert caught[0].filename == __file__


def test_the_warning_names_the_line_of_a_bare_decorator(app: Celeriac) -> None:
    def job() -> None: ...

    app.task(job)
    with pytest.warns(DuplicateTaskNameWarning) as caught:
        app.task(job)
    assert caught[0].filename == __file__


def test_register_task_replaces(app: Celeriac, add: Task) -> None:
    class Other(Task):
        name = "t.add"

    with pytest.warns(DuplicateTaskNameWarning):
        other = app.register_task(Other)
    assert app.tasks["t.add"] is other


def test_an_unknown_task_is_named_with_what_it_may_have_meant(app: Celeriac, add: Task) -> None:
    with pytest.raises(NotRegistered, match=r"'t\.ad' is registered: did you mean 't\.add'"):
        app.tasks["t.ad"]
    assert app.tasks.get("t.ad") is None
    assert "t.ad" not in app.tasks


def test_tasks_can_be_taken_out(app: Celeriac, add: Task) -> None:
    app.tasks.unregister(add)
    assert list(app.tasks) == []
    with pytest.raises(NotRegistered):
        app.tasks.unregister("t.add")


def test_what_is_no_function_or_a_task_already_is_refused(app: Celeriac, add: Task) -> None:
    with pytest.raises(TypeError, match="a task already"):
        app.task(add)
    with pytest.raises(TypeError, match="not of 3"):
        app.task(3)  # pyright: ignore


def test_a_filter_may_replace_the_task(app: Celeriac) -> None:
    assert app.task(filter=lambda task: task.name)(lambda: None).endswith("<lambda>")  # pyright: ignore


def test_task_cls_is_the_base_of_tasks() -> None:
    class Base(Task): ...

    assert isinstance(Celeriac(task_cls=Base).task(lambda: None), Base)
    assert Celeriac(task_cls="celeriac.task:Task").Task is Task


def test_shared_tasks_are_in_every_app_and_work_with_the_current_one() -> None:
    before = Celeriac("before")

    @shared_task(name="shared.add")
    def add(x: int, y: int) -> int:
        return x + y

    after = Celeriac("after")
    assert before.tasks["shared.add"] is after.tasks["shared.add"] is add
    assert (list(after.tasks), len(after.tasks), "shared.add" in after.tasks) == (["shared.add"], 1, True)
    assert add.app is after
    before.set_current()
    assert add.app is before


def test_a_shared_name_is_taken_once() -> None:
    first = shared_task(name="shared.x")(lambda: 1)
    with pytest.warns(DuplicateTaskNameWarning) as caught:
        assert shared_task(name="shared.x")(lambda: 2) is first
    assert caught[0].filename == __file__


def test_the_app_made_last_is_the_current_one(app: Celeriac) -> None:
    assert registry.current_app() is app
    assert current_app.main == "t"
    Celeriac("hidden", set_as_current=False)
    assert registry.current_app() is app
    other = Celeriac("other")
    assert registry.current_app() is other


def test_without_an_app_there_is_one_on_the_embedded_default() -> None:
    assert current_app.conf.effective_broker_url == "sqlite:///celeriac.db"
    assert registry.current_app().main == "default"


def test_the_current_task_is_the_one_that_runs(app: Celeriac, add: Task) -> None:
    assert not current_task
    assert app.current_task is None
    token = current.set(Request(task="t.add", id="i"))
    try:
        assert current_task
        assert current_task.request.id == "i"
        assert (app.current_task, repr(current_task)) == (add, "<Task t.add>")
    finally:
        current.reset(token)


# -- configuration ---------------------------------------------------------------------------------------------


def test_keywords_are_settings_and_win_over_what_is_loaded() -> None:
    app = Celeriac("t", broker="memory://", task_default_queue="mine", include="a,b")
    app.config_from_object(
        {"broker_url": "sqlite://", "task_default_queue": "theirs", "task_acks_late": False}
    )
    assert (app.conf.broker_url, app.conf.task_default_queue) == ("memory://", "mine")
    assert (app.conf.task_acks_late, app.conf.include) == (False, ("a", "b"))


def test_an_unknown_setting_near_a_known_one_is_an_error() -> None:
    with pytest.raises(ImproperlyConfigured, match="task_serializer"):
        Celeriac("t", task_serialiser="json")


def test_configuration_is_read_at_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    app = Celeriac("t", config_source="late_config_of_test_app", namespace="CELERY")
    told: list[Any] = []
    app.on_configure.connect(lambda sender, **_: told.append(sender), weak=False)
    (tmp_path / "late_config_of_test_app.py").write_text("CELERY_TASK_DEFAULT_QUEUE = 'late'\n")
    assert told == []
    assert app.conf.task_default_queue == "late"
    assert app.conf.task_default_queue == "late"
    assert told == [app]


def test_a_configuration_that_cannot_be_read_is_never_passed_over() -> None:
    app = Celeriac("t", config_source="no_such_module_at_all")
    for _ in range(2):
        with pytest.raises(ImproperlyConfigured):
            app.conf


def test_a_configuration_may_look_at_the_app_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "looking_config_of_test_app.py").write_text(
        "from celeriac import current_app\ntask_default_queue = current_app.conf.task_default_queue + '2'\n"
    )
    assert Celeriac("t", config_source="looking_config_of_test_app").conf.task_default_queue == "celery2"


def test_force_reads_now_and_silent_forgives() -> None:
    app = Celeriac("t")
    with pytest.raises(ImproperlyConfigured):
        app.config_from_object("no_such_module_at_all", force=True)
    app.config_from_object("no_such_module_at_all", silent=True, force=True)


def test_config_from_envvar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "env_config_of_test_app.py").write_text("task_default_queue = 'env'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MY_CONFIG", "env_config_of_test_app")
    app = Celeriac("t")
    app.config_from_envvar("MY_CONFIG", force=True)
    assert app.conf.task_default_queue == "env"


def test_the_time_zone_of_naive_instants(app: Celeriac) -> None:
    assert app.timezone is UTC
    app.conf.timezone = "Europe/Vienna"
    assert app.timezone == ZoneInfo("Europe/Vienna")
    assert app.now().tzinfo == ZoneInfo("Europe/Vienna")
    app.conf.update(timezone=None, enable_utc=False)
    assert app.now().utcoffset() == datetime.now().astimezone().utcoffset()


def test_modules_are_discovered_when_the_app_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, source in {
        "has_jobs": "import builtins\nbuiltins.found_jobs = True\n",
        "has_none": None,
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        if source:
            (tmp_path / name / "jobs.py").write_text(source)
    monkeypatch.setattr("builtins.found_jobs", False, raising=False)
    app = Celeriac("t")
    app.autodiscover_tasks(lambda: ["has_jobs", "has_none"], related_name="jobs")
    import_modules.send(sender=Celeriac("other"))
    assert "has_jobs" not in sys.modules
    import_modules.send(sender=app)
    assert "has_jobs.jobs" in sys.modules
    with pytest.raises(ImproperlyConfigured, match="no package 'has_nothing'"):
        app.autodiscover_tasks(["has_nothing"], force=True)


def test_an_error_inside_a_discovered_module_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "is_broken").mkdir()
    (tmp_path / "is_broken" / "__init__.py").touch()
    (tmp_path / "is_broken" / "tasks.py").write_text("import module_that_is_not_there\n")
    with pytest.raises(ModuleNotFoundError, match="module_that_is_not_there"):
        Celeriac("t").autodiscover_tasks(["is_broken"], force=True)


def test_loaded_is_told(app: Celeriac) -> None:
    told: list[str] = []
    app.on_after_configure.connect(lambda source, **_: told.append(source.broker_url), weak=False)
    app.on_after_finalize.connect(lambda sender, **_: told.append(sender.main), weak=False)
    app.loaded()
    assert told == ["memory://", "t"]


# -- sending ---------------------------------------------------------------------------------------------------


def test_delay_publishes_a_message(add: Task, message: Callable[..., Message]) -> None:
    result = add.delay(2, y=3)
    found = message()
    assert (found.task, found.id, found.args, found.kwargs) == ("t.add", result.id, [2], {"y": 3})
    assert (found.root_id, found.parent_id, found.retries, found.ignore_result) == (result.id, None, 0, False)
    assert found.origin is not None
    assert found.origin.startswith("gen")


def test_every_option_arrives(app: Celeriac, add: Task, message: Callable[..., Message]) -> None:
    eta, expires = datetime(2020, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)
    add.apply_async(
        (1,),
        {"y": 2},
        task_id="mine",
        eta=eta,
        expires=expires,
        priority=5,
        queue="web",
        headers={"tenant": 7},
        link=add.s(1),
        link_error=[add.s(2), add.si(3, 4)],
        time_limit=30,
        soft_time_limit=20,
        ignore_result=True,
        shadow="nice",
        root_id="root",
        parent_id="parent",
        group_id="group",
        group_index=3,
        retries=2,
        replaced_task_nesting=1,
        reply_to="oid",
        argsrepr="<args>",
        kwargsrepr="<kwargs>",
        delivery_mode=1,
        stamped_headers=["color"],
        stamps={"color": "blue"},
        chain=[add.s(9)],
        chord=add.s(8),
    )
    found = message("web")
    assert (found.id, found.args, found.kwargs, found.eta, found.expires) == (
        "mine",
        [1],
        {"y": 2},
        eta,
        expires,
    )
    assert (found.priority, found.delivery_mode, found.headers) == (5, 1, {"tenant": 7})
    assert (found.time_limit, found.soft_time_limit, found.ignore_result) == (30, 20, True)
    assert (found.shadow, found.argsrepr, found.kwargsrepr) == ("nice", "<args>", "<kwargs>")
    assert (found.root_id, found.parent_id, found.group, found.group_index) == ("root", "parent", "group", 3)
    assert (found.retries, found.replaced_task_nesting, found.reply_to) == (2, 1, "oid")
    assert (found.stamped_headers, found.stamps) == (["color"], {"color": "blue"})
    assert [each["args"] for each in found.callbacks or ()] == [[1]]
    assert [each["args"] for each in found.errbacks or ()] == [[2], [3, 4]]
    assert [each["args"] for each in found.chain or ()] == [[9]]
    assert found.chord is not None
    assert found.chord["args"] == [8]


def instant_of(app: Celeriac, add: Task, **options: Any) -> Outgoing:
    return app.publisher.lay_out("t.add", (1, 2), {}, options, task=add)[1]


def test_countdown_and_seconds_count_from_now(app: Celeriac, add: Task) -> None:
    before = datetime.now(UTC)
    outgoing = instant_of(app, add, countdown=10, expires=60.5)
    eta = datetime.fromisoformat(outgoing.envelope.headers["eta"])
    expires = datetime.fromisoformat(outgoing.envelope.headers["expires"])
    assert outgoing.due == eta
    assert timedelta(0) <= eta - before - timedelta(seconds=10) < timedelta(seconds=5)
    assert timedelta(0) <= expires - before - timedelta(seconds=60.5) < timedelta(seconds=5)


@pytest.mark.parametrize(
    "eta",
    [
        "2030-01-01T12:00:00+01:00",
        "2030-01-01T11:00:00Z",
        "2030-01-01T12:00:00",
        datetime(2030, 1, 1, 12),
        datetime(2030, 1, 1, 11, tzinfo=UTC),
    ],
)
def test_instants_in_every_form(app: Celeriac, add: Task, eta: Any) -> None:
    app.conf.timezone = "Europe/Vienna"
    assert instant_of(app, add, eta=eta).due == datetime(2030, 1, 1, 11, tzinfo=UTC)


def test_none_is_as_good_as_not_given(app: Celeriac, add: Task, message: Callable[..., Message]) -> None:
    add.apply_async((1, 2), task_id=None, queue=None, countdown=None, link=None, expires=None)
    assert message().eta is None


def test_options_of_call_task_rule_and_settings_rank_in_this_order(app: Celeriac) -> None:
    app.conf.update(
        task_routes={"t.*": {"queue": "rule", "priority": 2, "shadow": "rule"}}, task_default_priority=1
    )

    def route(options: dict[str, Any], task: Task | None = None, name: str = "t.x") -> tuple[str, int]:
        _, outgoing = app.publisher.lay_out(name, (), {}, options, task=task)
        return outgoing.routing_key, outgoing.priority

    own = app.task(name="t.own", queue="own", priority=3)(lambda: None)
    assert route({}, name="other") == ("celery", 1)
    assert route({}) == ("rule", 2)
    assert route({}, own, "t.own") == ("own", 3)
    assert route({"queue": "call", "priority": 4}, own, "t.own") == ("call", 4)


def test_a_queue_of_the_call_hides_exchange_and_key_of_the_task(app: Celeriac) -> None:
    task = app.task(exchange="media", routing_key="video")(lambda: None)
    assert app.publisher.lay_out("x", (), {}, {"queue": "web"}, task=task)[1].routing_key == "web"
    outgoing = app.publisher.lay_out("x", (), {}, {}, task=task)[1]
    assert (outgoing.exchange, outgoing.routing_key) == ("media", "video")


def test_queues_and_exchanges_may_be_objects(
    app: Celeriac, add: Task, sent: Callable[..., list[Any]]
) -> None:
    queue = Queue("web", Exchange("media", "topic"), "web.#")
    app.conf.task_queues = [queue]
    add.apply_async((1, 2), queue=queue, routing_key="web.a")
    add.apply_async((1, 2), exchange=Exchange("media", "topic"), routing_key="web.b")
    assert len(sent("web")) == 2


def test_changed_routes_count_at_once(app: Celeriac, add: Task, sent: Callable[..., list[Any]]) -> None:
    add.delay(1, 2)
    app.conf.task_routes = {"t.add": "web"}
    add.delay(1, 2)
    assert (len(sent()), len(sent("web"))) == (1, 1)


def test_an_unknown_queue_sends_nothing(app: Celeriac, add: Task) -> None:
    app.conf.task_create_missing_queues = False
    with pytest.raises(QueueNotFound):
        add.apply_async((1, 2), queue="nowhere")


def test_options_of_no_known_name_become_properties(
    app: Celeriac, add: Task, sent: Callable[..., list[Any]]
) -> None:
    add.apply_async((1, 2), MessageGroupId="g", properties={"app_id": "me"})  # pyright: ignore
    (delivery,) = sent()
    assert delivery.envelope.properties["MessageGroupId"] == "g"
    assert delivery.envelope.properties["app_id"] == "me"


def test_stamps_may_be_options(app: Celeriac, add: Task, message: Callable[..., Message]) -> None:
    add.apply_async((1, 2), stamped_headers=["color"], color="blue")  # pyright: ignore
    assert message().stamps == {"color": "blue"}


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"countdwon": 3}, TypeError, "no option 'countdwon': did you mean 'countdown'"),
        ({"link": 3}, TypeError, "made with a signature, not with 3"),
        ({"eta": "soon"}, ValueError, "soon"),
        ({"headers": {"x": object()}}, EncodeError, "header 'x'"),
        ({"args": (1, object())}, EncodeError, "argument 2 of t.add"),
        ({"kwargs": {"x": 1, "y": object()}}, EncodeError, "argument 'y' of t.add"),
        ({"serializer": "nonsense"}, ImproperlyConfigured, "nonsense"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_sent(
    app: Celeriac, add: Task, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    args = options.pop("args", () if "kwargs" in options else (1, 2))
    with pytest.raises(error, match=text):
        add.apply_async(args, **options)
    assert app.broker.size("celery").ready == 0


def test_serializer_compression_and_protocol(
    app: Celeriac, add: Task, sent: Callable[..., list[Any]]
) -> None:
    app.conf.accept_content = ["json", "yaml"]
    add.apply_async((1, 2), serializer="yaml", compression="zlib")
    app.conf.update(task_protocol=1, task_compression="bzip2")
    add.delay(1, 2)
    second, first = sorted((each.envelope for each in sent()), key=lambda each: len(each.headers))
    assert (first.content_type, first.headers["compression"]) == ("application/x-yaml", "application/x-gzip")
    assert (second.content_type, second.headers) == ("application/json", {"compression": "application/x-bz2"})
    for envelope in (first, second):
        assert messages.decode(envelope, accept=app.accepted_content).args == [1, 2]


def test_send_task_needs_no_task_here(app: Celeriac, message: Callable[..., Message]) -> None:
    result = app.send_task("elsewhere.job", [1], {"x": 2}, task_id="mine")
    found = message()
    assert (found.task, found.args, found.kwargs, found.ignore_result) == (
        "elsewhere.job",
        [1],
        {"x": 2},
        None,
    )
    assert (result.id, result.ignored) == ("mine", False)


def test_send_task_uses_the_options_of_a_task_that_is_here(
    app: Celeriac, message: Callable[..., Message]
) -> None:
    app.task(name="t.here", queue="web", ignore_result=True)(lambda: None)
    assert app.send_task("t.here").ignored is True
    assert message("web").ignore_result is True


def test_send_task_is_never_eager(app: Celeriac, add: Task) -> None:
    app.conf.task_always_eager = True
    with pytest.warns(AlwaysEagerIgnored):
        app.send_task("t.add", (1, 2))
    assert app.broker.size("celery").ready == 1


def test_an_ignored_result_is_known_to_be(add: Task) -> None:
    assert add.apply_async((1, 2), ignore_result=True).ignored is True
    assert add.delay(1, 2).ignored is False


def test_an_overridden_apply_async_is_used_by_delay_and_signatures(app: Celeriac) -> None:
    class Counted(Task):
        sent = 0

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            self.sent += 1
            return super().apply_async(args, kwargs, **options)

    task = app.task(name="t.counted", base=Counted)(lambda *_: None)
    task.delay()
    task.s().apply_async()
    (task.s() | task.s()).apply_async()
    assert task.sent == 3  # pyright: ignore


def test_a_running_task_is_the_parent_of_what_it_sends(
    app: Celeriac, add: Task, message: Callable[..., Message]
) -> None:
    request = Request(task="t.add", id="i", root_id="r", called_directly=False)
    token = current.set(request)
    try:
        child = add.delay(1, 2)
        add.apply_async((1, 2), queue="other", add_to_parent=False)
    finally:
        current.reset(token)
    found = message()
    assert (found.parent_id, found.root_id) == ("i", "r")
    assert message("other").parent_id == "i"
    assert request.children == [child]


def test_a_task_without_trail_forgets_its_children(app: Celeriac, add: Task) -> None:
    add.trail = False
    request = Request(task="t.add", id="i", called_directly=False)
    token = current.set(request)
    try:
        add.delay(1, 2)
    finally:
        current.reset(token)
    assert request.children is None


def test_priority_of_the_parent_is_inherited_where_asked(
    app: Celeriac, add: Task, message: Callable[..., Message]
) -> None:
    app.conf.task_inherit_parent_priority = True
    token = current.set(Request(id="i", called_directly=False, delivery_info={"priority": 6}))
    try:
        add.delay(1, 2)
        add.apply_async((1, 2), priority=2, queue="own")
    finally:
        current.reset(token)
    assert (message().priority, message("own").priority) == (6, 2)


# -- signals ---------------------------------------------------------------------------------------------------


def test_publish_signals_tell_what_goes_and_may_change_headers(
    app: Celeriac, add: Task, sent: Callable[..., list[Any]]
) -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    def before(sender: str, headers: dict[str, Any], properties: dict[str, Any], **rest: Any) -> None:
        headers["traceparent"] = "00-abc"
        properties["app_id"] = "me"
        told.append((sender, rest))

    def after(sender: str, **rest: Any) -> None:
        told.append((sender, rest))

    signals.before_task_publish.connect(before, sender="t.add")
    signals.after_task_publish.connect(after, sender="t.add")
    add.delay(1, 2)
    app.send_task("other")
    deliveries = {each.envelope.headers["task"]: each.envelope for each in sent()}
    assert deliveries["t.add"].headers["traceparent"] == "00-abc"
    assert deliveries["t.add"].properties["app_id"] == "me"
    assert "traceparent" not in deliveries["other"].headers
    (first_sender, first), (second_sender, second) = told
    assert (first_sender, second_sender) == ("t.add", "t.add")
    assert set(first) == {"signal", "body", "exchange", "routing_key", "declare", "retry_policy"}
    assert set(second) == {"signal", "body", "exchange", "routing_key", "headers"}
    assert first["body"][:2] == ((1, 2), {})
    assert (first["exchange"], first["routing_key"]) == ("", "celery")


# -- servers ---------------------------------------------------------------------------------------------------


def faulty_app(**settings: Any) -> tuple[Celeriac, FaultyBroker]:
    broker = FaultyBroker(open_broker("memory://", BrokerOptions()))
    return Celeriac("t", broker=broker, backend="memory://", **settings), broker


QUICK = {"max_retries": 2, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def test_a_lost_connection_is_tried_again() -> None:
    app, broker = faulty_app(task_publish_retry_policy=QUICK)
    broker.faults.fail("publish", "before", "before")
    app.send_task("x")
    assert broker.size("celery").ready == 1


def test_the_policy_of_the_call_limits_the_attempts() -> None:
    app, broker = faulty_app(task_publish_retry_policy=QUICK)
    broker.faults.fail("publish", forever=True)
    with pytest.raises(OperationalError):
        app.send_task("x", retry_policy={"max_retries": 1})
    broker.faults.heal()
    broker.faults.fail("publish")
    with pytest.raises(OperationalError):
        app.send_task("x", retry=False)
    app.conf.task_publish_retry = False
    broker.faults.fail("publish")
    with pytest.raises(OperationalError):
        app.send_task("x")
    assert broker.size("celery").ready == 0


def test_no_attempt_is_begun_after_the_deadline() -> None:
    app, broker = faulty_app(broker_publish_timeout=0)
    broker.faults.fail("publish")
    with pytest.raises(OperationalError):
        app.send_task("x", retry_policy={"max_retries": None})
    assert broker.size("celery").ready == 0


def test_what_no_queue_takes_is_not_tried_again(app: Celeriac) -> None:
    app.broker.declare([Queue("web", Exchange("media", "topic"), "web.#")])
    with pytest.raises(PublishFailed) as caught:
        app.send_task("x", task_id="mine", exchange="media", routing_key="nobody")
    assert caught.value.unroutable
    assert caught.value.ids == ("mine",)


def test_a_transaction_is_passed_to_the_broker(app: Celeriac) -> None:
    with pytest.raises(TypeError, match="cannot publish in a transaction of object"):
        app.send_task("x", connection=object())
    with pytest.raises(TypeError, match="cannot publish in a transaction of object"):
        app.send_task("x", session=object())


def test_a_batch_is_published_at_once(app: Celeriac, add: Task) -> None:
    app.publish([app.publisher.lay_out("t.add", (1, n), {}, task=add)[1] for n in range(3)])
    assert app.broker.size("celery").ready == 3


def test_servers_are_opened_once_and_survive_close(app: Celeriac) -> None:
    broker, backend = app.broker, app.backend
    app.close()
    assert (app.broker, app.backend) == (broker, backend)


def test_objects_can_be_shared_with_an_app() -> None:
    first = Celeriac("a", broker="memory://", backend="memory://")
    second = Celeriac("b", broker=first.broker, backend=first.backend)
    second.send_task("x")
    assert first.broker.size("celery").ready == 1
    assert second.backend is first.backend


def test_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(ImproperlyConfigured, match="memory"):
        Celeriac("t", broker="nonsense://").broker


def test_purge_empties_the_queues(app: Celeriac, add: Task) -> None:
    add.delay(1, 2)
    add.apply_async((1, 2), countdown=100)
    assert app.control.purge() == 2
    assert app.broker.size("celery").ready == 0


# -- what a worker publishes -----------------------------------------------------------------------------------


def running(**fields: Any) -> Request:
    fields = {"task": "t.add", "id": "i", "root_id": "r", "queue": "web", "called_directly": False, **fields}
    return Request(**fields)


def decoded(app: Celeriac, outgoing: Outgoing) -> Message:
    return messages.decode(outgoing.envelope, accept=app.accepted_content)


def test_a_callback_follows_with_the_value(app: Celeriac, add: Task) -> None:
    (outgoing,) = app.follow_ups(dict(add.s(5)), args=(7,), request=running(reply_to="oid"))
    found = decoded(app, outgoing)
    assert (found.args, found.parent_id, found.root_id, found.reply_to) == ([7, 5], "i", "r", "oid")
    assert outgoing.routing_key == "celery"


def test_the_next_of_a_chain_takes_the_rest_along(app: Celeriac, add: Task) -> None:
    rest = [dict(add.s(9))]
    (outgoing,) = app.follow_ups(add.si(1, 2).set(task_id="next"), args=(7,), request=running(), chain=rest)
    found = decoded(app, outgoing)
    assert (found.id, found.args) == ("next", [1, 2])
    assert [each["args"] for each in found.chain or ()] == [[9]]
    (last,) = app.follow_ups(add.s(1), args=(7,), request=running(), chain=[])
    assert decoded(app, last).chain == []


def test_a_chain_as_callback_begins_with_its_first_task(app: Celeriac, add: Task) -> None:
    callback = travelled(add.s(1) | add.s(2))
    (outgoing,) = app.follow_ups(callback, args=(7,), request=running())
    found = decoded(app, outgoing)
    assert (found.args, [each["args"] for each in found.chain or ()]) == ([7, 1], [[2]])


def travelled(signature: Any) -> dict[str, Any]:
    """As it comes out of a message."""
    import json

    from celeriac.wire import codecs

    return json.loads(codecs.dumps(signature, "json"))


def test_a_retry_goes_back_to_its_queue_with_all_it_had(app: Celeriac) -> None:
    @app.task(name="t.job", bind=True)
    def job(self: Task, x: int) -> None: ...

    request = running(
        task="t.job",
        args=(3,),
        kwargs={},
        headers={"tenant": 7},
        chain=[{"task": "z"}],
        callbacks=[dict(job.s())],
        delivery_info={"priority": 4},
        origin="gen1@here",
    )
    token = current.set(request)
    try:
        retry = job.retry(countdown=100, throw=False)
    finally:
        current.reset(token)
    outgoing = app.retry_of(request, retry)
    found = decoded(app, outgoing)
    assert (outgoing.exchange, outgoing.routing_key, outgoing.priority) == ("", "web", 4)
    assert (found.id, found.retries, found.args, found.headers) == ("i", 1, [3], {"tenant": 7})
    assert (found.root_id, found.parent_id, found.origin) == ("r", "i", "gen1@here")
    assert found.chain == [{"task": "z"}]
    assert outgoing.due == found.eta
    retry.sig.set(queue="slow")
    assert app.retry_of(request, retry).routing_key == "slow"


# -- as an object ----------------------------------------------------------------------------------------------


def test_an_app_is_pickled_by_name_or_rebuilt(app: Celeriac) -> None:
    assert pickle.loads(pickle.dumps(app)) is app
    data = pickle.dumps(Celeriac("hidden", task_default_queue="q", set_as_current=False))
    restored = pickle.loads(data)
    assert (restored.main, restored.conf.task_default_queue) == ("hidden", "q")
    assert registry.current_app() is app
    assert repr(app) == "<Celeriac t>"


def test_two_apps_share_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = Celeriac("a", broker="memory://", task_default_queue="qa")
        second = Celeriac("b", broker="memory://", task_default_queue="qb")
        first.task(name="same")(lambda: 1)
        second.task(name="same")(lambda: 2)
    assert (first.tasks["same"](), second.tasks["same"]()) == (1, 2)
    first.tasks["same"].delay()
    assert (first.broker.size("qa").ready, second.broker.size("qb").ready) == (1, 0)


def test_lost_connections_are_operational_errors_of_the_task(add: Task) -> None:
    assert issubclass(ConnectionLost, add.OperationalError)
