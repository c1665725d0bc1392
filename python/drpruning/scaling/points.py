"""The rule that selects the points for a fit: it drops the warm-up, and early points that the law does not fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]

WARMUP = 0.1
"""Points up to this part of the tokens seen are dropped: there the learning rate still rises, and the loss plunges."""
RECENT = 0.5
"""Where the law does not fit the rest, points up to this part are dropped too."""
KEPT = 6
"""Points that stay in any case, the latest ones: twice the parameters of a curve at constant P."""
MISFIT = 1.3
"""Times the mean residual of the recent points' own law; beyond it, the law of all points does not fit them."""


def after(log_T: Vector, part: float) -> Mask:
    """Return a mask of points with ``T`` above ``part`` of the largest; the latest ``KEPT`` are always in it."""
    kept = log_T > log_T.max() + np.log(part)
    different = np.unique(log_T)
    return np.asarray(kept | (log_T >= different[-min(KEPT, different.size)]))


def misfits(residuals: Vector, own: Vector) -> bool:
    """Return whether a law with ``residuals`` at the recent points is worse there than their own law, beyond chance."""
    free = max(own.size - 3, 1)
    return bool(np.abs(residuals).mean() > MISFIT * np.abs(own).mean() * np.sqrt(own.size / free) + 1e-7)
