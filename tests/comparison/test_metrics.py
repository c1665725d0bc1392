"""Intervals cover what they say on made-up results whose truth is known; metrics are what their names say."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from drpruning.comparison.metrics import (
    MEAN,
    WEIGHTED,
    WORST,
    RunMetrics,
    final_means,
    mean_mixture,
    tokens_to_reach,
)
from drpruning.comparison.pareto import pareto_of
from drpruning.comparison.results import DocumentSums, Results, points_of
from drpruning.comparison.tables import make_tables
from drpruning.errors import StateError
from drpruning.records import Evaluated, MixtureUpdated
from tests.comparison.conftest import Sampled

BENCH = Path(__file__).parents[2] / "benches" / "coverage.py"
TRIALS = 120


def bench() -> ModuleType:
    found = spec_from_file_location("coverage_bench", BENCH)
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("population", "groups"), [("normal", 50), ("skewed", 50), ("rare", 100)])
def test_coverage(population: str, groups: int) -> None:
    """Expect at least 92% of the intervals to hold the truth: fewer than 100 of 120 have a probability below 0.001."""
    module = bench()
    generator = np.random.default_rng(11)
    expected = {metric: module.expected_difference(metric, "clear") for metric in module.METRICS}
    held = dict.fromkeys(module.METRICS, 0)
    for _ in range(TRIALS):
        study = module.simulate(generator, population, "clear", groups, 3)
        for metric, _, found in module.intervals(study, seeds=[3], resamples=200):
            held[metric] += found.low <= expected[metric] <= found.high
    assert min(held.values()) >= 100, held


def test_groups_are_the_unit(sampled: Sampled) -> None:
    """Write every document twice: with groups the interval stays, without it would shrink by the root of two."""
    results = sampled(np.random.default_rng(3), seeds=1, documents=40)

    def doubled(documents: dict[str, DocumentSums], groups: bool) -> dict[str, DocumentSums]:
        return {
            domain: DocumentSums(
                tokens=sums.tokens * 2, nats=sums.nats * 2, groups=list(range(40)) * 2 if groups else None
            )
            for domain, sums in documents.items()
        }

    def error(groups: bool) -> float:
        runs = [run.model_copy(update={"documents": doubled(run.documents, groups)}) for run in results.runs]
        base = {seed: doubled(documents, groups) for seed, documents in results.base_documents.items()}
        changed = results.model_copy(update={"runs": runs, "base_documents": base})
        found = RunMetrics(changed, resamples=5).difference(MEAN, "moving", "constant")
        assert found is not None
        return found.standard_error

    plain = RunMetrics(results, resamples=5).difference(MEAN, "moving", "constant")
    assert plain is not None
    assert error(groups=True) == pytest.approx(plain.standard_error)
    assert error(groups=False) == pytest.approx(plain.standard_error / 2**0.5, rel=0.02)


def test_a_clear_difference_is_found_and_none_is_not_claimed(sampled: Sampled) -> None:
    measured = RunMetrics(sampled(np.random.default_rng(1), seeds=4, effect=-0.5))
    for name in (MEAN, WORST, WEIGHTED, "web"):
        found = measured.difference(name, "moving", "constant")
        assert found is not None
        assert found.excludes_zero
        assert found.high < 0
        back = measured.difference(name, "constant", "moving")
        assert back is not None
        assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    assert measured.difference(MEAN, "moving", "moving") is None
    same = RunMetrics(sampled(np.random.default_rng(1), seeds=4)).difference(MEAN, "moving", "constant")
    assert same is not None
    assert not same.excludes_zero


def test_metrics(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(2), seeds=2)
    run = results.of("moving")[1]
    excess = {domain: run.recovered[domain] - results.base[1][domain] for domain in results.domains}
    measured = RunMetrics(results, resamples=5)
    assert measured.metric(WORST, "moving", 1) == pytest.approx(max(excess.values()))
    assert measured.metric("code", "moving", 1) == pytest.approx(excess["code"])
    assert measured.metric(MEAN, "moving", 1) == pytest.approx(sum(run.recovered.values()) / 2)
    weighted = 0.8 * run.recovered["web"] + 0.2 * run.recovered["code"]
    assert measured.metric(WEIGHTED, "moving", 1) == pytest.approx(weighted)


def test_one_seed_has_an_interval_over_documents(sampled: Sampled) -> None:
    found = RunMetrics(sampled(np.random.default_rng(4), seeds=1)).difference(MEAN, "moving", "constant")
    assert found is not None
    assert found.pairs == 1
    assert found.low < found.value < found.high


def test_only_common_seeds_are_paired(sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(5), seeds=3)
    fewer = results.model_copy(
        update={"runs": [run for run in results.runs if (run.method, run.seed) != ("moving", 1)]}
    )
    found = RunMetrics(fewer, resamples=5).difference(MEAN, "moving", "constant")
    assert found is not None
    assert found.pairs == 2


def without(results: Results, method: str, seed: int) -> Results:
    """Return the results without one run."""
    kept = [run for run in results.runs if (run.method, run.seed) != (method, seed)]
    return results.model_copy(update={"runs": kept})


def test_a_method_without_a_seed_is_placed_by_the_paired_difference(sampled: Sampled) -> None:
    """Leave out the seed of the lowest losses: the mean of the others alone would reverse the sign."""
    results = sampled(np.random.default_rng(0), seeds=3, effect=-0.02, of_seeds=0, of_documents=0.01, of_both=0.01)
    lowest = min(results.of("moving"), key=lambda run: sum(run.recovered.values())).seed
    fewer = without(results, "moving", lowest)
    measured = RunMetrics(fewer, resamples=5)
    for name in (MEAN, WORST, WEIGHTED, "web"):
        found = measured.difference(name, "moving", "constant")
        assert found is not None
        assert found.value < 0
        assert measured.average(name, "moving") > measured.average(name, "constant")
        placed = measured.average(name, "moving", "constant") - measured.average(name, "constant", "constant")
        assert placed == pytest.approx(found.value)
    both = RunMetrics(results, resamples=5)
    assert both.average(MEAN, "moving", "constant") == both.average(MEAN, "moving")
    tables = {table.title: table for table in make_tables(fewer, ["constant"], measured)}
    for title in ("Held-out loss, nats per token", "Excess over the unpruned model, nats per token"):
        constant, moving = tables[title].rows[-2:]
        assert [constant.texts[1], moving.texts[1]] == ["3", "2"]
        assert moving.cells[2].value < constant.cells[2].value
        assert "Other seeds than constant: moving; their means are constant's plus the paired difference." in (
            tables[title].note
        )
    assert "Other seeds" not in "".join(table.note for table in make_tables(results, ["constant"], both))
    plot = pareto_of(fewer, "constant")
    assert plot is not None
    assert "Other seeds than constant: moving;" in plot.note
    moving_point, constant_point = plot.points
    assert moving_point.x < constant_point.x
    assert moving_point.y < constant_point.y


@pytest.mark.parametrize("of_base", [False, True])
def test_models_measured_on_other_documents_do_not_compare(of_base: bool, sampled: Sampled) -> None:
    results = sampled(np.random.default_rng(1), seeds=2)

    def cut(documents: dict[str, DocumentSums]) -> dict[str, DocumentSums]:
        return {name: DocumentSums(tokens=sums.tokens[:7], nats=sums.nats[:7]) for name, sums in documents.items()}

    if of_base:
        changed = results.model_copy(update={"base_documents": {1: cut(results.base_documents[1])}})
        label = "the base of seed 1"
    else:
        *others, last = results.runs
        changed = results.model_copy(
            update={"runs": [*others, last.model_copy(update={"documents": cut(last.documents)})]}
        )
        label = "the run moving, seed 1"
    with pytest.raises(
        StateError, match=f"{label} was measured on 7 documents of the domain 'web', the run constant.* 20"
    ):
        RunMetrics(changed)


def test_tokens_to_reach(sampled: Sampled) -> None:
    """Let the curves fall by half a nat in each of two equal spans, to what the run reached."""
    results = sampled(np.random.default_rng(6), seeds=2, of_documents=0, of_seeds=0, of_both=0)
    runs = results.of("constant")
    final = final_means(runs)
    assert tokens_to_reach(runs, final) == (pytest.approx(1.0), 2)
    assert tokens_to_reach(runs, {seed: loss + 0.25 for seed, loss in final.items()}) == (pytest.approx(0.75), 2)
    assert tokens_to_reach(runs, {0: final[0] - 0.1, 1: final[1] + 2})[1] == 1


def test_the_mixture_is_weighed_by_tokens_and_leaves_out_what_was_not_used(sampled: Sampled) -> None:
    runs = sampled(np.random.default_rng(7), seeds=2).of("constant")
    assert mean_mixture(runs, "continue", ["web", "code"]) == pytest.approx({"web": 0.7, "code": 0.3})
    assert mean_mixture(runs, "prune", ["web", "code"]) == {}


def test_the_mixture_up_to_an_evaluation_counts_the_updates_on_the_way() -> None:
    def weights(web: float) -> dict[str, float]:
        return {"web": web, "code": 1 - web}

    def evaluated(step: int, web: float) -> Evaluated:
        facts: dict[str, Any] = {"losses": {"web": 2.0}, "reference_ratio": weights(0.5), "parameters": 1.0}
        return Evaluated(stage="continue", step=step, tokens=10 * step, weights=weights(web), **facts)

    def updated(step: int, web: float) -> MixtureUpdated:
        return MixtureUpdated(stage="continue", step=step, tokens=10 * step, weights=weights(web))

    records = [evaluated(0, 0.9), updated(2, 0.5), updated(8, 0.1), evaluated(10, 0.3), evaluated(20, 0.7)]
    points = points_of(records, "continue")
    assert [point.tokens for point in points] == [0, 100, 200]
    assert [point.weights["web"] for point in points] == pytest.approx([0.2 * 0.9 + 0.6 * 0.5 + 0.2 * 0.1, 0.3, 0.7])
    assert points_of(records, "prune") == []
