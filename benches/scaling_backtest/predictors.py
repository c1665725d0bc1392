"""The methods that the backtest compares: predictions of the end of a curve from its beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import annealing_laws
import numpy as np
from annealing_laws import AnnealingLaw, Steps
from curves import Curve
from numpy.typing import NDArray
from scipy.optimize import minimize

from drpruning.scaling import LawStatus, LearningRates, fit_scaling_law

Vector = NDArray[np.float64]

HUBER = 1e-3
COLLECT_AFTER = 0.02
"""The part of the stage after which Deng et al. (2024) keep points."""
AVERAGED = 3
"""Best fits whose predictions they average."""
BETAS = (0.1, 0.5, 1.0)
LEVELS = (-2.0, -1.0, 0.0, 1.0)
FLOORS = (-1.0, 0.0, 1.0)
"""36 starts: exponent, log of what falls and log of what stays, at the last point."""


@dataclass(frozen=True)
class Seen:
    """The beginning of a curve, and the place of its end."""

    params: Vector
    steps: Vector
    losses: Vector
    final_params: float
    final_steps: float
    learning_rates: LearningRates | None


Predictor = Callable[[Seen], float]


def beginning(curve: Curve, part: float) -> Seen:
    """Return the points up to ``part`` of the curve's steps."""
    seen = curve.steps <= part * curve.steps[-1] * (1 + 1e-9)
    columns = (curve.params[seen], curve.steps[seen], curve.losses[seen])
    return Seen(*columns, curve.params[-1], curve.steps[-1], curve.learning_rates)


def last_value(seen: Seen) -> float:
    return float(seen.losses[-1])


def running_minimum(seen: Seen) -> float:
    return float(seen.losses.min())


def papers_way(seen: Seen) -> float:
    """Predict with L-BFGS from 36 starts on the Huber loss of the logarithm; return the mean of the best three."""
    starts = [(level, 0.3, beta, floor) for level in LEVELS for beta in BETAS for floor in FLOORS]
    return _by_lbfgs(seen, starts, AVERAGED, floor=True)


def without_floor(seen: Seen) -> float:
    """Predict with a pure power law, ``E = 0``: a convex problem, one start."""
    return _by_lbfgs(seen, [(0.0, 0.3, 0.3, 0.0)], 1, floor=False)


def with_schedule(method: Predictor) -> Predictor:
    """Return the method with our annealing term: it sees and predicts losses without the bend of the schedule."""

    def predict(seen: Seen) -> float:
        assert seen.learning_rates is not None
        flat = replace(seen, losses=seen.losses / seen.learning_rates.bend(seen.steps))
        return method(flat) * float(seen.learning_rates.bend(seen.final_steps))

    return predict


def annealing_law(law: AnnealingLaw, *, decay_known: bool) -> Predictor:
    """Return the prediction of a law of the literature, fitted to the points from the peak of the learning rate on."""

    def predict(seen: Seen) -> float:
        assert seen.learning_rates is not None
        kept = seen.steps >= seen.learning_rates.warm
        if kept.sum() < 2:
            return last_value(seen)
        at = Steps.of(seen.learning_rates, seen.steps[kept])
        fitted = annealing_laws.fit(law, [(at, seen.losses[kept])], decay_known=decay_known)
        end = Steps.of(seen.learning_rates, np.array([seen.final_steps]))
        return float(annealing_laws.predict(law, fitted, end)[0])

    return predict


@dataclass(frozen=True)
class Ours:
    """The prediction of our law without its correction and drift, which the tables refit.

    Attributes:
        value: The law at the end, nats; the lowest loss if it is not identified.
        half: Half of the statistical band in log loss; of the whole band if the law is not identified.
        identified: Whether the points identify the law.
    """

    value: float
    half: float
    identified: bool


def our_law(seen: Seen, learning_rates: LearningRates | None) -> Ours:
    law = fit_scaling_law(seen.params, seen.steps, seen.losses, learning_rates=learning_rates)
    if law.status == LawStatus.IDENTIFIED:
        return Ours(*law.value_and_error(seen.final_params, seen.final_steps), identified=True)
    value, _, high = law.predict(seen.final_params, seen.final_steps)
    return Ours(value, float(np.log(high / value)), identified=False)


def _by_lbfgs(seen: Seen, starts: list[tuple[float, float, float, float]], averaged: int, *, floor: bool) -> float:
    kept = seen.steps > COLLECT_AFTER * seen.final_steps
    if kept.sum() < 2:
        return float(seen.losses[-1])
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
    return float(np.mean(values))
