"""A law over model sizes: the loss to expect of a finished model, from the losses of other sizes of its family."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drpruning.errors import WeightError
from drpruning.scaling.annealing import as_numbers
from drpruning.scaling.fit import LARGEST_FALL, SAME_SIZE, SMALLEST_NOISE, Fit, fit_points, scaling_law
from drpruning.scaling.law import LawStatus, ScalingLaw, around

Vector = NDArray[np.float64]

DRIFT = {1: 0.13, 2: 0.035, 3: 0.025}
"""How far, in log loss, real models leave the law for each unit of log P from the nearest size measured.

By the number of sizes that the law is fitted to, three standing for more. Nine in ten of the predictions of
``benches/scaling_backtest/sizes.py`` are nearer.
"""
NORMAL_90 = 1.645
"""Half of the central 90% of a normal variable, in standard deviations."""


@dataclass(frozen=True, kw_only=True)
class SizeLaw:
    """The law ``loss(P) = A P^-alpha + E`` of one domain, or the statement that the models do not determine one.

    Attributes:
        A: Coefficient in nats, for ``P`` in parameters; 0 where the law is not identified.
        alpha: Exponent, in [0, 3].
        E: Irreducible loss in nats, >= 0; 0 with two sizes, which do not determine it.
        residual: Root mean square of the residuals of log loss.
        status: Whether the models determine the law.
        reason: The reason for another status than ``identified``; empty for ``identified``.
        sizes: Number of different sizes; parameter counts within 1% are one size.
    """

    A: float
    alpha: float
    E: float
    residual: float
    status: LawStatus
    reason: str
    sizes: int
    # What predictions need: the law with P in the place of T, log P of each model, and the range of the losses
    _law: ScalingLaw | None = None
    _measured: tuple[float, ...] = ()
    _range: float = 0.0

    def predict(self, params: float) -> tuple[float, float, float]:
        """Return the loss of a finished model with ``params`` parameters, with the ends of its 90% band, in nats.

        The half width of the band in log loss is ``hypot(statistical, drift)``: the first is the uncertainty of the fit
        and of the losses; the second is how far real models leave the law, 0.025 for each unit of log P from the
        nearest size measured, 0.035 for a law of two sizes and 0.13 for a constant.

        Raises:
            WeightError: ``params`` is not positive and finite.
        """
        if not (math.isfinite(params) and params > 0):
            raise WeightError(f"parameters of a prediction: expected a finite number > 0, got {params}")
        distance = min(abs(math.log(params) - measured) for measured in self._measured)
        if self._law is None:
            return around(self.E, math.hypot(self._range, DRIFT[1] * distance))
        value, statistical = self._law.value_and_error(1.0, params)
        return around(value, math.hypot(statistical, DRIFT[min(self.sizes, 3)] * distance))


def fit_size_law(params: ArrayLike, losses: ArrayLike, *, errors: ArrayLike | None = None) -> SizeLaw:
    """Fit ``loss(P) = A P^-alpha + E`` to the losses of finished models in one domain, robustly and deterministically.

    Sheared LLaMA (Xia et al. 2023, section 2.2) predicts its reference losses in this way: the losses of Llama 2 at 7B,
    13B and 70B give the loss expected at the target's size. There the three numbers are interpolated exactly, and ``E``
    may be negative; here the sum of Huber losses (1e-3) of the residuals of log loss is minimised with ``A, E >= 0``
    and ``alpha`` in [0, 3], at its global minimum (as :func:`fit_scaling_law`, with ``P`` in the place of ``T``).
    ``docs/law.md`` compares both.

    Give models of one family, trained on about the same data and measured on the same text with the same tokenizer.
    Three sizes determine the law. With two, ``E = 0`` is assumed, which is too high below the sizes measured or too low
    above them by less than the band in nine cases of ten. With one, and where the loss does not fall with the size, the
    law is a constant.

    Args:
        params: Parameters of each model, ``[n]``; repeated and unordered ones are fine.
        losses: Held-out loss of each model, nats per token, ``[n]``. One that is not positive and finite is left out.
        errors: Standard error of each loss in nats, ``[n]``, if known; not finite: not known.

    Raises:
        WeightError: The arguments differ in length, or no model has both a finite loss and a finite size.

    Example:
        Books of the RedPajama sample under Llama 2, as the public notebook has them.

        >>> law = fit_size_law([6738415616, 13015864320, 68976648192], [1.9063, 1.8242, 1.6450])
        >>> str(law.status), [round(number, 4) for number in law.predict(1345423360)]
        ('identified', [2.1393, 2.0549, 2.2273])
    """
    P, loss = as_numbers("params", params, "[n]"), as_numbers("losses", losses, "[n]")
    error = np.full(loss.shape, math.nan) if errors is None else as_numbers("errors", errors, "[n]")
    if loss.ndim != 1 or P.shape != loss.shape or error.shape != loss.shape:
        raise WeightError(
            f"params, losses and errors have shapes {P.shape}, {loss.shape}, {error.shape}; expected one [n]"
        )
    usable = np.isfinite(loss) & np.isfinite(P) & (loss > 0) & (P > 0)
    if not usable.any():
        raise WeightError("no model has a positive loss and a positive size: there is nothing to fit")
    x, y, relative = np.log(P[usable]), np.log(loss[usable]), error[usable] / loss[usable]
    relative = relative[np.isfinite(relative)]
    noise = max(math.sqrt(float(relative @ relative) / relative.size) if relative.size else 0.0, SMALLEST_NOISE)
    sizes = 1 + int((np.diff(np.sort(x)) > SAME_SIZE).sum())
    if sizes < 2:
        return _constant(x, y, sizes, noise, "one size; at least two are needed, and three to learn E")
    if np.ptp(y) > math.log(LARGEST_FALL):
        return _constant(x, y, sizes, noise, f"the losses differ by more than a factor of {LARGEST_FALL:g}")
    fit = replace(_power_law(x, y) if sizes == 2 else fit_points(np.zeros_like(x), x, y), known_noise=noise)
    if not fit.falls:
        return _constant(x, y, sizes, noise, "the loss does not fall visibly with the size")
    law = scaling_law(fit)
    if fit.noise == noise:  # known, and not estimated from a handful of residuals
        law = replace(law, _quantile=NORMAL_90)
    two = sizes == 2
    return SizeLaw(
        A=law.A,
        alpha=law.beta,
        E=law.E,
        residual=law.residual,
        status=LawStatus.TWO_SIZES if two else LawStatus.IDENTIFIED,
        reason="two sizes do not determine E; 0 is assumed" if two else "",
        sizes=sizes,
        _law=law,
        _measured=tuple(x.tolist()),
    )


def _power_law(x: Vector, y: Vector) -> Fit:
    """Fit the law with ``E = 0``, a straight line in logarithms, by least squares."""
    slope, level = np.polyfit(x - x.min(), y, 1)
    theta = (float(level), 1.0, 0.0, min(max(-float(slope), 0.0), 3.0))
    return Fit(np.zeros_like(x), x, y, theta=theta, learns_alpha=False)


def _constant(x: Vector, y: Vector, sizes: int, noise: float, reason: str) -> SizeLaw:
    return SizeLaw(
        A=0.0,
        alpha=0.0,
        E=math.exp(float(y.min())),
        residual=0.0,
        status=LawStatus.NOT_IDENTIFIED,
        reason=reason,
        sizes=sizes,
        _measured=tuple(x.tolist()),
        _range=math.hypot(float(np.ptp(y)), NORMAL_90 * noise),
    )
