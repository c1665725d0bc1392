"""The scaling law of one domain's loss curve: fitted while the run goes on, to predict where the curve ends.

The law is ::

    loss(P, T) = A P^-alpha T^-beta + E

with ``P`` parameters in use (the expected number, while masks close), ``T`` tokens trained on in the stage, ``E`` the
irreducible loss. It is the law of Hoffmann et al. (2022, eq. 10) with the product form that Deng et al. (2024) use to
predict the end of pruning and of continued pretraining.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drpruning.errors import WeightError

Vector = NDArray[np.float64]

HUBER = 1e-3
"""Residuals of log loss beyond this count linearly (Hoffmann et al. 2022, section D.2)."""
LARGEST_EXPONENT = 3.0
"""Bound on alpha and beta; published exponents lie below 1."""
SAME_SIZE = 0.01
"""Parameter counts within this ratio of each other are one number: alpha is not to be learned from them."""
LARGEST_FALL = 1e6
"""Losses further apart than this factor are not one curve."""
LEAST_POINTS = 4
"""One more than the curve at constant P has parameters."""
STARTS = 3
"""Best points of the starting grid that are refined."""
PRIOR = np.array([5.0, 1.0, 1.0, 1.0])
"""Standard deviations of log K, alpha, beta and E (data scaled to one), for directions the points say nothing about."""


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """A fitted law, or the statement that the points do not determine one.

    Attributes:
        A: Coefficient in nats, for ``P`` in parameters and ``T`` in tokens. At constant ``P`` it is ``A P^-alpha``.
        alpha: Exponent of ``P``, in [0, 3]; 0 when ``alpha_identified`` is false.
        beta: Exponent of ``T``, in [0, 3].
        E: Irreducible loss in nats, >= 0.
        residual: Root mean square of the residuals of log loss.
        status: ``"identified"``, or ``"not_identified"``: fewer than 4 usable points or different ``T``, or a curve
            that does not fall visibly with ``T``. The law is then the constant ``E``, the lowest loss seen.
        alpha_identified: Whether ``P`` varied enough (1%) to learn ``alpha``.
        points: Number of points used.
    """

    A: float
    alpha: float
    beta: float
    E: float
    residual: float
    status: Literal["identified", "not_identified"]
    alpha_identified: bool
    points: int
    # What the band needs: centres of log P, log T, log loss; covariance of (log K, alpha, beta, E); Student's t
    _centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    _covariance: tuple[tuple[float, ...], ...] = ()
    _noise: float = 0.0
    _quantile: float = 0.0

    def predict(self, P: float, T: float) -> tuple[float, float, float]:
        """The loss at ``P`` parameters and ``T`` tokens, with the ends of its 90% band, in nats.

        The band is for one measured loss: it has the uncertainty of the fit (linearised) and the noise of the points.
        For a law that is not identified it spans the losses seen.

        Raises:
            WeightError: ``P`` or ``T`` is not positive and finite.
        """
        for name, number in (("P", P), ("T", T)):
            if not (math.isfinite(number) and number > 0):
                raise WeightError(f"{name} is {number}; a prediction needs it positive and finite")
        if not self._covariance:
            return self.E, self.E - self._noise, self.E + self._quantile
        x, t, y = self._centre
        exponent = math.log(self.A) - self.alpha * math.log(P) - self.beta * math.log(T)
        power = math.exp(min(exponent, 700.0))
        value = power + self.E
        # d log(loss) / d (log K, alpha, beta, E in units of exp(y))
        share = power / value
        gradient = np.array([share, -share * (math.log(P) - x), -share * (math.log(T) - t), math.exp(y) / value])
        variance = float(gradient @ np.array(self._covariance) @ gradient) + self._noise**2
        half = min(self._quantile * math.sqrt(max(variance, 0.0)), 50.0)
        return value, value * math.exp(-half), min(value * math.exp(half), 1e300)


def fit_scaling_law(params: ArrayLike, tokens: ArrayLike, losses: ArrayLike) -> ScalingLaw:
    """Fits the law to the points of one domain, robustly and deterministically.

    Minimises the sum of Huber losses (1e-3) of ``log(law) - log(loss)`` with ``A, E, alpha, beta >= 0``. For fixed
    exponents the law is linear in ``A`` and ``E``, so a grid over the exponents alone gives the starting points
    (variable projection); the best three are refined by a bounded trust-region method. Points with a loss or count that
    is not positive and finite are left out. Scaling losses, tokens or parameters scales the answer.

    Args:
        params: Parameters in use at each point, ``[n]``; a constant is fine.
        tokens: Tokens trained on at each point, ``[n]``.
        losses: Held-out loss at each point, nats per token, ``[n]``.

    Raises:
        WeightError: The arguments differ in length, or hold no finite loss at all.

    Example:
        >>> T = [1e6 * k for k in range(1, 11)]
        >>> law = fit_scaling_law([1e8] * 10, T, [2.0 + 30 * t**-0.25 for t in T])
        >>> law.status, round(law.E, 3), round(law.beta, 3), law.alpha_identified
        ('identified', 2.0, 0.25, False)
    """
    P, T, loss = (np.asarray(values, dtype=np.float64) for values in (params, tokens, losses))
    if loss.ndim != 1 or P.shape != loss.shape or T.shape != loss.shape:
        raise WeightError(f"params, tokens and losses have shapes {P.shape}, {T.shape} and {loss.shape}; want one [n]")
    if not np.isfinite(loss).any():
        raise WeightError("no loss is finite: there is nothing to fit")
    usable = np.isfinite(loss) & np.isfinite(P) & np.isfinite(T) & (loss > 0) & (P > 0) & (T > 0)
    seen = loss[np.isfinite(loss)]
    logs = np.log(P[usable]), np.log(T[usable]), np.log(loss[usable])
    too_few = usable.sum() < LEAST_POINTS or np.unique(logs[1]).size < LEAST_POINTS
    if too_few or np.ptp(logs[2]) > math.log(LARGEST_FALL):
        return _constant(seen, int(usable.sum()))
    return _fit(*logs) or _constant(seen, int(usable.sum()))


def _constant(losses: Vector, points: int) -> ScalingLaw:
    lowest, highest = float(losses.min()), float(losses.max())
    return ScalingLaw(
        A=0.0,
        alpha=0.0,
        beta=0.0,
        E=max(lowest, 0.0),
        residual=0.0,
        status="not_identified",
        alpha_identified=False,
        points=points,
        _quantile=highest - lowest,
    )


def _fit(log_P: Vector, log_T: Vector, log_loss: Vector) -> ScalingLaw | None:
    """The law, or None if the curve does not fall visibly."""
    from scipy.optimize import least_squares  # noqa: PLC0415
    from scipy.special import stdtrit  # noqa: PLC0415

    centre = float(log_P.mean()), float(log_T.mean()), float(log_loss.mean())
    x, t, y = log_P - centre[0], log_T - centre[1], log_loss - centre[2]
    learns_alpha = float(np.ptp(x)) > SAME_SIZE and x.size > LEAST_POINTS
    free = np.array([True, learns_alpha, True, True])

    def expand(theta: Vector) -> Vector:
        full = np.zeros(4)
        full[free] = theta
        return full

    def residuals(theta: Vector) -> Vector:
        k, alpha, beta, E = expand(theta)
        return np.asarray(np.log(np.exp(k - alpha * x - beta * t) + E) - y)

    def jacobian(theta: Vector) -> Vector:
        k, alpha, beta, E = expand(theta)
        power = np.exp(k - alpha * x - beta * t)
        value = power + E
        columns = np.stack([power / value, -power / value * x, -power / value * t, 1 / value], axis=1)
        return np.asarray(columns[:, free])

    bounds = np.array([[-50.0, 0.0, 0.0, 0.0], [50.0, LARGEST_EXPONENT, LARGEST_EXPONENT, math.exp(y.max())]])

    def refine(start: Vector, evaluations: int) -> tuple[float, Vector]:
        fit = least_squares(
            residuals,
            np.clip(start, bounds[0][free] + 1e-9, bounds[1][free] - 1e-9),
            jacobian,
            bounds=(bounds[0][free], bounds[1][free]),
            loss="huber",
            f_scale=HUBER,
            xtol=1e-12,
            ftol=1e-10,
            gtol=1e-12,
            max_nfev=evaluations,
        )
        return float(fit.cost), fit.x

    # A short try from each start, a long one from the best: far from the optimum the outcome is soon clear
    tries = [refine(start[free], 30) for start in _starts(x, t, y, learns_alpha)]
    _, best = refine(min(tries, key=lambda fit: fit[0])[1], 300)
    k, alpha, beta, E = expand(best)
    residual = residuals(best)
    freedom = max(x.size - int(free.sum()), 1)
    noise = max(math.sqrt(float(residual @ residual) / freedom), 1e-9)
    fall = math.exp(k - alpha * x[-1]) * (math.exp(-beta * t.min()) - math.exp(-beta * t.max()))
    if not fall > max(2 * noise, 1e-6) * math.exp(y.min()):
        return None
    inside = free & (expand(best) > bounds[0] + 1e-6) & (expand(best) < bounds[1] - 1e-6)
    J = jacobian(best)[:, inside[free]]
    covariance = np.zeros((4, 4))
    precision = J.T @ J / noise**2 + np.diag(PRIOR[inside] ** -2)
    covariance[np.ix_(inside, inside)] = np.linalg.inv(precision)
    return ScalingLaw(
        A=math.exp(min(k + centre[2] + alpha * centre[0] + beta * centre[1], 700.0)),
        alpha=float(alpha),
        beta=float(beta),
        E=float(E) * math.exp(centre[2]),
        residual=math.sqrt(float(residual @ residual) / x.size),
        status="identified",
        alpha_identified=learns_alpha,
        points=x.size,
        _centre=centre,
        _covariance=tuple(tuple(row) for row in covariance.tolist()),
        _noise=noise,
        _quantile=float(stdtrit(freedom, 0.95)),
    )


def _starts(x: Vector, t: Vector, y: Vector, learns_alpha: bool) -> list[Vector]:
    """The best few (log K, alpha, beta, E) of a grid over the exponents, K and E solved for."""
    alphas = [0.0, 0.2, 0.5, 1.0, 2.0] if learns_alpha else [0.0]
    betas = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5]
    alpha, beta = (grid.reshape(-1, 1) for grid in np.meshgrid(alphas, betas))
    basis = np.exp(-alpha * x - beta * t)
    # Least squares of (K b + E) / loss against 1: the residual of log loss to first order
    b, one = basis / np.exp(y), 1 / np.exp(y)
    bb, b1, b_ = (b * b).sum(1), (b * one).sum(1), b.sum(1)
    oo, o_ = (one * one).sum(), one.sum()
    determinant = np.maximum(bb * oo - b1 * b1, 1e-300)
    K, E = (b_ * oo - o_ * b1) / determinant, (o_ * bb - b_ * b1) / determinant
    K, E = np.where(E < 0, b_ / bb, K), np.maximum(E, 0.0)
    K, E = np.maximum(K, 1e-12), np.where(K <= 0, o_ / oo, E)
    residual = np.abs(np.log(K[:, None] * basis + E[:, None]) - y)
    score = np.where(residual <= HUBER, residual**2 / 2, HUBER * (residual - HUBER / 2)).sum(1)
    order = np.argsort(score, kind="stable")[:STARTS]
    return [np.array([np.log(K[i]), alpha[i, 0], beta[i, 0], E[i]]) for i in order]
