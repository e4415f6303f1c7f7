"""What a record says to whoever asks for the result: a value, or an exception as it was raised in the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celeriac.states import EXCEPTION_STATES
from celeriac.wire import codecs
from celeriac.wire import errors as wire_errors

if TYPE_CHECKING:
    from celeriac.settings import Settings
    from celeriac.wire.record import Record

__all__ = ["RemoteTraceback", "value_of"]


class RemoteTraceback(Exception):
    """The cause of an exception that `AsyncResult.get` raises: its text is the traceback in the worker."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def value_of(record: Record, conf: Settings) -> Any:
    """The return value, the exception, or the meta of a custom state.

    Raises `ContentDisallowed` for content that ``result_accept_content`` leaves out.
    """
    names = conf.accept_content if conf.result_accept_content is None else conf.result_accept_content
    value = codecs.loads(record.result, record.codec, accept=codecs.accepted(names))
    return _with_cause(value, record) if record.state in EXCEPTION_STATES else value


def _with_cause(meta: Any, record: Record) -> BaseException:
    exception = wire_errors.from_meta(meta)
    if record.traceback and exception.__cause__ is None:
        exception.__cause__ = RemoteTraceback(record.traceback)
    return exception
