"""Intervals cover what they say on made-up results whose truth is known; metrics are what their names say."""

from __future__ import annotations

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
from drpruning.comparison.results import points_of
from drpruning.records import Evaluated, MixtureUpdated
from tests.comparison.conftest import Sampled

TRIALS = 300


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    "noise",
    [
        {"of_seeds": 0.05, "of_documents": 0.0, "of_both": 0.0},
        {"of_seeds": 0.0, "of_documents": 0.2, "of_both": 0.02},
        {"of_seeds": 0.03, "of_documents": 0.1, "of_both": 0.05},
    ],
    ids=["seeds", "documents", "both"],
)
def test_coverage(sampled: Sampled, seeds: int, noise: dict[str, float]) -> None:
    """Expect 285 of 300 95% intervals to cover the truth; fewer than 275 then have a probability below 0.01."""
    generator = np.random.default_rng(11)
    held = 0
    for _ in range(TRIALS):
        found = RunMetrics(sampled(generator, seeds=seeds, effect=-0.1, **noise), resamples=100).difference(
            MEAN, "moving", "constant"
        )
        assert found is not None
        held += found.low <= -0.1 <= found.high
    assert held >= 275


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
    assert measured.metric(WORST, "moving", 1)[0] == pytest.approx(max(excess.values()))
    assert measured.metric("code", "moving", 1)[0] == pytest.approx(excess["code"])
    assert measured.metric(MEAN, "moving", 1)[0] == pytest.approx(sum(run.recovered.values()) / 2)
    weighted = 0.8 * run.recovered["web"] + 0.2 * run.recovered["code"]
    assert measured.metric(WEIGHTED, "moving", 1)[0] == pytest.approx(weighted)


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
