"""Fitting the law to the points of a curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drpruning import _native
from drpruning.errors import WeightError
from drpruning.scaling import points
from drpruning.scaling.annealing import LearningRates, as_numbers
from drpruning.scaling.law import LARGEST_POWER, LawStatus, ScalingLaw

Vector = NDArray[np.float64]

HUBER = 1e-3
"""Residuals of log loss beyond this count linearly (Hoffmann et al. 2022, section D.2)."""
BOUNDS = np.array([[-math.inf, 0.0, 0.0, 0.0], [math.inf, 1.0, 3.0, 3.0]])
"""Of u, w, alpha and beta, as the core has them."""
MAD = 1.4826
"""Standard deviation of a normal variable whose median absolute value is one."""
SMALLEST_NOISE = 1e-9
"""Points without noise would have a band of no width."""
SAME_SIZE = 0.01
"""Parameter counts within this ratio of each other count as one number: alpha is not fitted to them."""
LARGEST_FALL = 1e6
"""Losses further apart than this factor are not one curve."""
LEAST_POINTS = 4
"""One more than the curve at constant P has parameters."""
PRIOR = np.array([5.0, 1.0, 1.0, 1.0])
"""Standard deviations of u, w, alpha and beta, for directions the points say nothing about."""


def fit_scaling_law(
    params: ArrayLike, tokens: ArrayLike, losses: ArrayLike, *, learning_rates: LearningRates | None = None
) -> ScalingLaw:
    """Fit the law to the points of one domain, robustly and deterministically.

    Minimises the sum of Huber losses (1e-3) of ``log(law) - log(loss)`` with ``A, E >= 0`` and exponents in [0, 3], and
    finds the global minimum (variable projection, in compiled code: see ``rust/core/src/scaling.rs``). Scaling
    losses, tokens or parameters scales the answer.

    Points are dropped by rule, not by hand. A loss or count that is not positive and finite is never used. What is
    below a tenth of the largest ``T`` is warm-up. If the law of the rest does not fit the points beyond half of the
    largest ``T`` as well as those points' own law does (mean residual 1.3 times as large), only these are used: real
    curves follow the law over a limited range. The latest 6 points are always kept.

    Args:
        params: Parameters in use at each point, ``[n]``; a constant is fine.
        tokens: Tokens trained on at each point, ``[n]``; repeated and unordered ones are fine.
        losses: Held-out loss at each point, nats per token, ``[n]``.
        learning_rates: The schedule of the whole stage, in the same tokens. Points before its peak are dropped, and
            losses are compared with the law bent by :meth:`LearningRates.bend`. Give it whenever you know it.

    Raises:
        WeightError: The arguments are no numbers, differ in length, or hold no finite loss at all.

    Example:
        >>> T = [1e6 * k for k in range(1, 11)]
        >>> law = fit_scaling_law([1e8] * 10, T, [2.0 + 30 * t**-0.25 for t in T])
        >>> str(law.status), round(law.E, 3), round(law.beta, 3), law.alpha_identified
        ('identified', 2.0, 0.25, False)
    """
    P, T, loss = (
        as_numbers("params", params, "[n]"),
        as_numbers("tokens", tokens, "[n]"),
        as_numbers("losses", losses, "[n]"),
    )
    if loss.ndim != 1 or P.shape != loss.shape or T.shape != loss.shape:
        raise WeightError(f"params, tokens and losses have shapes {P.shape}, {T.shape}, {loss.shape}; expected one [n]")
    if not np.isfinite(loss).any():
        raise WeightError("no loss is finite: there is nothing to fit")
    usable = np.isfinite(loss) & np.isfinite(P) & np.isfinite(T) & (loss > 0) & (P > 0) & (T > 0)
    if learning_rates is not None:
        usable &= learning_rates.warm <= T
    seen = loss[np.isfinite(loss)]
    P, T, loss = P[usable], T[usable], loss[usable]
    distinct = np.unique(np.log(T)).size
    if distinct < LEAST_POINTS:
        return _constant(seen, T.size, f"{distinct} usable points with different T; at least {LEAST_POINTS} are needed")
    if np.ptp(np.log(loss)) > math.log(LARGEST_FALL):
        return _constant(seen, T.size, f"the losses differ by more than a factor of {LARGEST_FALL:g}")
    y = np.log(loss) if learning_rates is None else np.log(loss / learning_rates.bend(T))
    law = _law(np.log(P), np.log(T), y, learning_rates)
    return law or _constant(seen, T.size, "the loss does not fall visibly with T")


def fit_scaling_laws(
    params: ArrayLike, tokens: ArrayLike, losses: ArrayLike, *, learning_rates: LearningRates | None = None
) -> list[ScalingLaw]:
    """Fit one law for each domain, all measured at the same points.

    Args:
        params: Parameters in use at each point, ``[n]``.
        tokens: Tokens trained on at each point, ``[n]``.
        losses: Held-out losses, ``[n, d]``: a row for each point, a column for each domain; NaN where there is none.
        learning_rates: The schedule of the stage, if it is known.

    Returns:
        ``d`` laws, as :func:`fit_scaling_law` fits them.

    Raises:
        WeightError: The arguments differ in length, or a domain has no finite loss at all.
    """
    rows = as_numbers("losses", losses, "[n, d]")
    if rows.ndim != 2:
        raise WeightError(f"losses have shape {rows.shape}; expected [n, d], one column per domain")
    return [fit_scaling_law(params, tokens, column, learning_rates=learning_rates) for column in rows.T]


def _constant(losses: Vector, count: int, reason: str) -> ScalingLaw:
    lowest, highest = float(losses.min()), float(losses.max())
    return ScalingLaw(
        A=0.0,
        alpha=0.0,
        beta=0.0,
        E=max(lowest, 0.0),
        residual=0.0,
        status=LawStatus.NOT_IDENTIFIED,
        reason=reason,
        alpha_identified=False,
        points=count,
        _range=highest - lowest,
    )


def _law(x: Vector, t: Vector, y: Vector, learning_rates: LearningRates | None) -> ScalingLaw | None:
    """Return the law of the points that the rule keeps, or None if the curve does not fall visibly."""
    kept, recent = points.after(t, points.WARMUP), points.after(t, points.RECENT)
    wide, narrow = fit_points(x[kept], t[kept], y[kept]), fit_points(x[recent], t[recent], y[recent])
    if points.misfits(wide.log_loss(narrow.x, narrow.t) - narrow.y, narrow.residuals) and narrow.falls:
        return scaling_law(narrow, learning_rates)
    return scaling_law(wide, learning_rates) if wide.falls else None


def fit_points(x: Vector, t: Vector, y: Vector) -> Fit:
    """Fit the law to all these points, in logarithms."""
    learns_alpha = float(np.ptp(x)) > SAME_SIZE and x.size > LEAST_POINTS
    law = _native.fit_law(x, t, y, HUBER, learns_alpha)
    return Fit(x, t, y, theta=(law.level, law.share, law.alpha, law.beta), learns_alpha=learns_alpha)


def scaling_law(fit: Fit, learning_rates: LearningRates | None = None) -> ScalingLaw:
    """Return the law of a fit that falls."""
    from scipy.special import stdtrit  # noqa: PLC0415

    u, w, alpha, beta = fit.theta
    log_A = u + alpha * fit.origin[0] + beta * fit.origin[1]
    return ScalingLaw(
        A=w * math.exp(min(log_A, LARGEST_POWER)),
        alpha=alpha,
        beta=beta,
        E=math.exp(min(u, LARGEST_POWER)) * (1 - w),
        residual=math.sqrt(float(fit.residuals @ fit.residuals) / fit.y.size),
        status=LawStatus.IDENTIFIED,
        reason="",
        alpha_identified=fit.learns_alpha,
        points=fit.y.size,
        learning_rates=learning_rates,
        _level=u,
        _share=w,
        _origin=fit.origin,
        _covariance=tuple(tuple(row) for row in fit.covariance().tolist()),
        _quantile=float(stdtrit(fit.freedom, 0.95)),
        _noise=fit.noise,
        _last=float(fit.t.max()),
    )


@dataclass(frozen=True)
class Fit:
    """A law in the core's own form, ``(u, w, alpha, beta)``, with the points it was fitted to, in logarithms."""

    x: Vector
    t: Vector
    y: Vector
    theta: tuple[float, float, float, float]
    learns_alpha: bool
    known_noise: float = SMALLEST_NOISE  # standard deviation of log loss that the points are known to have

    @cached_property
    def origin(self) -> tuple[float, float]:
        """The smallest log P and log T."""
        return float(self.x.min()), float(self.t.min())

    @cached_property
    def residuals(self) -> Vector:
        """Law minus loss, in log loss, ``[n]``."""
        return self.log_loss(self.x, self.t) - self.y

    @property
    def freedom(self) -> int:
        """Points less the parameters learned, at least 1."""
        return max(self.y.size - 3 - self.learns_alpha, 1)

    @cached_property
    def noise(self) -> float:
        """Standard deviation of log loss around the law."""
        return max(math.sqrt(float(self.residuals @ self.residuals) / self.freedom), self.known_noise)

    def log_loss(self, x: Vector, t: Vector) -> Vector:
        """Return the logarithm of the law at log P and log T."""
        return np.asarray(self.theta[0] + np.log(self._inside(self.fall(x, t))))

    def _inside(self, b: Vector) -> Vector:
        """Return the law in parts of its value at the origin, above 0; exact without an irreducible loss (w = 1)."""
        w = self.theta[1]
        return np.maximum(1 - w + w * b, math.exp(-LARGEST_POWER))

    def fall(self, x: Vector, t: Vector) -> Vector:
        """Return ``b`` of the core's documentation: 1 at the origin, and smaller the more parameters and tokens."""
        _, _, alpha, beta = self.theta
        return np.asarray(np.exp(-alpha * (x - self.origin[0]) - beta * (t - self.origin[1])))

    @property
    def falls(self) -> bool:
        """Whether the law falls with T, from the first point to the last, by more than noise and rounding.

        The noise here is that of the better half of the points: an outlier does not hide a fall.
        """
        noise = MAD * float(np.median(np.abs(self.residuals))) * math.sqrt(self.y.size / self.freedom)
        ends = self.log_loss(np.full(2, self.x[np.argmax(self.t)]), np.array([self.t.min(), self.t.max()]))
        return bool(ends[0] - ends[1] > max(2 * noise, 1e-6))

    def covariance(self) -> NDArray[np.float64]:
        """Return the linearised covariance of ``(u, w, alpha, beta)``, ``[4, 4]``; zero at a bound or if fixed."""
        _, w, _, _ = self.theta
        b = self.fall(self.x, self.t)
        inside = self._inside(b)
        falling = w * b / inside
        x, t = self.x - self.origin[0], self.t - self.origin[1]
        J = np.stack([np.ones_like(b), (b - 1) / inside, -falling * x, -falling * t], axis=1)
        at = np.array(self.theta)
        inner = (at > BOUNDS[0] + 1e-6) & (at < BOUNDS[1] - 1e-6) & [True, True, self.learns_alpha, True]
        # The inverse of J'J / noise^2 + PRIOR^-2, by singular values: squaring first would lose half the digits
        root = np.concatenate([J[:, inner] / self.noise, np.diag(1 / PRIOR[inner])])
        _, s, V = np.linalg.svd(root, full_matrices=False)
        covariance = np.zeros((4, 4))
        covariance[np.ix_(inner, inner)] = (V.T / np.maximum(s, 1e-12) ** 2) @ V
        return covariance
