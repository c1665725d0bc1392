"""The mixture of Sheared LLaMA: weights that multiply up while a domain is above its reference loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from drpruning import published
from drpruning.reweight.bounds import UNBOUNDED, Bounds
from drpruning.reweight.exponentiated import exponentiated
from drpruning.reweight.observation import Observation, State, Update
from drpruning.reweight.state import check_range, copy_state, first_losses, new_state, read_losses, settle, spread


@dataclass(frozen=True, kw_only=True)
class ShearedLoading:
    """Dynamic batch loading of Sheared LLaMA (Xia et al. 2023, algorithm 1): exponential weights on the excess.

    ``w <- softmax(log w + eta max(0, loss - reference_loss))``, then ``w <- (1 - smoothing) w + smoothing / n``. The
    weights multiply up from update to update; nothing but the smoothing and the bounds pulls them back.

    Reference losses are those given to :meth:`init` (in the paper: predicted from models of several sizes). A domain
    without one is measured against its first finite loss, so only a loss above the start counts as excess.

    A domain whose loss is missing, NaN or infinite keeps its weight, the others share the rest (``"incomplete"``).

    Attributes:
        eta: Step size, per nat.
        smoothing: Share of the uniform mixture blended in.
        clip_excess: Whether a loss below its reference counts as zero excess, as in the paper's algorithm. The public
            code of Sheared LLaMA and of DRPruning does not clip: there a domain below its reference loses weight.
        bounds: Limits on the mixture.
    """

    name: ClassVar[str] = "sheared"
    eta: float = 1.0
    smoothing: float = 1e-4
    clip_excess: bool = True
    bounds: Bounds = UNBOUNDED

    @classmethod
    def published(cls, **settings: Any) -> ShearedLoading:
        """Return the strategy with the settings of the public code, and ``settings`` in their place."""
        return cls(**{**published.STRATEGIES["sheared"], **settings})

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
        reference = first_losses(state, losses)
        known = np.isfinite(losses)
        if not known.any():
            return state, settle(state, self.bounds, observation, "held", losses, reference)
        excess = losses[known] - reference[known]
        step = self.eta * (np.maximum(0.0, excess) if self.clip_excess else excess)
        shares = exponentiated(np.array(state["weights"])[known], step, self.smoothing)
        status = "loading" if known.all() else "incomplete"
        wanted = spread(state, known, shares)
        return state, settle(state, self.bounds, observation, status, losses, reference, wanted=wanted)
