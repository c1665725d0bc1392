"""The chi-square ball around a mixture: its worst case for given losses, and the nearest point in it.

For a reference mixture ``p`` (every entry positive, sum one), a radius ``rho`` and a floor ``f`` the ball is ::

    Q = { q : q_i >= f p_i,  sum q = 1,  D(q, p) <= rho },    D(q, p) = 1/2 sum_i p_i (q_i / p_i - 1)^2

Mind the half in ``D``: a radius quoted for a divergence without it is twice as large.

:func:`worst_case` maximises ``sum_i q_i excess_i`` over ``Q``; :func:`project` finds the point of ``Q`` nearest to
``y``. They are different problems. Both are solved exactly, in float64 and compiled code, and both return a
:class:`Solution` with the multipliers that prove it: with ``lambda`` of the ball, ``nu`` of the sum and ``mu_i`` of the
floors, all of ``lambda, mu_i >= 0``, ``lambda (rho - D) = 0``, ``mu_i (q_i - f p_i) = 0`` and, for every ``i``, ::

    worst_case   excess_i  - nu - lambda (q_i / p_i - 1) + mu_i = 0
    project      y_i - q_i - nu - lambda (q_i / p_i - 1) + mu_i = 0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drpruning import _native
from drpruning.errors import WeightError

Status = Literal["center", "interior", "boundary", "face"]


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A point of the ball, and the proof that it is the right one.

    Attributes:
        weights: The mixture ``q``, float64 ``[n]``; sums to one up to rounding.
        divergence: ``D(q, p)``, with the half.
        status: Which constraints decide. ``"boundary"``: the ball binds, the divergence is ``rho``. ``"face"``: the
            ball does not bind, only the floors do. ``"center"``: the answer is ``p``, because the radius is zero or
            all losses are equal. ``"interior"`` (projection only): no inequality binds.
        ball_multiplier: ``lambda``; infinite when the radius is zero and the losses differ.
        sum_multiplier: ``nu``.
        floor_multipliers: ``mu``, float64 ``[n]``; zero where the floor does not bind.
        at_floor: Whether ``q_i`` sits on its floor ``f p_i``, bool ``[n]``.
    """

    weights: NDArray[np.float64]
    divergence: float
    status: Status
    ball_multiplier: float
    sum_multiplier: float
    floor_multipliers: NDArray[np.float64]
    at_floor: NDArray[np.bool_]


def worst_case(excess_loss: ArrayLike, p: ArrayLike, rho: float, floor: float = 0.0) -> Solution:
    """The mixture in the ball under which the excess losses are worst: ``argmax <q, excess_loss>`` over ``Q``.

    Adding a constant to all losses changes nothing; multiplying them by a positive number changes the multipliers only.
    Entries with equal losses share their mass in proportion to ``p``. When the ball is so large that it
    reaches a face on which ``excess_loss`` is largest, several mixtures can be worst; the one of smallest divergence is
    returned.

    Args:
        excess_loss: One finite number for each domain, ``[n]``, in any unit and of any sign.
        p: The reference mixture, ``[n]``: positive, sum one within 1e-6 (it is then divided by its sum).
        rho: Radius of the ball, with the halved divergence, >= 0. Infinity gives the whole simplex above the floor.
        floor: Smallest ratio ``q_i / p_i``, in ``[0, 1)``.

    Returns:
        The mixture and its certificate.

    Raises:
        WeightError: An argument is not as described.

    Example:
        Two equal domains; the ball of radius 0.02 lets each move by a tenth of the mass.

        >>> worst = worst_case([0.1, 0.5], p=[0.5, 0.5], rho=0.02)
        >>> worst.weights.round(12).tolist(), worst.status
        ([0.4, 0.6], 'boundary')
    """
    return Solution(*_native.worst_case(_vector("losses", excess_loss), _vector("reference weights", p), rho, floor))


def project(y: ArrayLike, p: ArrayLike, rho: float, floor: float = 0.0) -> Solution:
    """The point of the ball nearest to ``y``: ``argmin 1/2 |q - y|^2`` over ``Q``.

    Adding a constant to ``y`` changes nothing. Its scale matters: ``y`` is meant to be a mixture, or nearly one.

    Args:
        y: One number for each domain, within 1e100, ``[n]``.
        p: The reference mixture, as for :func:`worst_case`.
        rho: Radius of the ball, with the halved divergence, >= 0; may be infinite.
        floor: Smallest ratio ``q_i / p_i``, in ``[0, 1)``.

    Returns:
        The mixture and its certificate.

    Raises:
        WeightError: An argument is not as described.

    Example:
        >>> project([0.9, 0.1], p=[0.5, 0.5], rho=0.02).weights.round(12).tolist()
        [0.6, 0.4]
    """
    return Solution(*_native.project(_vector("coordinates", y), _vector("reference weights", p), rho, floor))


def _vector(what: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        vector = np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise WeightError(f"{what} must be a list of numbers: {error}") from error
    if np.ndim(values) != 1:
        raise WeightError(f"{what} must be one-dimensional, got shape {np.shape(values)}")
    return vector
