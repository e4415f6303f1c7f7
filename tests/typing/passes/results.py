"""Results can be passed on as results of something wider; signals take any function."""

from __future__ import annotations

from typing import Any, assert_type

from celeriac import AsyncResult, Celeriac, EagerResult, Task, current_app, current_task
from celeriac.signals import task_failure, worker_ready

app = Celeriac("tasks")


@app.task
def count(text: str) -> int:
    return len(text)


def wait(result: AsyncResult[object]) -> object:
    return result.get(timeout=3, on_interval=lambda: None)


wait(count.delay("x"))
assert_type(count.apply(("x",)), EagerResult[int])
assert_type(app.AsyncResult("id"), AsyncResult[Any])
assert_type(count.delay("x").parent, AsyncResult[Any] | None)
assert_type(app.tasks["tasks.count"], Task[..., Any])
assert_type(current_app, Celeriac)
current_task.update_state(state="PROGRESS", meta={"done": 3})


@task_failure.connect
def alarm(sender: Any, exception: BaseException, **_: Any) -> None:
    print(sender, exception)


@worker_ready.connect(sender="w1@here")
def ready(**_: Any) -> None: ...


with Celeriac("other", set_as_current=False) as other:
    other.conf.task_default_queue = "other"
