"""The study: its page holds the tables of its committed numbers, and its recipe and methods still work together."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from drpruning.comparison.methods import choose_methods
from drpruning.comparison.runs import Comparison

STUDY = Path(__file__).parents[2] / "benches" / "study"
SMOLLM2 = STUDY.parent / "smollm2"


def page(name: str = "page", folder: Path = STUDY) -> ModuleType:
    found = spec_from_file_location(name, folder / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["study", "mixtures", "masks", "equal_compute", "../tutorials/quickstart"])
def test_the_page_has_the_tables_of_the_committed_results(name: str) -> None:
    module = page()
    text = (module.DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert module.with_tables(name, text) == text, "python benches/study/page.py"


def test_the_page_of_fidelity_has_the_committed_numbers() -> None:
    module = page("fidelity")
    text = module.PAGE.read_text(encoding="utf-8")
    numbers = {part: page().committed(part) for part in module.PARTS.values()}
    assert module.filled(text, numbers) == text, "python benches/study/fidelity.py"
    shipped = choose_methods([], ["fidelity"])
    for name, method in numbers["fidelity"].methods.items():
        now = {key: value for key, value in shipped[name].set.items() if key != "mixture.predictions"}  # in the recipe
        assert shipped[name].model_copy(update={"set": now}) == method


@pytest.mark.parametrize(
    ("part", "recipe", "methods_file"),
    [
        ("study", "recipe.yaml", str(STUDY / "methods.yaml")),
        ("mixtures-distilled", "mixtures-recipe.yaml", str(STUDY / "mixtures.yaml")),
        ("mixtures-plain", "mixtures-recipe.yaml", str(STUDY / "mixtures.yaml")),
        ("mixtures-other", "mixtures-recipe.yaml", str(STUDY / "mixtures-more.yaml")),
        ("equal-compute-even", "mixtures-recipe.yaml", str(STUDY / "equal-compute.yaml")),
        ("quickstart", "quickstart", str(STUDY / "quickstart.yaml")),
    ],
)
def test_the_results_are_of_its_methods_which_fit_its_recipe(
    part: str, recipe: str, methods_file: str, tmp_path: Path
) -> None:
    methods = choose_methods([], [methods_file])
    tokens = dict.fromkeys(("cpp", "python", "math", "ml", "stubs", "readme", "licence"), 10**6)
    source = str(STUDY / recipe) if recipe.endswith(".yaml") else recipe
    Comparison(source, [], methods, [17], tmp_path, domain_tokens=tokens).check()
    found = page().committed(part).methods
    assert found == {name: methods[name] for name in found}


@pytest.mark.parametrize("small", [False, True])
def test_the_four_ways_to_a_small_smollm2_fit_their_recipe(small: bool, tmp_path: Path) -> None:
    run = page("run", SMOLLM2)
    changes = [f"{key}={json.dumps(value)}" for key, value in run.settings(tmp_path, 40, small=small).items()]
    methods = choose_methods([], [str(run.METHODS)])
    comparison = Comparison(str(run.RECIPE), changes, methods, [17], tmp_path / "out", equal="flops")
    comparison.check()
    configs = {job.name: comparison.config(job, None) for job in comparison.jobs()}
    assert comparison.budget_method == "minitron"
    assert {name: config.pruning.steps for name, config in configs.items() if "prune" in config.stages} == {
        "minitron": 1,
        "sheared": 8,
        "drpruning": 1,
    }
    assert configs["scratch"].stages == ["continue"]
    one_shot = choose_methods(run.ONE_SHOT, [str(run.METHODS), str(run.PARTS)])
    parts = Comparison(str(run.RECIPE), changes, one_shot, [17], tmp_path / "parts", equal="tokens")
    parts.check()
    steps = [each.pruning.steps + each.continue_.steps for each in (parts.config(job, None) for job in parts.jobs())]
    assert steps == [40] * len(run.ONE_SHOT)
