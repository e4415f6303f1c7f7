"""The settings of one app: typed attributes over defaults, validated where they come in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from celeriac.errors import ImproperlyConfigured
from celeriac.settings.checks import contradictions
from celeriac.settings.field import FIELDS
from celeriac.settings.fields import (
    BeatSettings,
    BrokerSettings,
    ControlSettings,
    GeneralSettings,
    ProgramSettings,
    ResultSettings,
    SecuritySettings,
    TaskSettings,
    WorkerSettings,
)
from celeriac.settings.masking import masked
from celeriac.settings.names import did_you_mean, resolve
from celeriac.settings.sources import Found, find_module, from_items, from_source
from celeriac.settings.stores import CloudSettings, DatabaseSettings, OtherStoreSettings, RedisSettings

__all__ = ["DISABLED_URL", "EMBEDDED_URL", "Settings"]

#: Broker and results where nothing else is said: a file in the working directory.
EMBEDDED_URL = "sqlite:///celeriac.db"
#: No results at all.
DISABLED_URL = "disabled://"

#: Dicts may be changed in place (``conf.beat_schedule["x"] = …``), so each app has its own.
_DICTS: dict[str, dict[str, Any]] = {
    name: field.default for name, field in FIELDS.items() if field.annotation == "Options"
}


class Settings(
    GeneralSettings,
    BrokerSettings,
    TaskSettings,
    WorkerSettings,
    ResultSettings,
    BeatSettings,
    ControlSettings,
    SecuritySettings,
    ProgramSettings,
    DatabaseSettings,
    RedisSettings,
    OtherStoreSettings,
    CloudSettings,
    Mapping[str, Any],
):
    """What an app is told, by name.

    1. Reads are attributes: the class holds the defaults, the instance what somebody set.
    2. Writes (keyword, attribute, item, `update`, `load`) take any spelling of a name, convert the value and
       refuse a wrong one with `ImproperlyConfigured`; a batch is taken whole or not at all.
    3. What the program sets itself wins over what it loads, whichever came first, as in Celery.
    4. Keys that are no settings and do not nearly spell one are kept in `unknown`: extensions put theirs here.

    Contradictions are refused by `update` and `load`, and by `check` for single assignments, which may contradict
    each other for the time between two of them. Not thread-safe while it is written to.

    >>> conf = Settings(task_serializer="json", CELERYD_CONCURRENCY="8")
    >>> conf.worker_concurrency
    8
    """

    # Two layers over the defaults; names that begin with an underscore are no settings.
    _given: Found
    _loaded: Found

    def __init__(self, changes: Mapping[str, Any] | None = None, /, **settings: Any) -> None:
        self._given = self._loaded = Found({}, {})
        for name, default in _DICTS.items():
            self.__dict__[name] = dict(default)
        if changes or settings:
            self.update(changes, **settings)

    # -- one setting --------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        name = resolve(key)
        return self.unknown[key] if name is None else getattr(self, name)

    def __setitem__(self, key: str, value: Any) -> None:
        self._settle(_over(self._given, from_items({key: value})), self._loaded)

    def __delitem__(self, key: str) -> None:
        """Back to the default."""
        if key not in self:
            raise KeyError(key)
        name = resolve(key) or key
        self._settle(_without(self._given, name), _without(self._loaded, name))
        if name in _DICTS:
            self.__dict__[name] = dict(_DICTS[name])

    if not TYPE_CHECKING:  # a type checker shall see the declared attributes, and complain about any other

        def __getattr__(self, key: str) -> Any:
            # Only called for what is not there: an old spelling, an extension's key, a mistake.
            if not key.startswith("_") and key in self:
                return self[key]
            raise AttributeError(f"there is no setting {key!r}{did_you_mean(key, FIELDS)}")

        def __setattr__(self, key: str, value: Any) -> None:
            if key.startswith("_"):
                object.__setattr__(self, key, value)
            elif key not in FIELDS and hasattr(type(self), key):
                raise AttributeError(f"{key!r} is not a setting")
            else:
                self[key] = value

        def __delattr__(self, key: str) -> None:
            del self[key]

    def is_set(self, key: str) -> bool:
        """Whether somebody set it, be it to its default."""
        return (resolve(key) or key) in {**self.changes, **self.unknown}

    # -- all of them --------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        yield from FIELDS
        yield from self.unknown

    def __len__(self) -> int:
        return len(FIELDS) + len(self.unknown)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and (resolve(key) is not None or key in self.unknown)

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.table().items())})"

    @property
    def changes(self) -> dict[str, Any]:
        """What somebody set, in the order of declaration."""
        named = self._given.settings.keys() | self._loaded.settings.keys()
        return {
            name: getattr(self, name)
            for name in FIELDS
            if name in named or (name in _DICTS and getattr(self, name) != _DICTS[name])
        }

    @property
    def unknown(self) -> dict[str, Any]:
        """Foreign keys and their values."""
        return {**self._loaded.unknown, **self._given.unknown}

    def update(self, changes: Mapping[str, Any] | None = None, /, **settings: Any) -> None:
        """Set several, or none: raises `ImproperlyConfigured` if one is wrong or two contradict each other."""
        given = _over(self._given, from_items({**(changes or {}), **settings}))
        _refuse_contradictions(given, self._loaded)
        self._settle(given, self._loaded)

    def load(self, source: Any, *, namespace: str | None = None, silent: bool = False) -> None:
        """Take the settings of a module, class, object or dict, or of the one that a string names
        (``"celeryconfig"``, ``"proj.config:Production"``), in place of what was loaded before.

        `namespace`: ``"CELERY"`` for names such as ``CELERY_TASK_SERIALIZER``, as in Django's settings.
        `silent`: a module that is not there is no error.
        Raises `ImproperlyConfigured`, and what the module raises when it is imported.
        """
        if silent and isinstance(source, str) and find_module(source.partition(":")[0]) is None:
            return
        loaded = from_source(source, namespace)
        _refuse_contradictions(self._given, loaded)
        self._settle(self._given, loaded)

    def load_envvar(self, variable: str, *, namespace: str | None = None, silent: bool = False) -> None:
        """`load` the module that an environment variable names. `silent`: neither has to be there."""
        name = os.environ.get(variable, "")
        if name:
            self.load(name, namespace=namespace, silent=silent)
        elif not silent:
            raise ImproperlyConfigured(
                f"the environment variable {variable!r} is not set; it should name the module with the settings"
            )

    def check(self) -> None:
        """Raise `ImproperlyConfigured` if two settings contradict each other; the message names both."""
        _refuse_contradictions(self._given, self._loaded)

    def not_yet(self) -> list[str]:
        """Settings that somebody changed, and that nothing obeys yet."""
        return [
            name
            for name, value in self.changes.items()
            if FIELDS[name].later and value != FIELDS[name].default
        ]

    def table(self, *, mask: bool = True) -> dict[str, Any]:
        """What somebody set, foreign keys included, for people to read: without passwords, unless `mask` is off."""
        found = {**self.changes, **self.unknown}
        return {name: masked(name, value) for name, value in found.items()} if mask else found

    def _settle(self, given: Found, loaded: Found) -> None:
        """Make these the layers, and their sum what attributes say."""
        merged = {**loaded.settings, **given.settings}
        for name in (self._given.settings.keys() | self._loaded.settings.keys()) - merged.keys():
            del self.__dict__[name]
            if name in _DICTS:
                self.__dict__[name] = dict(_DICTS[name])
        self.__dict__.update(merged)
        self._given, self._loaded = given, loaded

    # -- where messages and results go --------------------------------------------------------------------------

    @property
    def effective_broker_url(self) -> str:
        """`broker_url`, unless the environment names another; the embedded database where nothing is said."""
        return _environ("BROKER_URL") or self.broker_url or EMBEDDED_URL

    @property
    def effective_result_backend(self) -> str:
        """`result_backend`, unless the environment names another; ``disabled://`` for none.

        Where nothing is said, results are stored beside the messages of the embedded database, and nowhere else.
        """
        url = _environ("RESULT_BACKEND") or self.result_backend
        if url is None:
            return EMBEDDED_URL if self.effective_broker_url == EMBEDDED_URL else DISABLED_URL
        if url == "database" and self.database_url:
            return self.database_url if self.database_url.startswith("db+") else f"db+{self.database_url}"
        return DISABLED_URL if url == "disabled" else url

    # -- between processes --------------------------------------------------------------------------------------

    def plain(self) -> tuple[dict[str, Any], list[str]]:
        """What somebody set as plain values that msgpack can carry, and the names of what is not plain."""
        values: dict[str, Any] = {}
        rest: list[str] = []
        for name, value in {**self.changes, **self.unknown}.items():
            plain = [asdict(queue) for queue in value] if name == "task_queues" and value else value
            if _is_plain(plain):
                values[name] = plain
            else:
                rest.append(name)
        return values, rest

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from what `plain` gave, in another process."""
        return cls(values)


def _over(under: Found, over: Found) -> Found:
    return Found({**under.settings, **over.settings}, {**under.unknown, **over.unknown})


def _without(layer: Found, name: str) -> Found:
    return Found(*({key: value for key, value in part.items() if key != name} for part in layer))


def _refuse_contradictions(given: Found, loaded: Found) -> None:
    merged = {**loaded.settings, **given.settings}
    for each in contradictions(lambda name: merged.get(name, FIELDS[name].default)):
        raise ImproperlyConfigured(each)


def _environ(name: str) -> str | None:
    return os.environ.get(f"CELERIAC_{name}") or os.environ.get(f"CELERY_{name}")


def _is_plain(value: Any) -> bool:
    if value is None or isinstance(value, bool | float | str | bytes):
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    if isinstance(value, list | tuple):
        return all(map(_is_plain, cast("list[Any]", value)))
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return all(isinstance(key, str) and _is_plain(each) for key, each in items)
    return False
