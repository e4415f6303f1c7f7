"""The tasks of the demo: one call of `index_file` for each file of Python's standard library.

Nothing is configured: an app without a broker keeps its queue and its results in ``celeriac.db``, a SQLite
file in the folder it runs in.
"""

from __future__ import annotations

import ast
import hashlib
import time
import warnings
from pathlib import Path
from typing import Any

from celeriac import Celeriac

app = Celeriac("stdlib_index")


@app.task(bind=True, track_started=True)
def index_file(self, path: str) -> dict[str, Any]:
    """Measure one Python file, and say how often it had been handed out when this succeeded."""
    source = Path(path).read_bytes()
    return {
        **top_level(source),
        "path": path,
        "bytes": len(source),
        "lines": source.count(b"\n"),
        "words": len(source.split()),
        "sha256": hashlib.sha256(source).hexdigest(),
        "attempts": self.request.attempts,
    }


def top_level(source: bytes) -> dict[str, int]:
    """Count functions and classes at the top of a module. The library ships files that are broken on
    purpose, to test Python's own parser: they count 0 and are noted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a doubtful escape in a test file is not our concern
            body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {"functions": 0, "classes": 0, "broken": 1}
    return {
        "functions": sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in body),
        "classes": sum(isinstance(node, ast.ClassDef) for node in body),
        "broken": 0,
    }


@app.task(bind=True, max_retries=3)
def stumble(self) -> int:
    """Fail the first time, on purpose; return how many times this was tried."""
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("the first call always fails"), countdown=1)
    return self.request.retries + 1


@app.task
def clock() -> float:
    """The time at which a worker ran this."""
    return time.time()
