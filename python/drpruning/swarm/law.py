"""The law of mixtures: the final loss of each target as a convex function of the mixture a run was trained on.

For a mixture ``r`` over domains and a target ``j`` ::

    L_j(r) = c_j + D_j(r)^(-beta_j),    D_j(r) = e_j + sum_i a_ji r_i^gamma_j

with ``a, e >= 0``, ``beta > 0`` and ``0 < gamma <= 1``. ``D_j`` is the effective amount of data for the target: each
domain contributes with its own usefulness ``a_ji`` and with diminishing returns ``gamma_j``; ``e_j`` is the amount at
the start of training. ``D_j`` is concave and increasing in ``r`` and ``x^-beta`` convex and decreasing, so ``L_j`` is
convex: :mod:`drpruning.swarm.search` finds the global optimum of any mean or worst case of such losses.

Runs of several lengths, or several points of each run, are fitted together: ``r_i`` is then the amount of a domain's
tokens, in parts of the longest run's tokens (:attr:`Swarm.amounts`). The law assumes that a loss depends on the amounts
alone and not on their order in training.

Two forms of the literature are fitted for comparison: ``linear`` (``c_j + b_j . r``, the baseline of RegMix, Liu et al.
2024) and ``log-linear`` (``c_j + exp(b_j . r)``: Data Mixing Laws, Ye et al. 2024; Olmix, 2026). Both are convex too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from drpruning.errors import SolverError, WeightError
from drpruning.swarm.table import Swarm

Form = Literal["effective-data", "log-linear", "linear"]
"""The form of a law; the module describes each."""

TIE = 0.1
"""Precision of the prior that draws the logarithms of a target's ``a_ji`` to their mean (and ``b_ji`` to theirs).

Weak: a run of ordinary size outweighs it, and a domain that no run varies keeps the mean usefulness instead of none.
"""

EXPONENT, EXPONENT_SPREAD = 0.3, 1.0
"""Centre of the prior on ``beta``, and standard deviation of its logarithm.

With about twice as many runs as parameters a wide prior fails: an exponent of 10 with ``e`` near 0 fits the runs, and
predicts losses of several nats too much for a mixture without the useful domains. A deviation of 3 gave a mean
cross-validated error of 0.076 nats on the 21 runs of RedPajama 160M, of 1 gives 0.028 (``benches/mixture_search.py``).
"""

FOLDS = 5
"""Parts of a cross-validation; each part of the runs is predicted by a law fitted on the others."""

_LARGEST = 30.0  # logarithms of parameters stay within +-30: beyond, float64 residuals no longer change
_SMALLEST_SHARE = 1e-12  # of a mixture, where r^gamma is differentiated


class TargetStatus(StrEnum):
    """How far the law of one target can be trusted."""

    GOOD = "good"
    """Cross-validated predictions explain at least :data:`EXPLAINED` of the variance between runs."""
    WEAK = "weak"
    """Cross-validated predictions explain less: the law ranks mixtures hardly better than the mean loss."""
    TOO_FEW_RUNS = "too-few-runs"
    """Fewer mixtures than parameters were measured: the prior decides part of the law."""
    CONSTANT = "constant"
    """The target's loss is the same in all runs."""


EXPLAINED = 0.5
"""Share of the variance between runs that the cross-validated predictions of a good law explain at least."""


@dataclass(frozen=True, slots=True, eq=False)
class MixtureLaw:
    """The laws of all targets, of one form.

    Attributes:
        form: The form of the law.
        domains: Names of the mixture's domains, ``[d]``.
        targets: Names of the losses, ``[t]``.
        parameters: Float64 ``[t, p]``, unconstrained; :meth:`losses` is how they are used.
    """

    form: Form
    domains: tuple[str, ...]
    targets: tuple[str, ...]
    parameters: NDArray[np.float64]

    def losses(self, mixtures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the predicted losses of mixtures.

        Args:
            mixtures: Float64 ``[..., d]``, shares that sum to 1; amounts of a shorter run sum to less.

        Returns:
            Float64 ``[..., t]``, in the unit of the swarm's losses.
        """
        features = _features(self.form, mixtures)
        return np.stack([_value(self.form, each, features) for each in self.parameters], axis=-1)

    def gradients(self, mixture: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the derivatives of the losses by the shares at one mixture, float64 ``[t, d]``.

        Shares below 1e-12 are differentiated at 1e-12, where the derivative of ``r^gamma`` is finite.
        """
        features = _features(self.form, np.maximum(mixture, _SMALLEST_SHARE))
        return np.stack([_slope(self.form, each, features) for each in self.parameters])


@dataclass(frozen=True, slots=True, eq=False)
class LawFit:
    """A fitted law, with its cross-validation.

    Attributes:
        law: The law fitted on all runs.
        resampled: Laws fitted on runs with random weights (Bayesian bootstrap); together they show what the runs do
            not determine.
        status: Of each target.
        measured: Number of different mixtures with a loss of each target, int64 ``[t]``.
        rank_correlation: Spearman's, between cross-validated predictions and losses, float64 ``[t]``; NaN where it is
            not defined.
        error: Root mean square of the cross-validated errors, float64 ``[t]``, in the unit of the losses.
        explained: Share of the variance between runs that cross-validated predictions explain, float64 ``[t]``; at
            most 1, negative where the mean loss predicts better.
    """

    law: MixtureLaw
    resampled: tuple[MixtureLaw, ...]
    status: tuple[TargetStatus, ...]
    measured: NDArray[np.int64]
    rank_correlation: NDArray[np.float64]
    error: NDArray[np.float64]
    explained: NDArray[np.float64]


def fit_law(
    swarm: Swarm, *, form: Form = "effective-data", resamples: int = 16, folds: int = FOLDS, seed: int = 0
) -> LawFit:
    """Fit a law per target to the runs of a swarm.

    Residuals are measured in the noise of the runs, which is estimated from a first fit, and enter as a pseudo-Huber
    loss, so that a run that diverged does not bend the law.

    Runs of one mixture, and the points of one run, are in one part of the cross-validation and have one random weight:
    they show the same mixture, and predicting one of them from the others predicts no mixture.

    Args:
        swarm: Mixtures and losses of the runs.
        form: The form of the law.
        resamples: Number of laws fitted to randomly weighted runs.
        folds: Parts of the cross-validation; 0 leaves it out, and the status is then ``weak``.
        seed: Of the folds and of the weights.

    Raises:
        WeightError: The form is unknown or does not fit runs of several lengths, a target has fewer than three runs
            with a loss, or all runs have the same mixture.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> mixtures = rng.dirichlet([1, 1, 1], 60)
        >>> losses = 2 + 0.5 * mixtures**-0.1
        >>> fit = fit_law(Swarm.of(("a", "b", "c"), mixtures, ("a", "b", "c"), losses), resamples=0)
        >>> [str(each) for each in fit.status], bool((fit.rank_correlation > 0.99).all())
        (['good', 'good', 'good'], True)
    """
    if form not in ("effective-data", "log-linear", "linear"):
        raise WeightError(f"form is {form!r}; expected effective-data, log-linear or linear")
    if form != "effective-data" and np.ptp(swarm.tokens) > 0:
        raise WeightError(
            f"form {form!r} is for runs of one length; these have {swarm.tokens.min():g} to {swarm.tokens.max():g}"
        )
    if np.ptp(swarm.mixtures, axis=0).max() < 1e-9:
        raise WeightError(
            f"all {len(swarm.mixtures)} runs have the same mixture: no law can be fitted",
            "Propose mixtures that differ with `drpruning mix --design 32`.",
        )
    rng = np.random.default_rng(seed)
    numbers = swarm.mixture_numbers
    mixtures = int(numbers.max()) + 1
    fold_of_run = (np.argsort(rng.random(mixtures)) % max(folds, 1))[numbers]
    fold_of_run = fold_of_run if folds > 1 else np.full_like(fold_of_run, -1)
    weights = rng.exponential(size=(resamples, mixtures))[:, numbers]
    targets = [_fit_target(swarm, column, form, fold_of_run, weights) for column in range(len(swarm.targets))]

    def law(parameters: Sequence[NDArray[np.float64]]) -> MixtureLaw:
        return MixtureLaw(form, swarm.domains, swarm.targets, np.stack(parameters))

    return LawFit(
        law=law([each.parameters for each in targets]),
        resampled=tuple(law([each.resampled[k] for each in targets]) for k in range(resamples)),
        status=tuple(each.status for each in targets),
        measured=np.array([each.measured for each in targets], np.int64),
        rank_correlation=np.array([each.rank_correlation for each in targets]),
        error=np.array([each.error for each in targets]),
        explained=np.array([each.explained for each in targets]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _TargetFit:
    parameters: NDArray[np.float64]
    resampled: list[NDArray[np.float64]]
    status: TargetStatus
    measured: int
    rank_correlation: float
    error: float
    explained: float


def _fit_target(
    swarm: Swarm, column: int, form: Form, folds: NDArray[np.intp], weights: NDArray[np.float64]
) -> _TargetFit:
    measured = np.isfinite(swarm.losses[:, column])
    features, losses, folds = _features(form, swarm.amounts[measured]), swarm.losses[measured, column], folds[measured]
    mixtures = len(set(swarm.mixture_numbers[measured].tolist()))
    if len(losses) < 3:
        raise WeightError(
            f"the target {swarm.targets[column]!r} has a loss in {len(losses)} runs; a law needs at least 3",
            "Leave the target out with --targets, or measure it in more runs.",
        )
    spread = float(losses.std())
    start = _start(form, features, losses)
    if spread < 1e-12 * max(1.0, float(np.abs(losses).max())):
        flat = _constant_law(form, features.shape[1], float(losses.mean()))
        return _TargetFit(flat, [flat] * len(weights), TargetStatus.CONSTANT, mixtures, float("nan"), 0.0, float("nan"))

    ones = np.ones(len(losses))
    rough = _least_squares(form, features, losses, ones, 0.1 * spread, start)
    noise = _noise(losses - _value(form, rough, features), spread)
    parameters = _least_squares(form, features, losses, ones, noise, rough)
    resampled = [_least_squares(form, features, losses, w[measured], noise, parameters, steps=8) for w in weights]

    predicted = np.full(len(losses), np.nan)
    for fold in set(folds[folds >= 0].tolist()):
        left_out = folds == fold
        kept = ~left_out
        if kept.sum() >= 2:
            part = _least_squares(form, features[kept], losses[kept], ones[kept], noise, rough)
            predicted[left_out] = _value(form, part, features[left_out])
    known = np.isfinite(predicted)
    errors = losses[known] - predicted[known]
    error, explained = float("nan"), float("nan")
    if len(errors) > 1:
        error = float(np.sqrt((errors**2).mean()))
        explained = 1 - error**2 / float(losses[known].var())
    too_few = mixtures < len(parameters)
    status = (
        TargetStatus.TOO_FEW_RUNS if too_few else TargetStatus.GOOD if explained >= EXPLAINED else TargetStatus.WEAK
    )
    rank_correlation = _spearman(predicted[known], losses[known])
    return _TargetFit(parameters, resampled, status, mixtures, rank_correlation, error, explained)


def _least_squares(
    form: Form,
    features: NDArray[np.float64],
    losses: NDArray[np.float64],
    weights: NDArray[np.float64],
    noise: float,
    start: NDArray[np.float64],
    steps: int = 60,
) -> NDArray[np.float64]:
    """Minimise the weighted pseudo-Huber loss of the residuals in units of ``noise``, plus the prior."""
    root = np.sqrt(weights)
    prior_value, prior_slope = _prior(form, features.shape[1])

    def residuals(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = (_value(form, parameters, features) - losses) / noise
        return np.concatenate([root * _huber(scaled)[0], prior_value(parameters)])

    def jacobian(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        value, slope = _with_jacobian(form, parameters, features)
        factor = root * _huber((value - losses) / noise)[1] / noise
        return np.vstack([factor[:, None] * slope, prior_slope])

    with np.errstate(over="ignore", invalid="ignore"):
        try:
            found = least_squares(residuals, start, jac=jacobian, method="lm", max_nfev=steps)
        except ValueError as error:
            raise SolverError(f"the law of features cannot be fitted: {error}") from error
    return np.asarray(found.x)


def _huber(residuals: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``h`` with ``h^2 / 2`` the pseudo-Huber loss (quadratic below 3, linear above), and ``dh/dr``."""
    bend = np.sqrt(1 + (residuals / 3) ** 2)
    value = residuals * np.sqrt(2 / (1 + bend))  # = sign(r) 3 sqrt(2 (bend - 1)), without cancellation
    slope = np.sqrt(2 / (1 + bend)) * (1 - (residuals / 3) ** 2 / (2 * bend * (1 + bend)))
    return value, slope


def _noise(residuals: NDArray[np.float64], spread: float) -> float:
    """Return a robust standard deviation, at least a thousandth of the spread between runs."""
    return max(1.4826 * float(np.median(np.abs(residuals))), 1e-3 * spread)


def _features(form: Form, mixtures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the law of this form is a function of: shares, or their logarithms (of zero: that of 1e-300)."""
    return np.log(np.maximum(mixtures, 1e-300)) if form == "effective-data" else mixtures


def _value(form: Form, parameters: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
    if form == "linear":
        return np.asarray(parameters[0] + features @ parameters[1:])
    if form == "log-linear":
        return np.asarray(parameters[0] + np.exp(np.clip(features @ parameters[1:], -_LARGEST, _LARGEST)))
    rest, beta, gamma, usefulness = _split(parameters)
    return np.asarray(parameters[0] + (rest + np.exp(gamma * features) @ usefulness) ** -beta)


def _slope(form: Form, parameters: NDArray[np.float64], features: NDArray[np.float64]) -> NDArray[np.float64]:
    if form == "linear":
        return parameters[1:]
    if form == "log-linear":
        return np.exp(np.clip(features @ parameters[1:], -_LARGEST, _LARGEST)) * parameters[1:]
    rest, beta, gamma, usefulness = _split(parameters)
    amount = rest + np.exp(gamma * features) @ usefulness
    return -beta * amount ** (-beta - 1) * usefulness * gamma * np.exp((gamma - 1) * features)


def _with_jacobian(
    form: Form, parameters: NDArray[np.float64], features: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the values ``[n]`` and their derivatives by the parameters ``[n, p]``."""
    ones = np.ones((len(features), 1))
    if form == "linear":
        return parameters[0] + features @ parameters[1:], np.hstack([ones, features])
    if form == "log-linear":
        height = np.exp(np.clip(features @ parameters[1:], -_LARGEST, _LARGEST))
        return parameters[0] + height, np.hstack([ones, height[:, None] * features])
    rest, beta, gamma, usefulness = _split(parameters)
    powers = np.exp(gamma * features)
    amount = rest + powers @ usefulness
    height = amount**-beta
    by_amount = -beta * height / amount
    by_gamma = by_amount * ((powers * features) @ usefulness) * gamma * (1 - gamma)
    jacobian = np.column_stack(
        [ones, by_amount * rest, -beta * height * np.log(amount), by_gamma, by_amount[:, None] * powers * usefulness]
    )
    return parameters[0] + height, jacobian


def _split(parameters: NDArray[np.float64]) -> tuple[float, float, float, NDArray[np.float64]]:
    """Return ``e``, ``beta``, ``gamma`` and ``a`` of the parameters ``c, log e, log beta, logit gamma, log a``."""
    clipped = np.clip(parameters[1:], -_LARGEST, _LARGEST)
    e, beta, gamma = np.exp(clipped[0]), np.exp(clipped[1]), 1 / (1 + np.exp(-clipped[2]))
    return float(e), float(beta), float(gamma), np.exp(clipped[3:])


def _start(form: Form, features: NDArray[np.float64], losses: NDArray[np.float64]) -> NDArray[np.float64]:
    domains = features.shape[1]
    if form == "linear":
        return np.concatenate([[losses.mean()], np.zeros(domains)])
    height = max(2 * float(np.ptp(losses)), 1e-6)
    base = float(losses.min()) - height / 2
    if form == "log-linear":
        return np.concatenate([[base], np.full(domains, np.log(height))])
    beta = 0.3
    # half of D is e and half the data, and the loss of the mean D is the mean loss
    amount = max(float(losses.mean()) - base, 1e-9) ** (-1 / beta)
    usefulness = amount / 2 / float(np.exp(0.6 * features).sum(1).mean())
    return np.concatenate(
        [[base, np.log(amount / 2), np.log(beta), np.log(0.6 / 0.4)], np.full(domains, np.log(usefulness))]
    )


def _constant_law(form: Form, domains: int, loss: float) -> NDArray[np.float64]:
    """Return parameters of a law that predicts ``loss`` for every mixture."""
    if form == "linear":
        return np.concatenate([[loss], np.zeros(domains)])
    if form == "log-linear":
        return np.concatenate([[loss - 1e-12], np.full(domains, -_LARGEST)])
    return np.concatenate([[loss - 1.0, 0.0, 0.0, 0.0], np.full(domains, -_LARGEST)])


def _prior(
    form: Form, domains: int
) -> tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], NDArray[np.float64]]:
    """Return residuals of the prior and their constant derivatives."""
    tied = np.sqrt(TIE) * (np.eye(domains) - 1 / domains)
    if form != "effective-data":
        slope = np.hstack([np.zeros((domains, 1)), tied * (0.1 if form == "linear" else 1.0)])
        return (lambda parameters: np.asarray(slope @ parameters)), slope
    # log beta as documented above, the logit of gamma around that of 0.6 with deviation 1.5
    slope = np.zeros((domains + 2, domains + 4))
    slope[:domains, 4:] = tied
    slope[domains, 2], slope[domains + 1, 3] = 1 / EXPONENT_SPREAD, 1 / 1.5
    centre = np.zeros(domains + 4)
    centre[2], centre[3] = np.log(EXPONENT), np.log(0.6 / 0.4)
    return (lambda parameters: np.asarray(slope @ (parameters - centre))), slope


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    from scipy.stats import rankdata  # noqa: PLC0415 - scipy.stats takes 0.3 s to import

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
