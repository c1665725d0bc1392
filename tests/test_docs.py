"""Every example that a reader could type runs: docstrings, README, docs."""

from __future__ import annotations

import doctest
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import drpruning

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(drpruning.__path__, "drpruning.")
    if module.name not in {"drpruning.__main__", "drpruning._native"}
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "benches").rglob("README.md"))
FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(page, block.group(1), id=f"{page.name}:{page.read_text()[: block.start()].count(chr(10)) + 1}")
    for page in PAGES
    if page.parent.name != "tutorials"  # test_tutorials.py runs their blocks in order
    for block in FENCE.finditer(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_docstring_examples() -> None:
    finder = doctest.DocTestFinder()
    with_examples = [name for name in MODULES if any(test.examples for test in finder.find(import_module(name)))]
    assert len(with_examples) >= 5


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_page_examples(page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})  # noqa: S102 - our own documentation


def test_the_readme_has_examples() -> None:
    assert any(param.values[0] == ROOT / "README.md" for param in BLOCKS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            linked = page.parent / target if target else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of ``page``."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*?) *$", text, re.MULTILINE)
    }


def test_generated_pages_are_up_to_date() -> None:
    """Check them in a separate process: click keeps the help option of a command that another test called directly."""
    command = [sys.executable, str(ROOT / "docs" / "write_pages.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
