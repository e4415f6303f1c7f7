"""What a worker learns of an app without importing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.wire.frames import Boot, Manifest, TaskInfo

if TYPE_CHECKING:
    from celeriac.app import Celeriac
    from celeriac.task import Task

__all__ = ["load", "manifest_of"]


def load(boot: Boot) -> Celeriac:
    """Load the app a worker was started for, with the settings of its command line.

    Raises what the user's modules raise, and `ImproperlyConfigured` for settings that contradict each other.
    """
    from celeriac.loading import load_app

    app = load_app(boot.app, include=tuple(boot.include))
    if boot.overrides:
        app.conf.update(boot.overrides)
    app.conf.check()
    return app


def manifest_of(app: Celeriac) -> Manifest:
    """The app as plain values."""
    settings, unplain = app.conf.plain()
    return Manifest(
        main=app.main or "",
        settings=settings,
        tasks={name: _task_info(task) for name, task in app.tasks.items()},
        unplain=unplain,
    )


def _task_info(task: Task[..., object]) -> TaskInfo:
    return TaskInfo(
        acks_late=bool(task.acks_late),
        rate_limit=task.rate_limit,
        time_limit=task.time_limit,
        soft_time_limit=task.soft_time_limit,
        reject_on_worker_lost=task.reject_on_worker_lost,
        ignore_result=bool(task.ignore_result),
    )
