"""Results as messages between the two: each library's client reads what each library's worker sends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

Library = str

TASKS = """
import os, time
if os.environ["RPC_LIBRARY"] == "celery":
    from celery import Celery as App
else:
    from celeriac import Celeriac as App

app = App("rpc_tasks", broker=os.environ["RPC_BROKER"], backend="rpc://")
app.conf.task_default_queue = os.environ["RPC_QUEUE"]
app.conf.task_track_started = True
app.conf.result_expires = 600

@app.task
def add(x, y):
    return x + y

@app.task
def fail(text):
    raise ValueError(text)

@app.task
def slow(x):
    time.sleep(1.0)
    return x
"""

CLIENT = """
import json, time
from rpc_tasks import add, app, fail, slow

def reached(result, state):
    deadline = time.monotonic() + 20
    while result.state != state and time.monotonic() < deadline:
        time.sleep(0.02)
    return result.state

failed = fail.delay("oh")
on_the_way = slow.delay("done")
answers = {"started": reached(on_the_way, "STARTED")}
many = [add.delay(n, 1) for n in range(50)]
answers["many"] = [each.get(timeout=20) for each in many]
try:
    failed.get(timeout=20)
except ValueError as exc:
    answers["failed"] = [type(exc).__name__, str(exc)]
answers["slow"] = on_the_way.get(timeout=20)
answers["state"] = reached(many[0], "SUCCESS")
app.close()
print(json.dumps(answers))
"""


def environment(library: Library, broker: str, queue: str) -> dict[str, str]:
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("CELERIAC_", "CELERY_", "COV_", "PYTHON"))
    }
    return {
        **clean,
        "PYTHONPATH": ".",
        "PYTHONUNBUFFERED": "1",
        "RPC_LIBRARY": library,
        "RPC_BROKER": broker,
        "RPC_QUEUE": queue,
    }


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> str:
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        return f"{server.url.removesuffix('/0')}/6"
    return request.getfixturevalue("vhost")


@pytest.fixture(scope="module")
def tasks(folder: Path) -> Path:
    here = folder / "rpc"
    here.mkdir()
    (here / "rpc_tasks.py").write_text(TASKS)
    return here


@contextmanager
def working(python: str, library: Library, broker: str, queue: str, tasks: Path) -> Iterator[None]:
    options = ("--without-gossip", "--without-mingle") if library == "celery" else ()
    with subprocess.Popen(
        [python, "-m", library, "-A", "rpc_tasks", "worker", "-c", "2", "-l", "info", *options],
        cwd=tasks,
        env=environment(library, broker, queue),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        seen: list[str] = []
        for line in process.stdout:
            seen.append(line)
            if "ready." in line:
                break
        else:
            pytest.fail(f"{library} did not start:\n{''.join(seen)}")
        reader = threading.Thread(target=lambda: seen.extend(process.stdout or ()))
        reader.start()
        try:
            yield
        except BaseException:
            sys.stderr.write("".join(seen))
            raise
        finally:
            process.terminate()
            process.wait(20)
            reader.join(10)


@pytest.mark.parametrize(
    ("client", "worker"), [("celery", "celeriac"), ("celeriac", "celery"), ("celeriac", "celeriac")]
)
def test_results_come_as_messages(
    client: Library, worker: Library, broker: str, celery: Path, tasks: Path
) -> None:
    pythons = {"celery": str(celery), "celeriac": sys.executable}
    queue = f"rpc-{uuid4().hex[:8]}"
    with working(pythons[worker], worker, broker, queue, tasks):
        asked = subprocess.run(
            [pythons[client], "-c", CLIENT],
            cwd=tasks,
            env=environment(client, broker, queue),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout) == {
        "many": list(range(1, 51)),
        "failed": ["ValueError", "oh"],
        "started": "STARTED",
        "slow": "done",
        "state": "SUCCESS",
    }
