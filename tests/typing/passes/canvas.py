"""Signatures and chains keep the type of the value they lead to."""

from __future__ import annotations

from typing import Any, assert_type

from celeriac import AsyncResult, Celeriac, Chain, Signature, chain, signature

app = Celeriac("tasks")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def show(value: int) -> str:
    return str(value)


@app.task
def alert(task_id: str) -> None: ...


assert_type(add.s(2), Signature[int])
assert_type(add.si(2, 2), Signature[int])
assert_type(add.s(2).delay(3), AsyncResult[int])
assert_type(add.s(2).set(queue="web", countdown=3), Signature[int])
assert_type(add.s(2, 2) | show.s(), Chain[str])
assert_type((add.s(2, 2) | add.s(3) | show.s()).apply_async().get(), str)
assert_type(~add.s(2, 2), int)
assert_type(add.s(2).clone((1,)), Signature[int])
assert_type(add.s(1).on_error(alert.s()), Signature[int])
assert_type(add.s(1).link(show.s()), Signature[str])
add.apply_async((1, 2), link=show.s(), link_error=[alert.s()])
assert_type(chain(add.s(1, 2), show.s()), Chain[Any])
assert_type(signature("tasks.add", args=(1, 2)), Signature[Any])
