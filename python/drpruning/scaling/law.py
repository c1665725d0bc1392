"""A fitted law, its predictions and their band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import WeightError
from drpruning.scaling.annealing import LearningRates

Vector = NDArray[np.float64]

DECAY_AHEAD, DECAY_POWER = 0.038, 3
"""Size and exponent of the decay that an unknown schedule still has ahead: :func:`decay_ahead`."""
DRIFT, DRIFT_ANNEALED = 0.041, 0.025
"""Distance between a real curve and the law, in log loss, for ``sqrt(log T)`` beyond the last point: half a 90% band.

The second number is for a law with known learning rates. Both are 90% quantiles over the curves of
``benches/scaling_backtest`` that are not held out, predicted from their first 20 to 70%, each family with equal weight.
"""
LARGEST_POWER, LARGEST_LOSS = 700.0, 1e300
"""Powers of e, and losses, are cut there: beyond, float64 overflows."""


class LawStatus(StrEnum):
    """Whether the points determine a law; equal to its name in lower case."""

    IDENTIFIED = "identified"
    """The points determine the law."""
    TWO_SIZES = "two_sizes"
    """Law of finished models: two sizes do not determine ``E``, so ``E = 0`` is assumed."""
    NOT_IDENTIFIED = "not_identified"
    """The points do not determine the law; it is the constant ``E``, the lowest loss."""


@dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """A fitted law, or the statement that the points do not determine one.

    Attributes:
        A: Coefficient in nats, for ``P`` in parameters and ``T`` in tokens. At constant ``P`` it is ``A P^-alpha``.
        alpha: Exponent of ``P``, in [0, 3]; 0 when ``alpha_identified`` is false.
        beta: Exponent of ``T``, in [0, 3].
        E: Irreducible loss in nats, >= 0.
        residual: Root mean square of the residuals of log loss at the points used.
        status: Whether the points determine the law.
        reason: Why the law is not identified, in words; empty if it is.
        alpha_identified: Whether ``P`` varied enough (1%) to learn ``alpha``.
        points: Number of points used.
        learning_rates: The schedule during the measurements, if it is known. ``A`` and ``E`` are then those at the
            peak.
    """

    A: float
    alpha: float
    beta: float
    E: float
    residual: float
    status: LawStatus
    reason: str
    alpha_identified: bool
    points: int
    learning_rates: LearningRates | None = None
    # What predictions need: level, share and origin of the fit's own form (drpruning-core, scaling.rs)
    _level: float = 0.0
    _share: float = 0.0
    _origin: tuple[float, float] = (0.0, 0.0)
    # What the band needs: covariance of (u, w, alpha, beta), Student's t, noise, last log T; or the range of the losses
    _covariance: tuple[tuple[float, ...], ...] = ()
    _quantile: float = 0.0
    _noise: float = 0.0
    _last: float = 0.0
    _range: float = 0.0

    def predict(self, P: float, T: float) -> tuple[float, float, float]:
        """Return the loss with ``P`` parameters at the end of ``T`` tokens, and the ends of its 90% band, in nats.

        ``T`` is the end of the run. Without learning rates the law is multiplied by :func:`decay_ahead` of the fraction
        seen, ``T of the last point / T``; a loss within the run is above the value returned for its ``T``. With
        learning rates ``T`` may be any point of the schedule. A run with a constant rate has one too: pass
        ``LearningRates([0], [1])``.

        The band is for one measured loss. Its half width, in log loss, is ``hypot(statistical, drift)``: the first is
        the uncertainty of the fit (linearised) and the noise of the points, as if the law were right; the second is the
        distance of real curves from the law. It grows as that of a random walk in log T,
        ``0.041 sqrt(log(T / T of the last point))``, or 0.025 instead of 0.041 if the learning rates are known. On
        curves that follow the law exactly it is therefore too wide.

        For a law that is not identified the value is the lowest loss seen, and the band goes as far to either side as
        the losses seen lie apart.

        Raises:
            WeightError: ``P`` or ``T`` is not positive and finite.
        """
        for name, number in (("P", P), ("T", T)):
            if not (math.isfinite(number) and number > 0):
                raise WeightError(f"{name} is {number}; a prediction needs it positive and finite")
        if not self._covariance:
            return self.E, max(self.E - self._range, 0.0), self.E + self._range
        value, statistical = self.value_and_error(P, T)
        ahead = max(math.log(T) - self._last, 0.0)
        if self.learning_rates is None:
            value *= decay_ahead(math.exp(-ahead))
        drift = (DRIFT if self.learning_rates is None else DRIFT_ANNEALED) * math.sqrt(ahead)
        return around(value, math.hypot(statistical, drift))

    def value_and_error(self, P: float, T: float) -> tuple[float, float]:
        """Return the loss of an identified law in nats, without decay ahead, and half its 90% interval in log loss."""
        x, t = math.log(P) - self._origin[0], math.log(T) - self._origin[1]
        power = self._share * math.exp(min(-self.alpha * x - self.beta * t, LARGEST_POWER))
        inside = max(1 - self._share + power, math.exp(-LARGEST_POWER))
        bend = 1.0 if self.learning_rates is None else float(self.learning_rates.bend(T))
        value = min(math.exp(min(self._level + math.log(inside), LARGEST_POWER)) * bend, LARGEST_LOSS)
        falling = power / inside
        # d log(loss) / d (u, w, alpha, beta); (b - 1) / inside for the share, written so that nothing overflows
        gradient = np.array([1.0, (falling - self._share / inside) / self._share, -falling * x, -falling * t])
        variance = float(gradient @ np.array(self._covariance) @ gradient) + self._noise**2
        return value, self._quantile * math.sqrt(max(variance, 0.0))


def decay_ahead(fraction: float) -> float:
    """Return the factor between the end of a run and the law of its first ``fraction``, with the schedule unknown.

    ::

        1 - 0.038 (1 - fraction)^3

    Nearly every run ends with a lower learning rate, which lowers the loss below the curve of the earlier points
    (:class:`LearningRates`). The later the last point, the more of that decay it already has, and the law with it: the
    factor is 1 for a finished run. The size 0.038 minimises the median absolute error of the training half of
    ``benches/scaling_backtest``, each family with equal weight; it is close to the 0.035 of a known decay to zero. The
    exponent 3 has the least error among 1 to 4.

    Example:
        >>> [round(decay_ahead(fraction), 4) for fraction in (0.0, 0.3, 1.0)]
        [0.962, 0.987, 1.0]
    """
    return 1 - DECAY_AHEAD * (1 - fraction) ** DECAY_POWER


def around(value: float, half: float) -> tuple[float, float, float]:
    """Return a value with the ends of a band that is ``half`` wide in log loss to either side."""
    half = min(half, 50.0)
    return value, value * math.exp(-half), min(value * math.exp(half), LARGEST_LOSS)
