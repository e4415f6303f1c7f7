"""``celeriac report``: what is installed, where the app connects to, and which settings it makes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from celeriac import __version__
from celeriac.cli.options import General, option, pass_general, subcommand

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["command", "report_of"]

#: Distributions whose versions matter, the optional ones among them.
_DISTRIBUTIONS = (
    "msgspec",
    "sqlalchemy",
    "click",
    "psycopg",
    "pymysql",
    "redis",
    "amqp",
    "gevent",
    "eventlet",
)


@subcommand("report")
@option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@pass_general
def command(general: General, *, as_json: bool) -> None:
    """Describe the installation and the app, for bug reports.

    Software, platform, transport, result backend, settings; passwords and other secrets are masked.
    """
    with general.load() as app:
        report = report_of(app)
    click.echo(json.dumps(report, indent=2, default=repr) if as_json else _text(report))


def report_of(app: Celeriac) -> dict[str, Any]:
    """What is to be known of an app and its surroundings, secrets masked."""
    import platform

    from celeriac.urls import mask_url

    conf = app.conf
    table = conf.table()
    return {
        "software": {"celeriac": __version__, "python": platform.python_version(), **_versions()},
        "platform": {
            "system": platform.system(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "implementation": platform.python_implementation(),
        },
        "app": app.main or "",
        "transport": mask_url(conf.effective_broker_url),
        "results": mask_url(conf.effective_result_backend),
        "settings": {name: value for name, value in table.items() if name not in conf.unknown},
        "unknown_settings": {name: value for name, value in table.items() if name in conf.unknown},
        "not_supported_yet": conf.not_yet(),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _text(report: dict[str, Any]) -> str:
    lines = [
        f"software -> {_pairs(report['software'])}",
        f"platform -> {_pairs(report['platform'])}",
        f"app -> {report['app'] or '-'}",
        f"transport -> {report['transport']}",
        f"results -> {report['results']}",
    ]
    for title, key in (("settings", "settings"), ("unknown settings", "unknown_settings")):
        values: dict[str, Any] = report[key]
        lines += ["", f"{title}:{'' if values else ' none'}"]
        lines += [f"  {name}: {value!r}" for name, value in values.items()]
    if report["not_supported_yet"]:
        lines += ["", "settings without effect in this version:"]
        lines += [f"  {name}" for name in report["not_supported_yet"]]
    return "\n".join(lines)


def _pairs(values: dict[str, str]) -> str:
    return " ".join(f"{name}:{value}" for name, value in values.items())
