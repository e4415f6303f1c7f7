"""Calls that a type checker must refuse, each marked."""

from __future__ import annotations

from celeriac import Celeriac, Task

app = Celeriac("tasks")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(bind=True)
def bound(self: Task, x: int) -> int:
    return x


@app.task
async def waits(x: int) -> int:
    return x


add.delay(1)  # error
add.delay(1, "2")  # error
add.delay(1, 2, 3)  # error
add.delay(1, z=2)  # error
add("1", 2)  # error
bound.delay(bound, 1)  # error
bound.delay("1")  # error
waits.delay("1")  # error
add.si(1)  # error
add.apply_async((1, 2), countdwon=3)  # error
add.apply_async((1, 2), countdown="soon")  # error
app.send_task("tasks.add", (1, 2), queue=3)  # error
text: str = add.delay(1, 2).get()  # error
length: str = waits.delay(1).get()  # error
