"""The effect of a decaying learning rate on a loss curve."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drpruning.errors import WeightError

Vector = NDArray[np.float64]

ANNEALING = 0.035
"""Fraction of the loss that vanishes as the learning rate falls from its peak to 0 (benches/scaling_backtest)."""
COSINE_POINTS = 257
"""Points of a sampled cosine: straight lines between them are within 1e-5 of it."""


def as_numbers(name: str, values: ArrayLike, shape: str) -> Vector:
    """Return an argument as float64.

    Raises:
        WeightError: It does not consist of numbers; the message has ``name`` and ``shape``.
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise WeightError(
            f"{name} is {reprlib.repr(values)}; expected numbers {shape}", f"For example {name}=[1e9, 2e9]."
        ) from None


@dataclass(frozen=True)
class LearningRates:
    """A learning-rate schedule: straight lines between ``(tokens, rates)``, level before and after them.

    After the peak, a loss measured at rate ``eta`` is below the law by the factor ::

        1 - 0.035 (1 - eta / peak)

    which is the annealing term of Tissue et al. (2024) with its momentum left out, as a part of the loss, and its
    size set to the one value that suited most runs of ``benches/scaling_backtest``. Only the rate relative to the peak
    matters, so any unit will do.

    Args:
        tokens: Tokens at the corners of the schedule, increasing and finite, ``[m]``; in the unit of the law's ``T``.
        rates: Learning rate there, >= 0 and finite with a peak above 0, ``[m]``.

    Raises:
        WeightError: ``tokens`` and ``rates`` are empty or of different shapes; ``tokens`` is not finite and increasing;
            a rate is negative or not finite, or none is above 0.

    Example:
        Warm-up over 1, stable up to 8, linear decay to a tenth at 10.

        >>> schedule = LearningRates([0, 1, 8, 10], [0, 3e-4, 3e-4, 3e-5])
        >>> schedule.bend([1, 8, 10]).round(4).tolist()
        [1.0, 1.0, 0.9685]
    """

    tokens: tuple[float, ...]
    rates: tuple[float, ...]

    def __init__(self, tokens: ArrayLike, rates: ArrayLike) -> None:
        corners, heights = as_numbers("tokens", tokens, "[m]"), as_numbers("rates", rates, "[m]")
        if corners.ndim != 1 or corners.shape != heights.shape or not corners.size:
            raise WeightError(
                f"tokens and rates have shapes {corners.shape} and {heights.shape}; expected one [m], m >= 1"
            )
        if not np.isfinite(corners).all() or not (np.diff(corners) > 0).all():
            raise WeightError("tokens of a schedule must be finite and increasing")
        if not np.isfinite(heights).all() or (heights < 0).any() or not heights.max() > 0:
            raise WeightError("rates of a schedule must be finite and >= 0, with one above 0")
        object.__setattr__(self, "tokens", tuple(corners.tolist()))
        object.__setattr__(self, "rates", tuple(heights.tolist()))

    @classmethod
    def cosine(cls, tokens: float, *, warmup: float = 0.0, floor: float = 0.1) -> LearningRates:
        """Build a linear warm-up over ``warmup`` tokens and a cosine decay to ``floor`` times the peak at ``tokens``.

        Raises:
            WeightError: Not ``0 <= warmup < tokens`` with both finite, or ``floor`` outside [0, 1].
        """
        if not (0 <= warmup < tokens < math.inf and 0 <= floor <= 1):
            raise WeightError(
                f"got tokens {tokens}, warmup {warmup}, floor {floor}; expected 0 <= warmup < tokens, floor in [0, 1]"
            )
        part = np.linspace(0.0, 1.0, COSINE_POINTS)
        corners = warmup + part * (tokens - warmup)
        heights = floor + (1 - floor) * (1 + np.cos(np.pi * part)) / 2
        if warmup > 0:
            corners, heights = np.append(0.0, corners), np.append(0.0, heights)
        return cls(corners, heights)

    def following(self, tokens: ArrayLike, rates: ArrayLike) -> LearningRates:
        """Return measured rates, with this schedule before the first and after the last of them.

        On either side the schedule is scaled to meet the measured rate; the result has its unit.

        Args:
            tokens: Tokens at which the rates were measured, increasing, ``[n]``.
            rates: Learning rates there, >= 0, ``[n]``; others than finite ones are ignored.

        Raises:
            WeightError: ``tokens`` and ``rates`` are not vectors of one length; among the finite rates one is
                negative, or their tokens are not finite and increasing.

        Example:
            >>> LearningRates([0, 10], [1, 0]).following([2, 4], [4.0, 1.5])
            LearningRates(tokens=(0.0, 2.0, 4.0, 10.0), rates=(5.0, 4.0, 1.5, 0.0))
        """
        seen, heights = as_numbers("tokens", tokens, "[n]"), as_numbers("rates", rates, "[n]")
        if seen.shape != heights.shape or seen.ndim != 1:
            raise WeightError(f"tokens and rates have shapes {seen.shape} and {heights.shape}; expected one [n]")
        seen, heights = seen[np.isfinite(heights)], heights[np.isfinite(heights)]
        if not heights.size or not heights.max() > 0:
            return self
        corners, own = self._corners

        def scale(k: int) -> float:
            here = float(np.interp(seen[k], corners, own))
            return float(heights[k]) / here if here > 0 and heights[k] > 0 else float(heights.max() / own.max())

        before, after = corners < seen[0], corners > seen[-1]
        return LearningRates(
            np.concatenate([corners[before], seen, corners[after]]),
            np.concatenate([scale(0) * own[before], heights, scale(-1) * own[after]]),
        )

    @cached_property
    def _corners(self) -> tuple[Vector, Vector]:
        return np.array(self.tokens), np.array(self.rates)

    @property
    def warm(self) -> float:
        """Tokens at which the rate first is at its peak; before, the learning rate warms up."""
        return self.tokens[int(np.argmax(self.rates))]

    def bend(self, tokens: ArrayLike) -> Vector:
        """Return the factor by which the loss is below the law at ``tokens``; 1 up to the peak."""
        at = np.asarray(tokens, dtype=np.float64)
        fallen = 1 - np.interp(at, *self._corners) / max(self.rates)
        return np.asarray(1 - ANNEALING * np.where(at > self.warm, fallen, 0.0))
