"""`Control`: telling workers, from outside, what to do."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from celeriac.errors import NotYetSupported, TaskRevokedError
from celeriac.routing import queues_to_consume
from celeriac.states import READY_STATES, REVOKED
from celeriac.wire import codecs
from celeriac.wire import errors as wire_errors
from celeriac.wire.record import Record

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["Control"]

#: How long a revocation holds where results never expire: longer than any message waits.
_LONG = timedelta(days=3650)


class Control:
    """What can be told to the workers of an app. Thread-safe."""

    def __init__(self, app: Celeriac) -> None:
        self._app = app

    def revoke(
        self,
        task_id: str | Iterable[str],
        terminate: bool = False,
        signal: str | int | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Have these tasks not run: workers drop them when they come up. One that runs already goes on.

        The revocation is kept with the results and holds as long as they (``result_expires``), also for workers
        that start later. Tasks that have not ended are REVOKED from now on.
        """
        if terminate:
            warnings.warn(
                "revoke(terminate=True): tasks that run already are not terminated yet",
                NotYetSupported,
                stacklevel=2,
            )
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        backend, conf = self._app.backend, self._app.conf
        now = datetime.now(UTC)
        kept = timedelta(seconds=conf.result_expires) if conf.result_expires else _LONG
        backend.revoke(ids, until=now + kept)
        codec = conf.result_serializer
        reason = codecs.dumps(wire_errors.to_meta(TaskRevokedError("revoked"), codec), codec)
        backend.put(
            [
                Record(task_id=id, state=REVOKED, result=reason, codec=codec, date_done=now)
                for id, known in zip(ids, backend.get(ids), strict=True)
                if known is None or known.state not in READY_STATES
            ]
        )

    def purge(self) -> int:
        """Delete what waits in the queues of this app, and say how many messages that were. There is no way back."""
        broker = self._app.broker
        return sum(broker.purge(queue.name) for queue in queues_to_consume(self._app.conf))

    discard_all = purge
