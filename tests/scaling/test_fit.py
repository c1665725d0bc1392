"""The scaling law: known curves come back, and curves that say nothing are called so."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drpruning import _native
from drpruning.errors import WeightError
from drpruning.scaling import LearningRates, fit_scaling_law, fit_scaling_laws

TOKENS = 1e6 * np.arange(1, 25)
CONSTANT = LearningRates([0], [1])  # a schedule without decay: predictions continue the curve


@pytest.mark.parametrize(("A", "beta", "E"), [(30.0, 0.25, 2.0), (400.0, 0.5, 1.0), (5.0, 0.1, 0.0)])
def test_a_known_curve_at_constant_size_comes_back(A: float, beta: float, E: float) -> None:
    law = fit_scaling_law(np.full(24, 1e8), TOKENS, A * TOKENS**-beta + E, learning_rates=CONSTANT)
    assert law.status == "identified"
    assert not law.alpha_identified
    assert (law.A, law.alpha) == (pytest.approx(A, rel=1e-5), 0.0)
    assert (law.beta, law.E) == (pytest.approx(beta, rel=1e-6), pytest.approx(E, abs=1e-5))
    value, low, high = law.predict(1e8, 1e8)
    assert low <= value <= high
    assert value == pytest.approx(A * 1e8**-beta + E, rel=1e-7)


def test_a_known_curve_with_changing_size_comes_back() -> None:
    params = 1e8 * np.concatenate([np.linspace(1, 0.5, 12), np.full(12, 0.5)])
    losses = 9000 * params**-0.3 * TOKENS**-0.2 + 1.5
    law = fit_scaling_law(params, TOKENS, losses, learning_rates=CONSTANT)
    assert (law.status, law.alpha_identified) == ("identified", True)
    assert (law.alpha, law.beta, law.E) == pytest.approx((0.3, 0.2, 1.5), rel=1e-4)
    assert law.predict(4e7, 5e7)[0] == pytest.approx(9000 * 4e7**-0.3 * 5e7**-0.2 + 1.5, rel=1e-6)


@pytest.mark.parametrize("case", json.loads((Path(__file__).parents[1] / "golden" / "scaling.json").read_text()))
def test_golden_fits(case: dict) -> None:
    x, t, y = (np.array(case[name]) for name in "xty")
    found = _native.fit_law(x, t, y, 1e-3, case["learn_alpha"])
    parts = (found.level, found.share, found.alpha, found.beta, found.objective)
    assert parts == pytest.approx(case["law"], abs=1e-6)
    assert found.objective == pytest.approx(case["law"][4], rel=1e-11)


def test_fitting_again_gives_the_same_law() -> None:
    losses = (30 * TOKENS**-0.25 + 2) * np.exp(0.01 * np.random.default_rng(5).normal(size=24))
    assert fit_scaling_law(np.full(24, 1e8), TOKENS, losses) == fit_scaling_law(np.full(24, 1e8), TOKENS, losses)


def test_all_domains_at_once_are_each_alone() -> None:
    losses = np.stack([30 * TOKENS**-0.25 + 2, 400 * TOKENS**-0.5 + 1, np.full(24, 2.0)], axis=1)
    losses[3, 1] = np.nan
    laws = fit_scaling_laws(np.full(24, 1e8), TOKENS, losses)
    assert laws == [fit_scaling_law(np.full(24, 1e8), TOKENS, column) for column in losses.T]
    assert [law.status for law in laws] == ["identified", "identified", "not_identified"]


def test_warm_up_is_dropped() -> None:
    losses = 30 * TOKENS**-0.25 + 2
    losses[:2] += [3.0, 1.0]  # up to a tenth of the tokens
    law = fit_scaling_law(np.full(24, 1e8), TOKENS, losses)
    assert law.points == 22
    assert law.beta == pytest.approx(0.25, rel=1e-6)


def test_where_the_law_bends_only_recent_points_count() -> None:
    early, late = TOKENS[:12], TOKENS[12:]
    losses = np.concatenate([3 - 0.02 * np.arange(12), 30 * late**-0.25 + 1.5])
    law = fit_scaling_law(np.full(24, 1e8), np.concatenate([early, late]), losses)
    assert law.points == 12
    assert (law.beta, law.E) == pytest.approx((0.25, 1.5), rel=1e-4)


def test_a_known_schedule_is_taken_out() -> None:
    schedule = LearningRates([0, 2e6, 16e6, 24e6], [0, 3e-4, 3e-4, 0])
    P, losses = np.full(24, 1e8), (30 * TOKENS**-0.25 + 2) * schedule.bend(TOKENS)
    with_rates = fit_scaling_law(P[:16], TOKENS[:16], losses[:16], learning_rates=schedule)
    assert with_rates.learning_rates == schedule
    assert (with_rates.beta, with_rates.E) == pytest.approx((0.25, 2.0), rel=1e-4)
    value, low, high = with_rates.predict(1e8, 24e6)
    assert value == pytest.approx(losses[-1], rel=1e-6)
    unknown = fit_scaling_law(P[:16], TOKENS[:16], losses[:16]).predict(1e8, 24e6)
    assert unknown[0] > 1.03 * losses[-1]  # of a decay to zero in the last third, the average decay ahead is little
    assert high - low < unknown[2] - unknown[1]


@pytest.mark.parametrize(("end", "factor"), [(12e6, 1), (24e6, 1), (48e6, 1 - 0.038 / 8), (24e12, 1 - 0.038)])
def test_an_unknown_schedule_has_a_decay_ahead(end: float, factor: float) -> None:
    P, losses = np.full(24, 1e8), 30 * TOKENS**-0.25 + 2
    law = fit_scaling_law(P, TOKENS, losses)
    level = fit_scaling_law(P, TOKENS, losses, learning_rates=CONSTANT)
    assert law.predict(1e8, end)[0] == pytest.approx(factor * level.predict(1e8, end)[0], rel=1e-5)
    assert (law.A, law.beta, law.E) == (level.A, level.beta, level.E)  # those of the curve before the decay


def test_points_before_the_peak_are_warm_up() -> None:
    schedule = LearningRates.cosine(24e6, warmup=6e6)
    law = fit_scaling_law(np.full(24, 1e8), TOKENS, 30 * TOKENS**-0.25 + 2, learning_rates=schedule)
    assert schedule.warm == 6e6
    assert law.points <= 19


def test_a_cosine_is_a_cosine() -> None:
    schedule = LearningRates.cosine(1000, warmup=100, floor=0.1)
    at = np.array([50.0, 100, 325, 550, 1000, 5000])
    rates = 0.1 + 0.9 * (1 + np.cos(np.pi * np.array([0, 0, 0.25, 0.5, 1, 1]))) / 2
    assert schedule.bend(at) == pytest.approx(1 - 0.035 * (1 - rates), abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "rates"),
    [([], []), ([0, 1], [1]), ([1, 1], [1, 0]), ([0, 1], [0, 0]), ([0, np.nan], [1, 0]), ([0, 1], [1, -1])],
    ids=["empty", "shapes", "not increasing", "no peak", "NaN", "negative"],
)
def test_what_is_no_schedule_is_refused(tokens: list[float], rates: list[float]) -> None:
    with pytest.raises(WeightError):
        LearningRates(tokens, rates)


def test_what_is_no_cosine_is_refused() -> None:
    with pytest.raises(WeightError, match="warmup"):
        LearningRates.cosine(10, warmup=10)


def test_outliers_hardly_move_the_prediction() -> None:
    losses = 30 * TOKENS**-0.25 + 2
    losses[[3, 17]] *= 1.2
    law = fit_scaling_law(np.full(24, 1e8), TOKENS, losses, learning_rates=CONSTANT)
    assert law.predict(1e8, 5e7)[0] == pytest.approx(30 * 5e7**-0.25 + 2, rel=2e-3)


def test_the_band_covers_at_least_its_level() -> None:
    # 200 curves with 0.5% noise that follow the law, one further measurement each. The band allows for curves that do
    # not follow it, so it covers more than 90% of these; less than 83.5% would be 3 standard
    # errors below 90%.
    draw, covered = np.random.default_rng(11), 0
    for _ in range(200):
        noise = np.exp(0.005 * draw.normal(size=13))
        tokens = np.append(TOKENS[:12], 13e6)
        losses = (30 * tokens**-0.25 + 2) * noise
        _, low, high = fit_scaling_law(np.full(12, 1e8), tokens[:12], losses[:12]).predict(1e8, 13e6)
        covered += low <= losses[12] <= high
    assert covered / 200 > 0.835


def test_the_band_widens_ahead() -> None:
    law = fit_scaling_law(np.full(24, 1e8), TOKENS, 30 * TOKENS**-0.25 + 2)
    widths = [np.log(high / low) for _, low, high in (law.predict(1e8, T) for T in (24e6, 48e6, 96e6))]
    assert widths[0] < 1e-3  # no noise, nothing ahead
    assert widths[1:] == pytest.approx([2 * 0.041 * np.log(2) ** 0.5, 2 * 0.041 * np.log(4) ** 0.5], rel=1e-3)


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
def test_what_cannot_be_learned_has_a_status(tokens: np.ndarray, losses: np.ndarray) -> None:
    law = fit_scaling_law(np.full(len(tokens), 1e8), tokens, losses)
    assert law.status == "not_identified"
    assert law.reason
    lowest, highest = float(np.min(losses)), float(np.max(losses))
    assert law.predict(1e8, 1e9) == pytest.approx((lowest, max(2 * lowest - highest, 0), highest))


def test_points_without_a_loss_are_left_out() -> None:
    losses = 30 * TOKENS**-0.25 + 2
    holes = losses.copy()
    holes[[0, 5, 9]] = [np.nan, np.inf, -np.inf]
    keep = np.isfinite(holes)
    holed = fit_scaling_law(np.full(24, 1e8), TOKENS, holes)
    assert holed == fit_scaling_law(np.full(21, 1e8), TOKENS[keep], losses[keep])
    assert holed.points == 20  # 21 have a loss, and the second point is warm-up


COUNTS = st.floats(1e-300, 1e300) | st.floats(1, 1e15)
LOSSES = st.floats(1e-6, 1e6) | st.floats(2, 3) | st.floats(-1, 1e308) | st.sampled_from([np.nan, np.inf, 2.0])


FAR = [  # without an irreducible loss the law falls by more digits than a float has
    (2.0, 2.842123803378271e277, 430064.0207221636),
    (7872273929749239.0, 168617252654.0, 1.0),
    (129298121606429.0, 222573663825.0, 247.0),
    (495404102632872.0, 1.75, 178.0),
    (8558206214424.0, 1.0, 1.0),
]


@given(st.lists(st.tuples(COUNTS, COUNTS, LOSSES), min_size=1, max_size=12), st.booleans())
@example(points=FAR, scheduled=False)
@settings(deadline=None, max_examples=200)
def test_any_points_give_a_finite_law(points: list[tuple[float, float, float]], scheduled: bool) -> None:
    if not np.isfinite([loss for _, _, loss in points]).any():
        points = [*points, (1.0, 1.0, 1.0)]
    schedule = LearningRates.cosine(1e12, warmup=100, floor=0) if scheduled else None
    law = fit_scaling_law(*zip(*points, strict=True), learning_rates=schedule)
    assert np.isfinite([law.A, law.alpha, law.beta, law.E, law.residual]).all()
    assert min(law.A, law.alpha, law.beta, law.E) >= 0
    for P, T in ((1e9, 1e12), (1e-300, 1e-300), (1e300, 1e300)):
        value, low, high = law.predict(P, T)
        assert np.isfinite([value, low, high]).all()
        assert low <= value <= high


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-3, 1e-2]))
@settings(deadline=None, max_examples=40)
def test_a_noisy_curve_is_predicted_within_its_band(seed: int, noise: float) -> None:
    draw = np.random.default_rng(seed)
    A, beta, E = draw.uniform(1, 100), draw.uniform(0.1, 0.6), draw.uniform(0.5, 3)
    losses = (A * TOKENS**-beta + E) * np.exp(noise * draw.normal(size=24))
    law = fit_scaling_law(np.full(24, 1e8), TOKENS, losses)
    _, low, high = law.predict(1e8, 36e6)
    assert law.status == "not_identified" or 0.8 * low < A * 36e6**-beta + E < 1.25 * high


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_loss_does_not_matter(scale: float) -> None:
    losses = (30 * TOKENS**-0.25 + 2) * np.exp(0.01 * np.random.default_rng(3).normal(size=24))
    law, scaled = (fit_scaling_law(np.full(24, 1e8), TOKENS, losses * s) for s in (1.0, scale))
    assert (scaled.alpha, scaled.beta) == pytest.approx((law.alpha, law.beta), rel=1e-6)
    assert (scaled.A / scale, scaled.E / scale) == pytest.approx((law.A, law.E), rel=1e-6)
    assert np.array(scaled.predict(1e8, 1e8)) / scale == pytest.approx(np.array(law.predict(1e8, 1e8)), rel=1e-7)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_units_of_the_counts_do_not_matter(scale: float) -> None:
    params = 1e8 * np.linspace(1, 0.5, 24)
    losses = (9000 * params**-0.3 * TOKENS**-0.2 + 1.5) * np.exp(0.003 * np.random.default_rng(4).normal(size=24))
    law, scaled = (fit_scaling_law(params * s, TOKENS * s, losses) for s in (1.0, scale))
    assert (scaled.alpha, scaled.beta, scaled.E) == pytest.approx((law.alpha, law.beta, law.E), rel=1e-6)
    assert scaled.predict(5e7 * scale, 5e7 * scale) == pytest.approx(law.predict(5e7, 5e7), rel=1e-7)


def test_unusable_input_is_refused() -> None:
    with pytest.raises(WeightError, match="shapes"):
        fit_scaling_law([1e8], [1e6, 2e6], [3.0, 2.0])
    with pytest.raises(WeightError, match="no loss is finite"):
        fit_scaling_law([1e8], [1e6], [np.nan])
    with pytest.raises(WeightError, match=r"\[n, d\]"):
        fit_scaling_laws([1e8], [1e6], [2.0])
    with pytest.raises(WeightError, match="T is 0"):
        fit_scaling_law([1e8], [1e6], [2.0]).predict(1e8, 0)
