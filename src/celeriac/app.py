"""`Celeriac`: an app: its tasks, its configuration, and the way to its broker and result backend."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload

from celeriac import registry, signals
from celeriac.attributes import annotate
from celeriac.backends import open_backend
from celeriac.brokers import open_broker
from celeriac.canvas.signature import signature as make_signature
from celeriac.control import Control
from celeriac.decorators import made_of
from celeriac.discovery import import_packages
from celeriac.errors import AlwaysEagerIgnored
from celeriac.opening import backend_options, broker_options
from celeriac.publisher import Publisher
from celeriac.registry import Registry
from celeriac.request import current
from celeriac.result import AsyncResult
from celeriac.settings import Settings
from celeriac.settings.sources import find_object
from celeriac.signals import Signal
from celeriac.task import Task
from celeriac.wire import codecs

if TYPE_CHECKING:
    from typing import Self, Unpack

    from celeriac.aio.face import AsyncFace
    from celeriac.backends.base import ResultBackend
    from celeriac.brokers.base import Broker
    from celeriac.canvas.signature import Signature
    from celeriac.decorators import BoundDecorator, Decorator
    from celeriac.errors import Retry
    from celeriac.options import CallOptions
    from celeriac.request import Request
    from celeriac.wire.envelope import Outgoing

__all__ = ["Celeriac"]

P = ParamSpec("P")
R = TypeVar("R")
TaskT = TypeVar("TaskT", bound="Task[..., Any]")

_NOTHING: Mapping[str, Any] = {}


class Celeriac:
    """An app.

    1. It holds the registry of tasks (`task`, `tasks`) and the configuration (`conf`).
    2. It has a `publisher`, which turns calls into messages and hands them to the `broker`.
    3. It opens `broker` and result `backend` at first use; `close` releases them.

    ::

        app = Celeriac("tasks", broker="sqlite:///celeriac.db")

        @app.task
        def add(x: int, y: int) -> int:
            return x + y

    `main` is the module name of tasks that are defined in a script. `broker` and `backend` are URLs, or objects
    to share with the app. `config_source` is read as by `config_from_object`; any setting may be given by keyword
    and wins over it. Thread-safe, but for changes of the configuration.
    """

    def __init__(
        self,
        main: str | None = None,
        *,
        broker: str | Sequence[str] | Broker | None = None,
        backend: str | ResultBackend | None = None,
        include: Sequence[str] | str | None = None,
        config_source: Any = None,
        config_source_silent: bool = False,
        namespace: str | None = None,
        changes: Mapping[str, Any] | None = None,
        set_as_current: bool = True,
        task_cls: type[Task[..., Any]] | str = Task,
        strict_typing: bool = True,
        **settings: Any,
    ) -> None:
        self.main = main
        #: Check arguments of calls against the function's signature.
        self.strict_typing = strict_typing
        #: Sent before the configuration is read, and when the app with all its modules is loaded.
        self.on_configure = Signal("on_configure")
        self.on_after_configure = Signal("on_after_configure")
        self.on_after_finalize = Signal("on_after_finalize")
        self.on_after_fork = Signal("on_after_fork")
        self.control = Control(self)
        self.publisher = Publisher(self)
        self._lock = threading.RLock()
        self._tasks = Registry()
        self._task_cls = task_cls
        self._annotations: Any = None
        self._packages: list[tuple[Any, str | None]] = []
        #: Reads the configuration; None when there is none, or it is read.
        self._source: Callable[[], None] | None = None
        self._reading = False
        # A server that is given as an object is used as it is; anything else is a setting.
        self._broker = cast("Broker | None", None if _is_setting(broker) else broker)
        self._backend = cast("ResultBackend | None", None if _is_setting(backend) else backend)
        self._aio: AsyncFace | None = None
        given = {"broker_url": broker, "result_backend": backend, "include": include}
        settings |= {name: value for name, value in given.items() if value and _is_setting(value)}
        self._conf = Settings({**(changes or {}), **settings})
        if config_source is not None:
            self.config_from_object(config_source, silent=config_source_silent, namespace=namespace)
        if set_as_current:
            self.set_current()

    # -- configuration ----------------------------------------------------------------------------------------

    @property
    def conf(self) -> Settings:
        """The settings: ``app.conf.task_acks_late = False``, ``app.conf.update(...)``."""
        if self._source is not None:
            self._read_source()
        return self._conf

    def _read_source(self) -> None:
        with self._lock:
            # A module with settings may itself look at them while it is imported: it finds what there is so far.
            if self._source is None or self._reading:
                return
            self._reading = True
            try:
                self.on_configure.send(sender=self)
                self._source()
                self._source = None
            finally:
                self._reading = False

    def config_from_object(
        self, obj: Any, silent: bool = False, force: bool = False, namespace: str | None = None
    ) -> None:
        """Take settings from a module, class, object or dict, or from the one a string names, at the first look
        at `conf` (`force`: now). `namespace`: ``"CELERY"`` for names such as ``CELERY_TASK_SERIALIZER``.

        Raises `ImproperlyConfigured`, then or now.
        """
        self._source = partial(self._conf.load, obj, namespace=namespace, silent=silent)
        if force:
            self.conf  # noqa: B018 reads the source

    def config_from_envvar(self, variable_name: str, silent: bool = False, force: bool = False) -> None:
        """Take settings from the module that an environment variable names; otherwise as `config_from_object`."""
        self._source = partial(self._conf.load_envvar, variable_name, silent=silent)
        if force:
            self.conf  # noqa: B018 reads the source

    @property
    def timezone(self) -> tzinfo:
        """What instants without an offset are in."""
        name = self.conf.timezone
        if name and name != "UTC":
            from zoneinfo import ZoneInfo

            return ZoneInfo(name)
        return UTC if self.conf.enable_utc else cast("tzinfo", datetime.now().astimezone().tzinfo)

    def now(self) -> datetime:
        """This instant, in the app's time zone."""
        return datetime.now(self.timezone)

    @property
    def accepted_content(self) -> frozenset[str]:
        """Content types of ``accept_content``."""
        return codecs.accepted(self.conf.accept_content)

    # -- tasks ------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> Registry:
        """The tasks of this app by name; those of `shared_task` too."""
        if self.conf.task_annotations is not self._annotations:
            self._annotate()
        return self._tasks

    @property
    def Task(self) -> type[Task[..., Any]]:  # noqa: N802 Celery's name
        """The base class of its tasks (``task_cls``)."""
        if isinstance(self._task_cls, str):
            self._task_cls = cast("type[Task[..., Any]]", find_object(self._task_cls))
        return self._task_cls

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /, **options: Any) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /, **options: Any) -> Task[P, R]: ...
    @overload
    def task(self, *, bind: Literal[True], base: type[TaskT], **options: Any) -> BoundDecorator[TaskT]: ...
    @overload
    def task(self, *, bind: Literal[True], **options: Any) -> BoundDecorator[Task[..., Any]]: ...
    @overload
    def task(self, *, bind: Literal[False] = False, **options: Any) -> Decorator: ...
    def task(self, function: Any = None, **options: Any) -> Any:
        """Make a task of a function: ``@app.task`` or ``@app.task(name=…, bind=True, …)``.

        Options: `name` (else module and function), `base` (a subclass of `Task`), `bind` (the function's first
        argument is the task), and every attribute of `Task`. Of two functions with one name the first keeps it,
        with a `DuplicateTaskNameWarning`.
        """

        return partial(self._decorated, options) if function is None else self._decorated(options, function)

    def _decorated(self, options: Mapping[str, Any], function: Callable[..., Any]) -> Task[..., Any]:
        task = made_of(function, self, options)
        known = self._tasks.get(task.name)
        if known is not None:
            registry.warn_of_duplicate(known)
            return known
        self._add(task)
        return options["filter"](task) if options.get("filter") else task

    def register_task(self, task: TaskT | type[TaskT], **options: Any) -> TaskT:
        """Add a class-based task, given as class or instance; returns the instance. One of its name is replaced,
        with a `DuplicateTaskNameWarning`."""
        made = task() if isinstance(task, type) else task
        made.configure(options)
        made.bind(self)
        if made.name in self._tasks:
            registry.warn_of_duplicate(made)
        self._add(made)
        return made

    def _add(self, task: Task[..., Any]) -> None:
        self._tasks.register(task)
        if self._annotations is not None:
            annotate(task, self._annotations)

    def _annotate(self) -> None:
        """Apply ``task_annotations``, which may be set after tasks were made."""
        with self._lock:
            self._annotations = self.conf.task_annotations
            for task in self._tasks.values():
                annotate(task, self._annotations)

    @property
    def current_task(self) -> Task[..., Any] | None:
        """The task that runs here."""
        request = current.get()
        return None if request is None or request.task is None else self.tasks.get(request.task)

    def autodiscover_tasks(
        self,
        packages: Iterable[str] | Callable[[], Iterable[str]] | None = None,
        related_name: str | None = "tasks",
        force: bool = False,
    ) -> None:
        """Import the module `related_name` of each package that has one, when the app is loaded into a worker
        (`force`: now). `packages` may be a function; without it they are Django's installed apps."""
        self._packages.append((packages, related_name))
        if force:
            self.discover_tasks()

    def discover_tasks(self) -> None:
        """Import what `autodiscover_tasks` was told; what a module raises is raised."""
        packages, self._packages = self._packages, []
        for names, related_name in packages:
            import_packages(names, related_name)

    def loaded(self) -> None:
        """Say that the app and all its modules are there: `on_after_configure`, `on_after_finalize`."""
        self.on_after_configure.send(sender=self, source=self.conf)
        self.on_after_finalize.send(sender=self)

    # -- sending ----------------------------------------------------------------------------------------------

    def send_task(
        self,
        name: str,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[Any]:
        """Call a task by name, which need not be known here; options and errors are those of `Task.apply_async`."""
        self._warn_if_eager("send_task", name)
        return self.publisher.send(
            name, args or (), kwargs or {}, cast("dict[str, Any]", options), task=self.tasks.get(name)
        )

    async def asend_task(
        self,
        name: str,
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[Any]:
        """`send_task` for coroutines; options and errors are those of `Task.aapply_async`."""
        self._warn_if_eager("asend_task", name)
        return await self.aio.send(
            name, args or (), kwargs or {}, cast("dict[str, Any]", options), task=self.tasks.get(name)
        )

    def _warn_if_eager(self, method: str, name: str) -> None:
        if self.conf.task_always_eager:
            warnings.warn(
                f"{method}({name!r}) sends a message in spite of task_always_eager: the task may not be here",
                AlwaysEagerIgnored,
                stacklevel=3,
            )

    def signature(
        self, varies: str | Task[..., Any] | Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Signature[Any]:
        """A signature of this app, from a task or its name, or from a dict."""
        return make_signature(varies, *args, app=self, **kwargs)

    def AsyncResult(self, id: str) -> AsyncResult[Any]:  # noqa: N802 Celery's name
        """The result of a task by its id."""
        return AsyncResult(id, app=self)

    def publish(self, batch: Sequence[Outgoing], connection: Any = None) -> None:
        """Hand messages to the broker; in the transaction of a SQLAlchemy connection or session, where given.

        Raises `OperationalError`; a `PublishFailed` names the tasks that were not published.
        """
        self.publisher.publish(batch, connection)

    def follow_ups(
        self,
        signature: Mapping[str, Any],
        *,
        args: Sequence[Any],
        request: Request,
        chain: list[Any] | None = None,
    ) -> list[Outgoing]:
        """What is published for a callback, an error callback or the next task of a chain, when the call of
        `request` ended. `args` come before those of the signature; `chain` is what follows it."""
        return self.publisher.follow_ups(signature, args=args, request=request, chain=chain)

    def retry_of(self, request: Request, retry: Retry) -> Outgoing:
        """The message of the next try of a call."""
        return self.publisher.retry_of(request, retry)

    # -- servers ----------------------------------------------------------------------------------------------

    @property
    def broker(self) -> Broker:
        """The broker of ``broker_url``. Raises `ImproperlyConfigured`."""
        if self._broker is None:
            with self._lock:
                if self._broker is None:
                    self._broker = open_broker(self.conf.effective_broker_url, broker_options(self.conf))
        return self._broker

    @property
    def backend(self) -> ResultBackend:
        """The result backend of ``result_backend``. Raises `ImproperlyConfigured`."""
        if self._backend is None:
            with self._lock:
                if self._backend is None:
                    self._backend = open_backend(
                        self.conf.effective_result_backend, backend_options(self.conf)
                    )
        return self._backend

    @property
    def aio(self) -> AsyncFace:
        """What this app has in this process for its coroutines. No thread is started before something is awaited."""
        if self._aio is None or self._aio.process != os.getpid():
            from celeriac.aio.face import AsyncFace  # asyncio is not for those who do not use it

            with self._lock:
                if self._aio is None or self._aio.process != os.getpid():
                    self._aio = AsyncFace(self)
        return self._aio

    def close(self) -> None:
        """Release the connections to broker and result backend. The app can be used again afterwards.

        What coroutines have sent is published first; those that wait for a result get an `OperationalError`.
        """
        if self._aio is not None:
            self._aio.close()
        for server in (self._broker, self._backend):
            if server is not None:
                server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- as an object -----------------------------------------------------------------------------------------

    def set_current(self) -> None:
        """Make it the current app, which `shared_task` and results without an app use."""
        registry.set_current_app(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.main, self.conf.plain()[0])

    def __repr__(self) -> str:
        return f"<Celeriac {self.main or '__main__'}>"


def _is_setting(value: object) -> bool:
    return value is None or isinstance(value, str | list | tuple)


def _restored(main: str | None, changes: Mapping[str, Any]) -> Celeriac:
    """The app that was pickled: the current one, if it is of that name, else one with its plain settings."""
    app = registry.current_app()
    return app if app.main == main else Celeriac(main, changes=changes, set_as_current=False)


@signals.import_modules.connect
def _discover(sender: Celeriac, **_: Any) -> None:
    sender.discover_tasks()
