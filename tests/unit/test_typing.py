"""User code that a strict type checker must accept, and user code that it must refuse, line by line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent.parent / "typing"
ROOT = PROGRAMS.parent.parent

Lines = dict[str, set[int]]


def lines_refused(folder: str) -> Lines:
    """Numbers of the lines, by file, in which pyright finds an error."""
    files = sorted(map(str, (PROGRAMS / folder).glob("*.py")))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--project", str(ROOT), *files]
    report = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    found = json.loads(report.stdout)
    assert found["summary"]["filesAnalyzed"] == len(files)
    refused: Lines = {}
    for each in found["generalDiagnostics"]:
        refused.setdefault(Path(each["file"]).name, set()).add(each["range"]["start"]["line"] + 1)
    return refused


def marked_lines(folder: str) -> Iterator[tuple[str, set[int]]]:
    for path in (PROGRAMS / folder).glob("*.py"):
        lines = enumerate(path.read_text().splitlines(), 1)
        yield path.name, {number for number, line in lines if line.endswith("# error")}


@pytest.mark.timeout(300)
def test_good_programs_are_accepted() -> None:
    assert lines_refused("passes") == {}


@pytest.mark.timeout(300)
def test_exactly_the_marked_lines_of_bad_programs_are_refused() -> None:
    assert lines_refused("fails") == dict(marked_lines("fails"))
