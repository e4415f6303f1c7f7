"""Exceptions as data: what a result store keeps of them (wire-protocol §7.2).

The text codecs hold ``{"exc_type", "exc_message", "exc_module"}``, pickle the exception itself. Reading is
where foreign data names classes: they are looked up among what is imported already, nothing is imported for
them, and nothing that is not an exception is called. Celeriac's own exceptions go out under the names that
Celery's readers know, and come back as celeriac's.
"""

from __future__ import annotations

import pickle
import sys
from functools import lru_cache
from typing import Any, cast

from celeriac import errors
from celeriac.errors import CeleriacError, EncodeError, SecurityError
from celeriac.wire import codecs
from celeriac.wire.message import safe_repr

__all__ = ["from_meta", "to_meta"]

_CELERY_NAMES: dict[type[BaseException], tuple[str, str]] = {
    errors.CeleriacError: ("celery.exceptions", "CeleryError"),
    **{
        cls: ("celery.exceptions", cls.__name__)
        for cls in (
            errors.AlreadyRegistered,
            errors.ChordError,
            errors.Ignore,
            errors.ImproperlyConfigured,
            errors.InvalidTaskError,
            errors.MaxRetriesExceededError,
            errors.NotRegistered,
            errors.QueueNotFound,
            errors.Reject,
            errors.Retry,
            errors.SecurityError,
            errors.TaskError,
            errors.TaskPredicate,
            errors.TaskRevokedError,
            errors.TimeoutError,
        )
    },
    **{
        cls: ("billiard.exceptions", cls.__name__)
        for cls in (
            errors.SoftTimeLimitExceeded,
            errors.Terminated,
            errors.TimeLimitExceeded,
            errors.WorkerLostError,
        )
    },
    **{
        cls: ("kombu.exceptions", cls.__name__)
        for cls in (
            errors.ContentDisallowed,
            errors.DecodeError,
            errors.EncodeError,
            errors.OperationalError,
        )
    },
}
_OURS = {
    # Celery's users know all of them from celery.exceptions, wherever they are defined.
    **{("celery.exceptions", name): cls for cls, (_, name) in _CELERY_NAMES.items()},
    **{name: cls for cls, name in _CELERY_NAMES.items()},
}


def to_meta(exc: BaseException, codec: str) -> Any:
    """What to store of `exc`: a value that `codec` can encode.

    Arguments that it cannot are replaced by their repr. For pickle: the exception itself where it can be
    pickled and read back, and is not one of celeriac's, which a Celery client has no class for.
    """
    if codec == "pickle" and type(exc) not in _CELERY_NAMES and _survives_pickle(exc):
        return exc
    module, name = _CELERY_NAMES.get(type(exc)) or (type(exc).__module__, type(exc).__qualname__)
    return {"exc_type": name, "exc_message": _encodable(exc.args, codec), "exc_module": module}


def from_meta(value: Any) -> BaseException:
    """The exception that `to_meta`, or Celery, stored.

    A class that is not imported here is replaced by one of the same name and module. Raises `SecurityError`
    where the name is that of something else than an exception.
    """
    if isinstance(value, BaseException):
        return value
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    name, module = fields.get("exc_type"), fields.get("exc_module")
    if not isinstance(name, str):
        return Exception(cast(Any, value))
    cls = _class(module if isinstance(module, str) else None, name)
    message = fields.get("exc_message", ())
    args = cast("list[Any]", message) if isinstance(message, list | tuple) else [message]
    try:
        return cls(*args)
    except CeleriacError:
        raise
    except Exception:  # noqa: BLE001 boundary: a constructor is the user's, and may want other arguments
        return Exception(f"{name}({', '.join(map(safe_repr, args))})")


def _class(module: str | None, name: str) -> type[BaseException]:
    if module is None:
        return _stand_in(__name__, name)
    if ours := _OURS.get((module, name)):
        return ours
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        # Not getattr: that of a module may import what is asked for.
        found = getattr(found, "__dict__", {}).get(part)
    if found is None:
        return _stand_in(module, name)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise SecurityError(f"{module}.{name}, named as the exception of a task, is none")
    return found


@lru_cache(maxsize=256)
def _stand_in(module: str, name: str) -> type[Exception]:
    """An exception class for one that is not there; cached, so that two errors of a kind are of one class."""
    last = name.rpartition(".")[2]
    if not last.isidentifier():
        last = name = "UnknownError"
    return type(last, (Exception,), {"__module__": module, "__qualname__": name})


def _encodable(args: tuple[Any, ...], codec: str) -> list[Any]:
    if _can_encode(args, codec):
        return list(args)
    return [arg if _can_encode(arg, codec) else safe_repr(arg) for arg in args]


def _can_encode(value: Any, codec: str) -> bool:
    try:
        codecs.dumps(value, codec)
    except EncodeError:
        return False
    return True


def _survives_pickle(exc: BaseException) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(exc))) is type(exc)
    except Exception:  # noqa: BLE001 boundary: the exception's own __reduce__ and constructor run here
        return False
