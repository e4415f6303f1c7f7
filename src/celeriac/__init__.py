"""celeriac: a distributed task queue. These are the public names; what a program needs is imported from here.

::

    from celeriac import Celeriac

    app = Celeriac("tasks")

    @app.task
    def add(x: int, y: int) -> int:
        return x + y

    add.delay(2, 3).get(timeout=5)
"""

from celeriac.app import Celeriac
from celeriac.canvas import Chain, Signature, chain, maybe_signature, signature, subtask
from celeriac.control import Control
from celeriac.current import current_app, current_task
from celeriac.decorators import shared_task
from celeriac.ids import uuid
from celeriac.request import Request
from celeriac.result import AsyncResult, EagerResult
from celeriac.task import Task
from celeriac.topology import Binding, Broadcast, Exchange, Queue

__version__ = "0.1.0"
VERSION = __version__

__all__ = [
    "Celeriac",
    "Task",
    "Request",
    "shared_task",
    "current_app",
    "current_task",
    "AsyncResult",
    "EagerResult",
    "Signature",
    "Chain",
    "chain",
    "signature",
    "subtask",
    "maybe_signature",
    "Control",
    "Queue",
    "Broadcast",
    "Exchange",
    "Binding",
    "uuid",
    "VERSION",
    "__version__",
]
