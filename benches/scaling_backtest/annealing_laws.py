"""Laws with learning-rate annealing from the literature: the annealing law of Tissue et al., and the multi-power law.

Both describe the loss at each step of a known schedule ``eta``, with ``S1`` the sum of learning rates up to the step:

- Tissue et al. (2024, arXiv 2408.11029, the equation of the abstract): ``L = L0 + A S1^-alpha - C S2`` with the
  annealing area ``S2 = sum_k (eta_{k-1} - eta_k) (1 + lambda + ... + lambda^(s - k))``.
- Luo et al. (2025, arXiv 2503.12811, equations 1 and 2): ``L = L0 + A S1^-alpha - LD`` with the loss reduction
  ``LD = B sum_k (eta_{k-1} - eta_k) G(eta_k^-gamma S_k)``, ``G(x) = 1 - (C x + 1)^-beta`` and ``S_k`` the sum of
  learning rates from step k on.

Rates are in parts of the peak and ``S1`` in steps at the peak, so that constants compare between runs. Decreases of the
rate are lumped: each straight piece of a schedule becomes a few drops. Both papers fit the sum of Huber losses (1e-3)
of ``log(law) - log(loss)``, as does this file, by L-BFGS from several starts with exact gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from drpruning.scaling import LearningRates

Vector = NDArray[np.float64]

HUBER = 1e-3
"""Of both papers' fits."""
DROPS = 64
"""Least number of drops in which a whole decay is lumped."""
LARGEST = 700.0

LUO_PEAK = 3e-4
LUO_DECAY = (437.946 * LUO_PEAK, 2.132 * LUO_PEAK ** (1 - 0.655), 0.598, 0.655)
"""``B, C, beta, gamma`` of the 100M model in the README of thu-yao-01-luo/MultiPowerLaw, with rates in parts of the
peak; those of 25M and 400M differ by a fifth in ``B`` and by hardly anything in the others."""
TISSUE_LAMBDA = 0.999
"""Decay factor of the annealing momentum per step."""
TISSUE_FALL = 0.13
"""Start of ``C / (1 - lambda)``, nats: the loss that a whole decay removes in the end, as ``B`` above."""


@dataclass(frozen=True, eq=False)
class Steps:
    """What the laws need to know of a schedule at n steps, with K drops of the learning rate.

    Attributes:
        area: ``S1`` at each step, ``[n]``.
        drop: Size of each drop in parts of the peak, negative for a rise, ``[K]``.
        rate: Rate after each drop in parts of the peak, ``[K]``.
        since: Steps since each drop, 0 before it, ``[n, K]``.
        area_since: Sum of learning rates since each drop, 0 before it, ``[n, K]``.
    """

    area: Vector
    drop: Vector
    rate: Vector
    since: Vector
    area_since: Vector

    @classmethod
    def of(cls, schedule: LearningRates, steps: Vector) -> Steps:
        corners, rates = np.array(schedule.tokens), np.array(schedule.rates) / max(schedule.rates)
        if corners[0] > 0:  # level before the first corner
            corners, rates = np.append(0.0, corners), np.append(rates[0], rates)
        if steps.max() > corners[-1]:
            corners, rates = np.append(corners, steps.max()), np.append(rates, rates[-1])
        changing = (np.diff(rates) != 0) & (corners[1:] > schedule.warm)
        parts = max(1, -(-DROPS // max(int(changing.sum()), 1)))
        middles = (np.arange(parts) + 0.5) / parts
        places = (corners[:-1, None] + np.diff(corners)[:, None] * middles)[changing].ravel()
        drop = np.repeat(-np.diff(rates)[changing] / parts, parts)
        after = np.interp(places, corners, rates) - drop / 2
        occurred = (places <= steps.max()) & (drop != 0)
        places, drop, after = places[occurred], drop[occurred], after[occurred]
        summed = np.append(0.0, np.cumsum(np.diff(corners) * (rates[1:] + rates[:-1]) / 2))

        def area(at: Vector) -> Vector:
            k = np.clip(np.searchsorted(corners, at, side="right") - 1, 0, corners.size - 2)
            return np.asarray(summed[k] + (at - corners[k]) * (rates[k] + np.interp(at, corners, rates)) / 2)

        areas = area(steps)
        return cls(
            area=np.maximum(areas, 1e-9),
            drop=drop,
            rate=np.maximum(after, 1e-6),
            since=np.maximum(steps[:, None] - places, 0.0),
            area_since=np.maximum(areas[:, None] - area(places), 0.0),
        )


class AnnealingLaw(Protocol):
    """A law's annealing part: the loss that the falling rate removes, with parameters in logarithms."""

    def reduction(self, logs: Vector, at: Steps) -> tuple[Vector, Vector]:
        """Return the reduction in nats ``[n]`` and its derivatives by ``logs``, ``[n, p]``."""

    @property
    def starts(self) -> tuple[tuple[float, ...], ...]:
        """Logarithms of the parameters from which a fit starts; the first are the published ones."""


class Tissue:
    """``C S2`` of Tissue et al. (2024), with one parameter: ``C / (1 - lambda)``."""

    starts = ((float(np.log(TISSUE_FALL)),),)

    def reduction(self, logs: Vector, at: Steps) -> tuple[Vector, Vector]:
        """See :meth:`AnnealingLaw.reduction`."""
        value = np.exp(logs[0]) * ((1 - TISSUE_LAMBDA**at.since) @ at.drop)
        return value, value[:, None]


class MultiPower:
    """``LD`` of Luo et al. (2025), with four parameters: ``B, C, beta, gamma``."""

    starts = (tuple(np.log(LUO_DECAY).tolist()), tuple(np.log([0.1, 0.01, 0.5, 0.5]).tolist()))

    def reduction(self, logs: Vector, at: Steps) -> tuple[Vector, Vector]:
        """See :meth:`AnnealingLaw.reduction`."""
        B, C, beta, gamma = np.exp(logs)
        log_rate = np.log(at.rate)
        x = C * at.area_since * np.exp(-gamma * log_rate)
        log_inside = np.log1p(x)
        power = np.exp(-beta * log_inside)
        by_x = beta * power / (1 + x) * x
        value = B * ((1 - power) @ at.drop)
        slopes = (value, B * (by_x @ at.drop), B * beta * ((power * log_inside) @ at.drop))
        return value, np.stack([*slopes, -B * gamma * ((by_x * log_rate) @ at.drop)], axis=1)


def fit(law: AnnealingLaw, runs: Sequence[tuple[Steps, Vector]], *, decay_known: bool = False) -> Vector:
    """Fit a law to the losses of one or more runs of one model, jointly.

    A parameter that the runs do not determine keeps its start: the published value.

    Args:
        law: Annealing part of the law.
        runs: Steps and losses, nats ``[n]``, of each run.
        decay_known: Whether to fit ``L0, A, alpha`` alone and keep the published annealing part.

    Returns:
        Logarithms of ``L0, A, alpha`` and of the annealing part's parameters. ``A`` is the reducible loss, in nats, at
        the geometric mean of ``S1``.
    """
    logs = [np.log(losses) for _, losses in runs]
    lowest = float(np.exp(min(each.min() for each in logs)))
    highest = float(np.exp(max(each.max() for each in logs)))
    starts = law.starts[:1] if decay_known else law.starts
    scale = _scale(runs)

    def objective(theta: Vector) -> tuple[float, Vector]:
        total, gradient = 0.0, np.zeros(theta.size)
        for (at, _), y in zip(runs, logs, strict=True):
            value, slope = _loss(law, theta, at, scale)
            residual = np.log(value) - y
            size = np.abs(residual)
            total += float(np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)).sum())
            gradient += (np.clip(residual, -HUBER, HUBER) / value) @ slope
        if decay_known:
            gradient[3:] = 0.0
        # Of the order of one, or the tolerances of L-BFGS end the search at once
        return total / HUBER**2, gradient / HUBER**2

    best, found = np.inf, np.zeros(3 + len(starts[0]))
    for part, alpha, start in product((0.6, 0.9), (0.5,), starts):
        middle = max((lowest + highest) / 2 - part * lowest, 1e-3)
        theta = np.concatenate([np.log([part * lowest, middle, alpha]), start])
        bounds = [(each - 6, each + 6) for each in theta]
        solution = minimize(
            objective, theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200, "maxfun": 250}
        )
        if solution.fun < best:
            best, found = float(solution.fun), np.asarray(solution.x)
    return np.append(found, scale)


def predict(law: AnnealingLaw, fitted: Vector, at: Steps) -> Vector:
    """Return the losses in nats at the steps, ``[n]``."""
    return _loss(law, fitted[:-1], at, float(fitted[-1]))[0]


def _scale(runs: Sequence[tuple[Steps, Vector]]) -> float:
    return float(np.mean(np.log(np.concatenate([at.area for at, _ in runs]))))


def _loss(law: AnnealingLaw, theta: Vector, at: Steps, scale: float) -> tuple[Vector, Vector]:
    """Return the loss, at least a thousandth of a nat, and its derivatives ``[n, 3 + p]``."""
    L0, A, alpha = np.exp(theta[:3])
    ahead = np.log(at.area) - scale
    power = A * np.exp(np.clip(-alpha * ahead, -LARGEST, LARGEST))
    removed, slopes = law.reduction(theta[3:], at)
    columns = [np.full(power.size, L0), power, -alpha * ahead * power]
    value = L0 + power - removed
    return np.maximum(value, 1e-3), np.column_stack([*columns, -slopes])
