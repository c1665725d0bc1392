"""What a swarm supports: the best mixture, how much better it is than the prior, and whether the runs show that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.chi2 import worst_case
from drpruning.errors import WeightError
from drpruning.mixture.bounds import Bounds
from drpruning.swarm.law import EXPLAINED, Form, LawFit, TargetStatus, fit_law
from drpruning.swarm.search import BestMixture, best_mixture
from drpruning.swarm.table import Swarm

BAND = (0.05, 0.95)
"""Quantiles over the resampled laws that a band spans."""


RUNS_PER_PARAMETER = 2
"""Runs of different mixtures for each parameter of a law from which a mixture can be supported: with fewer, the law of
a single loss failed on real runs (docs/benchmarks/mixture_search.md)."""

ROUNDING = 1e-9
"""A prior that violates a bound by less is within it."""


class Support(StrEnum):
    """How far the runs support the recommended mixture."""

    SUPPORTED = "supported"
    """All laws are good, each target was measured for twice as many different mixtures as a law has parameters, and the
    90% band of the improvement over the prior, taken over the resampled laws, is above 0 and the KL term."""
    UNCERTAIN = "uncertain"
    """Some law is not good, there are few runs, or the improvement over the prior is within the laws' uncertainty."""
    UNSUPPORTED = "unsupported"
    """Every law predicts hardly better than the mean loss: the recommended mixture is the prior, or the nearest mixture
    within the bounds."""


@dataclass(frozen=True, slots=True, eq=False)
class Recommendation:
    """A mixture, with what it is expected to gain.

    Attributes:
        domains: Names, ``[d]``.
        prior: The mixture it is compared with, float64 ``[d]``.
        mixture: The mixture recommended, float64 ``[d]``.
        band: 90% band of each share over the resampled laws, float64 ``[2, d]``: low, high; NaN if unsupported.
        support: How far the runs support it.
        reasons: Sentences, why it is not ``supported``; empty if it is.
        improvement: Weighted mean or worst case of the losses at the prior less that at the mixture, in the unit of the
            losses; 0 if unsupported. The KL term of the search is no part of it, but ``supported`` means an improvement
            larger than the KL term.
        improvement_band: Its 90% band over the resampled laws; NaN if unsupported.
        targets: Names, ``[t]``.
        losses_at_prior: Predicted losses at the prior, float64 ``[t]``.
        losses: Predicted losses at the mixture, float64 ``[t]``.
        losses_band: 90% band of those, float64 ``[2, t]``.
        fit: The laws.
        best: The result of the search, with its certificate.
        arguments: The arguments of :func:`drpruning.swarm.best_mixture` that the search had, but the laws.
    """

    domains: tuple[str, ...]
    prior: NDArray[np.float64]
    mixture: NDArray[np.float64]
    band: NDArray[np.float64]
    support: Support
    reasons: tuple[str, ...]
    improvement: float
    improvement_band: tuple[float, float]
    targets: tuple[str, ...]
    losses_at_prior: NDArray[np.float64]
    losses: NDArray[np.float64]
    losses_band: NDArray[np.float64]
    fit: LawFit
    best: BestMixture
    arguments: Mapping[str, Any]


def recommend(
    swarm: Swarm,
    *,
    prior: Mapping[str, float] | None = None,
    target_weights: Mapping[str, float] | None = None,
    reference_loss: Mapping[str, float] | None = None,
    rho: float = 0.0,
    kl: float = 0.0,
    min_share: Mapping[str, float] | float = 0.0,
    max_share: Mapping[str, float] | float = 1.0,
    form: Form = "effective-data",
    resamples: int = 16,
    seed: int = 0,
) -> Recommendation:
    """Fit the laws of a swarm, search the best mixture and judge how far the runs support it.

    Args:
        swarm: The runs.
        prior: Mixture to compare with, the centre of the KL term; without: the mean mixture of the swarm.
        target_weights: Weight of each target; without: all equal.
        reference_loss: Loss of each target that its predicted loss is compared with; without: 0.
        rho: 0 for the weighted mean of the targets, infinity for the worst, a radius of the chi-square ball between.
        kl: Weight of the divergence from the prior, in the unit of the losses.
        min_share: Least share, one for all domains or by domain (0 where not named).
        max_share: Largest share, likewise (1 where not named).
        form: Form of the laws.
        resamples: Laws that show the uncertainty, >= 2.
        seed: Of the resampling.

    Raises:
        WeightError: ``resamples`` is below 2; a mapping names an unknown domain or target, or lacks one; as for
            :func:`fit_law` and :func:`best_mixture`.
    """
    if resamples < 2:
        raise WeightError(f"resamples is {resamples}; expected at least 2")
    domains, targets = swarm.domains, swarm.targets
    centre = swarm.mixtures.mean(axis=0) if prior is None else _by_name("prior", prior, domains)
    fit = fit_law(swarm, form=form, resamples=resamples, seed=seed)
    arguments: dict[str, Any] = {
        "prior": centre,
        "target_weights": None if target_weights is None else _by_name("target_weights", target_weights, targets),
        "reference_loss": None if reference_loss is None else _by_name("reference_loss", reference_loss, targets),
        "rho": rho,
        "kl": kl,
        "lower": _by_name("min_share", min_share, domains, default=0.0),
        "upper": _by_name("max_share", max_share, domains, default=1.0),
    }
    best = best_mixture(fit.resampled, **arguments)
    each = [best_mixture([law], **arguments) for law in fit.resampled]
    weights, reference = arguments["target_weights"], arguments["reference_loss"]
    at_centre, at_best = (
        np.array([_objective(law.losses(mixture), weights, reference, rho) for law in fit.resampled])
        for mixture in (centre, best.mixture)
    )
    gains = at_centre - at_best
    reasons = _reasons(fit, len(swarm))
    nearest = _nearest(centre, domains, arguments["lower"], arguments["upper"])
    is_outside = bool(np.abs(nearest - centre).max() > ROUNDING)
    if (fit.explained >= EXPLAINED).any():
        mixture, band = best.mixture, np.quantile([found.mixture for found in each], BAND, axis=0)
        low, high = np.quantile(gains, BAND).tolist()
        if low <= (kl * _divergence(mixture, centre) if kl > 0 else 0.0):
            improvement = "the improvement over the prior" + (" less the KL term" if kl > 0 else "")
            reasons.append(
                "the prior is outside the bounds, and no mixture within them is certainly better"
                if is_outside
                else f"{improvement} is within the laws' uncertainty"
            )
        support = Support.UNCERTAIN if reasons else Support.SUPPORTED
    else:
        mixture, band = nearest, np.full((2, len(domains)), math.nan)
        gains, low, high = np.zeros(1), math.nan, math.nan
        if is_outside:
            reasons.append("the prior is outside the bounds: the mixture is the nearest within them")
        support = Support.UNSUPPORTED
    at_mixture = np.stack([law.losses(mixture) for law in fit.resampled])
    return Recommendation(
        domains=domains,
        prior=centre,
        mixture=mixture,
        band=band,
        support=support,
        reasons=tuple(reasons),
        improvement=float(gains.mean()),
        improvement_band=(low, high),
        targets=targets,
        losses_at_prior=np.mean([law.losses(centre) for law in fit.resampled], axis=0),
        losses=at_mixture.mean(axis=0),
        losses_band=np.quantile(at_mixture, BAND, axis=0),
        fit=fit,
        best=best,
        arguments=arguments,
    )


def _objective(
    losses: NDArray[np.float64],
    weights: NDArray[np.float64] | float | None,
    reference: NDArray[np.float64] | float | None,
    rho: float,
) -> float:
    excess = losses - (0.0 if reference is None else reference)
    w = np.ones(len(losses)) if weights is None else np.asarray(weights)
    w = w / w.sum()
    return float((w if rho == 0 else worst_case(excess, w, rho).weights) @ excess)


def _divergence(mixture: NDArray[np.float64], prior: NDArray[np.float64]) -> float:
    """Return ``KL(mixture, prior)``; a share of zero in the mixture adds nothing."""
    some = mixture > 0
    return float((mixture[some] * np.log(mixture[some] / prior[some])).sum())


def _nearest(
    mixture: NDArray[np.float64], domains: tuple[str, ...], lower: NDArray[np.float64], upper: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mixture within the bounds that is nearest in relative entropy."""
    low, high = (dict(zip(domains, bound.tolist(), strict=True)) for bound in (lower, np.minimum(upper, 1.0)))
    return Bounds(min_share=low, max_share=high).nearest(mixture, domains)


def _reasons(fit: LawFit, runs: int) -> list[str]:
    targets, parameters = fit.law.targets, fit.law.parameters.shape[1]
    texts = {
        TargetStatus.WEAK: "cross-validated predictions explain less than half of the differences between runs for",
        TargetStatus.TOO_FEW_RUNS: "there are fewer different mixtures than parameters of the law for",
        TargetStatus.CONSTANT: "the loss is the same in all runs for",
    }
    reasons = []
    expected = RUNS_PER_PARAMETER * parameters
    counts = {
        target: int(count)
        for target, count in zip(targets, fit.measured, strict=True)
        if parameters <= count < expected
    }
    if counts:
        fewest = min(counts, key=lambda target: counts[target])
        which = "" if counts[fewest] == runs else f" of different mixtures with a loss of {fewest}"
        few = f"{counts[fewest]} runs{which} determine laws of {parameters} parameters"
        reasons.append(f"{few}; expected at least {expected} runs")
    for status, text in texts.items():
        names = [target for target, its in zip(targets, fit.status, strict=True) if its is status]
        if names:
            few = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            reasons.append(f"{text} {few}")
    return reasons


def _by_name(
    what: str, values: Mapping[str, float] | float, names: tuple[str, ...], default: float | None = None
) -> NDArray[np.float64]:
    if not isinstance(values, Mapping):
        return np.full(len(names), float(values))
    if unknown := sorted(set(values) - set(names)):
        raise WeightError(f"{what} names {unknown[0]!r}; expected names among {', '.join(names)}")
    if default is None and (missing := [name for name in names if name not in values]):
        raise WeightError(f"{what} has no number for {missing[0]!r}; expected one for each of {', '.join(names)}")
    return np.array([values.get(name, math.nan if default is None else default) for name in names], np.float64)
