"""The scaling law: known curves come back, and curves that say nothing are called so."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning import scaling
from drpruning.errors import WeightError
from drpruning.scaling import fit_scaling_law

TOKENS = 1e6 * np.arange(1, 25)


@pytest.mark.parametrize(("A", "beta", "E"), [(30.0, 0.25, 2.0), (400.0, 0.5, 1.0), (5.0, 0.1, 0.0)])
def test_a_known_curve_at_constant_size_comes_back(A: float, beta: float, E: float) -> None:
    law = fit_scaling_law(np.full(24, 1e8), TOKENS, A * TOKENS**-beta + E)
    assert law.status == "identified"
    assert not law.alpha_identified
    assert (law.A, law.alpha) == (pytest.approx(A, rel=1e-2), 0.0)
    assert (law.beta, law.E) == (pytest.approx(beta, rel=1e-3), pytest.approx(E, abs=2e-3))
    value, low, high = law.predict(1e8, 1e8)
    assert low <= value <= high
    assert value == pytest.approx(A * 1e8**-beta + E, rel=1e-4)


def test_a_known_curve_with_changing_size_comes_back() -> None:
    params = 1e8 * np.concatenate([np.linspace(1, 0.5, 12), np.full(12, 0.5)])
    law = fit_scaling_law(params, TOKENS, 9000 * params**-0.3 * TOKENS**-0.2 + 1.5)
    assert (law.status, law.alpha_identified) == ("identified", True)
    assert (law.alpha, law.beta, law.E) == pytest.approx((0.3, 0.2, 1.5), rel=1e-2)
    assert law.predict(4e7, 5e7)[0] == pytest.approx(9000 * 4e7**-0.3 * 5e7**-0.2 + 1.5, rel=1e-4)


def test_outliers_hardly_move_the_prediction() -> None:
    losses = 30 * TOKENS**-0.25 + 2
    losses[[3, 17]] *= 1.2
    assert fit_scaling_law(np.full(24, 1e8), TOKENS, losses).predict(1e8, 5e7)[0] == pytest.approx(
        30 * 5e7**-0.25 + 2, rel=2e-3
    )


def test_the_band_covers_what_it_says() -> None:
    # 200 curves with 0.5% noise, one further measurement each: 90% give or take 4 standard errors (2.1% each)
    draw, covered = np.random.default_rng(11), 0
    for _ in range(200):
        noise = np.exp(0.005 * draw.normal(size=13))
        tokens = np.append(TOKENS[:12], 3e7)
        losses = (30 * tokens**-0.25 + 2) * noise
        _, low, high = fit_scaling_law(np.full(12, 1e8), tokens[:12], losses[:12]).predict(1e8, 3e7)
        covered += low <= losses[12] <= high
    assert 0.815 <= covered / 200 <= 0.985


@pytest.mark.parametrize(
    ("tokens", "losses"),
    [
        (TOKENS[:3], [3.0, 2.8, 2.7]),
        (TOKENS, np.full(24, 2.5)),
        (TOKENS, np.linspace(2, 3, 24)),
        (np.full(24, 1e6), np.linspace(3, 2, 24)),
        (np.repeat(TOKENS[:3], 8), np.linspace(3, 2, 24)),
        (np.zeros(24), np.linspace(3, 2, 24)),
        (TOKENS, np.zeros(24)),
        (TOKENS[:1], [2.0]),
    ],
    ids=["three points", "flat", "rising", "one T", "three T", "no tokens", "zero loss", "one point"],
)
def test_what_cannot_be_learned_is_said(tokens: np.ndarray, losses: np.ndarray) -> None:
    law = fit_scaling_law(np.full(len(tokens), 1e8), tokens, losses)
    assert law.status == "not_identified"
    lowest, highest = float(np.min(losses)), float(np.max(losses))
    assert law.predict(1e8, 1e9) == pytest.approx((lowest, lowest, highest))


def test_points_without_a_loss_are_left_out() -> None:
    losses = 30 * TOKENS**-0.25 + 2
    holes = losses.copy()
    holes[[0, 5, 9]] = [np.nan, np.inf, -np.inf]
    keep = np.isfinite(holes)
    holed = fit_scaling_law(np.full(24, 1e8), TOKENS, holes)
    assert holed == fit_scaling_law(np.full(21, 1e8), TOKENS[keep], losses[keep])
    assert holed.points == 21


@given(
    st.lists(st.tuples(st.floats(1, 1e12), st.floats(1, 1e15), st.floats(1e-6, 1e6)), min_size=1, max_size=12),
)
@settings(deadline=None, max_examples=60)
def test_any_finite_points_give_a_finite_law(points: list[tuple[float, float, float]]) -> None:
    law = fit_scaling_law(*zip(*points, strict=True))
    assert np.isfinite([law.A, law.alpha, law.beta, law.E, law.residual]).all()
    assert min(law.A, law.alpha, law.beta, law.E) >= 0
    value, low, high = law.predict(1e9, 1e12)
    assert np.isfinite([value, low, high]).all()
    assert low <= value <= high


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_loss_does_not_matter(scale: float) -> None:
    losses = (30 * TOKENS**-0.25 + 2) * np.exp(0.01 * np.random.default_rng(3).normal(size=24))
    law, scaled = (fit_scaling_law(np.full(24, 1e8), TOKENS, losses * s) for s in (1.0, scale))
    assert scaled.beta == pytest.approx(law.beta, rel=1e-4)
    assert scaled.predict(1e8, 1e8)[0] / scale == pytest.approx(law.predict(1e8, 1e8)[0], rel=1e-6)


def test_unusable_input_is_refused() -> None:
    with pytest.raises(WeightError, match="shapes"):
        fit_scaling_law([1e8], [1e6, 2e6], [3.0, 2.0])
    with pytest.raises(WeightError, match="no loss is finite"):
        fit_scaling_law([1e8], [1e6], [np.nan])
    with pytest.raises(WeightError, match="T is 0"):
        fit_scaling_law([1e8], [1e6], [2.0]).predict(1e8, 0)


def test_docstring_examples() -> None:
    assert doctest.testmod(scaling).failed == 0
