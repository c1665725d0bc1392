"""The trade between the weighted mean and the worst target, as robustness or the weight of the prior changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import WeightError
from drpruning.swarm.law import MixtureLaw
from drpruning.swarm.recommend import Recommendation
from drpruning.swarm.search import best_mixture
from drpruning.swarm.table import Swarm

RHOS = (0.0, 0.02, 0.1, 0.5, 2.0, 10.0, math.inf)
"""Radii of the ball of targets, from the weighted mean to the worst target."""

KLS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Weights of the prior, in the unit of the losses; Olmix uses 0.1."""


@dataclass(frozen=True, slots=True, eq=False)
class TradeCurve:
    """The best mixtures as one setting changes.

    Attributes:
        setting: ``rho`` or ``kl``.
        values: Of the setting, ``[k]``.
        mixtures: Float64 ``[k, d]``.
        outcomes: Predicted weighted mean and worst target, less the reference losses, float64 ``[k, 2]``.
    """

    setting: str
    values: tuple[float, ...]
    mixtures: NDArray[np.float64]
    outcomes: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Trade:
    """Predicted and observed outcomes: weighted mean and worst target, in the unit of the losses.

    Attributes:
        robustness: The best mixtures for :data:`RHOS`, with the recommendation's weight of the prior.
        prior_weight: The best mixtures for :data:`KLS`, with the recommendation's radius; None where a weight above 0
            leaves no mixture, as the prior has a share of 0 that the bounds exclude.
        prior: Predicted outcome of the prior, float64 ``[2]``.
        mixture: Predicted outcome of the recommended mixture, float64 ``[2]``.
        runs: Observed outcome of each run, float64 ``[n, 2]``; NaN if a loss is missing.
    """

    robustness: TradeCurve
    prior_weight: TradeCurve | None
    prior: NDArray[np.float64]
    mixture: NDArray[np.float64]
    runs: NDArray[np.float64]


def trade(swarm: Swarm, found: Recommendation) -> Trade:
    """Return the trade under the laws of a recommendation, and the outcomes of the runs.

    Args:
        swarm: The runs that the laws were fitted to.
        found: The recommendation from them.
    """
    laws, arguments = found.fit.resampled, found.arguments
    try:
        prior_weight = _curve(laws, arguments, "kl", KLS)
    except WeightError:  # the arguments with the recommendation's kl are valid
        prior_weight = None
    return Trade(
        robustness=_curve(laws, arguments, "rho", RHOS),
        prior_weight=prior_weight,
        prior=_predicted(laws, found.prior, arguments),
        mixture=_predicted(laws, found.mixture, arguments),
        runs=_outcomes(swarm.losses, arguments),
    )


def _curve(
    laws: Sequence[MixtureLaw], arguments: Mapping[str, Any], setting: str, values: tuple[float, ...]
) -> TradeCurve:
    mixtures = [best_mixture(laws, **{**arguments, setting: value}).mixture for value in values]
    outcomes = np.stack([_predicted(laws, mixture, arguments) for mixture in mixtures])
    return TradeCurve(setting, values, np.stack(mixtures), outcomes)


def _predicted(
    laws: Sequence[MixtureLaw], mixture: NDArray[np.float64], arguments: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Return the mean over the laws of each law's weighted mean and worst target."""
    losses = np.stack([law.losses(mixture) for law in laws])
    return np.asarray(_outcomes(losses, arguments).mean(axis=0))


def _outcomes(losses: NDArray[np.float64], arguments: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return weighted mean and worst of each row of losses ``[n, t]``, float64 ``[n, 2]``."""
    weights, reference = arguments["target_weights"], arguments["reference_loss"]
    w = np.ones(losses.shape[1]) if weights is None else np.asarray(weights)
    excess = losses - (0.0 if reference is None else reference)
    return np.column_stack([excess @ (w / w.sum()), excess.max(axis=1)])
