"""The GPU benchmark on small models on the CPU: what it reports agrees, and a case that fails costs no other."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

BENCH = Path(__file__).parents[1] / "benches" / "gpu"
PRUNED = "7B to 2.7B"


@pytest.fixture(scope="module")
def modules() -> Any:
    """The scripts, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield {path.stem: import_module(path.stem) for path in sorted(BENCH.glob("*.py"))}
        for path in BENCH.glob("*.py"):
            sys.modules.pop(path.stem)


@pytest.fixture(scope="module")
def bench(modules: dict[str, Any]) -> Any:
    return modules["bench"]


@pytest.fixture(scope="module")
def cases(modules: dict[str, Any]) -> Any:
    return modules["cases"]


@pytest.fixture(scope="module")
def results(modules: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the cases of `--tiny` measure, in this process."""
    corpus, measured = tmp_path_factory.mktemp("corpus"), {}
    for case in modules["cases"].cases(PRUNED):
        if not case.name.endswith(modules["cases"].TINY_CASES):
            continue
        if not (corpus / "corpus.json").exists():
            modules["random_corpus"].write_corpus(corpus, modules["cases"].config_of(case, corpus, tiny=True), 2**14)
        run = tmp_path_factory.mktemp("run")
        found = modules["measure"].measure(case, corpus, run, 0.0, tiny=True)
        measured[case.name] = {"name": case.name, "masks": case.masks, **json.loads(json.dumps(found))}
    return measured


def test_every_case_of_the_recipes_is_a_recipe(cases: Any) -> None:
    for pruned in cases.SOURCES:
        found = cases.cases(pruned)
        assert len({case.name for case in found}) == len(found)
        for case in found:
            config = cases.config_of(case, Path("corpus"), tiny=False)
            assert config.data.seq_len == 4096
            assert config.training.dtype == "bfloat16"
            assert config.stage(case.stage).batch_size == cases.BATCH
            assert (case.masks != "none") == (case.stage == "prune")


def test_all_kinds_of_cases_are_tried(results: dict[str, dict[str, Any]]) -> None:
    assert len(results) == 6
    assert {each["masks"] for each in results.values()} == {"none", "open", "target"}
    assert sum(each["planned_bytes"] is not None for each in results.values()) == 3


def test_steps_are_counted_and_their_quantities_agree(
    modules: dict[str, Any], results: dict[str, dict[str, Any]]
) -> None:
    for each in results.values():
        assert each["steps"] == modules["measure"].LEAST
        assert each["tokens_per_step"] == 4 * 64
        low, high = each["step_seconds_quartiles"]
        assert 0 < low <= each["step_seconds"] <= high
        assert 0 < each["loader_wait_share"] < 1
        peak = 1e12 * modules["cases"].TINY["training.peak_tflops"]
        used = each["tokens_per_second"] * each["flops_per_token"] / peak
        assert each["utilisation"] == pytest.approx(used, rel=0.02, abs=1e-4)  # kept to four places
        assert each["memory_bytes"] > (each["planned_bytes"] or 0)  # resident: with torch and all
        assert "checkpoint" in each or each["waits_per_step"] > 0


def test_skipping_counts_the_arithmetic_of_what_is_open(results: dict[str, dict[str, Any]]) -> None:
    opened, computed, skipped = (
        results[f"prune {PRUNED}, {name}"]["flops_per_token"]
        for name in ("masks open", "masks at the target, computed", "masks at the target, skipped")
    )
    assert skipped < computed == opened
    assert opened == results[f"prune {PRUNED}, without masks"]["flops_per_token"]


def test_a_checkpoint_is_written_and_its_cost_is_told(results: dict[str, dict[str, Any]]) -> None:
    saved = results["continue 1.3B, 4 rows, a checkpoint"]["checkpoint"]
    parameters = 512 * 32 * 2 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    assert saved["bytes"] > 12 * parameters  # float32 weights and both moments
    assert saved["all_steps_longer_by"] != 0
    assert saved["complete_after"] > 0


def test_ratios_are_those_of_the_steps(bench: Any, results: dict[str, dict[str, Any]]) -> None:
    derived = bench.derived(list(results.values()), 0.2)
    opened, bare, skipped = (
        results[f"prune {PRUNED}, {name}"]["step_seconds"]
        for name in ("masks open", "without masks", "masks at the target, skipped")
    )
    assert derived["masks_step_ratio"] == pytest.approx(opened / bare)
    lasting = 1000 * 0.2 * (opened + skipped) / 2 + 1000 * 0.8 * skipped
    assert derived["pruning_mean_tokens_per_second"] == pytest.approx(1000 * 4 * 64 / lasting)
    assert set(bench.derived([], 0.2).values()) == {None}


def test_the_command_goes_on_after_a_case_that_fails(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    case = next(case for case in bench.cases(PRUNED) if case.checkpoint)
    settings = {**case.settings, "training.attention": "flash_attention_3"}  # needs a GPU, and a package
    broken = bench.Case("continue broken", case.recipe, "continue", settings, checkpoint=True)
    monkeypatch.setattr(bench, "cases", lambda pruned: [broken, case])
    monkeypatch.setattr(bench, "TINY_CASES", (broken.name, case.name))
    out = tmp_path / "gpu.json"
    said = CliRunner().invoke(bench.main, ["--tiny", "--minutes", "0.01", "--out", str(out)])
    assert said.exit_code == 0, said.output
    body = json.loads(out.read_text())
    failed, measured = body["cases"]
    assert (failed["outcome"], measured["outcome"]) == ("failed", "measured")
    assert "attention" in failed["error"]
    assert body["machine"]["torch"]
    assert "| continue broken | failed |" in said.output
    again = CliRunner().invoke(bench.main, ["--table", str(out)])
    assert again.output in said.output
    monkeypatch.setattr(bench, "cases", lambda pruned: [case])
    before = out.read_bytes()
    assert CliRunner().invoke(bench.main, ["--tiny", "--out", str(out)]).exit_code == 0
    assert out.read_bytes() == before  # it is there already


def test_a_case_that_hangs_is_given_up(bench: Any, tmp_path: Path) -> None:
    result = bench.run_case(bench.cases(PRUNED)[0], tmp_path, tmp_path, 1.0, 0.05, tiny=True)
    assert result["outcome"].startswith("not done after")


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_without_a_gpu_it_says_so(bench: Any) -> None:
    with pytest.raises(click.ClickException, match="no GPU here"):
        bench.describe(tiny=False)
