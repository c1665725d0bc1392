"""The mixture that never moves: the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drpruning.reweight.bounds import UNBOUNDED, Bounds
from drpruning.reweight.observation import Observation, State, Update
from drpruning.reweight.state import copy_state, new_state, read_losses, settle, vector


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The reference ratio, whatever the losses, missing ones included: the baseline of every comparison.

    Attributes:
        bounds: Limits on the mixture.
    """

    name: ClassVar[str] = "constant"
    bounds: Bounds = UNBOUNDED

    def init(
        self,
        domains: Sequence[str],
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> State:
        """See :meth:`Strategy.init`; a reference loss only shows up as excess loss in the updates."""
        return new_state(self.name, domains, reference_ratio, reference_loss, self.bounds)

    def next_stage(self, state: State) -> State:
        """See :meth:`Strategy.next_stage`."""
        return copy_state(self.name, state)

    def update(self, state: State, observation: Observation) -> tuple[State, Update]:
        """See :meth:`Strategy.update`."""
        state = copy_state(self.name, state)
        losses, reference = read_losses(state, observation), vector(state["reference_loss"])
        ratio = np.array(state["reference_ratio"])
        return state, settle(state, self.bounds, observation, "constant", losses, reference, wanted=ratio)
