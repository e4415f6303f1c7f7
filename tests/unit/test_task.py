"""Tasks: becoming one, running as a function and as a worker runs it, retries, states."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from celeriac import Celeriac, Task, registry
from celeriac.errors import Ignore, MaxRetriesExceededError, Retry
from celeriac.request import Request, current
from celeriac.wire import message as messages
from celeriac.wire.message import Message


@pytest.fixture
def app() -> Iterator[Celeriac]:
    with Celeriac("t", broker="memory://", backend="memory://", set_as_current=False) as app:
        yield app


@pytest.fixture
def running() -> Iterator[Request]:
    """A worker runs the task `t.job` here."""
    message = Message(task="t.job", id="i1", args=(1, 2), kwargs={"z": 3}, headers={"tenant": 7}, priority=4)
    request = Request.of(message)
    token = current.set(request)
    yield request
    current.reset(token)


def job_of(app: Celeriac, **options: Any) -> Task:
    @app.task(name="t.job", bind=True, **options)
    def job(self: Task, x: int, y: int = 0, z: int = 0) -> Any:
        return self, x, y, z

    return job


# -- becoming a task -------------------------------------------------------------------------------------------


def test_a_task_looks_like_its_function(app: Celeriac) -> None:
    @app.task
    def job(x: int) -> int:
        """Do it."""
        return x

    assert (job.__doc__, job.__name__, job.__module__) == ("Do it.", "job", __name__)
    assert job.name == f"{__name__}.job"
    assert repr(job) == f"<Task {__name__}.job>"
    assert job.app is app


def test_options_become_attributes_and_functions_become_methods(app: Celeriac) -> None:
    def on_failure(self: Task, exc: Any, *_: Any) -> tuple[Task, Any]:
        return self, exc

    job = job_of(app, queue="web", max_retries=None, on_failure=on_failure, custom="mine")
    assert (job.queue, job.max_retries, job.custom) == ("web", None, "mine")  # pyright: ignore
    assert job.on_failure("exc", "id", (), {}, None) == (job, "exc")


def test_a_misspelt_option_is_an_error(app: Celeriac) -> None:
    with pytest.raises(TypeError, match=r"no option 'max_retires': did you mean 'max_retries'"):
        job_of(app, max_retires=3)
    assert "t.job" not in app.tasks


def test_a_soft_limit_beyond_the_hard_one_is_an_error(app: Celeriac) -> None:
    with pytest.raises(ValueError, match=r"soft_time_limit \(5 s\) is longer"):
        job_of(app, soft_time_limit=5, time_limit=3)


def test_settings_decide_where_the_task_says_nothing(app: Celeriac) -> None:
    job, own = job_of(app), app.register_task(_named("own", acks_late=False, serializer="yaml"))
    assert (job.acks_late, job.serializer, job.ignore_result) == (True, "json", False)
    app.conf.update(task_acks_late=False, accept_content=["json", "msgpack"], task_serializer="msgpack")
    app.conf.task_ignore_result = True
    assert (job.acks_late, job.serializer, job.ignore_result) == (False, "msgpack", True)
    assert (own.acks_late, own.serializer) == (False, "yaml")


def test_acks_on_failure_falls_back_step_by_step(app: Celeriac) -> None:
    job = job_of(app)
    assert (job.acks_on_failure, job.acks_on_timeout) == (True, True)
    app.conf.task_acks_on_failure_or_timeout = False
    assert (job.acks_on_failure, job.acks_on_timeout) == (False, False)
    app.conf.task_acks_on_timeout = True
    assert (job.acks_on_failure, job.acks_on_timeout) == (False, True)


def test_none_in_a_subclass_means_as_the_settings_say(app: Celeriac) -> None:
    class Job(Task):
        serializer = None
        acks_late = False
        max_retries = None

    job = app.register_task(Job)
    assert (job.serializer, job.acks_late, job.max_retries) == ("json", False, None)


def test_own_options_are_those_that_are_set(app: Celeriac) -> None:
    job = job_of(app, queue="web", priority=3)
    assert job.own_options == {"queue": "web", "priority": 3}
    job.time_limit = 30
    assert job.own_options == {"queue": "web", "priority": 3, "time_limit": 30}


def _named(task_name: str, **attributes: Any) -> Task:
    return type("Job", (Task,), {"name": task_name, "run": lambda self: None, **attributes})()


def test_a_base_without_super_init_works(app: Celeriac) -> None:
    class Cache(Task):
        def __init__(self) -> None:
            self.cache: dict[int, int] = {}

    @app.task(bind=True, base=Cache)
    def job(self: Cache, x: int) -> int:
        return self.cache.setdefault(x, len(self.cache))

    assert (job(5), job(6), job(5)) == (0, 1, 0)
    assert isinstance(job, Cache)


def test_on_bound_is_told_the_app(app: Celeriac) -> None:
    bound: list[Any] = []

    class Job(Task):
        def on_bound(self, app: Celeriac) -> None:
            bound.append((self.name, app))

    app.register_task(Job())
    assert bound == [(f"{__name__}.Job", app)]


def test_exceptions_may_be_given_as_list_or_class(app: Celeriac) -> None:
    job = job_of(app, autoretry_for=[OSError], throws=KeyError)
    assert (job.autoretry_for, job.throws) == ((OSError,), (KeyError,))


# -- running ---------------------------------------------------------------------------------------------------


def test_calling_a_task_is_calling_its_function(app: Celeriac) -> None:
    job = job_of(app)
    assert job(1, z=3) == (job, 1, 0, 3)


def test_a_direct_call_has_a_request_of_its_own(app: Celeriac, running: Request) -> None:
    seen: list[Request] = []

    @app.task(name="t.inner", bind=True)
    def inner(self: Task, x: int) -> None:
        seen.append(self.request)

    job = job_of(app)
    assert job.request is running
    inner(3)
    assert (seen[0].called_directly, seen[0].args, seen[0].outer) == (True, (3,), running)
    assert job.request is running


def test_a_task_that_does_not_run_has_an_empty_request(app: Celeriac) -> None:
    request = job_of(app).request
    assert (request.id, request.called_directly, request.retries) == (None, True, 0)


def test_calling_an_async_task_gives_its_value(app: Celeriac) -> None:
    @app.task
    async def job(x: int) -> int:
        return x + 1

    async def within_a_loop() -> int:
        with pytest.raises(RuntimeError, match=r"await its run\(\) instead"):
            job(1)
        return await job.run(1)  # pyright: ignore

    assert job(1) == 2
    assert asyncio.run(within_a_loop()) == 2


def test_the_signature_of_a_task_is_that_of_its_function(app: Celeriac) -> None:
    assert list(inspect.signature(job_of(app)).parameters) == ["x", "y", "z"]
    assert inspect.signature(app.register_task(_named("own"))) is not None


def test_an_abstract_task_cannot_run() -> None:
    with pytest.raises(NotImplementedError, match="no run method"):
        Task().run()


def test_a_call_around_the_function_is_used_by_workers(app: Celeriac, running: Request) -> None:
    class Counting(Task):
        count = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return super().__call__(*args, **kwargs)

    job = job_of(app, base=Counting)
    assert job.execute((1,), {}) == (job, 1, 0, 0)
    assert job.count == 1  # pyright: ignore
    seen: list[Request] = []
    job.run = lambda *_: seen.append(job.request)
    job.execute((1,), {})
    assert seen == [running]


async def _value_of(awaitable: Any) -> Any:
    return await awaitable


def test_async_functions_are_executed_as_coroutines(app: Celeriac, running: Request) -> None:
    @app.task(name="t.job", bind=True, autoretry_for=(OSError,))
    async def job(self: Task, x: int) -> int:
        if x < 0:
            raise OSError(x)
        return x + 1

    assert asyncio.run(_value_of(job.execute((1,), {}))) == 2
    with pytest.raises(Retry):
        asyncio.run(_value_of(job.execute((-1,), {})))


# -- arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2, 3, 4), {}), ((1,), {"a": 1}), ((1, 2), {"y": 3}), ((), {"y": 3})]
)
def test_wrong_arguments_are_refused_where_they_are_sent(app: Celeriac, args: Any, kwargs: Any) -> None:
    job = job_of(app)
    with pytest.raises(TypeError, match=r"t\.job\(\): "):
        job.delay(*args, **kwargs)
    assert app.broker.size("celery").ready == 0


def test_wrong_arguments_pass_where_checking_is_off(app: Celeriac) -> None:
    job_of(app, typing=False).delay()
    app.strict_typing = False
    app.register_task(_named("lax")).delay(1, 2, 3)
    assert app.broker.size("celery").ready == 2


def test_keyword_only_and_variable_arguments(app: Celeriac) -> None:
    @app.task
    def keyword(*, x: int) -> None: ...

    @app.task
    def anything(*args: int, **kwargs: int) -> None: ...

    keyword.delay(x=1)
    anything.delay(1, 2, 3, z=4)
    with pytest.raises(TypeError, match="'x'"):
        keyword.delay()  # pyright: ignore
    assert app.broker.size("celery").ready == 2


class Point(BaseModel):
    x: int
    y: int = 0


@pytest.fixture
def pydantic_job(app: Celeriac) -> Task:
    @app.task(name="t.job", pydantic=True)
    def job(point: Point, other: Point | None = None, factor: int = 1) -> Point:
        assert isinstance(point, Point)
        assert other is None or isinstance(other, Point)
        return Point(x=point.x * factor, y=point.y)

    return job


def test_models_are_made_and_dumped_for_the_function(pydantic_job: Task, running: Request) -> None:
    assert pydantic_job.execute(({"x": "2"}, {"x": 1}), {"factor": 3}) == {"x": 6, "y": 0}
    assert pydantic_job.execute((), {"point": {"x": 2}}) == {"x": 2, "y": 0}
    with pytest.raises(ValidationError):
        pydantic_job.execute(({"x": "no"},), {})


def test_models_are_dumped_where_they_are_sent(app: Celeriac, pydantic_job: Task) -> None:
    pydantic_job.delay(Point(x=1), other=Point(x=2))
    (delivery,) = app.broker.consumer([app.publisher.router.queue("celery")], name="c").fetch(1, 0)
    message = messages.decode(delivery.envelope, accept=app.accepted_content)
    assert (message.args, message.kwargs) == ([{"x": 1, "y": 0}], {"other": {"x": 2, "y": 0}})


def test_strict_models_convert_nothing(app: Celeriac) -> None:
    @app.task(pydantic=True, pydantic_strict=True, pydantic_dump_kwargs={"exclude_defaults": True})
    def job(point: Point) -> Point:
        return point

    assert job.execute(({"x": 2},), {}) == {"x": 2}
    with pytest.raises(ValidationError):
        job.execute(({"x": "2"},), {})


# -- retries ---------------------------------------------------------------------------------------------------


def test_retry_raises_what_runs_next(app: Celeriac, running: Request) -> None:
    job = job_of(app)
    cause = ValueError("no")
    with pytest.raises(Retry) as caught:
        job.retry(exc=cause, countdown=5)
    retry = caught.value
    assert (retry.exc, retry.when, retry.sig.args, retry.sig.kwargs) == (cause, 5, (1, 2), {"z": 3})
    options = retry.sig.options
    assert (options["task_id"], options["retries"], options["countdown"]) == ("i1", 1, 5)
    assert (options["headers"], options["priority"]) == ({"tenant": 7}, 4)


def test_a_retry_comes_at_the_default_delay_or_at_an_instant(app: Celeriac, running: Request) -> None:
    job = job_of(app, default_retry_delay=20)
    assert job.retry(throw=False).when == 20
    when = datetime(2030, 1, 1, tzinfo=UTC)
    retry = job.retry(throw=False, eta=when)
    assert (retry.when, retry.sig.options["eta"]) == (when, when)
    assert "countdown" not in retry.sig.options


def test_a_retry_may_have_other_arguments_and_options(app: Celeriac, running: Request) -> None:
    job = job_of(app)
    retry = job.retry(args=(5,), kwargs={"z": 6}, queue="slow", priority=9, throw=False)
    assert (retry.sig.args, retry.sig.kwargs) == ((5,), {"z": 6})
    assert (retry.sig.options["queue"], retry.sig.options["priority"]) == ("slow", 9)


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        ({"args": (5, 6, 7)}, (5, 6, 7), {}),
        ({"args": (5,)}, (5,), {"z": 3}),
        ({"kwargs": {"y": 9}}, (1,), {"y": 9}),
        ({"kwargs": {"x": 9}}, (), {"x": 9, "y": 2}),
        ({"kwargs": {"z": 9}}, (1, 2), {"z": 9}),
    ],
)
def test_new_arguments_replace_old_ones_of_the_same_name(
    app: Celeriac, running: Request, given: dict[str, Any], args: Any, kwargs: Any
) -> None:
    again = job_of(app).retry(**given, throw=False).sig
    assert (again.args, again.kwargs) == (args, kwargs)


def test_without_throw_the_next_run_is_noted_for_the_end_of_this_one(app: Celeriac, running: Request) -> None:
    retry = job_of(app).retry(throw=False)
    assert running.postponed == [retry.sig]


def test_too_many_retries_raise_the_cause_or_say_so(app: Celeriac, running: Request) -> None:
    running.retries = 3
    job = job_of(app)
    with pytest.raises(KeyError):
        job.retry(exc=KeyError("cause"))
    with pytest.raises(
        MaxRetriesExceededError, match=r"cannot retry t\.job\[i1\]: it was retried 3 times"
    ) as caught:
        job.retry()
    assert (caught.value.task_args, caught.value.task_kwargs) == ((1, 2), {"z": 3})
    with pytest.raises(job.MaxRetriesExceededError):
        job.retry(max_retries=2)
    assert job.retry(max_retries=4, throw=False).sig.options["retries"] == 4


def test_a_task_without_limit_retries_for_ever(app: Celeriac, running: Request) -> None:
    running.retries = 100_000
    with pytest.raises(Retry):
        job_of(app, max_retries=None).retry()


def test_retrying_a_direct_call_raises_the_cause(app: Celeriac) -> None:
    job = job_of(app)
    with pytest.raises(KeyError):
        job.retry(exc=KeyError("cause"))
    with pytest.raises(Retry, match="called directly"):
        job.retry()


def raising(app: Celeriac, exc: BaseException, **options: Any) -> Task:
    @app.task(name="t.job", **options)
    def job() -> None:
        raise exc

    return job


def test_autoretry_raises_retry_with_backoff(app: Celeriac, running: Request) -> None:
    running.retries = 2
    cause = ConnectionError("gone")
    job = raising(app, cause, autoretry_for=(OSError,), retry_backoff=3, retry_jitter=False)
    with pytest.raises(Retry) as caught:
        job.execute((), {})
    assert (caught.value.exc, caught.value.when) == (cause, 12)


def test_autoretry_with_plain_arguments_of_retry(app: Celeriac, running: Request) -> None:
    job = raising(app, OSError(), autoretry_for=(OSError,), retry_kwargs={"countdown": 7, "max_retries": 1})
    with pytest.raises(Retry, match="Retry in 7s"):
        job.execute((), {})
    running.retries = 1
    with pytest.raises(OSError):
        job.execute((), {})


@pytest.mark.parametrize("exc", [KeyError("x"), ConnectionError("final"), Ignore(), Retry()])
def test_what_autoretry_is_not_for_passes(app: Celeriac, running: Request, exc: Exception) -> None:
    job = raising(app, exc, autoretry_for=(OSError, Ignore, Retry), dont_autoretry_for=(ConnectionError,))
    with pytest.raises(type(exc)) as caught:
        job.execute((), {})
    assert caught.value is exc


# -- states ----------------------------------------------------------------------------------------------------


def test_update_state_goes_through_the_worker(app: Celeriac, running: Request) -> None:
    reported: list[Any] = []
    running.report = lambda state, meta: reported.append((state, meta))
    job = job_of(app)
    job.update_state(state="PROGRESS", meta={"done": 3})
    job.update_state("i1", "RETRY", ValueError("x"))
    assert reported == [
        ("PROGRESS", {"done": 3}),
        ("RETRY", {"exc_type": "ValueError", "exc_message": ["x"], "exc_module": "builtins"}),
    ]


def test_update_state_of_another_task_is_stored_at_once(app: Celeriac, running: Request) -> None:
    running.report = lambda *_: pytest.fail("not the task that runs")
    job_of(app).update_state("other", "PROGRESS", 3)
    assert (app.AsyncResult("other").state, app.AsyncResult("other").result) == ("PROGRESS", 3)


def test_update_state_without_a_task_is_an_error(app: Celeriac) -> None:
    with pytest.raises(ValueError, match="needs a task_id"):
        job_of(app).update_state(state="PROGRESS")


# -- here and now ----------------------------------------------------------------------------------------------


def test_apply_runs_here_with_the_bytes_of_a_worker(app: Celeriac) -> None:
    @app.task(bind=True)
    def job(self: Task, value: Any) -> Any:
        return self.request.is_eager, self.request.called_directly, value

    result = job.apply(((1, 2),), task_id="mine")
    assert (result.id, result.state, result.get()) == ("mine", "SUCCESS", (True, False, [1, 2]))


def test_apply_follows_retries_at_once(app: Celeriac) -> None:
    @app.task(bind=True, max_retries=5)
    def job(self: Task) -> int:
        if self.request.retries < 3:
            raise self.retry(countdown=1000)
        return self.request.retries

    assert job.apply().get() == 3


def test_eager_failures_are_kept_or_raised(app: Celeriac, caplog: pytest.LogCaptureFixture) -> None:
    job = raising(app, KeyError("x"))
    app.conf.task_always_eager = True
    result = job.delay()
    assert (result.state, result.failed()) == ("FAILURE", True)
    with pytest.raises(KeyError):
        job.apply(throw=True)
    app.conf.task_eager_propagates = True
    with pytest.raises(KeyError):
        job.delay()
    assert app.broker.size("celery").ready == 0
    assert "raised unexpected" in caplog.text


def test_shadow_name_names_a_call(app: Celeriac) -> None:
    def shadow_name(self: Task, args: Any, kwargs: Any, options: Any) -> str:
        return f"{self.name}:{args[0]}"

    job_of(app, shadow_name=shadow_name).delay(5)
    (delivery,) = app.broker.consumer([app.publisher.router.queue("celery")], name="c").fetch(1, 0)
    assert delivery.envelope.headers["shadow"] == "t.job:5"


# -- from outside ----------------------------------------------------------------------------------------------


def test_annotations_change_tasks_made_before_and_after(app: Celeriac) -> None:
    early = job_of(app, rate_limit="1/s")
    app.conf.task_annotations = {
        "*": {"rate_limit": "10/s", "max_retries": 1},
        "t.job": {"rate_limit": "5/m"},
    }
    late = app.register_task(_named("late"))
    assert app.tasks["t.job"] is early
    assert (early.rate_limit, early.max_retries) == ("5/m", 1)
    assert (late.rate_limit, late.max_retries) == ("10/s", 1)


def test_annotations_may_be_objects_and_decorate_methods(app: Celeriac) -> None:
    calls: list[str] = []

    def spy(function: Any) -> Any:
        def around(*args: Any) -> Any:
            calls.append(function.__name__)
            return function(*args)

        return around

    class Annotation:
        def annotate_any(self) -> dict[str, Any]:
            return {"@on_success": spy}

        def annotate(self, task: Task) -> dict[str, Any] | None:
            return {"@run": spy} if task.name == "t.job" else None

    job = job_of(app)
    for _ in range(2):  # applied anew, it still decorates once
        app.conf.task_annotations = [Annotation]
        app.tasks["t.job"].on_success(None, "id", (), {})
        assert job.run(1) == (job, 1, 0, 0)
    assert calls == ["on_success", "job"] * 2


def test_a_task_is_pickled_by_name(app: Celeriac, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(app)
    monkeypatch.setattr(registry, "_current", app)
    assert pickle.loads(pickle.dumps(job)) is job
