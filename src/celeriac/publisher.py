"""`Publisher`: from a call to a message in a queue."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from celeriac import signals
from celeriac.canvas.plan import plan
from celeriac.canvas.signature import maybe_signature
from celeriac.errors import OperationalError, PublishFailed
from celeriac.options import message_of
from celeriac.request import running
from celeriac.result import AsyncResult
from celeriac.retry import intervals
from celeriac.routing import Route, Router
from celeriac.wire import message as messages
from celeriac.wire.envelope import Outgoing
from celeriac.wire.message import Message

if TYPE_CHECKING:
    from celeriac.app import Celeriac
    from celeriac.errors import Retry
    from celeriac.request import Request
    from celeriac.task import Task

__all__ = ["Publisher"]

_NOTHING: Mapping[str, Any] = {}
#: Settings that routes are made of.
_ROUTING = attrgetter(
    *("task_routes", "task_queues", "task_default_queue", "task_default_queue_type", "task_default_exchange"),
    *("task_default_exchange_type", "task_default_routing_key", "task_create_missing_queues"),
    *("task_create_missing_queue_type", "task_create_missing_queue_exchange_type", "task_queue_max_priority"),
)


class Publisher:
    """Publishes the calls of one app.

    1. `lay_out`: options of call, task and route are merged, and make a message and its bytes.
    2. `publish`: the broker takes it; where the connection is lost, once more, until the deadline.
    3. `send` is both, with signals, and gives the result to come; `prepare` and `sent` are what of it comes before
       and after `publish`, for those who publish otherwise.
    4. `follow_ups` and `retry_of` lay out what a worker publishes when a call ended.

    Thread-safe.
    """

    def __init__(self, app: Celeriac) -> None:
        self._app = app
        self._router: tuple[Any, Router] | None = None

    @property
    def router(self) -> Router:
        """Where messages go, by the settings as they are now; a dict of routes changed in place is not noticed."""
        wanted = _ROUTING(self._app.conf)
        if self._router is None or self._router[0] != wanted:
            self._router = wanted, Router.of(self._app.conf)
        return self._router[1]

    def send(
        self,
        name: str,
        args: Iterable[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        task: Task[..., Any] | None,
    ) -> AsyncResult[Any]:
        """Publish one call and return its result to come. Options and errors as `Task.apply_async` has them."""
        message, outgoing = self.prepare(name, args, kwargs, options, task=task)
        transaction = options.get("connection")
        self.publish(
            [outgoing],
            options.get("session") if transaction is None else transaction,
            retry=options.get("retry"),
            retry_policy=options.get("retry_policy"),
        )
        return self.sent(message, outgoing, options)

    def prepare(
        self,
        name: str,
        args: Iterable[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        task: Task[..., Any] | None,
    ) -> tuple[Message, Outgoing]:
        """What comes before `publish`: `lay_out`, and the signal `before_task_publish`."""
        message, outgoing = self.lay_out(name, args, kwargs, options, task=task)
        self._announce(message, outgoing)
        return message, outgoing

    def sent(self, message: Message, outgoing: Outgoing, options: Mapping[str, Any]) -> AsyncResult[Any]:
        """What comes after `publish`: the signal `after_task_publish`, and the result to come."""
        if signals.after_task_publish.connections:
            signals.after_task_publish.send(sender=message.task, **_published(message, outgoing))
        result: AsyncResult[Any] = AsyncResult(
            message.id, app=self._app, task_name=message.task, ignored=message.ignore_result is True
        )
        parent = running()
        if parent is not None and options.get("add_to_parent") is not False:
            self._note_child(parent, result)
        return result

    def lay_out(
        self,
        name: str,
        args: Iterable[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any] = _NOTHING,
        *,
        task: Task[..., Any] | None = None,
        parent: Request | None = None,
    ) -> tuple[Message, Outgoing]:
        """A call as a message, and as what is published; nothing is sent. `task`: where it is known here;
        `parent`: the request that makes the call, if not the one that runs here.

        Raises `TypeError` and `ValueError` for wrong options, `EncodeError`, `QueueNotFound`.
        """
        chosen = {key: value for key, value in options.items() if value is not None} if options else {}
        if task is not None and task.own_options:
            chosen = {**_weaker(task.own_options, chosen), **chosen}
        args = tuple(args)
        route = self.router.route(name, chosen, args, kwargs, type=task)
        if route.options:
            chosen = {**route.options, **chosen}
        message = message_of(
            self._app,
            name,
            args,
            kwargs,
            chosen,
            ignore_result=None if task is None else bool(task.ignore_result),
            parent=parent or running(),
        )
        return message, self._outgoing(message, chosen, route)

    def _outgoing(self, message: Message, options: Mapping[str, Any], route: Route) -> Outgoing:
        conf = self._app.conf
        codec = options.get("serializer") or conf.task_serializer
        compression = options.get("compression") or conf.task_compression
        if conf.task_protocol == 1:
            envelope = messages.encode_v1(message, codec=codec, compression=compression)
        else:
            envelope = messages.encode(
                message, codec=codec, compression=compression, repr_levels=conf.task_repr_maxlevels
            )
        return Outgoing(
            envelope, route.exchange, route.routing_key, message.priority, message.eta, route.queue
        )

    def _announce(self, message: Message, outgoing: Outgoing) -> None:
        """Send `before_task_publish`; receivers may change headers and properties."""
        if signals.before_task_publish.connections:
            signals.before_task_publish.send(
                sender=message.task,
                properties=outgoing.envelope.properties,
                declare=[] if outgoing.queue is None else [outgoing.queue],
                retry_policy=dict(self._app.conf.task_publish_retry_policy),
                **_published(message, outgoing),
            )

    def publish(
        self,
        batch: Sequence[Outgoing],
        transaction: Any = None,
        *,
        retry: bool | None = None,
        retry_policy: Mapping[str, Any] | None = None,
    ) -> None:
        """Hand messages to the broker; in the caller's `transaction`, where there is one.

        Raises `OperationalError` when the broker did not take them within ``broker_publish_timeout``.
        """
        broker = self._app.broker
        if transaction is not None:
            broker.publish_in(transaction, batch)
            return
        started = time.monotonic()
        try:
            broker.publish(batch)
        except OperationalError as exc:
            if retry is False or (retry is None and not self._app.conf.task_publish_retry):
                raise
            policy = {**self._app.conf.task_publish_retry_policy, **(retry_policy or {})}
            self._publish_again(batch, exc, policy, started + self._app.conf.broker_publish_timeout)

    def _publish_again(
        self, batch: Sequence[Outgoing], failure: OperationalError, policy: Mapping[str, Any], deadline: float
    ) -> None:
        for pause in intervals(policy):
            if isinstance(failure, PublishFailed):
                if failure.unroutable:
                    break
                batch = [each for each in batch if each.envelope.task_id in failure.ids]
            if time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
            try:
                self._app.broker.publish(batch)
            except PublishFailed as exc:
                failure = exc
            except OperationalError as exc:
                failure = PublishFailed(str(exc), ids=[each.envelope.task_id for each in batch])
                failure.__cause__ = exc
            else:
                return
        raise failure

    def follow_ups(
        self, signature: Mapping[str, Any], *, args: Sequence[Any], request: Request, chain: list[Any] | None
    ) -> list[Outgoing]:
        """See `Celeriac.follow_ups`."""
        options: dict[str, Any] = {} if chain is None else {"chain": chain}
        if request.reply_to:
            options["reply_to"] = request.reply_to
        planned = plan(maybe_signature(signature, app=self._app), args, {}, options)
        return [
            self._follow_up(each.task, each.args, each.kwargs, each.options, request)
            for each in planned.messages
        ]

    def retry_of(self, request: Request, retry: Retry) -> Outgoing:
        """See `Celeriac.retry_of`. It goes back to the queue the call came from, unless its options say otherwise."""
        options = dict(retry.sig.options)
        if request.queue and not options.keys() & {"queue", "exchange", "routing_key"}:
            options["queue"] = request.queue
            options["exchange"], options["routing_key"] = "", request.queue
        return self._follow_up(retry.sig.task, retry.sig.args, retry.sig.kwargs, options, request)

    def _follow_up(
        self,
        name: str,
        args: Iterable[Any],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
        request: Request,
    ) -> Outgoing:
        task = self._app.tasks.get(name)
        message, outgoing = self.lay_out(name, args, kwargs, options, task=task, parent=request)
        self._announce(message, outgoing)
        return outgoing

    def _note_child(self, parent: Request, result: AsyncResult[Any]) -> None:
        task = self._app.tasks.get(parent.task or "")
        if task is None or task.trail:
            parent.add_child(result)


def _weaker(own: Mapping[str, Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The task's own options under those of a call: a queue given by the call hides where the task would go."""
    if "queue" not in given:
        return own
    return {key: value for key, value in own.items() if key not in ("exchange", "routing_key")}


def _published(message: Message, outgoing: Outgoing) -> dict[str, Any]:
    """What both publish signals tell."""
    embed = {
        "callbacks": message.callbacks,
        "errbacks": message.errbacks,
        "chain": message.chain,
        "chord": message.chord,
    }
    return {
        "body": (message.args, message.kwargs, embed),
        "exchange": outgoing.exchange,
        "routing_key": outgoing.routing_key,
        "headers": outgoing.envelope.headers,
    }
