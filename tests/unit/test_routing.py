"""Where a call goes."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from celeriac.errors import ImproperlyConfigured, QueueNotFound
from celeriac.routing import Route, Router, queues_to_consume
from celeriac.settings import Settings
from celeriac.topology import Broadcast, Exchange, Queue


def route(settings: dict[str, Any], task: str = "feed.tasks.load", **options: Any) -> Route:
    return Router.of(Settings(settings)).route(task, options)


def target(settings: dict[str, Any], task: str = "feed.tasks.load", **options: Any) -> tuple[str, str]:
    found = route(settings, task, **options)
    return found.exchange, found.routing_key


def by_name(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> Any:
    """A router: found by its dotted name, too."""
    return {"queue": "called", "priority": 7} if name.startswith("feed.") else None


class ByMethod:
    def route_for_task(self, task: str, args: Any = None, kwargs: Any = None) -> str | None:
        return f"arg-{args[0]}" if args else None


def test_without_rules_a_call_goes_to_the_default_queue_by_name() -> None:
    found = route({})
    assert (found.exchange, found.routing_key) == ("", "celery")
    assert found.queue == Queue("celery", Exchange("celery"), "celery")


@pytest.mark.parametrize(
    ("routes", "queue"),
    [
        ({"feed.tasks.load": "exact"}, "exact"),
        ({"feed.*": "glob", "feed.tasks.load": "exact"}, "exact"),
        ({"feed.*": "first", "*.load": "second"}, "first"),
        ({re.compile(r"(web|feed)\..*"): {"queue": "regex"}}, "regex"),
        ({"other.*": "other"}, "celery"),
        ([("web.*", "web"), ("feed.*", {"queue": "pair"})], "pair"),
        ([{"web.*": "web"}, by_name, {"feed.*": "late"}], "called"),
        (([("feed.*", {"queue": "nested"})],), "nested"),
        (by_name, "called"),
        ("test_routing.by_name", "called"),
        (["test_routing:by_name"], "called"),
        ({"feed.*": Queue("object")}, "object"),
        ({"feed.*": SimpleNamespace(name="kombu", exchange=None, routing_key="")}, "kombu"),
        ({"feed.*": None}, "celery"),
    ],
)
def test_task_routes_in_every_form(routes: Any, queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(__file__).rsplit("/", 1)[0])
    assert target({"task_routes": routes}) == ("", queue)


def test_a_router_may_look_at_the_arguments() -> None:
    router = Router.of(Settings(task_routes=ByMethod()))
    assert router.route("x", {}, (1,)).routing_key == "arg-1"
    assert router.route("x", {}, (2,)).routing_key == "arg-2"


def test_a_router_is_asked_with_the_options_and_the_task() -> None:
    asked: list[Any] = []

    def ask(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> None:
        asked.append((name, args, kwargs, options, task))

    Router.of(Settings(task_routes=ask)).route("x", {"priority": 1}, (1,), {"a": 2}, type="the task")
    assert asked == [("x", (1,), {"a": 2}, {"priority": 1}, "the task")]


def test_what_a_rule_says_beside_the_target_are_options() -> None:
    found = route({"task_routes": {"feed.*": {"queue": "web", "priority": 3, "serializer": None}}})
    assert found.options == {"priority": 3}


def test_a_queue_given_by_the_call_hides_the_rule() -> None:
    routes = {"feed.*": {"queue": "a", "exchange": "media", "routing_key": "x", "priority": 3}}
    assert target({"task_routes": routes}, queue="b") == ("", "b")


def test_a_rule_with_exchange_and_key_is_taken_as_it_is() -> None:
    found = route({"task_routes": {"feed.*": {"exchange": "media", "routing_key": "video"}}})
    assert (found.exchange, found.routing_key, found.queue) == ("media", "video", None)


def test_a_call_may_override_the_routing_key_of_a_rule() -> None:
    routes = {"feed.*": {"exchange": "media", "routing_key": "video"}}
    assert target({"task_routes": routes}, routing_key="image") == ("media", "image")


def test_a_routing_key_alone_goes_to_the_exchange_of_the_default_queue() -> None:
    settings = {"task_default_exchange": "tasks", "task_default_exchange_type": "topic"}
    assert target(settings, routing_key="feed.import") == ("tasks", "feed.import")


@pytest.mark.parametrize("kind", ["topic", "fanout", "headers"])
def test_a_queue_that_is_not_direct_is_reached_through_its_exchange(kind: Any) -> None:
    settings = {"task_queues": [Queue("web", Exchange("media", kind), "web.#")]}
    found = route(settings, queue="web")
    assert (found.exchange, found.routing_key) == ("media", "web.#")
    assert found.queue is not None
    assert found.queue.name == "web"


def test_the_default_exchange_with_a_key_names_a_queue() -> None:
    found = route({}, exchange="", routing_key="web")
    assert (found.exchange, found.routing_key) == ("", "web")
    assert found.queue == Queue("web", Exchange("web"), "web")


def test_an_exchange_object_and_its_delivery_mode() -> None:
    assert target({}, exchange=Exchange("media"), routing_key="x") == ("media", "x")
    settings = {"task_queues": [Queue("web", Exchange("web", delivery_mode=1))]}
    assert route(settings, queue="web").options == {"delivery_mode": 1}


def test_a_missing_queue_is_made_up() -> None:
    settings = {
        "task_create_missing_queue_exchange_type": "topic",
        "task_create_missing_queue_type": "quorum",
    }
    found = route(settings, queue="new")
    assert found.queue == Queue(
        "new", Exchange("new", "topic"), "new", queue_arguments={"x-queue-type": "quorum"}
    )


def test_a_missing_queue_is_an_error_where_none_may_be_made_up() -> None:
    settings = {
        "task_create_missing_queues": False,
        "task_queues": [Queue("web"), Queue("mail")],
        "task_default_queue": "mail",
    }
    with pytest.raises(QueueNotFound, match=r"'webb' .*did you mean 'web'"):
        route(settings, queue="webb")
    assert target(settings) == ("", "mail")


def test_queues_get_the_defaults_for_what_they_lack() -> None:
    settings = Settings(
        task_queues=[Queue("a"), Queue("b", Exchange("own", "topic"), "key")],
        task_default_exchange="shared",
        task_default_routing_key="default",
        task_queue_max_priority=10,
    )
    a, b = queues_to_consume(settings)
    assert (a.exchange, a.routing_key, a.max_priority) == (Exchange("shared"), "default", 10)
    assert (b.exchange, b.routing_key, b.max_priority) == (Exchange("own", "topic"), "key", 10)


def test_the_default_queue_has_its_own_settings() -> None:
    settings = Settings(
        task_default_queue="main",
        task_default_exchange="x",
        task_default_exchange_type="topic",
        task_default_routing_key="k",
        task_default_queue_type="quorum",
    )
    (queue,) = queues_to_consume(settings)
    assert queue == Queue("main", Exchange("x", "topic"), "k", queue_arguments={"x-queue-type": "quorum"})


@pytest.mark.parametrize(
    ("names", "exclude", "consumed"),
    [
        ((), (), ["web", "mail"]),
        (("mail",), (), ["mail"]),
        (("mail", "new"), (), ["mail", "new"]),
        ((), ("web",), ["mail"]),
        (("web", "new"), ("new",), ["web"]),
    ],
)
def test_queues_of_a_worker(names: tuple[str, ...], exclude: tuple[str, ...], consumed: list[str]) -> None:
    settings = Settings(task_queues=["web", "mail"])
    assert [queue.name for queue in queues_to_consume(settings, names, exclude)] == consumed


def test_an_unknown_queue_of_a_worker_is_an_error_where_none_may_be_made_up() -> None:
    settings = Settings(task_queues=["web"], task_default_queue="web", task_create_missing_queues=False)
    with pytest.raises(QueueNotFound, match="new"):
        queues_to_consume(settings, ["new"])


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({3: "web"}, "3 is neither a name nor a pattern"),
        (3, "3 is not a router"),
        ("no.such.module", "no module"),
        ({"feed.*": 3}, "route of 'feed.tasks.load' is 3"),
    ],
)
def test_bad_routes_say_what_is_wrong(routes: Any, message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message):
        route({"task_routes": routes})


def test_static_routes_are_asked_for_once() -> None:
    router = Router.of(Settings(task_routes={"feed.*": "web"}))
    assert router.route("feed.a", {}) is router.route("feed.a", {})


def test_a_broadcast_queue_is_named_by_its_alias_and_not_declared_by_who_publishes() -> None:
    settings = Settings(task_queues=[Queue("web"), Broadcast("news")])
    route = Router.of(settings).route("tasks.add", {"queue": "news"})
    assert (route.exchange, route.queue) == ("news", None)
    (consumed,) = queues_to_consume(settings, ["news"])
    assert consumed.name.startswith("bcast.")
    assert [each.known_as for each in queues_to_consume(settings, exclude=["web"])] == ["news"]
