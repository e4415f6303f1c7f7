"""`AsyncFace`: what an app has in one process to be used from coroutines."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from celeriac.aio.bridge import Bridge
from celeriac.aio.watcher import ResultWatcher

if TYPE_CHECKING:
    from celeriac.app import Celeriac
    from celeriac.backends.base import ResultBackend
    from celeriac.result import AsyncResult
    from celeriac.task import Task

__all__ = ["AsyncFace"]

#: Seconds in which a watcher has to end when nobody has the app any more.
_FAREWELL = 1.0


class AsyncFace:
    """1. `send` lays a call out and publishes it through the app's `Bridge`.
    2. `watcher` gives the one `ResultWatcher` of a result backend.

    For the event loops of one process; a forked child makes one of its own, and the parent's is as it was.
    """

    def __init__(self, app: Celeriac) -> None:
        self.process = os.getpid()
        self._publisher = app.publisher
        self._app_backend: Callable[[], ResultBackend] = lambda: app.backend
        self._has_reply_queue = False
        self._bridge = Bridge(app.publisher.publish, lambda: app.conf.broker_publish_timeout)
        self._lock = threading.Lock()
        self._watchers: dict[ResultBackend, ResultWatcher] = {}
        weakref.finalize(self, _part, os.getpid(), weakref.ref(app), self._watchers)

    async def send(
        self,
        name: str,
        args: Iterable[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        task: Task[..., Any] | None,
    ) -> AsyncResult[Any]:
        """`Publisher.send`, for coroutines. Raises `TypeError` for the options that share a transaction."""
        for option in ("connection", "session"):
            if options.get(option) is not None:
                raise TypeError(
                    f"{option}= does not go with await: another thread publishes the message, together with those of "
                    f"others, and must not touch your transaction. Use apply_async({option}=...) without await"
                )
        if not self._has_reply_queue and self._app_backend().traits.by_message:
            await asyncio.to_thread(lambda: self._app_backend().reply_to)
            self._has_reply_queue = True
        message, outgoing = self._publisher.prepare(name, args, kwargs, options, task=task)
        await self._bridge.publish(
            outgoing, retry=options.get("retry"), retry_policy=options.get("retry_policy")
        )
        return self._publisher.sent(message, outgoing, options)

    def watcher(self, backend: ResultBackend) -> ResultWatcher:
        """Who waits for results at this backend."""
        with self._lock:
            found = self._watchers.get(backend)
            if found is None:
                found = self._watchers[backend] = ResultWatcher(backend)
            return found

    def close(self) -> None:
        """Publish what was handed over, give up all waits, and end the threads; they start again when needed."""
        if os.getpid() != self.process:
            return  # all this is the parent's
        self._bridge.close()
        with self._lock:
            watchers = list(self._watchers.values())
        for watcher in watchers:
            watcher.close()


def _part(process: int, app: weakref.ref[Celeriac], watchers: Mapping[ResultBackend, ResultWatcher]) -> None:
    """When nobody has the app any more, or the program ends. A thread that is cut off would leave its connections,
    and what it has put on its server or in the file system, as they are."""
    if os.getpid() != process:
        return  # a forked child has made a face of its own, or ends
    ending = app()
    if ending is not None:
        ending.close()
        return
    for watcher in list(watchers.values()):
        watcher.close(timeout=_FAREWELL)
