"""Results: what became of a task, asked from outside."""

from celeriac.result.base import AsyncResult, result_from_tuple
from celeriac.result.eager import EagerResult
from celeriac.result.value import RemoteTraceback

__all__ = ["AsyncResult", "EagerResult", "RemoteTraceback", "result_from_tuple"]
