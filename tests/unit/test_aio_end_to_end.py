"""From coroutines to a worker and back, on every server; and the end of a program that did that."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from celeriac import Celeriac, Task
from celeriac.result import RemoteTraceback
from celeriac.testing.worker import running_worker
from support import eventually

SERVERS = ["memory", "sqlite", "redis", "rabbitmq"]


@pytest.fixture(params=SERVERS)
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Celeriac]:
    match request.param:
        case "memory":
            broker = backend = "memory://"
        case "sqlite":
            broker = backend = f"sqlite:///{tmp_path}/celeriac.db"
        case "redis":
            broker = backend = request.getfixturevalue("redis_url")
        case _:
            broker, backend = request.getfixturevalue("amqp_url"), request.getfixturevalue("redis_url")
    queue = f"q-{uuid4().hex[:12]}"
    with Celeriac("t", broker=broker, backend=backend, set_as_current=False, task_default_queue=queue) as app:
        define(app)
        with running_worker(app, concurrency=2):
            yield app


def define(app: Celeriac) -> None:
    @app.task(name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="fail")
    def fail() -> None:
        raise KeyError("k", 3)

    @app.task(name="parent", bind=True)
    async def parent(self: Task, x: int) -> Any:
        result = await self.app.tasks["add"].adelay(x, 1)
        if x < 0:
            return await result
        return await result.aget(timeout=20, disable_sync_subtasks=False)


def test_calls_and_their_results(app: Celeriac) -> None:
    async def main() -> None:
        add = app.tasks["add"]
        results = await asyncio.gather(*[add.adelay(n, n) for n in range(200)])
        assert await asyncio.gather(*results) == [2 * n for n in range(200)]
        later = await add.aapply_async((1, 2), countdown=0.05)
        assert await later.aget(timeout=20) == 3
        assert await (await app.asend_task("add", [2, 3])) == 5
        assert await app.AsyncResult(later.id) == 3

    asyncio.run(main())


def test_a_failure_comes_with_the_traceback_of_the_worker(app: Celeriac) -> None:
    async def main() -> None:
        result = await app.tasks["fail"].adelay()
        with pytest.raises(KeyError) as caught:
            await result.aget(timeout=20)
        assert caught.value.args == ("k", 3)
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert 'raise KeyError("k", 3)' in str(caught.value.__cause__)

    asyncio.run(main())


def test_a_task_that_calls_another(app: Celeriac) -> None:
    async def main() -> None:
        result = await app.tasks["parent"].adelay(1)
        assert await result.aget(timeout=20) == 2
        assert [await child for child in result.children or ()] == [2]
        with pytest.raises(RuntimeError, match="must not wait"):
            await (await app.tasks["parent"].adelay(-1)).aget(timeout=20)

    asyncio.run(main())


# -- the end of a program --------------------------------------------------------------------------------------

PROGRAM = """
    import asyncio, sys, threading
    from celeriac import Celeriac
    from celeriac.wire.record import Record

    app = Celeriac("t", broker=sys.argv[1], backend=sys.argv[1])

    @app.task
    def add(x, y):
        return x + y

    async def main():
        results = await asyncio.gather(*[add.adelay(1, 2) for _ in range(10)])
        app.backend.put([Record(task_id=results[0].id, state="SUCCESS", result=b"3")])
        print(await results[0])
        %s

    asyncio.run(main())
"""


def end_of(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program on a database in `folder`."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), f"sqlite:///{folder}/celeriac.db"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "end",
    [
        "",
        "app.close(); assert threading.active_count() == 1",
        "asyncio.create_task(results[1].aget()); await asyncio.sleep(0.05)",
        "asyncio.create_task(add.adelay(1, 2)); await asyncio.sleep(0)",
        "sys.exit(0)",
    ],
)
def test_a_program_ends_without_a_word(end: str, tmp_path: Path) -> None:
    ended = end_of(PROGRAM % end, tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "3\n", "")
    assert [each.name for each in tmp_path.iterdir()] == ["celeriac.db"]


def test_a_program_that_fails_says_only_that(tmp_path: Path) -> None:
    ended = end_of(PROGRAM % "await app.AsyncResult('nobody').aget(timeout=0.05)", tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "3\n")
    assert ended.stderr.count("Traceback") == 1
    assert "celeriac.errors.TimeoutError: task nobody did not end within 0.05 s" in ended.stderr


def test_importing_celeriac_does_not_import_asyncio() -> None:
    code = "import sys, celeriac; sys.exit('asyncio' in sys.modules or 'celeriac.aio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_event_loop_is_blocked_meanwhile(app: Celeriac) -> None:
    """While many calls are made and awaited, others get their turn."""

    async def main() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counting = asyncio.create_task(count())
        for _ in range(20):
            await (await app.tasks["add"].adelay(1, 1))
        counting.cancel()
        return turns

    assert asyncio.run(main()) > 100
    eventually(lambda: app.broker.size(app.conf.task_default_queue).unsettled == 0)
