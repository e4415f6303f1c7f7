"""Logging of workers and executors, in Celery's formats, without touching the root logger.

celeriac logs to loggers below ``celeriac``; what tasks log with `get_task_logger` goes below ``celeriac.task``. A
worker's process calls `configure` once (an executor after it has loaded the app). Programs that only publish
configure nothing: their logging is theirs.

Three rules keep out of a program's way:

* The handler is put on the logger ``celeriac``. The root logger gets none, unless the program asks for it
  (``worker_hijack_root_logger=True``, which is Celery's default).
* Where the program has put handlers on the root logger itself, records go there and are not written to standard
  error a second time. A log file that was asked for gets them in any case.
* Loggers that ``dictConfig`` disabled because it did not know them are enabled again.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from celeriac.errors import ImproperlyConfigured

__all__ = [
    "FORMAT",
    "TASK_FORMAT",
    "configure",
    "get_task_logger",
    "level_name",
    "level_number",
    "redirect_stdouts",
    "set_task_source",
]

FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
TASK_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"

#: Our handlers bear this name; `configure` replaces them by it.
_HANDLER = "celeriac"
_TASK_LOGGER = "celeriac.task"
_RESERVED = frozenset({"", "root", "celeriac", _TASK_LOGGER})
_LEVELS = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.CRITICAL,
    "FATAL": logging.CRITICAL,
}
_COLORS = {logging.DEBUG: 34, logging.WARNING: 33, logging.ERROR: 31, logging.CRITICAL: 35}

#: Says which task runs here, as (name, id); None outside of tasks.
TaskSource = Callable[[], tuple[str, str] | None]


def _no_task() -> tuple[str, str] | None:
    return None


_task_source: TaskSource = _no_task


def set_task_source(source: TaskSource) -> None:
    """Tell how to find the task that runs in the current context; `celeriac.request` does, when it is imported."""
    global _task_source  # noqa: PLW0603 - this module lies below the one that knows
    _task_source = source


def level_number(level: str | int) -> int:
    """The number of a log level given by name (in any case) or number.

    Raises `ImproperlyConfigured` naming the levels there are.
    """
    if isinstance(level, int) and not isinstance(level, bool):
        return level
    name = str(level).strip().upper()
    if name.isdigit():
        return int(name)
    if name not in _LEVELS:
        from celeriac.settings.names import did_you_mean

        hint = did_you_mean(name, _LEVELS) or ": use DEBUG, INFO, WARNING, ERROR or CRITICAL"
        raise ImproperlyConfigured(f"there is no log level {level!r}{hint}")
    return _LEVELS[name]


def level_name(level: str | int) -> str:
    """The name of a log level given by name or number. Raises as `level_number` does."""
    return logging.getLevelName(level_number(level))  # pyright: ignore[reportDeprecated] - it is int -> str here


def configure(
    level: str | int,
    *,
    file: str | None = None,
    format: str | None = None,
    task_format: str | None = None,
    datefmt: str | None = None,
    task_datefmt: str | None = None,
    color: bool | None = None,
    process_name: str = "MainProcess",
    hijack_root: bool = False,
) -> None:
    """Log from `level` on, to `file` or to standard error. What an earlier call set up is replaced.

    `format` and `task_format` (for task loggers) are Celery's where None. `color`: None is on a terminal, unless
    ``NO_COLOR`` is set. `process_name` is what ``%(processName)s`` says. `hijack_root`: take the handlers off the
    root logger and log everything in this process.

    Raises `ImproperlyConfigured` for an unknown level and for a file that cannot be opened.
    """
    number = level_number(level)
    handler = _open(file) if file else _StandardError(yields=not hijack_root)
    handler.set_name(_HANDLER)
    handler.addFilter(_Annotate(process_name))
    handler.setFormatter(
        _Formatter(
            logging.Formatter(format or FORMAT, datefmt),
            logging.Formatter(task_format or TASK_FORMAT, task_datefmt or datefmt),
            color=not file and _colored(color),
        )
    )
    ours, root = logging.getLogger("celeriac"), logging.getLogger()
    for logger in (ours, root):
        for each in logger.handlers[:]:
            if each.name == _HANDLER:
                logger.removeHandler(each)
                each.close()
            elif hijack_root and logger is root:
                logger.removeHandler(each)
    if hijack_root:
        root.setLevel(number)
        root.addHandler(handler)
    else:
        ours.addHandler(handler)
    ours.setLevel(number)
    _enable()


def _open(file: str) -> logging.Handler:
    from logging.handlers import WatchedFileHandler  # notices that logrotate moved the file

    try:
        return WatchedFileHandler(file, encoding="utf-8")
    except OSError as exc:
        raise ImproperlyConfigured(f"cannot write the log file {file!r}: {exc.strerror}") from None


def _colored(wanted: bool | None) -> bool:
    if wanted is None and os.environ.get("NO_COLOR"):
        return False
    return wanted is not False and _standard_error().isatty()


def _standard_error() -> TextIO:
    # Not sys.stderr: that may be redirected into the log itself.
    return sys.__stderr__ or sys.stderr


def _enable() -> None:
    for name, logger in logging.root.manager.loggerDict.items():
        if (name == "celeriac" or name.startswith("celeriac.")) and isinstance(logger, logging.Logger):
            logger.disabled = False


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to standard error; if it `yields`, only while the root logger has no handlers of the program's."""

    def __init__(self, *, yields: bool) -> None:
        super().__init__(_standard_error())
        self._yields = yields

    def handle(self, record: logging.LogRecord) -> Any:
        if self._yields and any(not isinstance(each, logging.NullHandler) for each in logging.root.handlers):
            return False
        return super().handle(record)


class _Annotate(logging.Filter):
    """Gives each record what the formats name: the process, the task."""

    def __init__(self, process_name: str = "") -> None:
        super().__init__()
        self._process_name = process_name

    def filter(self, record: logging.LogRecord) -> bool:
        if self._process_name:
            record.processName = self._process_name
        if not hasattr(record, "task_id"):
            record.task_name, record.task_id = _task_source() or ("???", "???")
        return True


class _Formatter(logging.Formatter):
    """One format for what task loggers say, another for all else; coloured by level."""

    def __init__(self, plain: logging.Formatter, task: logging.Formatter, *, color: bool) -> None:
        super().__init__()
        self._plain = plain
        self._task = task
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        line = (self._task if getattr(record, "from_task", False) else self._plain).format(record)
        code = _COLORS.get(record.levelno) if self._color else None
        return f"\033[1;{code}m{line}\033[0m" if code else line


class _FromTask(_Annotate):
    """Marks the records of a task logger, whichever handler they reach."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.from_task = True
        return super().filter(record)


_from_task = _FromTask()


def get_task_logger(name: str) -> logging.Logger:
    """The logger `name` as a child of ``celeriac.task``: it follows the worker's level and format, and its records
    have `task_name` and `task_id` (``"???"`` outside of tasks).

    >>> logger = get_task_logger(__name__)
    """
    if name in _RESERVED:
        raise ValueError(f"{name!r} cannot be the name of a task logger: it is above all of them")
    logger = logging.getLogger(name)
    # Celery's way: the logger keeps the name under which the program knows (and configures) it.
    logger.parent = logging.getLogger(_TASK_LOGGER)
    logger.addFilter(_from_task)
    return logger


class _LogStream(io.TextIOBase):
    """A stand-in for standard output or error that logs each line written to it."""

    def __init__(self, logger: logging.Logger, level: int) -> None:
        super().__init__()
        self._logger = logger
        self._level = level
        self._here = threading.local()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if getattr(self._here, "logging", False):
            # A handler failed and says so on standard error: that must not be logged again.
            return _standard_error().write(text)
        *lines, self._here.rest = (getattr(self._here, "rest", "") + text).split("\n")
        for line in lines:
            self._log(line)
        return len(text)

    def flush(self) -> None:
        rest, self._here.rest = getattr(self._here, "rest", ""), ""
        self._log(rest)

    def _log(self, line: str) -> None:
        if not line.strip():
            return
        self._here.logging = True
        try:
            self._logger.log(self._level, "%s", line.rstrip())
        finally:
            self._here.logging = False


def redirect_stdouts(level: str | int = "WARNING") -> None:
    """From now on, log what this process prints: line by line, to the logger ``celeriac.redirected``."""
    stream: Any = _LogStream(logging.getLogger("celeriac.redirected"), level_number(level))
    sys.stdout = sys.stderr = stream
