"""Curves of any length have a bounded number of points, and their laws predict what those of all points predict."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches.scaling_backtest.curves import Curve, read

from drpruning.mixture import ADO, DRPruning, Strategy, curves
from drpruning.mixture.curves import MOST_POINTS, merge_points
from drpruning.scaling import LawStatus, LearningRates, fit_scaling_law
from tests.mixture.observed import DOMAINS, FINAL, RATIO, curve_table, losses, observe

BACKTEST = Path(__file__).parents[2] / "benches" / "scaling_backtest" / "curves.json.gz"


def merged(params: Any, tokens: Any, measured: Any, most: int) -> tuple[list[float], list[float], list[float]]:
    """Return parameters, tokens and losses of the points that a state has after these evaluations."""
    points: list[list[Any]] = []
    for P, T, loss in zip(params, tokens, measured, strict=True):
        points.append([float(T), float(P), [float(loss)], 1])
        merge_points(points, most)
    assert len(points) <= most
    return [point[1] for point in points], [point[0] for point in points], [point[2][0] for point in points]


def distance(params: Any, tokens: Any, measured: Any, most: int, at: float, rates: LearningRates | None) -> float:
    """Return how far the predictions of all points and of merged points differ, in half widths of the former's band.

    NaN if the points identify no law.
    """
    whole = fit_scaling_law(params, tokens, measured, learning_rates=rates)
    few = fit_scaling_law(*merged(params, tokens, measured, most), learning_rates=rates)
    if whole.status != LawStatus.IDENTIFIED:
        return math.nan
    assert few.status == LawStatus.IDENTIFIED
    value, low, high = whole.predict(params[-1], at)
    return abs(few.predict(params[-1], at)[0] - value) / ((high - low) / 2)


def real_curves() -> list[Curve]:
    long = [curve for curve in read(BACKTEST) if np.isfinite(curve.losses).sum() > 110]
    return long[::4]


def test_laws_of_real_curves_are_the_same_within_their_bands() -> None:
    """Compare at two evaluations a point, from the first 60% of a curve: far fewer points than a state has."""
    ratios = []
    for curve in real_curves():
        usable = np.isfinite(curve.losses) & (curve.steps > 0)
        params, steps, measured = curve.params[usable], curve.steps[usable], curve.losses[usable]
        n = int(0.6 * steps.size)
        rates = None if curve.rates is None else LearningRates(curve.steps, curve.rates)
        ratios.append(distance(params[:n], steps[:n], measured[:n], 64, float(steps[-1]), rates))
    found = np.array(ratios)
    assert np.isfinite(found).sum() > 15
    assert np.nanmax(found) < 1
    assert np.nanmedian(found) < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_laws_of_long_runs_are_the_same_within_a_quarter_of_their_bands(seed: int) -> None:
    generator = np.random.default_rng(seed)
    E, A, beta = generator.uniform(1, 3), generator.uniform(20, 40), generator.uniform(0.2, 0.3)
    tokens = np.arange(1, 3001) * 1e9 / 3000
    rates = LearningRates.cosine(1.6e9, warmup=2e7) if seed % 2 else None
    law = E + A * tokens**-beta
    noisy = law * (1 if rates is None else rates.bend(tokens)) * np.exp(generator.normal(0, 2e-3, tokens.size))
    assert distance(np.full(tokens.size, 1e8), tokens, noisy, MOST_POINTS, 1.6e9, rates) < 0.25


def test_up_to_the_limit_every_evaluation_is_a_point() -> None:
    points: list[list[Any]] = []
    for k in range(MOST_POINTS):
        points.append([k + 1, 1e6, [1 / (k + 1), None], 1])
        merge_points(points, MOST_POINTS)
    assert points == [[k + 1, 1e6, [1 / (k + 1), None], 1] for k in range(MOST_POINTS)]


def test_beyond_it_points_are_means_of_equally_many_evaluations() -> None:
    points: list[list[Any]] = []
    for k in range(1, 1001):
        points.append([k, 1e6, [2.0 * k], 1])
        merge_points(points, 16)
        sizes = [point[3] for point in points]
        assert len(points) <= 16
        assert sum(sizes) == k
        assert all(size == sizes[0] for size in sizes[: -int(math.log2(sizes[0])) - 1])
        assert sizes == sorted(sizes, reverse=True)
        ends = np.cumsum(sizes)
        assert [point[0] for point in points] == [end - (size - 1) / 2 for end, size in zip(ends, sizes, strict=True)]
        assert [point[2][0] for point in points] == [2 * point[0] for point in points]


def test_a_loss_that_one_of_two_points_lacks_is_the_others() -> None:
    points = [[1, 1e6, [2.0, None, None], 1], [2, 3e6, [3.0, 5.0, None], 1], [3, 1e6, [1.0, 1.0, 1.0], 1]]
    merge_points(points, 2)
    assert points == [[1.5, 2e6, [2.5, 5.0, None], 2], [3, 1e6, [1.0, 1.0, 1.0], 1]]


@pytest.mark.parametrize("strategy", [DRPruning(min_points=20), ADO(min_points=20)], ids=["drpruning", "ado"])
def test_a_long_run_resumes_bit_for_bit(strategy: Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a limit on points below min_points as well: min_points counts evaluations."""
    monkeypatch.setattr(curves, "MOST_POINTS", 16)
    straight = resumed = strategy.init(DOMAINS, RATIO)
    for seen in curve_table(45):
        straight, expected = strategy.update(straight, seen)
        resumed, update = strategy.update(json.loads(json.dumps(resumed)), seen)
        assert update == expected
        assert resumed == straight
    assert len(straight["points"]) <= 16
    assert sum(point[3] for point in straight["points"]) == 45
    if strategy.name == "ado":
        assert expected.status == "learning_speed"
    else:
        assert expected.predicted_loss is not None


def test_the_published_preset_forgets_the_oldest_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check which evaluations stay: the law reads the newest 64 alone, so the answer is that of all."""
    monkeypatch.setattr(curves, "MOST_POINTS", 8)
    strategy = DRPruning.published(predict_after_fraction=1.0)
    state = strategy.init(DOMAINS, RATIO)
    for k in range(1, 20):
        state, _ = strategy.update(state, observe(losses(2, 1, 3), FINAL * k // 20))
    assert [point[0] for point in state["points"]] == [FINAL * k // 20 for k in range(12, 20)]
    assert {point[3] for point in state["points"]} == {1}


def test_the_state_of_a_run_of_any_length_is_small() -> None:
    strategy = DRPruning(predict_after_fraction=1.0)
    state = strategy.init(DOMAINS, RATIO)
    for k in range(1, MOST_POINTS + 200):
        state, _ = strategy.update(
            state, observe(losses(2 + 1 / k, 1 + 1 / k, 3 + 1 / k), 10**9 + k, final_tokens=10**10)
        )
    assert len(state["points"]) < MOST_POINTS
    assert len(json.dumps(state)) < 64_000
