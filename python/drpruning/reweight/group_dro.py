"""Group DRO: exponentiated gradient ascent on the losses of the domains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drpruning.reweight.bounds import UNBOUNDED, Bounds
from drpruning.reweight.exponentiated import exponentiated
from drpruning.reweight.observation import Observation, State, Update
from drpruning.reweight.state import check_range, copy_state, fixed_baselines, new_state, read_losses, settle, spread


@dataclass(frozen=True, kw_only=True)
class GroupDRO:
    """Group distributionally robust optimisation (Sagawa et al. 2019, algorithm 1): the worst domain of all.

    ``w <- softmax(log w + eta loss)``, the ascent half of ``min over models, max over mixtures of sum_d w_d loss_d``.
    At its saddle point the domains that have weight have equal losses, and no other domain has a larger one.

    Given reference losses, ``loss - reference_loss`` takes the place of ``loss``, and the excess is what becomes equal;
    without them the domain with the highest entropy, which no training brings down, takes over in the end. A domain
    that was given none where others were is measured against its first finite loss.

    The paper starts from even weights and updates with the losses of every batch; this starts from the reference
    ratio and updates with held-out losses after every evaluation, which are fewer and less noisy. Hence a larger step
    than its 0.01: with excess losses of some tenths of a nat, 1 ends nearest to the saddle point for 25 to 400
    evaluations (docs/choosing.md). Its weighted loss, group adjustment and early stopping belong to a training loop.

    A domain whose loss is missing, NaN or infinite keeps its weight, the others share the rest (``"incomplete"``).

    Attributes:
        eta: Step size, per nat.
        smoothing: Share of the uniform mixture blended in, so that no domain is lost for good; 0 is the paper's.
        bounds: Limits on the mixture.
    """

    name: ClassVar[str] = "group_dro"
    eta: float = 1.0
    smoothing: float = 1e-4
    bounds: Bounds = UNBOUNDED

    def __post_init__(self) -> None:
        check_range("eta", self.eta, 0.0, math.inf)
        check_range("smoothing", self.smoothing, 0.0, 1.0)

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
        compared, reference = fixed_baselines(state, losses)
        known = np.isfinite(losses)
        if not known.any():
            return state, settle(state, self.bounds, observation, "held", losses, reference)
        shares = exponentiated(np.array(state["weights"])[known], self.eta * compared[known], self.smoothing)
        status = "loading" if known.all() else "incomplete"
        wanted = spread(state, known, shares)
        return state, settle(state, self.bounds, observation, status, losses, reference, wanted=wanted)
