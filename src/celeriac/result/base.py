"""`AsyncResult`: what became of a task, asked from outside, and waited for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from celeriac import registry
from celeriac.errors import TaskError, TimeoutError
from celeriac.request import assert_may_wait
from celeriac.result.value import value_of
from celeriac.states import FAILURE, PENDING, PROPAGATE_STATES, READY_STATES, SUCCESS
from celeriac.wire import codecs
from celeriac.wire.record import Record, to_meta

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    from celeriac.app import Celeriac
    from celeriac.backends.base import ResultBackend

    R_co = TypeVarWithDefault("R_co", covariant=True, default=Any)
else:
    R_co = TypeVar("R_co", covariant=True)

__all__ = [
    "AsyncResult",
    "result_from_tuple",
]


class AsyncResult(Generic[R_co]):
    """What became of the task of this id: 1. its state, 2. its value or exception, 3. waiting for them.

    Whatever it says is read from the result backend when asked, until the state is final; then it is kept.
    An id that nobody knows is PENDING. Thread-safe.
    """

    def __init__(
        self,
        id: str,
        backend: ResultBackend | None = None,
        task_name: str | None = None,
        app: Celeriac | None = None,
        parent: AsyncResult[Any] | None = None,
        *,
        ignored: bool = False,
    ) -> None:
        self.id = id
        #: The result of the task that ran before this one in a chain.
        self.parent = parent
        #: The task was told to keep no result.
        self.ignored = ignored
        self._app = app
        self._backend = backend
        self._name = task_name
        self._final: Record | None = None

    @property
    def app(self) -> Celeriac:
        return self._app or registry.current_app()

    @property
    def backend(self) -> ResultBackend:
        return self._backend or self.app.backend

    @property
    def task_id(self) -> str:
        return self.id

    # -- what is known ----------------------------------------------------------------------------------------

    def record(self) -> Record | None:
        """What the result backend holds of this task now; None while it knows nothing."""
        if self._final is None:
            (record,) = self.backend.get([self.id])
            if record is None or record.state not in READY_STATES:
                return record
            self._final = record
        return self._final

    @property
    def state(self) -> str:
        """See `celeriac.states`. PENDING may also mean that nobody knows this id."""
        record = self.record()
        return PENDING if record is None else record.state

    @property
    def status(self) -> str:
        return self.state

    @property
    def result(self) -> R_co | Any:
        """The return value, the exception, or the meta of a custom state; None while there is none."""
        record = self.record()
        return None if record is None else value_of(record, self.app.conf)

    @property
    def info(self) -> Any:
        return self.result

    @property
    def traceback(self) -> str | None:
        record = self.record()
        return None if record is None else record.traceback

    @property
    def date_done(self) -> datetime | None:
        """When it ended, in UTC."""
        record = self.record()
        return None if record is None else record.date_done

    @property
    def children(self) -> list[AsyncResult[Any]] | None:
        """Results of the tasks that this one published; None while nothing is known."""
        record = self.record()
        if record is None or record.children is None:
            return None
        return [result_from_tuple(each, app=self._app) for each in record.children]

    @property
    def name(self) -> str | None:
        """The task's name; like the following ones known with ``result_extended`` only."""
        record = self.record()
        return self._name if record is None or record.name is None else record.name

    @property
    def args(self) -> list[Any] | None:
        return self._extended("args")

    @property
    def kwargs(self) -> dict[str, Any] | None:
        return self._extended("kwargs")

    @property
    def worker(self) -> str | None:
        record = self.record()
        return None if record is None else record.worker

    @property
    def queue(self) -> str | None:
        record = self.record()
        return None if record is None else record.queue

    @property
    def retries(self) -> int | None:
        record = self.record()
        return None if record is None else record.retries

    def _extended(self, field: str) -> Any:
        record = self.record()
        data: bytes | None = None if record is None else getattr(record, field)
        return None if record is None or data is None else codecs.loads(data, record.codec)

    def ready(self) -> bool:
        """It ended, one way or the other."""
        return self.state in READY_STATES

    def successful(self) -> bool:
        return self.state == SUCCESS

    def failed(self) -> bool:
        return self.state == FAILURE

    def exists(self) -> bool:
        """The result backend knows this id."""
        return self.record() is not None

    # -- waiting ----------------------------------------------------------------------------------------------

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R_co:
        """Wait for the task and return its value, or raise its exception.

        `timeout` seconds (None: the setting ``result_get_timeout``) are waited at most, then `TimeoutError` is
        raised. With `propagate` off the exception is returned. `callback` is called with id and value,
        `on_interval` every `interval` seconds meanwhile, `on_message` with the stored document as often as a
        look every `interval` seconds finds it changed. `follow_parents`: raise the failure of a task earlier
        in the chain.

        Raises `TaskError` where the task keeps no result, and `RuntimeError` inside a task: one that waits for
        others takes up a slot of the worker that they may need. ``disable_sync_subtasks=False`` permits it.
        `no_ack` is without effect.
        """
        self._assert_waitable(disable_sync_subtasks)
        record = self._wait(timeout, interval, follow_parents, on_message, on_interval)
        return cast("R_co", self._given(record, propagate, callback))

    wait = get

    async def aget(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R_co:
        """`get` for coroutines: arguments and errors as there, and the event loop goes on meanwhile.

        ``await result`` is ``await result.aget()``. Cancelling it gives up the wait, not the task. A result backend
        that cannot be reached is asked again until the time is up. May be awaited more than once, in any event loop.
        """
        self._assert_waitable(disable_sync_subtasks)
        record = self._final
        if record is None:
            if timeout is None:
                timeout = self.app.conf.result_get_timeout
            ancestors = [each.id for each in self._ancestors()] if follow_parents else ()
            record = await self.app.aio.watcher(self.backend).final(self.id, ancestors, timeout=timeout)
            if record is None or record.state not in READY_STATES:
                raise self._timed_out(timeout, record)
            if record.task_id == self.id:
                self._final = record
        return cast("R_co", self._given(record, propagate, callback))

    def __await__(self) -> Generator[Any, Any, R_co]:
        return self.aget().__await__()

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> Any:
        """The value as it is now; raises the exception of a task that failed."""
        return self._given(self.record(), propagate, callback)

    maybe_reraise = maybe_throw

    def _assert_waitable(self, disable_sync_subtasks: bool) -> None:
        if disable_sync_subtasks:
            assert_may_wait()
        if self.ignored:
            raise TaskError(
                f"task {self.id} keeps no result: it was sent with ignore_result, so there is nothing to wait for"
            )

    def _given(
        self, record: Record | None, propagate: bool, callback: Callable[[str, Any], Any] | None
    ) -> Any:
        """What a record means for whoever asked: the value, or an exception, raised or returned."""
        value: Any = None if record is None else value_of(record, self.app.conf)
        if record is not None and record.state in PROPAGATE_STATES and propagate:
            raise value
        if callback is not None:
            callback(self.id, value)
        return value

    def _wait(
        self,
        timeout: float | None,
        interval: float,
        follow_parents: bool,
        on_message: Callable[[dict[str, Any]], Any] | None,
        on_interval: Callable[[], Any] | None,
    ) -> Record:
        """The final record of this task, or of an ancestor that failed."""
        if timeout is None:
            timeout = self.app.conf.result_get_timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        watched = {self.id, *(each.id for each in self._ancestors())} if follow_parents else {self.id}
        looks = on_message is not None or on_interval is not None
        seen: Record | None = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            for record in self._final_records(watched, min(interval, left or interval) if looks else left):
                if record.task_id == self.id:
                    self._final = record
                    if on_message is not None and record != seen:
                        on_message(to_meta(record))
                    return record
                if record.state in PROPAGATE_STATES:
                    return record
                watched.discard(record.task_id)
            if left == 0 or not looks:
                raise self._timed_out(timeout, self.record())
            if on_interval is not None:
                on_interval()
            if on_message is not None and (now := self.record()) is not None and now != seen:
                seen = now
                on_message(to_meta(now))

    def _final_records(self, ids: set[str], timeout: float | None) -> Iterator[Record]:
        if self._final is not None:
            return iter([self._final])
        return self.backend.watch(frozenset(ids), timeout)

    def _timed_out(self, timeout: float | None, record: Record | None) -> TimeoutError:
        if record is not None:
            return TimeoutError(
                f"task {self.id} did not end within {timeout} s (its state is {record.state})"
            )
        return TimeoutError(
            f"task {self.id} did not end within {timeout} s. Nothing is recorded for it: it waits in its queue, "
            "its worker stores no results (ignore_result, another result_backend), or there is no such task"
        )

    def _ancestors(self) -> Iterator[AsyncResult[Any]]:
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    # -- ending it --------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Delete what the result backend holds of this task and of those before it in the chain."""
        self.backend.forget([self.id, *(each.id for each in self._ancestors())])
        self._final = None

    def revoke(
        self,
        terminate: bool = False,
        signal: str | int | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Have the task not run, if it has not started; see `Control.revoke`."""
        self.app.control.revoke(self.id, terminate=terminate, signal=signal, wait=wait, timeout=timeout)

    # -- the results around it --------------------------------------------------------------------------------

    def iterdeps(
        self, intermediate: bool = False
    ) -> Iterator[tuple[AsyncResult[Any] | None, AsyncResult[Any]]]:
        """This result and those of all tasks it led to, breadth first, each with its parent.

        Raises `TaskError` where one has not ended yet; `intermediate` takes it as a leaf.
        """
        waiting: deque[tuple[AsyncResult[Any] | None, AsyncResult[Any]]] = deque([(None, self)])
        while waiting:
            parent, node = waiting.popleft()
            yield parent, node
            if node.ready():
                waiting.extend((node, child) for child in node.children or ())
            elif not intermediate:
                raise TaskError(f"task {node.id} has not ended: what follows from it is not known yet")

    def collect(self, intermediate: bool = False, **options: Any) -> Iterator[tuple[AsyncResult[Any], Any]]:
        """Wait for this task and all it led to; each with its value. `options` are those of `get`."""
        self.get(**options)
        for _, node in self.iterdeps(intermediate=intermediate):
            yield node, node.get(**options)

    def get_leaf(self) -> Any:
        """The value of the last task this one led to."""
        value = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    def as_tuple(self) -> list[Any]:
        """``[[id, parent], None]``, as it travels; `result_from_tuple` reads it."""
        made: list[Any] | None = None
        for node in reversed([self, *self._ancestors()]):
            made = [[node.id, made], None]
        return cast("list[Any]", made)

    def as_list(self) -> list[str]:
        """Ids of this task and of those before it."""
        return [self.id, *(each.id for each in self._ancestors())]

    def __reduce__(self) -> tuple[Any, ...]:
        return result_from_tuple, (self.as_tuple(),)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return cast("AsyncResult[Any]", other).id == self.id
        return self.id == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"


def result_from_tuple(value: Sequence[Any], app: Celeriac | None = None) -> AsyncResult[Any]:
    """The result that Celery's tuple ``[[id, parent], members]`` describes. `members` is None but for groups.

    Raises `ValueError` for a group.
    """
    ids: list[str] = []
    node: Any = value
    while node is not None:
        if isinstance(node, str):
            ids.append(node)
            break
        (id, parent), members = node
        if members is not None:
            raise ValueError(f"{id} is a group of {len(members)} results")
        ids.append(id)
        node = parent
    result: AsyncResult[Any] | None = None
    for id in reversed(ids):
        result = AsyncResult(id, app=app, parent=result)
    return cast("AsyncResult[Any]", result)
