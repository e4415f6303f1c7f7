"""The architecture, checked: who may import whom, no cycles, budgets, public names."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "celeriac"

#: Layers from the bottom up (ARCHITECTURE.md). A module may import from its own layer and from those below.
LAYERS: list[set[str]] = [
    {"errors", "states", "clock", "ids"},
    {"topology", "wire", "routing", "retry", "settings", "log", "urls"},
    {"brokers.base", "brokers.bus", "backends.base"},
    {"brokers", "backends", "sql", "redis", "amqp", "opening"},
    {
        *("app", "aio", "publisher", "options", "control", "registry", "loading"),
        *("task", "decorators", "attributes", "arguments"),
        *("request", "result", "canvas", "signals", "current", "discovery"),
    },
    {"executor", "worker", "scheduler", "events"},
    {"inprocess"},
    {"cli", "testing"},
]

#: Imports inside functions that point upwards: lazy on purpose, each with its reason.
LAZY_UPWARDS = {
    ("task", "executor"),  # eager mode runs the code of an executor
}

MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 50
#: The table of settings is data.
LONG_MODULES = {"settings"}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path, ast.parse(path.read_text())


def layer_of(module: str) -> int | None:
    parts = module.split(".")
    for width in (2, 1):
        for number, layer in enumerate(LAYERS):
            if ".".join(parts[:width]) in layer:
                return number
    return None


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST, *, inside_functions: bool) -> Iterator[str]:
    """Names of the celeriac modules that are imported, without the package's name."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "celeriac":
            base = (node.module or "").removeprefix("celeriac").lstrip(".")
            if base:
                yield base
            else:
                yield from (alias.name for alias in node.names if not alias.name.startswith("_"))
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("celeriac.") for a in node.names if a.name.startswith("celeriac.")
            )
        else:
            yield from imports(node, inside_functions=inside_functions)


def test_every_module_has_a_layer() -> None:
    roots = {name for name, _, _ in modules()} - {"__init__", "__main__", "celeriac", ""}
    assert [name for name in sorted(roots) if layer_of(name) is None] == []


def test_imports_point_downwards() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, _, tree in modules()
        if (mine := layer_of(name)) is not None
        for target in imports(tree, inside_functions=True)
        if (theirs := layer_of(target)) is not None
        and theirs > mine
        and (name.split(".")[0], target.split(".")[0]) not in LAZY_UPWARDS
    ]
    assert wrong == []


def test_worker_and_executor_meet_only_in_the_frames() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, _, tree in modules()
        for target in imports(tree, inside_functions=True)
        if {name.split(".")[0], target.split(".")[0]} == {"worker", "executor"}
    ]
    assert wrong == []


def test_the_worker_imports_nothing_that_runs_user_code() -> None:
    users = {"app", "task", "result", "canvas", "loading", "registry", "signals", "control", "request"}
    wrong = [
        f"{name} imports {target}"
        for name, _, tree in modules()
        if name.startswith("worker")
        for target in imports(tree, inside_functions=True)
        if target.split(".")[0] in users
    ]
    assert wrong == []


def test_no_import_cycles() -> None:
    known = {name for name, _, _ in modules()}
    graph = {
        name: {
            target for target in imports(tree, inside_functions=False) if target in known and target != name
        }
        for name, _, tree in modules()
        if name not in {"", "celeriac", "__init__"}
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        pytest.fail(f"import cycle: {' -> '.join(exc.args[1])}")


def test_modules_stay_readable() -> None:
    long = [
        f"{name}: {lines} lines"
        for name, path, _ in modules()
        if (lines := len(path.read_text().splitlines())) > MAX_MODULE_LINES
        and name.split(".")[0] not in LONG_MODULES
    ]
    assert long == []


def test_functions_stay_readable() -> None:
    long = [
        f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}"
        for _, path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_public_names_exist() -> None:
    package = importlib.import_module("celeriac")
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [name for name, _, tree in modules() if not ast.get_docstring(tree)]
    assert silent == []
