"""The search for the best mixture: known optima, certificates, bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning.chi2 import worst_case
from drpruning.errors import WeightError
from drpruning.swarm import BestMixture, MixtureLaw, SearchStatus, best_mixture
from drpruning.swarm.search import TOLERANCE

NAMES = "abcdefgh"


def random_law(seed: int, domains: int = 4, targets: int = 3) -> MixtureLaw:
    rng = np.random.default_rng(seed)
    parameters = np.concatenate(
        [
            rng.normal(2, 0.5, (targets, 1)),
            rng.normal([-1, -1, 0.4], 0.5, (targets, 3)),
            rng.normal(-1, 1.5, (targets, domains)),
        ],
        axis=1,
    )
    return MixtureLaw("effective-data", tuple(NAMES[:domains]), tuple(NAMES[:targets]), parameters)


def objective(law: MixtureLaw, mixtures: np.ndarray, rho: float) -> np.ndarray:
    """Return the objective for equal target weights, computed another way: rho 0, infinity, or interior of the ball."""
    losses = law.losses(mixtures)
    if rho == 0:
        return losses.mean(axis=-1)
    if rho == math.inf:
        return losses.max(axis=-1)
    return losses.mean(axis=-1) + math.sqrt(2 * rho) * losses.std(axis=-1)  # exact while all q_j > 0


@pytest.mark.parametrize("rho", [0.0, 0.05, math.inf])
@pytest.mark.parametrize("seed", range(4))
def test_no_mixture_of_a_fine_grid_is_better(seed: int, rho: float) -> None:
    law = random_law(seed, domains=3)
    best = best_mixture([law], rho=rho)
    ticks = np.linspace(0, 1, 201)
    grid = np.array([(x, y, max(1 - x - y, 0.0)) for x in ticks for y in ticks if x + y <= 1 + 1e-12])
    lowest = objective(law, grid, rho).min()
    assert best.status is SearchStatus.OPTIMAL
    assert best.objective <= lowest + 1e-6
    assert best.lower_bound <= lowest + 1e-9
    assert objective(law, best.mixture, rho) == pytest.approx(best.objective, abs=1e-9)
    assert best.mixture.sum() == pytest.approx(1, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 1.0, math.inf]), st.sampled_from([0.0, 0.1]))
def test_no_mixture_is_below_the_lower_bound(seed: int, rho: float, kl: float) -> None:
    laws = [random_law(seed + k, domains=5, targets=4) for k in range(2)]
    rng = np.random.default_rng(seed)
    prior, weights, reference = rng.dirichlet([2.0] * 5), rng.dirichlet([3.0] * 4), rng.normal(0, 0.2, 4)

    def value(mixture: np.ndarray) -> float:
        excess = [law.losses(mixture) - reference for law in laws]
        worst = np.mean([worst_case(each, weights, rho).weights @ each for each in excess])
        return float(worst + kl * (mixture * np.log(np.maximum(mixture, 1e-300) / prior)).sum())

    best = best_mixture(laws, prior=prior, target_weights=weights, reference_loss=reference, rho=rho, kl=kl)
    assert best.objective == pytest.approx(value(best.mixture), abs=1e-9)
    assert (best.gap <= TOLERANCE) == (best.status is SearchStatus.OPTIMAL)
    near = 0.98 * best.mixture + 0.02 * rng.dirichlet([0.5] * 5, 20)
    for mixture in [*rng.dirichlet([0.5] * 5, 20), *near]:
        assert value(mixture) >= best.lower_bound - 1e-7  # shares below 1e-7 are out of the search


def test_two_targets_that_depend_on_a_domain_each_share_it_evenly() -> None:
    # L_j = 1 + (0.1 + r_j^0.5)^-0.5 for both
    row = [1.0, math.log(0.1), math.log(0.5), 0.0]
    law = MixtureLaw("effective-data", ("a", "b"), ("a", "b"), np.array([[*row, 0.0, -30.0], [*row, -30.0, 0.0]]))
    for rho in (0.0, 0.1, math.inf):
        best = best_mixture([law], rho=rho)
        np.testing.assert_allclose(best.mixture, [0.5, 0.5], atol=1e-3)
        np.testing.assert_allclose(best.target_weights, [0.5, 0.5], atol=0.02)


def test_a_reference_loss_moves_the_worst_case() -> None:
    row = [1.0, math.log(0.1), math.log(0.5), 0.0]
    law = MixtureLaw("effective-data", ("a", "b"), ("a", "b"), np.array([[*row, 0.0, -30.0], [*row, -30.0, 0.0]]))
    best = best_mixture([law], rho=math.inf, reference_loss=[0.3, 0.0])
    excess = best.losses[0] - [0.3, 0.0]
    assert excess == pytest.approx([best.objective] * 2, abs=1e-3)  # both are worst
    assert best.mixture[1] > 0.6


def test_bounds_and_prior() -> None:
    law = random_law(1)
    free = best_mixture([law])
    capped = best_mixture([law], upper=[0.3, 0.3, 0.3, 0.3], lower=[0.2, 0, 0, 0])
    assert (capped.mixture <= 0.3 + 1e-9).all()
    assert capped.mixture[0] >= 0.2 - 1e-9
    assert capped.objective >= free.lower_bound
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    near = best_mixture([law], prior=prior, kl=1e4)
    np.testing.assert_allclose(near.mixture, prior, atol=1e-3)
    distances = [np.abs(best_mixture([law], prior=prior, kl=kl).mixture - prior).sum() for kl in (0.0, 0.1, 1.0)]
    assert distances[0] > distances[1] > distances[2]


def test_several_laws_are_averaged() -> None:
    laws = [random_law(seed) for seed in range(3)]
    together = best_mixture(laws)
    mean = np.mean([law.losses(together.mixture).mean() for law in laws])
    assert together.objective == pytest.approx(mean, abs=1e-12)
    assert together.losses.shape == (3, 3)
    for law in laws:
        other = best_mixture([law]).mixture
        assert np.mean([each.losses(other).mean() for each in laws]) >= together.lower_bound


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"upper": 0.2}, "no mixture is within the bounds"),
        ({"lower": 0.3}, "no mixture is within the bounds"),
        ({"prior": [0.5, 0.5, 0, 0], "kl": 0.1, "lower": [0, 0, 0, 0.1]}, "the least share of 'd' is 0.1"),
        ({"prior": [0.5, 0.5, 0.5, 0.5]}, "prior sums to 2"),
        ({"prior": [0.5, 0.5]}, "prior is"),
        ({"target_weights": [1.0, 0.0, 1.0]}, "target_weights"),
        ({"rho": -1.0}, "rho is -1"),
        ({"rho": math.nan}, "rho is nan"),
        ({"kl": math.inf}, "kl inf"),
        ({"reference_loss": [math.nan] * 3}, "reference_loss is"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(WeightError, match=message):
        best_mixture([random_law(0)], **arguments)  # type: ignore[arg-type]


def test_laws_must_agree() -> None:
    with pytest.raises(WeightError, match="empty"):
        best_mixture([])
    with pytest.raises(WeightError, match="different domains"):
        best_mixture([random_law(0), random_law(0, domains=3)])


def test_gap_is_objective_less_bound() -> None:
    best = best_mixture([random_law(0)])
    assert isinstance(best, BestMixture)
    assert best.gap == best.objective - best.lower_bound
