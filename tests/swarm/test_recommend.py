"""Recommendations: supported by many runs, uncertain with few, the prior where laws explain nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from drpruning.errors import WeightError
from drpruning.swarm import Support, Swarm, recommend
from tests.swarm.test_law import simulated


def test_many_runs_support_a_mixture_that_is_better() -> None:
    swarm = simulated(80, 0.01)
    prior = {"a": 0.1, "b": 0.4, "c": 0.1, "d": 0.4}
    found = recommend(swarm, prior=prior, resamples=8)
    assert found.support is Support.SUPPORTED
    assert found.reasons == ()
    low, high = found.improvement_band
    assert 0 < low <= found.improvement <= high
    assert found.losses.mean() < found.losses_at_prior.mean()
    assert (found.band[0] <= found.band[1]).all()
    assert (found.losses_band[0] <= found.losses + 1e-12).all()


def test_fewer_runs_than_parameters_are_uncertain() -> None:
    found = recommend(simulated(7, 0.01), resamples=4)
    assert found.support is Support.UNCERTAIN
    assert found.reasons[0] == "there are fewer different mixtures than parameters of the law for first, second"


def test_repeated_runs_of_few_mixtures_do_not_determine_a_law() -> None:
    # the losses are noise that is the same for all runs of a mixture: no run shows anything of another mixture
    rng = np.random.default_rng(1)
    mixtures, losses = rng.dirichlet([2.0, 1.0, 0.5], 8), rng.normal(2, 0.1, (8, 1))
    swarm = Swarm.of("abc", np.repeat(mixtures, 6, axis=0), ("t",), np.repeat(losses, 6, axis=0))
    found = recommend(swarm, resamples=4)
    assert found.fit.measured.tolist() == [8]
    assert found.fit.explained[0] < 0.5
    assert found.support is Support.UNSUPPORTED
    assert found.reasons[0] == (
        "8 runs of different mixtures with a loss of t determine laws of 7 parameters; expected at least 14 runs"
    )


def test_a_target_that_few_runs_measured_makes_it_uncertain() -> None:
    swarm = simulated(80, 0.01)
    losses = swarm.losses.copy()
    losses[10:, 1] = np.nan
    prior = {"a": 0.1, "b": 0.4, "c": 0.1, "d": 0.4}
    found = recommend(Swarm.of(swarm.domains, swarm.mixtures, swarm.targets, losses), prior=prior, resamples=4)
    assert found.fit.measured.tolist() == [80, 10]
    assert found.support is Support.UNCERTAIN
    assert "10 runs of different mixtures with a loss of second determine laws" in found.reasons[0]


def test_noise_recommends_the_prior() -> None:
    rng = np.random.default_rng(0)
    swarm = Swarm.of("abcd", rng.dirichlet([1.0] * 4, 60), ("t",), rng.normal(3, 0.1, (60, 1)))
    found = recommend(swarm, resamples=4)
    assert found.support is Support.UNSUPPORTED
    np.testing.assert_array_equal(found.mixture, found.prior)
    assert found.improvement == 0
    assert np.isnan([*found.improvement_band, *found.band.ravel()]).all()  # the laws' best mixtures are not the prior


def test_noise_and_a_prior_outside_the_bounds_recommend_the_nearest_mixture_within() -> None:
    rng = np.random.default_rng(0)
    swarm = Swarm.of("abc", rng.dirichlet([1.0] * 3, 30), ("t",), rng.normal(3, 0.1, (30, 1)))
    found = recommend(swarm, prior={"a": 0.2, "b": 0.7, "c": 0.1}, max_share={"b": 0.2}, resamples=2)
    assert found.support is Support.UNSUPPORTED
    np.testing.assert_allclose(found.mixture, [0.8 * 2 / 3, 0.2, 0.8 / 3])
    assert found.reasons[-1] == "the prior is outside the bounds: the mixture is the nearest within them"


def test_the_improvement_is_of_the_losses_and_the_verdict_of_the_objective() -> None:
    swarm = simulated(80, 0.01)
    prior = {"a": 0.1, "b": 0.4, "c": 0.1, "d": 0.4}
    found = recommend(swarm, prior=prior, kl=0.02, resamples=4)
    assert found.improvement == pytest.approx(found.losses_at_prior.mean() - found.losses.mean())
    at_prior = np.mean([law.losses(found.prior).mean() for law in found.fit.resampled])
    divergence = (found.mixture * np.log(found.mixture / found.prior)).sum()
    assert found.best.objective == pytest.approx(at_prior - found.improvement + 0.02 * divergence, abs=1e-9)
    assert found.support is Support.SUPPORTED
    assert found.improvement_band[0] > 0.02 * divergence

    # near the prior, an improvement that is certain but may be less than the KL term
    swarm = simulated(80, 0.09)
    best = recommend(swarm, resamples=4).mixture
    near = recommend(swarm, prior=dict(zip("abcd", 0.85 * best + 0.15 * 0.25, strict=True)), kl=0.03, resamples=4)
    assert 0 < near.improvement_band[0] < 0.03 * (near.mixture * np.log(near.mixture / near.prior)).sum()
    assert near.support is Support.UNCERTAIN
    assert near.reasons == ("the improvement over the prior less the KL term is within the laws' uncertainty",)


def test_one_weak_target_makes_it_uncertain() -> None:
    swarm = simulated(80, 0.01)
    noise = np.random.default_rng(3).normal(3, 0.1, (80, 1))
    both = Swarm.of(swarm.domains, swarm.mixtures, (*swarm.targets, "noise"), np.hstack([swarm.losses, noise]))
    found = recommend(both, resamples=4)
    assert found.support is Support.UNCERTAIN
    assert found.reasons == (
        "cross-validated predictions explain less than half of the differences between runs for noise",
    )


def test_a_prior_that_is_best_already_cannot_be_improved() -> None:
    swarm = simulated(80, 0.02)
    best = recommend(swarm, resamples=4)
    again = recommend(swarm, prior=dict(zip(best.domains, best.mixture, strict=True)), resamples=4)
    assert again.support is Support.UNCERTAIN
    assert "within the laws' uncertainty" in again.reasons[0]


def test_shares_keep_their_bounds() -> None:
    found = recommend(simulated(60), resamples=2, max_share={"a": 0.2}, min_share=0.05, rho=math.inf)
    assert found.mixture[0] <= 0.2 + 1e-9
    assert found.mixture.min() >= 0.05 - 1e-9


def test_bounds_that_exclude_a_better_prior_are_a_reason() -> None:
    swarm = simulated(80, 0.01)
    best = recommend(swarm, resamples=2)
    prior = dict(zip(best.domains, best.mixture, strict=True))
    found = recommend(swarm, prior=prior, max_share={"a": prior["a"] / 2, "c": prior["c"] / 2}, resamples=2)
    assert found.improvement_band[1] < 0
    assert found.support is Support.UNCERTAIN
    assert found.reasons == ("the prior is outside the bounds, and no mixture within them is certainly better",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": {"a": 1.0}}, "prior has no number for 'b'"),
        ({"max_share": {"x": 0.5}}, "max_share names 'x'"),
        ({"target_weights": {"first": 1.0, "third": 1.0}}, "target_weights names 'third'"),
        ({"resamples": 1}, "resamples is 1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightError, match=message):
        recommend(simulated(20), **{"resamples": 2} | arguments)
