from __future__ import annotations

import importlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celeriac.app import Celeriac
from celeriac.errors import ImproperlyConfigured
from celeriac.loading import load_app

Project = Callable[[dict[str, str]], None]

APP = "from celeriac import Celeriac\n{name} = Celeriac('{main}')\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Write these files into a fresh working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)

    def write(files: dict[str, str]) -> None:
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        if not name.startswith("celeriac"):
            del sys.modules[name]


def refusal(spec: str, **options: object) -> str:
    with pytest.raises(ImproperlyConfigured) as info:
        load_app(spec, **options)  # type: ignore[arg-type]
    return str(info.value)


@pytest.mark.parametrize("name", ["app", "celeriac", "celery", "anything"])
def test_app_is_found_in_the_module_under(project: Project, name: str) -> None:
    project({"proj.py": APP.format(name=name, main="found")})
    assert load_app("proj").main == "found"


@pytest.mark.parametrize("file", ["celeriac", "celery"])
def test_app_is_found_in_the_module_below_the_package(project: Project, file: str) -> None:
    project({"proj/__init__.py": "", f"proj/{file}.py": APP.format(name="app", main="found")})
    assert load_app("proj").main == "found"


def test_what_is_tried_first(project: Project) -> None:
    apps = {"other": "5", "celery": "3", "celeriac": "2", "app": "1"}
    source = "".join(APP.format(name=name, main=main) for name, main in apps.items())
    project(
        {
            "one.py": source,
            "two.py": "from one import other, celery, celeriac",
            "three.py": "from one import other, celery",
            "four.py": "app = celeriac = celery = 'no app'\nfrom one import other",
            "five/__init__.py": "from one import other",
            "five/celeriac.py": APP.format(name="app", main="below"),
            "six/__init__.py": "",
            "six/celeriac.py": APP.format(name="app", main="below celeriac"),
            "six/celery.py": APP.format(name="app", main="below celery"),
        }
    )
    found = [load_app(spec).main for spec in ("one", "two", "three", "four", "five", "six")]
    assert found == ["1", "2", "3", "5", "5", "below celeriac"]


def test_submodule_that_the_package_imports_is_no_obstacle(project: Project) -> None:
    project(
        {
            "proj/__init__.py": "from proj import celery",
            "proj/celery.py": APP.format(name="made_here", main="found"),
        }
    )
    assert load_app("proj").main == "found"


@pytest.mark.parametrize(
    "spec",
    ["proj.sub:app", "proj.sub:holder.inner.app", "proj.sub.app", "proj.sub", "proj:sub"],
)
def test_app_is_named_outright(project: Project, spec: str) -> None:
    holder = "class holder:\n    class inner:\n        app = app\n"
    project(
        {
            "proj/__init__.py": "from proj import sub",
            "proj/sub.py": APP.format(name="app", main="found") + holder,
        }
    )
    assert load_app(spec).main == "found"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere", "there is no module 'nowhere', neither in {cwd} nor elsewhere in sys.path"),
        ("nowhere:app", "there is no module 'nowhere', neither in {cwd}"),
        ("", "there is no module '', neither in {cwd}"),
        (":app", "there is no module '', neither in {cwd}"),
        ("proj.py", "there is no module 'proj.py': did you mean 'proj'?"),
        ("proj.nowhere", "there is no 'proj.nowhere': the module 'proj' has no attribute 'nowhere'"),
        ("proj.nowhere:app", "there is no module 'proj.nowhere'"),
        ("proj:nothing", "there is no 'proj:nothing': the module 'proj' has no attribute 'nothing'"),
        ("proj:number.app", "there is no 'proj:number.app': int object has no attribute 'app'"),
        ("proj:number", "'proj:number' is not an app but 5 (of type int)"),
        ("proj.number", "'proj.number' is not an app but 5 (of type int)"),
        (
            "proj",
            "looked for proj.app, proj.celeriac, proj.celery, any other instance of Celeriac",
        ),
        ("package", "and for the modules 'package.celeriac' and 'package.celery'"),
    ],
)
def test_error_says_what_is_missing(project: Project, spec: str, says: str) -> None:
    project({"proj.py": "number = 5", "package/__init__.py": ""})
    assert says.format(cwd=os.getcwd()) in refusal(spec)


def test_import_error_inside_the_users_module_comes_through(project: Project) -> None:
    project(
        {
            "proj.py": "import no_such_dependency",
            "package/__init__.py": "",
            "package/celery.py": "import package.no_such_module",
        }
    )
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_app("proj")
    with pytest.raises(ModuleNotFoundError, match=r"package\.no_such_module"):
        load_app("package")


def test_error_inside_the_users_module_comes_through(project: Project) -> None:
    project({"proj.py": "1 / 0", "other.py": "def broken(:"})
    with pytest.raises(ZeroDivisionError):
        load_app("proj")
    with pytest.raises(SyntaxError):
        load_app("other")


def test_workdir_comes_first_in_the_path_and_stays_elsewhere(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project({"proj.py": APP.format(name="app", main="found")})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert "neither in" in refusal("proj")
    assert load_app("proj", workdir="..").main == "found"
    assert sys.path[0] == str(tmp_path)
    assert Path.cwd() == elsewhere


def test_path_does_not_grow(project: Project) -> None:
    project({"proj.py": APP.format(name="app", main="found")})
    load_app("proj")
    before = sys.path[:]
    load_app("proj")
    assert sys.path == before


def test_workdir_that_is_not_there(project: Project) -> None:
    assert refusal("proj", workdir="no/such/dir") == "there is no working directory 'no/such/dir'"


def test_modules_of_the_tasks_are_imported(project: Project) -> None:
    task = "from proj import app\n@app.task\ndef work(): ...\n"
    project(
        {
            "proj.py": """
                from celeriac import Celeriac
                app = Celeriac("proj", include=["by_include"])
                app.conf.imports = ["by_imports"]
                app.autodiscover_tasks(["found", "nothing"])
            """,
            "by_include.py": task,
            "by_imports.py": task,
            "by_option.py": task,
            "found/__init__.py": "",
            "found/tasks.py": task,
            "nothing/__init__.py": "",
        }
    )
    app = load_app("proj", include=["by_option"])
    ours = {name for name in app.tasks if not name.startswith("celery.")}
    assert ours == {"by_include.work", "by_imports.work", "by_option.work", "found.tasks.work"}


@pytest.mark.parametrize(
    ("source", "include", "says"),
    [
        ("app.conf.imports = ['nowhere']", [], "imports: there is no module 'nowhere'"),
        ("app.conf.include = ['nowhere']", [], "include: there is no module 'nowhere'"),
        ("", ["nowhere.tasks"], "include: there is no module 'nowhere.tasks'"),
    ],
)
def test_module_that_should_be_imported_and_is_not_there(
    project: Project, source: str, include: list[str], says: str
) -> None:
    project({"proj.py": APP.format(name="app", main="proj") + source})
    assert refusal("proj", include=include) == says


def test_app_is_told_when_it_is_loaded(project: Project) -> None:
    project(
        {
            "proj.py": """
                from celeriac import Celeriac
                from celeriac.signals import import_modules
                app = Celeriac("proj", include=["more"])
                seen = []

                @import_modules.connect
                def first(sender, **kwargs):
                    if sender is app:
                        seen.append("import_modules")

                @app.on_after_finalize.connect
                def last(sender, **kwargs):
                    seen.append("finalized")
            """,
            "more.py": "from proj import seen; seen.append('more')",
        }
    )
    load_app("proj")
    assert sys.modules["proj"].seen == ["import_modules", "more", "finalized"]


def test_two_apps_can_be_loaded(project: Project) -> None:
    project({f"{name}.py": APP.format(name="app", main=name) for name in ("one", "two")})
    apps = [load_app("one"), load_app("two")]
    assert [each.main for each in apps] == ["one", "two"]
    assert all(isinstance(each, Celeriac) for each in apps)
