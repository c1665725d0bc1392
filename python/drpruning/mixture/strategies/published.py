"""The update of the mixture in the paper's public code, to reproduce published runs.

It approximates :func:`drpruning.worst_case`: it computes in float32, the bisection stops when the divergence is within
1e-4 of the radius, normalisation lowers the floor again, and the last clamp changes the divergence. ``docs/ball.md``
has the distance in numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drpruning.errors import WeightError

_Single = NDArray[np.float32]

# Both from the public code (DRO_loading_callback.py of hexuandeng/DRPruning).
_HALVINGS = 1000
_SHRINKS = 10


def published_update(
    excess_loss: ArrayLike,
    reference_ratio: ArrayLike,
    rho: float,
    *,
    floor: float = 0.2,
    clamp: bool = True,
    tolerance: float = 1e-4,
    reference_loss: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Return the mixture that the public code of DRPruning would sample from next.

    With ``p`` the reference ratio, ``r = max(excess - eta, 0)`` and ``u = p r / sum(p r)``, the mixture is
    ``max(u, floor p)`` divided by its sum, for the ``eta`` from a bisection at which its divergence from ``p`` is
    ``rho`` within ``tolerance``. With ``clamp``, every weight is then raised to the smallest entry of ``p``, and the
    mixture is divided by its sum again. If all excess losses are negative, the reference losses are scaled by 0.9, 0.8,
    ... until one excess loss is not negative. That is another problem: a constant added to the losses does not change a
    worst case, scaled reference losses do.

    If the bisection ends at the largest excess loss (no mixture of this form has the radius), the mixture is ``p``.

    Args:
        excess_loss: Losses less reference losses, nats per token, ``[n]``; finite.
        reference_ratio: The reference ratio ``p``, ``[n]``: positive, sum one.
        rho: Radius of the ball, with the halved divergence, positive and finite.
        floor: ``min_prob`` of the public code, in ``[0, 1)``.
        clamp: ``clamp_q_to_min`` of the public code.
        tolerance: Distance of the divergence from ``rho`` at which the bisection stops.
        reference_loss: The reference losses, ``[n]``; needed where all excess losses are negative.

    Returns:
        The mixture, float32 arithmetic in a float64 array, ``[n]``.

    Raises:
        WeightError: ``excess_loss`` and ``reference_ratio`` have different lengths, or entries that are not finite;
            ``reference_ratio`` is not positive or does not sum to 1; ``rho`` is not positive and finite; ``floor`` is
            outside ``[0, 1)``; all excess losses are negative and ``reference_loss`` is missing.

    Example:
        Far from the worst case, ``[0.4, 0.6]``: the smallest reference weight is 0.5, and so the least weight as well.

        >>> published_update([0.1, 0.5], [0.5, 0.5], 0.02).round(3).tolist()
        [0.455, 0.545]
    """
    excess, center = _single("excess_loss", excess_loss), _single("reference_ratio", reference_ratio)
    if excess.shape != center.shape:
        raise WeightError(
            f"excess_loss has {excess.size} entries, reference_ratio {center.size}; expected the same number"
        )
    if not (center > 0).all() or abs(float(center.sum()) - 1) > 1e-5:
        raise WeightError("reference_ratio must be positive and sum to 1")
    if not 0 < rho < np.inf:
        raise WeightError(f"rho is {rho}; it must be positive and finite")
    if not 0 <= floor < 1:
        raise WeightError(f"floor is {floor}; it must be at least 0 and below 1")
    excess = _not_all_negative(excess, reference_loss)

    def mixture(eta: np.float32) -> _Single:
        raised = center * np.maximum(excess - eta, np.float32(0))
        ratio = np.maximum(raised / raised.sum() / center, np.float32(floor))
        return np.asarray(ratio * center / (ratio * center).sum())

    def surplus(eta: np.float32) -> np.float32:
        return np.float32(((mixture(eta) / center - 1) ** 2 * center).sum() / 2) - np.float32(rho)

    with np.errstate(invalid="ignore"):  # 0 / 0 at the largest excess loss, as there
        largest = excess.max()
        low = np.float32(-1 / (np.sqrt(2 * rho + 1) - 1)) * largest
        eta = _bisect(low, largest, surplus, tolerance)
        weights = center if eta == largest else mixture(eta)
    if clamp:
        weights = np.maximum(weights, center.min())
        weights = weights / weights.sum()
    return weights.astype(np.float64)


def _bisect(
    low: np.float32, high: np.float32, surplus: Callable[[np.float32], np.float32], tolerance: float
) -> np.float32:
    """Return the root of the increasing ``surplus`` within ``tolerance``, or the last point of the bisection."""
    at_low, at_high = surplus(low), surplus(high)
    while at_low > 0 or at_high < 0:  # widen on the side that does not hold the root
        length = high - low
        if not length > 0:  # there the public code would not return
            break
        if at_low > 0:
            low, high = low - 2 * length, low
        if at_high < 0:
            low, high = high, high + 2 * length
        at_low, at_high = surplus(low), surplus(high)
    for _ in range(_HALVINGS):
        middle = np.float32(0.5) * (low + high)
        found = surplus(middle)
        if abs(found) <= tolerance:
            return middle
        if found > 0:
            high = middle
        elif found < 0:
            low = middle
    return np.float32(0.5) * (low + high)


def _not_all_negative(excess: _Single, reference_loss: ArrayLike | None) -> _Single:
    if excess.max() >= 0:
        return excess
    if reference_loss is None:
        raise WeightError(
            "excess_loss is negative everywhere and reference_loss is missing; the public code would scale it"
        )
    reference = _single("reference_loss", reference_loss)
    if reference.shape != excess.shape:
        raise WeightError(
            f"excess_loss has {excess.size} entries, reference_loss {reference.size}; expected the same number"
        )
    losses = excess + reference
    for shrunk in range(_SHRINKS - 1, -1, -1):
        excess = losses - reference * np.float32(shrunk) * np.float32(0.1)
        if excess.max() >= 0:
            return excess
    raise WeightError("all losses are negative, so no scale of the reference losses is below them")


def _single(what: str, values: ArrayLike) -> _Single:
    try:
        vector = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise WeightError(f"{what} must be a list of numbers: {error}") from error
    if vector.ndim != 1 or vector.size == 0:
        raise WeightError(f"{what} must be one-dimensional, at least one; got shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise WeightError(f"{what} must be finite, got {vector[~np.isfinite(vector)][0]}")
    return vector
