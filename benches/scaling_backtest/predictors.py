"""The predictors of the backtest: functions that predict the end of a curve from its beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from curves import Curve
from numpy.typing import NDArray
from scipy.optimize import minimize

from drpruning.scaling import LearningRates, fit_scaling_law

Vector = NDArray[np.float64]

HUBER = 1e-3
COLLECT_AFTER = 0.02
"""Fraction of the stage after which Deng et al. (2024) collect points."""
AVERAGED = 3
"""Number of best fits whose predictions Deng et al. average."""
BETAS = (0.1, 0.5, 1.0)
LEVELS = (-2.0, -1.0, 0.0, 1.0)
FLOORS = (-1.0, 0.0, 1.0)
"""36 starts: exponent, log of the falling part and log of the constant part, at the last point."""


@dataclass(frozen=True)
class Seen:
    """The beginning of a curve, and parameters and steps of its end."""

    params: Vector
    steps: Vector
    losses: Vector
    final_params: float
    final_steps: float
    learning_rates: LearningRates | None


@dataclass(frozen=True)
class Prediction:
    """A prediction, its band if there is one, and whether a law was identified."""

    value: float
    low: float = np.nan
    high: float = np.nan
    identified: bool = True


Predictor = Callable[[Seen], Prediction]


def beginning(curve: Curve, part: float) -> Seen:
    """Return the points up to the fraction ``part`` of the curve's steps."""
    seen = curve.steps <= part * curve.steps[-1] * (1 + 1e-9)
    rates = None if curve.rates is None else LearningRates(curve.steps, curve.rates)
    return Seen(curve.params[seen], curve.steps[seen], curve.losses[seen], curve.params[-1], curve.steps[-1], rates)


def last_value(seen: Seen) -> Prediction:
    return Prediction(float(seen.losses[-1]))


def running_minimum(seen: Seen) -> Prediction:
    return Prediction(float(seen.losses.min()))


def papers_way(seen: Seen) -> Prediction:
    """Fit by L-BFGS from 36 starts on the Huber loss of the logarithm, exact gradients; average the best three."""
    starts = [(level, 0.3, beta, floor) for level in LEVELS for beta in BETAS for floor in FLOORS]
    return _by_lbfgs(seen, starts, AVERAGED, floor=True)


def without_floor(seen: Seen) -> Prediction:
    """Fit a pure power law, ``E = 0``: a convex problem, one start."""
    return _by_lbfgs(seen, [(0.0, 0.3, 0.3, 0.0)], 1, floor=False)


def our_law(seen: Seen) -> Prediction:
    return _law(seen, None)


def our_law_with_schedule(seen: Seen) -> Prediction:
    """Fit the law with the learning rates where they are known, without them for other curves."""
    return _law(seen, seen.learning_rates)


def _law(seen: Seen, learning_rates: LearningRates | None) -> Prediction:
    law = fit_scaling_law(seen.params, seen.steps, seen.losses, learning_rates=learning_rates)
    return Prediction(*law.predict(seen.final_params, seen.final_steps), identified=law.status == "identified")


def _by_lbfgs(seen: Seen, starts: list[tuple[float, float, float, float]], averaged: int, *, floor: bool) -> Prediction:
    kept = seen.steps > COLLECT_AFTER * seen.final_steps
    if kept.sum() < 2:
        return Prediction(float(seen.losses[-1]), identified=False)
    x = np.log(seen.params[kept] / seen.params[-1])
    t = np.log(seen.steps[kept] / seen.steps[-1])
    y = np.log(seen.losses[kept])
    learn_alpha = np.ptp(x) > 0.01

    def objective(theta: Vector) -> tuple[float, Vector]:
        level, alpha, beta, low = theta
        power = level - alpha * x - beta * t
        model = np.logaddexp(power, low) if floor else power
        share = np.exp(power - model)
        residual = model - y
        size = np.abs(residual)
        value = np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)).sum()
        columns = np.stack([share, -share * x * learn_alpha, -share * t, 1 - share])
        return float(value), columns @ np.clip(residual, -HUBER, HUBER)

    fits = [minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}) for start in starts]
    fits = sorted((fit for fit in fits if np.isfinite(fit.fun)), key=lambda fit: float(fit.fun))
    ahead = np.log([seen.final_params / seen.params[-1], seen.final_steps / seen.steps[-1]])
    values = []
    for fit in fits[:averaged]:
        level, alpha, beta, low = fit.x
        power = np.exp(level - (alpha * ahead[0] if learn_alpha else 0.0) - beta * ahead[1])
        values.append(power + (np.exp(low) if floor else 0.0))
    return Prediction(float(np.mean(values)))
