"""The best response in the chi-square ball, exact or as the paper's public code computes it."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from drpruning.chi2 import worst_case
from drpruning.chi2_published import published_update
from drpruning.errors import ConfigError

Vector = NDArray[np.float64]
Solver = Literal["exact", "published"]


def best_response(
    solver: Solver, losses: Vector, reference: Vector, p: Vector, rho: float, floor: float
) -> tuple[Vector, str]:
    """The mixture under which ``losses - reference`` is worst, and what decided it.

    Args:
        solver: ``"exact"``: :func:`drpruning.worst_case`, whose status is returned. ``"published"``:
            :func:`drpruning.published_update`, for runs that are compared with published ones. It scales reference
            losses that all lie above the losses; where no scale helps, since all losses are negative, the exact answer
            is taken.
        losses: Nats per token, finite, ``[n]``.
        reference: Nats per token, finite, ``[n]``.
        p: The reference mixture, ``[n]``.
        rho: Radius of the ball, halved divergence.
        floor: Least ratio of a weight to its reference.
    """
    excess = losses - reference
    if solver == "published" and max(excess.max(), losses.max()) >= 0:
        weights = published_update(excess, p, rho, floor=floor, reference_loss=reference)
        if np.isfinite(weights).all():  # float32 and a bisection make no promise
            return weights, "published"
    worst = worst_case(excess, p, rho, floor)
    return worst.weights, worst.status


def check_ball(solver: str, rho: float, floor: float) -> None:
    """Refuses settings of the ball that are out of range."""
    if solver not in ("exact", "published"):
        raise ConfigError(f'solver is {solver!r}; it can be "exact" or "published"')
    if not rho >= 0:
        raise ConfigError(f"rho is {rho}; it must be at least 0")
    if solver == "published" and not 0 < rho < math.inf:
        raise ConfigError(f"rho is {rho}; the published update needs it positive and finite")
    if not 0 <= floor < 1:
        raise ConfigError(f"floor is {floor}; it must be at least 0 and below 1")
