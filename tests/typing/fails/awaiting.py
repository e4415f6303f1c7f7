"""Coroutines that a type checker must refuse, each wrong line marked."""

from __future__ import annotations

from celeriac import AsyncResult, Celeriac

app = Celeriac("tasks")


@app.task
def count(text: str) -> int:
    return len(text)


async def main() -> None:
    await count.adelay(1)  # error
    await count.adelay("x", twice=True)  # error
    await count.aapply_async(("x",), countdwon=3)  # error
    await app.asend_task("tasks.count", ("x",), queue=3)  # error
    unawaited: AsyncResult[int] = count.adelay("x")  # error
    text: str = await (await count.adelay("x"))  # error
    result = await count.adelay("x")
    await result.aget(timeout="soon")  # error
    await result.aget(3, True, None)  # error
    print(unawaited, text)
