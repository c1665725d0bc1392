"""The study: its page holds the tables of its committed numbers, and its recipe and methods still work together."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from drpruning.comparison.methods import choose_methods
from drpruning.comparison.results import read_results
from drpruning.comparison.runs import Comparison

STUDY = Path(__file__).parents[2] / "benches" / "study"


def page() -> ModuleType:
    found = spec_from_file_location("page", STUDY / "page.py")
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_of_the_committed_results() -> None:
    module = page()
    text = module.PAGE.read_text(encoding="utf-8")
    assert module.with_tables(text, read_results(STUDY / "results.json")) == text, "python benches/study/page.py"


def test_its_methods_fit_its_recipe(tmp_path: Path) -> None:
    methods = choose_methods([], [str(STUDY / "methods.yaml")])
    Comparison(str(STUDY / "recipe.yaml"), [], methods, [17], tmp_path).check()
    results = read_results(STUDY / "results.json")
    assert list(results.methods) == list(methods)
    assert all(results.methods[name] == method for name, method in methods.items())
