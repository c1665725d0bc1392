"""The exponentiated step that Sheared LLaMA, group DRO and DoReMi have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def exponentiated(weights: Vector, step: Vector, smoothing: float) -> Vector:
    """``w <- (1 - c) softmax(log w + step) + c / n``.

    Args:
        weights: Non-negative, ``[n]``; a weight of zero stays zero but for the smoothing. All zero: counted as even.
        step: Finite, ``[n]``; adding a constant to it changes nothing.
        smoothing: The share ``c`` of the even mixture.
    """
    if not weights.any():
        return np.full(weights.size, 1 / weights.size)
    # Of a domain without weight the step does not count: it could be the largest, and leave nothing of the others
    shares = weights * np.exp(step - step[weights > 0].max(), where=weights > 0, out=np.zeros(weights.size))
    return np.asarray((1 - smoothing) * shares / shares.sum() + smoothing / weights.size)
