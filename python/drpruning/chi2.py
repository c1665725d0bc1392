"""The chi-square ball around a reference ratio: the worst case for given losses, and the projection of a point.

For a reference ratio ``p`` (every entry positive, sum 1), a radius ``rho`` and a floor ``f`` the ball is ::

    Q = { q : q_i >= f p_i,  sum q = 1,  D(q, p) <= rho },    D(q, p) = 1/2 sum_i p_i (q_i / p_i - 1)^2

``D`` has the factor 1/2: a radius for a divergence without it is twice as large.

:func:`worst_case` maximises ``sum_i q_i excess_loss_i`` over ``Q``; :func:`project` finds the point of ``Q`` nearest to
``y``. :func:`worst_case_many` and :func:`project_many` solve one problem for each row of a matrix. All are solved
exactly, in float64 and compiled code, and return the multipliers that prove it: with ``lambda`` of the ball, ``nu`` of
the sum and ``mu_i`` of the floors, all of ``lambda, mu_i >= 0``, ``lambda (rho - D) = 0``, ``mu_i (q_i - f p_i) = 0``
and, for every ``i``, ::

    worst_case   excess_loss_i - nu - lambda (q_i / p_i - 1) + mu_i = 0
    project      y_i - q_i     - nu - lambda (q_i / p_i - 1) + mu_i = 0

The objective of the worst case is linear: the differences between losses alone determine the answer, whatever their
size, so rounding or evaluation noise moves the mixture by the same distance as a clear signal. With ``noise``,
:func:`worst_case` counts only what exceeds it: :func:`subtract_noise` shrinks each loss towards the mean, and a penalty
``1/2 sum_i tau_i p_i (q_i / p_i - 1)^2`` makes the response proportional. In the certificate ``lambda + tau_i`` then
replaces ``lambda``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drpruning import _native
from drpruning.errors import WeightError

RAMP = 0.25
"""How far above the noise a response is complete, in parts of the noise.

A larger value damps weak signals, a smaller value lets more noise through; `python benches/noise.py --ramp 0.5`
measures both.
"""

_STATUS = "<U8"  # the longest is "boundary" or "interior"


class Status(StrEnum):
    """The constraints that determine a solution; equal to its name in lower case."""

    CENTER = "center"
    """The solution is ``p``: the radius is zero, or all losses are equal."""
    INTERIOR = "interior"
    """Projection: no inequality binds. Worst case with noise: the ball does not bind, the penalty decides."""
    BOUNDARY = "boundary"
    """The ball binds: the divergence is ``rho``."""
    FACE = "face"
    """The ball does not bind, the floors do."""


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A point of the ball with its certificate of optimality.

    Attributes:
        weights: The mixture ``q``, float64 ``[n]``; sums to 1 up to rounding.
        divergence: ``D(q, p)``, with the factor 1/2.
        status: The constraints that determine the solution; a :class:`Status`, which compares equal to its name, as in
            ``solution.status == "boundary"``.
        ball_multiplier: ``lambda``; infinite when the radius is zero and the losses differ.
        sum_multiplier: ``nu``.
        floor_multipliers: ``mu``, float64 ``[n]``; zero where the floor does not bind.
        at_floor: Whether ``q_i`` is at its floor ``f p_i``, bool ``[n]``.
        penalties: ``tau``, float64 ``[n]``, of a worst case with noise; else None.
    """

    weights: NDArray[np.float64]
    divergence: float
    status: Status
    ball_multiplier: float
    sum_multiplier: float
    floor_multipliers: NDArray[np.float64]
    at_floor: NDArray[np.bool_]
    penalties: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Solutions:
    """The solutions of many problems: the attributes of :class:`Solution` with a leading axis ``[m]``.

    ``status`` holds the names as words. ``solutions[row]`` is the :class:`Solution` of one row.
    """

    weights: NDArray[np.float64]
    divergence: NDArray[np.float64]
    status: NDArray[np.str_]
    ball_multiplier: NDArray[np.float64]
    sum_multiplier: NDArray[np.float64]
    floor_multipliers: NDArray[np.float64]
    at_floor: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, row: int) -> Solution:
        """Return the solution of one row."""
        return Solution(
            weights=self.weights[row],
            divergence=float(self.divergence[row]),
            status=Status(str(self.status[row])),
            ball_multiplier=float(self.ball_multiplier[row]),
            sum_multiplier=float(self.sum_multiplier[row]),
            floor_multipliers=self.floor_multipliers[row],
            at_floor=self.at_floor[row],
        )


def worst_case(
    excess_loss: ArrayLike, p: ArrayLike, rho: float, floor: float = 0.0, *, noise: ArrayLike = 0.0
) -> Solution:
    """Return the mixture in the ball under which the excess losses are worst: ``argmax <q, excess_loss>`` over ``Q``.

    Adding a constant to all losses changes nothing; multiplying them by a positive number changes the multipliers only.
    Entries with equal losses share their mass in proportion to ``p``. When the ball contains several maximisers (it
    reaches a face on which ``excess_loss`` is largest), the one of smallest divergence is returned.

    With ``noise`` the objective is ``<q, v> - 1/2 sum_i tau_i p_i (q_i / p_i - 1)^2``, with ``v`` and ``tau`` of
    :func:`subtract_noise`: losses within the noise hardly move the mixture, losses far beyond it move it by the same
    distance as without noise.

    Args:
        excess_loss: One finite number for each domain, ``[n]``, in any unit and of any sign.
        p: The reference ratio, ``[n]``: positive, sum 1 within 1e-6 (it is then divided by its sum).
        rho: Radius of the ball for the divergence with the factor 1/2, >= 0. Infinity gives the whole simplex above the
            floor.
        floor: Smallest ratio ``q_i / p_i``, in ``[0, 1)``.
        noise: Differences from the mean that carry no information, in the unit of the losses, such as a standard error:
            one for all domains or one for each, ``[n]``; finite, >= 0.

    Returns:
        The mixture and its certificate; with noise it proves the optimum for the losses of :func:`subtract_noise`.

    Raises:
        WeightError: ``excess_loss`` is empty or not a vector; a loss is not finite; ``p`` has another length, an entry
            that is not positive and finite, or a sum other than 1; ``rho`` is negative or NaN; ``floor`` is outside
            ``[0, 1)``; ``noise`` has another length, or is negative or not finite.

    Example:
        Two equal domains; the ball of radius 0.02 lets each move by a tenth of the mass.

        >>> worst = worst_case([0.1, 0.5], p=[0.5, 0.5], rho=0.02)
        >>> worst.weights.round(12).tolist(), str(worst.status)
        ([0.4, 0.6], 'boundary')
        >>> worst_case([0.1, 0.5], p=[0.5, 0.5], rho=0.02, noise=0.05).weights.round(12).tolist()
        [0.4, 0.6]
        >>> worst = worst_case([0.29, 0.31], p=[0.5, 0.5], rho=0.02, noise=0.05)
        >>> worst.weights.round(12).tolist(), str(worst.status)
        ([0.5, 0.5], 'center')
    """
    excess, mixture = _vector("excess_loss", excess_loss), _vector("p", p)
    if not (np.ndim(noise) or noise):
        return _solution(_native.worst_case(excess, mixture, rho, floor, np.zeros(excess.size)))
    excess, penalties = subtract_noise(excess, mixture, rho, noise)
    return _solution(_native.worst_case(excess, mixture, rho, floor, penalties), penalties)


def subtract_noise(
    excess_loss: ArrayLike, p: ArrayLike, rho: float, noise: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shrink each loss by its noise towards the mean, and return penalties that make the response proportional.

    With ``m = sum_i p_i excess_i`` a loss becomes ``v_i = m + sign(excess_i - m) max(0, |excess_i - m| - noise_i)``
    (soft thresholding). If one domain alone is above the others, the ball allows it to gain
    ``t_i = sqrt(2 rho (1 - p_i) / p_i)`` times its share. With the penalty ``tau_i = RAMP noise_i / t_i`` it gains this
    much when it is ``RAMP noise_i`` above the threshold, and proportionally less below.

    Args:
        excess_loss: One finite number for each domain, ``[n]``.
        p: The reference ratio, ``[n]``.
        rho: Radius of the ball.
        noise: One or ``[n]``; finite, >= 0.

    Returns:
        ``v`` and ``tau``, float64 ``[n]``; ``tau`` is zero for a radius of zero or infinity.

    Raises:
        WeightError: ``noise`` is negative or not finite, or its length or that of ``p`` differs from the losses'. The
            solver, not this function, checks the values of ``excess_loss`` and ``p``.

    Example:
        >>> losses, penalties = subtract_noise([0.1, 0.5], p=[0.5, 0.5], rho=0.02, noise=0.05)
        >>> losses.round(12).tolist(), penalties.round(12).tolist()
        ([0.15, 0.45], [0.0625, 0.0625])
    """
    excess, mixture, errors = _vector("excess_loss", excess_loss), _vector("p", p), _numbers("noise", noise)
    if errors.shape not in {(), excess.shape} or mixture.shape != excess.shape:
        raise WeightError(
            f"noise has shape {errors.shape}, excess_loss {excess.shape}, p {mixture.shape}; "
            f"expected noise of shape () or {excess.shape}, and p of shape {excess.shape}"
        )
    if not (np.isfinite(errors) & (errors >= 0)).all():
        raise WeightError(f"noise is {errors.tolist()}; it must be finite and at least 0")
    no_penalties = np.zeros(excess.size)
    if not np.isfinite(excess).all() or not (mixture > 0).all():
        return excess, no_penalties  # the solver refuses the entry by its index
    share = mixture / mixture.sum()
    mean = share @ excess
    deviation = excess - mean
    shrunk = mean + np.sign(deviation) * np.maximum(0.0, np.abs(deviation) - errors)
    if not 0 < rho < np.inf or excess.size == 1:
        return shrunk, no_penalties
    return shrunk, RAMP * errors * np.sqrt(share / (2 * rho * (1 - share)))


def project(y: ArrayLike, p: ArrayLike, rho: float, floor: float = 0.0) -> Solution:
    """Return the point of the ball nearest to ``y``: ``argmin 1/2 |q - y|^2`` over ``Q``.

    Adding a constant to ``y`` changes nothing. The scale of ``y`` matters: it should be a mixture, or nearly one.

    Args:
        y: One finite number for each domain, within 1e6 of each other, ``[n]``.
        p: The reference ratio, as for :func:`worst_case`.
        rho: Radius of the ball for the divergence with the factor 1/2, >= 0; may be infinite.
        floor: Smallest ratio ``q_i / p_i``, in ``[0, 1)``.

    Returns:
        The mixture and its certificate.

    Raises:
        WeightError: As for :func:`worst_case`, with ``y`` in place of the losses; or entries of ``y`` differ by more
            than 1e6.

    Example:
        >>> project([0.9, 0.1], p=[0.5, 0.5], rho=0.02).weights.round(12).tolist()
        [0.6, 0.4]
    """
    return _solution(_native.project(_vector("y", y), _vector("p", p), rho, floor))


def worst_case_many(excess_loss: ArrayLike, p: ArrayLike, rho: ArrayLike, floor: ArrayLike = 0.0) -> Solutions:
    """Solve :func:`worst_case` for each row, in one call of compiled code.

    Args:
        excess_loss: One problem in each row, ``[m, n]``.
        p: The reference ratio of all rows, ``[n]``, or one for each, ``[m, n]``.
        rho: The radius of all rows, or one for each, ``[m]``.
        floor: The floor of all rows, or one for each, ``[m]``.

    Returns:
        The mixtures and their certificates; ``solutions[i]`` is the one of row ``i``.

    Raises:
        WeightError: As for :func:`worst_case`; the message names the first row in error. Or ``p``, ``rho`` or ``floor``
            does not have the shape of all rows or of each.

    Example:
        >>> worst = worst_case_many([[0.1, 0.5], [0.5, 0.5]], p=[0.5, 0.5], rho=0.02)
        >>> worst.weights.round(12).tolist(), worst.status.tolist()
        ([[0.4, 0.6], [0.5, 0.5]], ['boundary', 'center'])
    """
    return _solve_many(_native.worst_case_many, "excess_loss", excess_loss, p, rho, floor)


def project_many(y: ArrayLike, p: ArrayLike, rho: ArrayLike, floor: ArrayLike = 0.0) -> Solutions:
    """Solve :func:`project` for each row, in one call of compiled code; arguments as for :func:`worst_case_many`.

    Example:
        >>> project_many([[0.9, 0.1], [0.45, 0.55]], p=[0.5, 0.5], rho=[0.02, 0.1]).weights.round(12).tolist()
        [[0.6, 0.4], [0.45, 0.55]]
    """
    return _solve_many(_native.project_many, "y", y, p, rho, floor)


def _solve_many(
    solve: Callable[..., _native.BallSolutions],
    what: str,
    values: ArrayLike,
    p: ArrayLike,
    rho: ArrayLike,
    floor: ArrayLike,
) -> Solutions:
    rows, mixtures = _numbers(what, values), _numbers("p", p)
    if rows.ndim != 2:
        raise WeightError(f"{what} must be two-dimensional, a problem in each row; got shape {rows.shape}")
    if mixtures.shape not in {rows.shape, rows.shape[1:]}:
        expected = f"{rows.shape[1:]} or {rows.shape}"
        raise WeightError(f"p has shape {mixtures.shape}, and {what} {rows.shape}; expected p of shape {expected}")
    one_for_each = []
    for name, value in (("rho", rho), ("floor", floor)):
        numbers = _numbers(name, value)
        if numbers.shape not in {(), rows.shape[:1]}:
            raise WeightError(
                f"{name} has shape {numbers.shape}; expected one number, or one for each of {len(rows)} rows"
            )
        one_for_each.append(numbers.reshape(-1))
    found = solve(rows, mixtures, *one_for_each)
    return Solutions(
        weights=found.weights,
        divergence=found.divergence,
        status=np.array(found.status, dtype=_STATUS),
        ball_multiplier=found.ball_multiplier,
        sum_multiplier=found.sum_multiplier,
        floor_multipliers=found.floor_multipliers,
        at_floor=found.at_floor,
    )


def _solution(found: _native.BallSolution, penalties: NDArray[np.float64] | None = None) -> Solution:
    return Solution(
        weights=found.weights,
        divergence=found.divergence,
        status=Status(found.status),
        ball_multiplier=found.ball_multiplier,
        sum_multiplier=found.sum_multiplier,
        floor_multipliers=found.floor_multipliers,
        at_floor=found.at_floor,
        penalties=penalties,
    )


def _vector(what: str, values: ArrayLike) -> NDArray[np.float64]:
    vector = _numbers(what, values)
    if vector.ndim != 1:
        raise WeightError(f"{what} must be one-dimensional, got shape {vector.shape}")
    return vector


def _numbers(what: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, np.float64, "C")
    except (TypeError, ValueError) as error:
        raise WeightError(f"{what} must be numbers, in rows of one length: {error}") from error
