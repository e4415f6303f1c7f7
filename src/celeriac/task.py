"""`Task`: a function that can be called from elsewhere, with its options and hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, cast

from celeriac import registry
from celeriac.arguments import Models, Parameters
from celeriac.attributes import CALL_OPTIONS, FromSetting, TaskOptions, explicit
from celeriac.canvas.signature import Signature
from celeriac.errors import Ignore, MaxRetriesExceededError, OperationalError, Reject, Retry
from celeriac.request import Request, current
from celeriac.result import AsyncResult, EagerResult
from celeriac.retry import backoff
from celeriac.settings.names import did_you_mean
from celeriac.states import EXCEPTION_STATES, PROPAGATE_STATES, SUCCESS
from celeriac.wire import codecs
from celeriac.wire import errors as wire_errors
from celeriac.wire.record import Record

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Unpack

    from typing_extensions import ParamSpec as ParamSpecWithDefault
    from typing_extensions import TypeVar as TypeVarWithDefault

    from celeriac.app import Celeriac
    from celeriac.options import CallOptions

    P = ParamSpecWithDefault("P", default=...)
    R_co = TypeVarWithDefault("R_co", covariant=True, default=Any)
else:
    P = ParamSpec("P")
    R_co = TypeVar("R_co", covariant=True)

__all__ = ["Task"]


class Task(TaskOptions, Generic[P, R_co]):
    """A task of an app. ``@app.task`` makes one of a function; a subclass with a `run` method is one, too.

    1. Called, it is the function: ``add(2, 3)``.
    2. `delay` and `apply_async` send a message; a worker runs the function and keeps the result. In a coroutine it is
       ``await task.adelay(...)`` and `aapply_async`.
    3. `s` and `si` make a signature, for chains and callbacks.
    4. `request`, `retry` and `update_state` are for the function itself (``bind=True`` gives it the task).
    5. Hooks (`on_failure` …) are called in the worker, and may be overridden.

    There is one object per task and process: what its ``__init__`` sets up is shared by all calls.
    """

    MaxRetriesExceededError = MaxRetriesExceededError
    OperationalError = OperationalError

    _app: Celeriac | None = None
    _parameters: Parameters | None = None
    _models: Models | None = None
    _own: dict[str, Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in list(vars(cls).items()):
            # None means "as the settings say", also where a subclass writes it down.
            if value is None and isinstance(inspect.getattr_static(Task, name, None), FromSetting):
                delattr(cls, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name in CALL_OPTIONS:
            object.__setattr__(self, "_own", None)

    # -- becoming a task --------------------------------------------------------------------------------------

    def bind(self, app: Celeriac | None) -> None:
        """Make it a task of this app, or of whichever is current when it is used (None)."""
        self._app = app
        if not self.name:
            cls = type(self)
            main = None if app is None else app.main
            self.name = f"{registry.module_name(cls.__module__, main)}.{cls.__name__}"
        for name in ("autoretry_for", "dont_autoretry_for", "throws"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                setattr(self, name, (value,) if isinstance(value, type) else tuple(value))
        if self.soft_time_limit and self.time_limit and self.soft_time_limit > self.time_limit:
            raise ValueError(
                f"task {self.name}: soft_time_limit ({self.soft_time_limit} s) is longer than"
                f" time_limit ({self.time_limit} s)"
            )
        if app is not None:
            self.on_bound(app)

    def configure(self, options: Mapping[str, Any]) -> None:
        """Set attributes; functions among them become methods. Raises `TypeError` for a misspelt one."""
        for name, value in options.items():
            if not hasattr(type(self), name) and (hint := did_you_mean(name, vars(TaskOptions))):
                raise TypeError(f"task {self.name}: there is no option {name!r}{hint}")
            if value is None and isinstance(inspect.getattr_static(type(self), name, None), FromSetting):
                continue
            setattr(self, name, MethodType(value, self) if isinstance(value, FunctionType) else value)

    def wrap(self, function: Callable[P, R_co], *, bind: bool) -> None:
        """Make it the task of this function; with `bind`, the function gets the task as first argument."""
        self.__doc__ = function.__doc__
        for name in ("__module__", "__name__", "__qualname__"):
            setattr(self, name, getattr(function, name, None))
        run = cast("Callable[P, R_co]", MethodType(function, self)) if bind else function
        object.__setattr__(self, "run", run)
        self.__wrapped__ = run

    @property
    def app(self) -> Celeriac:
        """Its app; that of a shared task is the current one."""
        return self._app or registry.current_app()

    @property
    def parameters(self) -> Parameters:
        """What its function takes."""
        if self._parameters is None:
            self._parameters = Parameters(self.run)
        return self._parameters

    @property
    def own_options(self) -> Mapping[str, Any]:
        """Call options that the task itself gives: those that are set, not those from settings."""
        if self._own is None:
            found = {name: explicit(self, name) for name in CALL_OPTIONS}
            self._own = {name: value for name, value in found.items() if value is not None}
        return self._own

    # -- running ----------------------------------------------------------------------------------------------

    def run(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The function itself. A class-based task overrides it."""
        raise NotImplementedError(f"task {self.name or type(self).__name__} has no run method")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the function here, as a function: no retries, no result kept, `request.called_directly`.

        The value of an ``async def`` function is waited for; inside a running event loop, await `run` instead.
        """
        request = current.get()
        if request is not None and request.starting:
            request.starting = False
            return self.run(*args, **kwargs)
        with self._pushed(Request(task=self.name, args=args, kwargs=kwargs, outer=request)):
            value: Any = self.run(*args, **kwargs)
            return _waited_for(value, self.name) if inspect.iscoroutine(value) else value

    def execute(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Any:
        """What a worker calls: the function, with models made and dumped and automatic retries raised as `Retry`.

        Returns a coroutine for an ``async def`` function.
        """
        if self.pydantic:
            args, kwargs = self._pydantic().validated(tuple(args), kwargs)
        around = type(self).__call__ is not Task.__call__  # a subclass runs code around the function
        if around and (request := current.get()) is not None:
            request.starting = True
        function = cast("Callable[..., Any]", self if around else self.run)
        try:
            value = function(*args, **kwargs)
        except self.autoretry_for as exc:
            self._retry_after(exc)
        return self._awaited(value) if inspect.iscoroutine(value) else self.dumped(value)

    async def _awaited(self, coroutine: Any) -> Any:
        try:
            value = await coroutine
        except self.autoretry_for as exc:
            self._retry_after(exc)
        return self.dumped(value)

    def _retry_after(self, exc: BaseException) -> NoReturn:
        """Raise `Retry` for an exception in `autoretry_for`, or the exception itself if it is final."""
        if isinstance(exc, (Ignore, Reject, Retry, *self.dont_autoretry_for)):
            raise exc
        options = dict(self.retry_kwargs)
        if self.retry_backoff:
            options["countdown"] = backoff(
                self.request.retries,
                factor=float(self.retry_backoff),
                maximum=self.retry_backoff_max,
                jitter=self.retry_jitter,
            )
        raise self.retry(exc=exc, **options)

    def dumped(self, value: Any) -> Any:
        """A pydantic model as what travels, where the task asks for that; anything else as it is."""
        return self._pydantic().dumped(value) if self.pydantic else value

    def _pydantic(self) -> Models:
        if self._models is None:
            self._models = Models(
                self.run,
                strict=self.pydantic_strict,
                context={
                    "celery_app": self.app,
                    "celery_task_name": self.name,
                    **(self.pydantic_context or {}),
                },
                dump_options=self.pydantic_dump_kwargs,
            )
        return self._models

    # -- sending ----------------------------------------------------------------------------------------------

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R_co]:
        """Have a worker call it with these arguments. Raises as `apply_async`."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[R_co]:
        """Have a worker call it, with options: see `CallOptions`.

        ::

            div.apply_async((1, 2), countdown=10, expires=60, queue="web")

        Raises, with nothing sent: `TypeError` for arguments the function does not take (unless ``typing`` is off),
        `EncodeError` for those that cannot be serialised, `QueueNotFound`, and `OperationalError` where the broker
        did not take the message within ``broker_publish_timeout``.
        """
        given, named = self._checked(args, kwargs, options)
        app = self.app
        if app.conf.task_always_eager:
            return self.apply(given, named, **options)
        return app.publisher.send(self.name, given, named, cast("dict[str, Any]", options), task=self)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R_co]:
        """`delay` for coroutines. Raises as `aapply_async`."""
        return await self.aapply_async(args, kwargs)

    async def aapply_async(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[R_co]:
        """`apply_async` for coroutines: options and errors as there, and the event loop goes on meanwhile.

        What coroutines send at the same time is published together, in the order in which they came. Where it is
        cancelled the message may be sent all the same. `TypeError` for `connection` and `session`: a transaction
        belongs to its thread. With ``task_always_eager`` the task runs in a thread.
        """
        given, named = self._checked(args, kwargs, options)
        app = self.app
        if app.conf.task_always_eager:
            import asyncio  # as `Celeriac.aio`

            return await asyncio.to_thread(self.apply, given, named, **options)
        return await app.aio.send(self.name, given, named, cast("dict[str, Any]", options), task=self)

    def _checked(
        self, args: Iterable[Any] | None, kwargs: Mapping[str, Any] | None, options: CallOptions
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The arguments of a call as they are sent; adds to its options."""
        given, named = tuple(args or ()), kwargs or {}
        if self.app.strict_typing if self.typing is None else self.typing:
            self.parameters.check(self.name, given, named)
        if self.pydantic:
            given = tuple(map(self.dumped, given))
            named = {key: self.dumped(value) for key, value in named.items()}
        if "shadow" not in options and (shadow := self.shadow_name(given, named, options)):
            options["shadow"] = shadow
        return given, named

    def apply(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        throw: bool | None = None,
        **options: Unpack[CallOptions],
    ) -> EagerResult[R_co]:
        """Run it here and now, with the code and the bytes a worker would use; retries follow at once.

        `throw`: raise what it raises (None: as ``task_eager_propagates``).
        """
        from celeriac.executor.eager import run_eagerly  # the layer above: eager mode is a worker in small

        app = self.app
        message, outgoing = app.publisher.lay_out(
            self.name, args or (), kwargs or {}, cast("dict[str, Any]", options), task=self
        )
        ended = run_eagerly(app, outgoing.envelope).ended
        value = ended.value if ended.state == SUCCESS else ended.exception
        if ended.state in PROPAGATE_STATES and (app.conf.task_eager_propagates if throw is None else throw):
            raise cast("BaseException", value)
        return EagerResult(message.id, value, ended.state, ended.traceback, self.name, app)

    def s(self, *args: Any, **kwargs: Any) -> Signature[R_co]:
        """A signature; what is missing of the arguments may come later."""
        return Signature(self, args, kwargs)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R_co]:
        """A signature that takes no more arguments."""
        return Signature(self, args, kwargs, immutable=True)

    def signature(
        self, args: Iterable[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Signature[R_co]:
        """A signature with options; takes what `Signature` takes."""
        return Signature(self, args, kwargs, **options)

    subtask = signature

    def AsyncResult(self, task_id: str) -> AsyncResult[R_co]:  # noqa: N802 Celery's name
        """The result of a call by its id."""
        return AsyncResult(task_id, app=self._app, task_name=self.name)

    # -- from inside ------------------------------------------------------------------------------------------

    @property
    def request(self) -> Request:
        """The call that runs here; where the task does not run, one with defaults only."""
        request = current.get()
        return request if request is not None and request.task == self.name else Request(task=self.name)

    @contextmanager
    def _pushed(self, request: Request) -> Generator[None]:
        token = current.set(request)
        try:
            yield
        finally:
            current.reset(token)

    def retry(
        self,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """Have the call run again: raises `Retry`, which ends this run and tells the worker.

        It comes again after `countdown` seconds or at `eta` (neither: `default_retry_delay`), with the same
        arguments unless others are given; `options` are those of `apply_async`. With `throw` off, `Retry` is
        returned and this run goes on; the next one is sent when it ends.

        Raises `exc`, or `MaxRetriesExceededError`, after `max_retries` (None: the task's); and `exc` where the
        task was called directly.
        """
        request = self.request
        if request.called_directly:
            raise exc or Retry("the task was called directly: there is no message to retry")
        limit = self.max_retries if max_retries is None else max_retries
        if eta is None and countdown is None:
            countdown = self.default_retry_delay
        again = self.signature_from_request(
            request, args, kwargs, countdown=countdown, eta=eta, retries=request.retries + 1, **options
        )
        if limit is not None and request.retries >= limit:
            if exc is not None:
                raise exc
            raise MaxRetriesExceededError(
                f"cannot retry {self.name}[{request.id}]: it was retried {request.retries} times,"
                f" args: {again.args!r} kwargs: {again.kwargs!r}",
                task_args=again.args,
                task_kwargs=again.kwargs,
            )
        retry = Retry(exc=exc, when=countdown if eta is None else eta, is_eager=request.is_eager, sig=again)
        if throw:
            raise retry from exc
        request.postponed = [*(request.postponed or ()), again]
        return retry

    def signature_from_request(
        self,
        request: Request | None = None,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Signature[R_co]:
        """A signature that repeats the call of a request. Options that are None change nothing.

        Where only positional or only keyword arguments are given, the request's others are kept, but for those
        that give the same parameters.
        """
        request = self.request if request is None else request
        positional, named = tuple(request.args or ()), dict(request.kwargs or {})
        if args is not None:
            positional = tuple(args)
            named = self.parameters.without(named, len(positional))
        if kwargs is not None:
            named = dict(kwargs)
            if args is None:
                positional, named = self.parameters.reconciled(positional, named)
        repeated = {**request.as_execution_options(), **{k: v for k, v in options.items() if v is not None}}
        return Signature(self, positional, named, {k: v for k, v in repeated.items() if v is not None})

    subtask_from_request = signature_from_request

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **_: Any
    ) -> None:
        """Store a state of your own while the task runs: ``self.update_state(state="PROGRESS", meta={"done": 3})``.

        `task_id`: that of another task. Raises `EncodeError` for a meta that cannot be serialised, `ValueError`
        without an id where no task runs.
        """
        request = self.request
        codec = self.app.conf.result_serializer
        wanted = state or "PENDING"
        if wanted in EXCEPTION_STATES and isinstance(meta, BaseException):
            meta = wire_errors.to_meta(meta, codec)
        if request.report is not None and task_id in (None, request.id):
            request.report(wanted, meta)
            return
        target = task_id or request.id
        if target is None:
            raise ValueError("update_state outside of a running task needs a task_id")
        record = Record(task_id=target, state=wanted, result=codecs.dumps(meta, codec), codec=codec)
        self.app.backend.put([record])

    # -- hooks ------------------------------------------------------------------------------------------------

    def on_bound(self, app: Celeriac) -> None:
        """Called when it becomes a task of an app."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Called before the function; what it raises is the task's failure."""

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Called after the function returned."""

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task is to run again."""

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Called when the task failed for good."""

    def after_return(
        self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Called last, however it ended; `retval` is the value or the exception."""

    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> str | None:
        """Name to show for a call in logs and events, called where it is sent; None: the task's own."""
        return None

    # -- as an object -----------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, (self.name, self.__module__)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


def _waited_for(coroutine: Any, name: str) -> Any:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    coroutine.close()
    raise RuntimeError(
        f"{name} cannot be called as a function in a running event loop: await its run() instead"
    )


def _find(name: str, module: str) -> Task[..., Any]:
    """The task of that name in the current app; its module is imported, if it must be."""
    app = registry.current_app()
    if name not in app.tasks:
        __import__(module)
        app = registry.current_app()
    return app.tasks[name]
