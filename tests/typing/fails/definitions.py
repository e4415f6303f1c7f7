"""Definitions that a type checker must refuse, each marked."""

from __future__ import annotations

from celeriac import Celeriac, Task, shared_task

app = Celeriac("tasks")


class Logged(Task):
    prefix = "> "


class Other(Task):
    pass


@app.task(bind=True)  # error
def without_self() -> int:
    return 1


@app.task(bind=True, base=Logged)  # error
def of_another_base(self: Other, x: int) -> int:
    return x


@shared_task(bind=True)  # error
def shared_without_self() -> int:
    return 1


app.task(3)  # error
app.register_task(without_self.run)  # error
app.conf.task_serialiser = "json"  # error
app.conf.task_acks_late = "yes"  # error
