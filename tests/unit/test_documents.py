"""The Markdown files say what is so: their links lead somewhere, their example and their table are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from celeriac.settings.field import FIELDS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [path for folder in (".", "bench", "examples/*") for path in sorted(ROOT.glob(f"{folder}/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    missing = [each for each in targets if "://" not in each and not (document.parent / each).exists()]
    assert missing == []


def test_the_readme_lists_every_default_that_is_not_celerys() -> None:
    table = ROOT.joinpath("README.md").read_text().partition("## Where the defaults")[2].partition("\n## ")[0]
    assert [name for name, field in FIELDS.items() if field.deviates and f"`{name}`" not in table] == []


def test_the_readme_shows_the_quickstart_as_it_is() -> None:
    shown = re.findall(r"```python\n(.*?)```", ROOT.joinpath("README.md").read_text(), re.DOTALL)[0]
    assert shown in ROOT.joinpath("examples/quickstart/tasks.py").read_text()
