"""Every way to make a task, and the type it has."""

from __future__ import annotations

from typing import assert_type

from celeriac import AsyncResult, Celeriac, Request, Task, shared_task

app = Celeriac("tasks", broker="memory://", task_acks_late=True)


@app.task
def plain(x: int, *, loud: bool = False) -> str:
    return str(x).upper() if loud else str(x)


@app.task(name="renamed", queue="web", autoretry_for=(OSError,), retry_backoff=2)
def with_options(x: int) -> str:
    return str(x)


@app.task()
def with_parentheses() -> None: ...


@app.task
async def waits(seconds: float) -> int:
    return int(seconds)


@app.task(soft_time_limit=3)
async def waits_with_options(seconds: float) -> int:
    return int(seconds)


@app.task(bind=True)
async def waits_bound(self: Task, seconds: float) -> int:
    assert_type(self.request, Request)
    return int(seconds)


class Logged(Task):
    prefix: str = "> "
    acks_late = True
    max_retries = None

    def on_failure(self, exc: object, task_id: str, args: object, kwargs: object, einfo: object) -> None:
        print(self.prefix, exc, task_id)


@app.task(bind=True, base=Logged)
def logged(self: Logged, x: int) -> str:
    return self.prefix + str(x)


@shared_task
def shared(x: int) -> float:
    return x / 2


@shared_task(bind=True, name="shared.bound")
def shared_bound(self: Task, x: int) -> float:
    return x / (self.request.retries + 1)


class Adder(Task[[int, int], int]):
    name = "adder"

    def run(self, x: int, y: int) -> int:
        return x + y


adder = app.register_task(Adder())

assert_type(plain(1, loud=True), str)
assert_type(plain.delay(1, loud=True), AsyncResult[str])
assert_type(with_options.delay(x=1).get(), str)
assert_type(with_parentheses.delay().get(), None)
assert_type(waits.delay(0.5), AsyncResult[int])
assert_type(waits(0.5), int)
assert_type(waits_with_options.delay(0.5).get(), int)
assert_type(waits_bound.delay(0.5).get(), int)
assert_type(logged.delay(3), AsyncResult[str])
assert_type(shared.delay(3).get(), float)
assert_type(shared_bound.delay(3).get(), float)
assert_type(adder, Adder)
assert_type(adder.delay(1, 2).get(), int)
assert_type(adder.apply((1, 2)).get(), int)
