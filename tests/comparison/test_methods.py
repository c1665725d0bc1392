"""Methods: read, chosen by name, and refused where they cannot be meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drpruning.comparison.methods import choose_methods, needs, read_methods, read_primary, shipped
from drpruning.comparison.runs import Comparison
from drpruning.errors import ConfigError


@pytest.mark.parametrize("name", shipped())
def test_shipped_methods_fit_the_quickstart(name: str, tmp_path: Path) -> None:
    comparison = Comparison("quickstart", [], choose_methods([], [name]), [17], tmp_path)
    comparison.check()
    recipes = {comparison.config(job, dict.fromkeys(["x"], 1.0) and None).hash() for job in comparison.jobs()}
    assert (
        len(recipes) >= len(comparison.methods) - 2
    )  # sheared is outcomes its references later; delta 0.2 is the recipe's
    assert all(method.what for method in comparison.methods.values())


def test_given_references_are_the_recipe_s_or_those_of_a_model_trained_alone() -> None:
    without = choose_methods(["sheared"], [])
    assert list(without) == ["sheared", "scratch"]
    assert needs(without["sheared"]) == "scratch"
    given = choose_methods(["sheared"], [], has_references=True)
    assert list(given) == ["sheared"]
    assert needs(given["sheared"]) is None


def test_an_own_method_goes_before_a_shipped_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("methods: {drpruning: {set: {mixture.rho: 0.7}}, b: {strategy: cvar}}")
    assert list(read_methods(str(file))) == ["drpruning", "b"]
    assert choose_methods(["drpruning", "ado"], [str(file)])["drpruning"].set == {"mixture.rho": 0.7}
    assert list(choose_methods([], [str(file)])) == ["drpruning", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: {a: {stategy: cvar}}", "a.stategy"),
        ("methods: {}", "methods"),
        ("methods: {'a b': {}}", "a b"),
        ("methods: {a: {strategy: best}}", "a.strategy"),
        ("- a", "the file"),
        ("methods: [", "not YAML"),
        ("methods: {a: {references: b}, b: {references: a}}", "cycle: a -> b -> a"),
        ("methods: {a: {average_of: b}, b: {references: a}}", "cycle: a -> b -> a"),
        ("methods: {a: {average_of: b, strategy: cvar}}", "expected strategy constant, got cvar"),
        ("methods: {a: {average_of: b, set: {data.reference_ratio: natural}}}", "and so does set"),
        ("methods: {a: {average_over: seeds}}", "no effect without average_of"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        choose_methods([], [str(file)])


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean constant"):
        choose_methods(["constnat"], [])
    with pytest.raises(ConfigError, match="Did you mean ablations"):
        choose_methods([], ["ablation"])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{set: {mixture.roh: 0.3}}", "'a': unknown setting mixture.roh"),
        ("{times: {prune.every: 2}}", "prune.every"),
        ("{shift: {cp: 0.1}}", "'cp'"),
    ],
)
def test_a_method_that_does_not_fit_the_recipe_is_named(tmp_path: Path, method: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"methods: {{a: {method}}}")
    comparison = Comparison("quickstart", [], choose_methods([], [str(file)]), [17], tmp_path)
    with pytest.raises(ConfigError, match=message):
        comparison.check()


def test_runs_with_other_ratios_share_the_base_and_the_domains(tmp_path: Path) -> None:
    sizes = {"cpp": 300, "python": 100}
    overrides = [
        "data.reference_ratio={cpp: 0.5, python: 0.5}",
        "pretrain.mixture=reference",
        "mixture.reference_loss=null",
    ]
    methods = choose_methods(["constant", "natural", "unimax-4"], ["static"])
    comparison = Comparison("quickstart", overrides, methods, [17], tmp_path)
    assert comparison.names_mixtures()
    comparison = replace(comparison, domain_tokens=sizes)
    comparison.check()
    constant, natural, unimax = (comparison.config(job, None) for job in comparison.jobs())
    assert natural.reference_ratio == pytest.approx({"cpp": 0.75, "python": 0.25})
    assert unimax.reference_ratio == pytest.approx({"cpp": 0.75, "python": 0.25})  # more epochs than 4 for both
    assert constant.pretrain_ratio == natural.pretrain_ratio == {"cpp": 0.5, "python": 0.5}


def test_a_run_from_scratch_sees_as_many_tokens_as_the_others(tmp_path: Path) -> None:
    comparison = Comparison("quickstart", [], choose_methods(["scratch", "constant"], []), [17], tmp_path)
    alone, pruned = (comparison.config(job, None) for job in comparison.jobs())
    assert pruned.prune.batch_size == pruned.continue_.batch_size == alone.continue_.batch_size
    assert alone.continue_.steps == pruned.prune.steps + pruned.continue_.steps
    assert alone.model.source == "scratch"


def test_primary_endpoints_are_declared_in_a_file_of_methods(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("primary: [worst, web]\nmethods: {constant: {strategy: constant}}\n")
    assert read_primary([str(file)]) == ["worst", "web"]
    assert read_primary(["paper", str(file)]) == ["worst", "web"]
    assert read_primary([]) == []
