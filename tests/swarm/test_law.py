"""The law of mixtures: derivatives, convexity, what it recovers from simulated runs, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from drpruning.errors import WeightError
from drpruning.swarm import Form, MixtureLaw, Swarm, TargetStatus, fit_law
from drpruning.swarm.law import _features, _huber, _with_jacobian

FORMS: tuple[Form, ...] = ("effective-data", "log-linear", "linear")
DOMAINS = ("a", "b", "c", "d")


def simulated(runs: int, noise: float = 0.0, seed: int = 0) -> Swarm:
    """Return runs whose losses follow the law with known parameters, two targets."""
    rng = np.random.default_rng(seed)
    mixtures = rng.dirichlet([0.7] * 4, runs)
    first = 1.5 + (0.2 + mixtures**0.5 @ [2.0, 0.3, 0.05, 0.4]) ** -0.4
    second = 2.0 + (0.1 + mixtures**0.7 @ [0.1, 0.2, 3.0, 0.0]) ** -0.2
    losses = np.column_stack([first, second]) + noise * rng.standard_normal((runs, 2))
    return Swarm.of(DOMAINS, mixtures, ("first", "second"), losses)


def parameters(form: Form, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0, 0.7, 4 + {"effective-data": 4}.get(form, 1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_derivatives_are_those_of_finite_differences(form: Form, seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, mixture = parameters(form, rng), rng.dirichlet([2.0] * 4)
    law = MixtureLaw(form, DOMAINS, ("t",), theta[None])
    step = 1e-6  # central differences: error about step^2 + 1e-16 / step
    by_share = [
        (law.losses(mixture + step * unit)[0] - law.losses(mixture - step * unit)[0]) / (2 * step) for unit in np.eye(4)
    ]
    np.testing.assert_allclose(law.gradients(mixture)[0], by_share, rtol=1e-6, atol=1e-7)

    features = _features(form, mixture[None])
    value, jacobian = _with_jacobian(form, theta, features)
    assert value[0] == law.losses(mixture)[0]
    for number, unit in enumerate(np.eye(len(theta))):
        up, down = (_with_jacobian(form, theta + sign * step * unit, features)[0][0] for sign in (1, -1))
        assert jacobian[0, number] == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_losses_are_convex_in_the_mixture(form: Form) -> None:
    rng = np.random.default_rng(7)
    for _ in range(50):
        law = MixtureLaw(form, DOMAINS, ("t",), parameters(form, rng)[None])
        ends = rng.dirichlet([0.5] * 4, 2)
        middle = law.losses(ends.mean(axis=0))[0]
        mean = law.losses(ends)[:, 0].mean()
        assert middle <= mean + 1e-12 * abs(mean)


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far_away() -> None:
    residuals = np.array([-1e-4, 0.0, 1e-4, 300.0])
    value, slope = _huber(residuals)
    np.testing.assert_allclose(value[:3], residuals[:3], rtol=1e-8)
    assert value[3] ** 2 / 2 == pytest.approx(3 * 300, rel=0.01)  # delta |r|, up to delta^2
    numeric = (_huber(residuals + 1e-6)[0] - _huber(residuals - 1e-6)[0]) / 2e-6
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)


def test_a_law_of_forty_runs_predicts_others_better_than_their_noise() -> None:
    noise = 0.01
    fit = fit_law(simulated(40, noise), resamples=4)
    unseen = simulated(200, seed=1)
    error = np.sqrt(((fit.law.losses(unseen.mixtures) - unseen.losses) ** 2).mean(axis=0))
    assert (error < noise).all(), error
    assert fit.status == (TargetStatus.GOOD, TargetStatus.GOOD)
    assert (fit.explained > 0.98).all()
    assert (fit.rank_correlation > 0.98).all()
    assert fit.error == pytest.approx(noise, rel=0.5)
    assert len(fit.resampled) == 4
    spread = np.std([law.losses(unseen.mixtures) for law in fit.resampled], axis=0)
    assert 0 < spread.mean() < noise


def test_a_diverged_run_does_not_bend_the_law() -> None:
    swarm, unseen = simulated(60, 0.005), simulated(200, seed=1)
    losses = swarm.losses.copy()
    losses[3] += 3.0
    fit = fit_law(Swarm.of(swarm.domains, swarm.mixtures, swarm.targets, losses), resamples=0)
    error = np.sqrt(((fit.law.losses(unseen.mixtures) - unseen.losses) ** 2).mean(axis=0))
    assert (error < 0.02).all(), error


def test_missing_losses_are_left_out() -> None:
    swarm = simulated(60)
    losses = swarm.losses.copy()
    losses[::2, 1] = np.nan
    fit = fit_law(Swarm.of(swarm.domains, swarm.mixtures, swarm.targets, losses), resamples=0)
    alone = fit_law(Swarm.of(swarm.domains, swarm.mixtures[1::2], ["second"], swarm.losses[1::2, 1:]), resamples=0)
    np.testing.assert_array_equal(fit.law.parameters[1], alone.law.parameters[0])


def test_runs_of_several_lengths_are_one_law_of_amounts() -> None:
    rng = np.random.default_rng(2)
    mixtures, tokens = rng.dirichlet([0.7] * 4, 60), rng.choice([1e8, 2e8, 4e8], 60)
    amounts = mixtures * (tokens / 4e8)[:, None]
    losses = 1.5 + (0.05 + amounts**0.5 @ [2.0, 0.3, 0.05, 0.4]) ** -0.4
    swarm = Swarm.of(DOMAINS, mixtures, ("t",), losses[:, None], tokens=tokens)
    law = fit_law(swarm, resamples=0).law
    unseen = rng.dirichlet([0.7] * 4, 50) * rng.uniform(0.25, 1, (50, 1))
    truth = 1.5 + (0.05 + unseen**0.5 @ [2.0, 0.3, 0.05, 0.4]) ** -0.4
    np.testing.assert_allclose(law.losses(unseen)[:, 0], truth, atol=0.01)
    with pytest.raises(WeightError, match="for runs of one length"):
        fit_law(swarm, form="linear")


def test_statuses() -> None:
    rng = np.random.default_rng(0)
    mixtures = rng.dirichlet([1.0] * 4, 40)
    losses = np.column_stack([np.full(40, 2.5), rng.normal(3, 0.1, 40)])
    fit = fit_law(Swarm.of(DOMAINS, mixtures, ("constant", "noise"), losses), resamples=1)
    assert fit.status == (TargetStatus.CONSTANT, TargetStatus.WEAK)
    assert fit.law.losses(mixtures)[:, 0] == pytest.approx(2.5, abs=1e-9)
    assert fit_law(simulated(7), resamples=0).status[0] is TargetStatus.TOO_FEW_RUNS


def test_the_same_seed_gives_the_same_laws() -> None:
    first, second = (fit_law(simulated(30, 0.01), resamples=2, seed=5) for _ in range(2))
    for a, b in zip(first.resampled, second.resampled, strict=True):
        np.testing.assert_array_equal(a.parameters, b.parameters)
    np.testing.assert_array_equal(first.error, second.error)


def test_runs_that_determine_nothing_are_refused() -> None:
    same = Swarm.of(("a", "b"), [[0.5, 0.5]] * 5, ("t",), np.arange(5.0)[:, None])
    with pytest.raises(WeightError, match="the same mixture"):
        fit_law(same)
    two = Swarm.of(("a", "b"), [[0.5, 0.5], [0.1, 0.9]], ("t",), [[1.0], [2.0]])
    with pytest.raises(WeightError, match="needs at least 3"):
        fit_law(two)
    with pytest.raises(WeightError, match="expected effective-data"):
        fit_law(simulated(10), form="cubic")  # type: ignore[arg-type]


def test_a_law_of_twenty_runs_does_not_explode_where_useful_domains_are_absent() -> None:
    # With a wide prior, exponents of 12 fit these runs, and the cross-validated error is 0.47 nats instead of 0.04
    rng = np.random.default_rng(0)
    mixtures = rng.dirichlet(np.full(7, 0.5), 20)
    mixtures[mixtures < 0.05] = 0
    mixtures /= mixtures.sum(axis=1, keepdims=True)
    absent = (mixtures[:, :2] == 0).all(axis=1)
    losses = 5.2 + 0.03 * rng.normal(size=20) + 0.25 * absent
    fit = fit_law(Swarm.of(tuple("abcdefg"), mixtures, ("loss",), losses[:, None]), resamples=0, folds=20)
    assert fit.status == (TargetStatus.GOOD,)
    assert fit.error[0] < 1.5 * 0.05
