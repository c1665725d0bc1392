"""DoReMi: exponential weights on what a model has still to learn of each domain, and their average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from drpruning.reweight.bounds import UNBOUNDED, Bounds
from drpruning.reweight.exponentiated import exponentiated
from drpruning.reweight.observation import Observation, State, Update
from drpruning.reweight.state import check_range, copy_state, first_losses, new_state, read_losses, settle, spread


@dataclass(frozen=True, kw_only=True)
class DoReMi:
    """DoReMi (Xie et al. 2023, algorithm 1): group DRO of a proxy model on its excess over a reference model.

    ``w <- (1 - smoothing) softmax(log w + eta max(0, loss - reference_loss)) + smoothing / n``. The result is not the
    last mixture but the mean of all of them over the stage, ``update.average_weights``: the mixture to train the
    model proper with, for instance as ``data.reference_ratio`` of :class:`Constant`.

    ``reference_loss`` are the losses of a finished reference model of the proxy's size, given to :meth:`init`. A domain
    without one is measured against its first finite loss, so only a loss above the start counts as excess. While the
    proxy is far above its reference, as at the start of pretraining, every update is a large one; one update here
    stands for one batch there, and the excess is clipped at zero per domain, not per token.

    A domain whose loss is missing, NaN or infinite keeps its weight, the others share the rest (``"incomplete"``).
    An update without any loss (``"held"``) does not enter the mean.

    Attributes:
        eta: Step size, per nat.
        smoothing: Share of the uniform mixture blended in; the paper has 1e-3, its public code 1e-4.
        bounds: Limits on the mixture.
    """

    name: ClassVar[str] = "doremi"
    eta: float = 1.0
    smoothing: float = 1e-3
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
        return self._forget_average(new_state(self.name, domains, reference_ratio, reference_loss, self.bounds))

    def next_stage(self, state: State) -> State:
        """See :meth:`Strategy.next_stage`: weights and reference losses stay; the mean begins anew."""
        return self._forget_average(copy_state(self.name, state))

    def update(self, state: State, observation: Observation) -> tuple[State, Update]:
        """See :meth:`Strategy.update`."""
        state = copy_state(self.name, state)
        losses = read_losses(state, observation)
        reference = first_losses(state, losses)
        known = np.isfinite(losses)
        if known.any():
            step = self.eta * np.maximum(0.0, losses[known] - reference[known])
            wanted = spread(state, known, exponentiated(np.array(state["weights"])[known], step, self.smoothing))
            status = "loading" if known.all() else "incomplete"
            update = settle(state, self.bounds, observation, status, losses, reference, wanted=wanted)
            state["updates"] += 1
            state["sum_weights"] = (np.array(state["sum_weights"]) + state["weights"]).tolist()
        else:
            update = settle(state, self.bounds, observation, "held", losses, reference)
        mean = np.array(state["sum_weights"]) / state["updates"] if state["updates"] else np.array(state["weights"])
        return state, replace(update, average_weights=dict(zip(state["domains"], mean.tolist(), strict=True)))

    def _forget_average(self, state: State) -> State:
        return state | {"updates": 0, "sum_weights": [0.0] * len(state["domains"])}
