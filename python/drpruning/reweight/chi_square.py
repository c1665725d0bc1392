"""Chi-square DRO with fixed reference losses: the worst mixture in a ball around the ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drpruning.reweight.bounds import UNBOUNDED, Bounds
from drpruning.reweight.observation import Observation, State, Update
from drpruning.reweight.response import Solver, best_response, check_ball, noise_of
from drpruning.reweight.state import copy_state, fill, fixed_baselines, new_state, read_losses, settle


@dataclass(frozen=True, kw_only=True)
class ChiSquareDRO:
    """Chi-square DRO by iterated best response (Zhou et al. 2021): the worst mixture near the reference ratio ``p``.

    ``w = worst_case(loss - reference_loss, p, rho, floor)``: ``argmax sum_d w_d (loss_d - reference_loss_d)`` over
    ``w >= floor p``, ``sum w = 1``, ``1/2 sum_d p_d (w_d / p_d - 1)^2 <= rho``. Mind the half. This is
    :class:`DRPruning` without prediction and without a moving ratio.

    The reference losses given to :meth:`init` are baselines that stay fixed throughout, as in Zhou et al. and in Jiao
    et al. (2022). A domain that was given none where others were is measured against its first finite loss. Without
    any the losses themselves are compared, as in the plain objective, and the domain with the highest entropy is
    always in front.

    A domain whose loss is missing, NaN or infinite keeps its weight as far as the ball and the floor allow; the others
    get the worst case for them over what is left of the ball (``"incomplete"``).

    Attributes:
        rho: Radius of the ball, halved chi-square divergence.
        floor: Least ratio of a domain's weight to its reference ratio, 0 to 1.
        solver: ``"exact"``, or ``"published"`` for the update of DRPruning's public code, whose clamps leave the ball.
        noise: Standard errors of an excess loss that count as noise, where observations have them
            (:func:`drpruning.worst_case`); 0: none do.
        bounds: Limits on the mixture; a bounded mixture may lie outside the ball.
    """

    name: ClassVar[str] = "chi_square"
    rho: float = 0.1
    floor: float = 0.2
    solver: Solver = "exact"
    noise: float = 1.0
    bounds: Bounds = UNBOUNDED

    def __post_init__(self) -> None:
        check_ball(self.solver, self.rho, self.floor, self.noise)

    def init(
        self,
        domains: Sequence[str],
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> State:
        """See :meth:`Strategy.init`."""
        return new_state(self.name, domains, reference_ratio, reference_loss, self.bounds)

    def next_stage(self, state: State) -> State:
        """See :meth:`Strategy.next_stage`: weights and reference losses stay."""
        return copy_state(self.name, state)

    def update(self, state: State, observation: Observation) -> tuple[State, Update]:
        """See :meth:`Strategy.update`."""
        state = copy_state(self.name, state)
        losses = read_losses(state, observation)
        _, reference = fixed_baselines(state, losses)
        known = np.isfinite(losses)
        if not known.any():
            return state, settle(state, self.bounds, observation, "held", losses, reference)
        wanted, status = best_response(
            self.solver,
            losses,
            fill(reference, np.zeros(losses.size)),  # zero where losses are compared as they are
            np.array(state["reference_ratio"]),
            self.rho,
            self.floor,
            weights=np.array(state["weights"]),
            noise=noise_of(observation, state["domains"], self.noise),
        )
        return state, settle(state, self.bounds, observation, status, losses, reference, wanted=wanted)
