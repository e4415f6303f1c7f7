"""``celeriac shell``: Python with the app and its tasks at hand."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from celeriac import __version__
from celeriac.cli.console import Failure, warning
from celeriac.cli.options import General, option, pass_general, subcommand

if TYPE_CHECKING:
    from celeriac.app import Celeriac

__all__ = ["command"]


@subcommand("shell")
@option("-I", "--ipython", "shell", flag_value="ipython", help="Use IPython.")
@option("-B", "--bpython", "shell", flag_value="bpython", help="Use bpython.")
@option("--python", "shell", flag_value="python", help="Use Python's own.")
@option("-T", "--without-tasks", is_flag=True, help="Leave out the tasks.")
@option("--eventlet", is_flag=True, hidden=True)
@option("--gevent", is_flag=True, hidden=True)
@pass_general
def command(
    general: General, *, shell: str | None, without_tasks: bool, eventlet: bool, gevent: bool
) -> None:
    """Start a Python shell with the app and its tasks.

    It knows app, celery, Task, signature, and every task by its short name. Without a choice it is IPython,
    bpython or Python's own, the first that is installed.
    """
    if eventlet or gevent:
        warning("no effect in this version of celeriac: --eventlet, --gevent")
    with general.load() as app:
        names = _namespace(app, with_tasks=not without_tasks)
        if shell == "ipython" or (shell is None and _find("IPython")):
            _need("IPython").start_ipython(argv=[], user_ns=names)
        elif shell == "bpython" or (shell is None and _find("bpython")):
            _need("bpython").embed(names)
        else:
            _python(names)


def _namespace(app: Celeriac, *, with_tasks: bool) -> dict[str, Any]:
    """What the shell knows; a task does not hide one of the fixed names."""
    from celeriac.canvas import signature
    from celeriac.task import Task

    fixed = {"app": app, "celery": app, "Task": Task, "signature": signature, "subtask": signature}
    if not with_tasks:
        return fixed
    tasks = {
        name.rpartition(".")[2]: task for name, task in app.tasks.items() if not name.startswith("celery.")
    }
    return {**tasks, **fixed}


def _find(module: str) -> bool:
    return find_spec(module) is not None


def _need(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as exc:
        raise Failure(f"{module} is not installed: pip install {module.lower()}") from exc


def _python(names: dict[str, Any]) -> None:
    import code
    import platform

    try:
        import readline
        import rlcompleter
    except ImportError:  # a Python built without it
        pass
    else:
        readline.set_completer(rlcompleter.Completer(names).complete)
        readline.parse_and_bind("tab: complete")
    code.interact(
        banner=f"celeriac {__version__}, Python {platform.python_version()}: {', '.join(sorted(names))}",
        local=names,
        exitmsg="",
    )
