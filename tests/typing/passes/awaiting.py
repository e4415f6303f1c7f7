"""From coroutines: what is awaited has the type that the blocking call returns."""

from __future__ import annotations

import asyncio
from typing import Any, assert_type

from celeriac import AsyncResult, Celeriac, Task, shared_task

app = Celeriac("tasks")


@app.task
def count(text: str, *, twice: bool = False) -> int:
    return len(text) * (2 if twice else 1)


@app.task(bind=True)
async def waits(self: Task, seconds: float) -> str:
    return str(seconds)


@shared_task
def shared(x: int) -> float:
    return x / 2


def note(id: str, value: Any) -> None:
    print(id, value)


async def wait(result: AsyncResult[object]) -> object:
    return await result


async def main() -> None:
    result = await count.adelay("x", twice=True)
    assert_type(result, AsyncResult[int])
    assert_type(await result, int)
    assert_type(await (await waits.adelay(0.5)), str)
    assert_type(await shared.aapply_async((3,), countdown=10, queue="web"), AsyncResult[float])
    assert_type(await app.asend_task("tasks.count", args=["x"], expires=60), AsyncResult[Any])
    assert_type(await result.aget(timeout=1, propagate=False, callback=note), int)
    assert_type(await count.apply(("x",)), int)
    assert_type(await asyncio.wait_for(result, 3), int)
    sent = await asyncio.gather(*[count.adelay(each) for each in "abc"])
    assert_type(sent, list[AsyncResult[int]])
    assert_type(await asyncio.gather(*sent), list[int])
    assert_type(
        await asyncio.gather(count.adelay("a"), shared.adelay(1)), tuple[AsyncResult[int], AsyncResult[float]]
    )
    await wait(result)
