"""The program of the README."""

from __future__ import annotations

from typing import assert_type

from celeriac import AsyncResult, Celeriac, Task

app = Celeriac("tasks")


@app.task(bind=True, max_retries=3)
def div(self: Task, x: float, y: float) -> float:
    try:
        return x / y
    except ZeroDivisionError as exc:
        raise self.retry(exc=exc, countdown=5) from exc


r = div.delay(1, 3)
assert_type(r, AsyncResult[float])
assert_type(r.id, str)
assert_type(r.status, str)
assert_type(r.ready(), bool)
assert_type(r.get(timeout=1), float)
assert_type(r.successful(), bool)
assert_type(r.traceback, str | None)
r.get(propagate=False)
div.apply_async((1, 2), countdown=10, expires=60, priority=5, queue="web", task_id="one", ignore_result=True)
app.send_task("tasks.div", args=[2, 2])
assert_type(div.AsyncResult(r.id).get(), float)
assert_type(div(4, 2), float)
