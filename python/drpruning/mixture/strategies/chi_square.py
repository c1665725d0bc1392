"""Chi-square DRO: the worst mixture in a ball around the reference ratio, exact or as in the paper's public code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from drpruning.chi2 import worst_case
from drpruning.errors import ConfigError
from drpruning.mixture.bounds import UNBOUNDED, Bounds
from drpruning.mixture.observation import Observation, UpdateStatus
from drpruning.mixture.settings import documented, setting
from drpruning.mixture.strategies.published import published_update
from drpruning.mixture.strategy import Decision, Evaluation, RuleStrategy, fill

Vector = NDArray[np.float64]
Solver = Literal["exact", "published"]

ball_radius = partial(setting, description="Radius of the chi-square ball, as a halved divergence.", ge=0.0)
ball_floor = partial(
    setting, description="Smallest weight of a domain, as a multiple of its reference ratio.", ge=0.0, lt=1.0
)
ball_solver = partial(
    setting,
    description="Method for the worst case in the ball: `exact`, or `published` for the update of the paper's public "
    "code, whose clamps can leave the ball.",
)
noise_multiple = partial(
    setting,
    description="Standard errors of an excess loss that count as noise, where an evaluation has standard errors; "
    "see drpruning.worst_case.",
    ge=0.0,
    lt=math.inf,
)

ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""Largest difference of losses that are equal in exact arithmetic, relative to the losses: each loss, reference and
difference has a rounding error of half an eps."""


@documented
@dataclass(frozen=True, kw_only=True)
class ChiSquareDRO(RuleStrategy):
    """Chi-square DRO by iterated best response (Zhou et al. 2021): the worst mixture near the reference ratio ``p``.

    ``w = worst_case(loss - reference_loss, p, rho, floor)``: ``argmax sum_d w_d (loss_d - reference_loss_d)`` over
    ``w >= floor p``, ``sum w = 1``, ``1/2 sum_d p_d (w_d / p_d - 1)^2 <= rho``. The divergence has the
    factor 1/2. This is :class:`DRPruning` without prediction and without a moving ratio.

    The reference losses given to :meth:`init` are baselines that stay fixed throughout, as in Zhou et al. and in Jiao
    et al. (2022). A domain that was given none where others were is measured against its first finite loss. Without
    any the losses themselves are compared, as in the plain objective, and the domain with the highest entropy is
    always in front.

    A domain whose loss is missing, NaN or infinite keeps its weight if the ball and the floor contain it; the others
    get the worst case for them over the rest of the ball. A mixture that is moved into ``bounds`` may be outside the
    ball.
    """

    name: ClassVar[str] = "chi_square"
    rho: float = ball_radius(0.1)
    floor: float = ball_floor(0.2)
    solver: Solver = ball_solver("exact")  # noqa: RUF009 - returns a dataclasses.field
    noise: float = noise_multiple(1.0)
    bounds: Bounds = UNBOUNDED

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.solver, self.rho)

    def rule(self, evaluation: Evaluation) -> Decision:
        """Return the worst mixture in the ball."""
        _, reference = evaluation.baselined_losses()
        if not evaluation.known.any():
            return Decision(UpdateStatus.UNCHANGED, reference)
        weights, status = best_response(
            self.solver,
            evaluation.losses,
            fill(reference, np.zeros(evaluation.losses.size)),  # zero where raw losses are compared
            evaluation.ratio,
            self.rho,
            self.floor,
            weights=evaluation.weights,
            noise=noise_of(evaluation.observation, evaluation.state["domains"], self.noise),
        )
        return Decision(status, reference, weights)


def best_response(
    solver: Solver,
    losses: Vector,
    reference_loss: Vector,
    reference_ratio: Vector,
    rho: float,
    floor: float,
    *,
    weights: Vector,
    noise: Vector | float = 0.0,
) -> tuple[Vector, UpdateStatus]:
    """Return the mixture under which ``losses - reference_loss`` is worst, and the status of the solution.

    A domain without a loss keeps its weight; the others get the worst case for them over the rest of the ball
    (:func:`remaining_ball`), so the whole mixture is in the ball and above its floor. If the kept weights themselves
    are outside the ball (its centre has moved, or bounds changed them), they move towards the reference ratio until
    they are inside. Excess losses that differ by no more than rounding are equal; the mixture then is the reference
    ratio.

    Args:
        solver: ``"exact"``: :func:`drpruning.worst_case`, whose status is returned. ``"published"``:
            :func:`published_update`, for runs that are compared with published ones. It scales reference losses that
            are all above the losses. If no scale helps, because all losses are negative, or if losses are missing, the
            exact solution is used.
        losses: Nats per token, ``[n]``, at least one finite; NaN where there is none.
        reference_loss: Nats per token, ``[n]``, finite where ``losses`` are.
        reference_ratio: The centre of the ball, ``[n]``.
        rho: Radius of the ball, halved divergence.
        floor: Least ratio of a weight to its reference.
        weights: The mixture until now, ``[n]``.
        noise: Standard error of each excess loss that counts as noise, nats per token; ``"published"`` ignores it.
    """
    known = np.isfinite(losses)
    noise = np.broadcast_to(np.asarray(noise, dtype=np.float64), losses.shape)
    excess = losses - reference_loss
    if known.all():
        if solver == "published" and max(excess.max(), losses.max()) >= 0:
            # float32, as in the public code: the last bit can decide the result of its bisection
            single = losses.astype(np.float32) - reference_loss.astype(np.float32)
            update = published_update(single, reference_ratio, rho, floor=floor, reference_loss=reference_loss)
            if np.isfinite(update).all():  # float32 and a bisection make no promise
                return update / update.sum(), UpdateStatus.PUBLISHED
        if np.ptp(excess) <= ROUNDING * (np.abs(losses) + np.abs(reference_loss)).max():
            excess = np.zeros(excess.size)
        worst = worst_case(excess, reference_ratio, rho, floor, noise=noise)
        return worst.weights, UpdateStatus(worst.status.value)
    mixture, radius, least = remaining_ball(weights, reference_ratio, known, rho, floor)
    mass = mixture[known].sum()
    share = reference_ratio[known] / reference_ratio[known].sum()
    if mass > 0:
        mixture[known] = mass * worst_case(excess[known], share, radius, least, noise=noise[known]).weights
    return mixture / mixture.sum(), UpdateStatus.INCOMPLETE


def remaining_ball(
    weights: Vector, reference_ratio: Vector, known: NDArray[np.bool_], rho: float, floor: float
) -> tuple[Vector, float, float]:
    """Return the part of the ball that fixed weights leave for the other domains.

    Let ``p`` be the reference ratio, let the domains without a loss keep ``w_i``, ``S`` be their part of the
    divergence, ``P`` the mass of the others under ``p`` and ``a`` the factor by which their mass changes. With
    ``q_i = a P u_i`` for the others, ``u`` a mixture, ``D(q, p) = S + P (a - 1)^2 / 2 + P a^2 D(u, p / P)``: a ball in
    ``u``, of radius
    ``(rho - S - P (a - 1)^2 / 2) / (P a^2)`` and floor ``floor / a``.

    Returns:
        The mixture with the kept weights in place, moved towards ``p`` by the least factor that makes the ball and the
        floor hold; the radius; the floor.
    """
    p = reference_ratio
    moved = np.where(known, 0.0, weights - p)  # of the kept weights
    mass, gain = p[known].sum(), -moved.sum() / p[known].sum()  # gain = a - 1
    spent = 0.5 * (moved**2 / p).sum() + 0.5 * mass * gain**2
    factor = min(1.0, math.sqrt(rho / spent)) if spent > 0 else 1.0
    lowest = min(gain, float((moved / p).min()))  # of the ratios less one
    if lowest < floor - 1:
        factor = min(factor, (floor - 1) / lowest)
    a = 1 + factor * gain
    radius = max(0.0, rho - factor**2 * spent) / (mass * a**2) if a > 0 else 0.0
    least = min(floor / a, 1 - 1e-12) if a > 0 else 0.0  # at most one but for rounding, and a floor is below one
    mixture = p + factor * moved
    mixture[known] *= a
    return mixture, radius, least


def noise_of(observation: Observation, domains: list[str], multiple: float) -> Vector | float:
    """Return ``multiple`` times the standard errors of the observation, ``[n]``; 0 where it has none.

    A domain whose error is missing or not finite counts as exact.
    """
    errors = observation.standard_errors
    if not multiple or not errors:
        return 0.0
    values = np.array([errors.get(domain, 0.0) for domain in domains], dtype=np.float64)
    return multiple * np.where(np.isfinite(values) & (values > 0), values, 0.0)


def check_solver(solver: Solver, rho: float) -> None:
    """Raise ConfigError if the published update cannot solve a ball of this radius."""
    if solver == "published" and not 0 < rho < math.inf:
        raise ConfigError(f"rho: expected a positive, finite number with solver=published, got {rho}")
