"""Exponentiated weights: Sheared LLaMA's dynamic loading, group DRO and DoReMi share this step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from drpruning.mixture.bounds import UNBOUNDED, Bounds
from drpruning.mixture.observation import Observation, State, Update, UpdateStatus
from drpruning.mixture.settings import documented, setting
from drpruning.mixture.state_schema import COUNT, Entries, Entry, is_vector, sums_to
from drpruning.mixture.strategy import Decision, Evaluation, RuleStrategy

Vector = NDArray[np.float64]

SHEARED_PUBLISHED: dict[str, Any] = {"eta": 1.0, "smoothing": 1e-4, "clip_excess": False}
"""Settings of the public code of Sheared LLaMA (princeton-nlp/LLM-Shearing at b87218b)."""

step_size = partial(setting, description="Step size of the exponentiated update, per nat.", ge=0.0, lt=math.inf)
uniform_share = partial(setting, description="Share of the uniform mixture that is blended in.", ge=0.0, le=1.0)


@documented
@dataclass(frozen=True, kw_only=True)
class ShearedLoading(RuleStrategy):
    """Dynamic batch loading of Sheared LLaMA (Xia et al. 2023, algorithm 1): exponential weights on the excess.

    ``w <- softmax(log w + eta max(0, loss - reference_loss))``, then ``w <- (1 - smoothing) w + smoothing / n``. The
    weights multiply up from update to update; nothing but the smoothing and the bounds pulls them back.

    Reference losses are those given to :meth:`init` (in the paper: predicted from models of several sizes). A domain
    without one is measured against its first finite loss, so only a loss above the start counts as excess.

    A domain whose loss is missing, NaN or infinite keeps its weight, the others share the rest.
    """

    name: ClassVar[str] = "sheared"
    eta: float = step_size(1.0)
    smoothing: float = uniform_share(1e-4)
    clip_excess: bool = setting(
        True,
        "Whether a loss below its reference counts as zero excess, as in the paper's algorithm. In the public code of "
        "Sheared LLaMA and of DRPruning it does not, so such a domain loses weight.",
    )
    bounds: Bounds = UNBOUNDED

    @classmethod
    def published(cls, **settings: Any) -> ShearedLoading:
        """Return the strategy with the settings of the public code, and ``settings`` in their place."""
        return cls(**{**SHEARED_PUBLISHED, **settings})

    def rule(self, evaluation: Evaluation) -> Decision:
        """Multiply the weights of the domains with a loss up by their excess."""
        reference = evaluation.first_losses()
        excess = evaluation.losses - reference
        return _ascend(self, evaluation, np.maximum(0.0, excess) if self.clip_excess else excess, reference)


@documented
@dataclass(frozen=True, kw_only=True)
class GroupDRO(RuleStrategy):
    """Group distributionally robust optimisation (Sagawa et al. 2019, algorithm 1): the worst domain of all.

    ``w <- softmax(log w + eta loss)``, the ascent half of ``min over models, max over mixtures of sum_d w_d loss_d``.
    At its saddle point the domains that have weight have equal losses, and no other domain has a larger one.

    Given reference losses, ``loss - reference_loss`` takes the place of ``loss``, and the excess is what becomes equal;
    without them the domain with the highest entropy, which no training brings down, takes over in the end. A domain
    that was given none where others were is measured against its first finite loss.

    The paper starts from even weights and updates with the losses of every batch; this starts from the reference ratio
    and updates with held-out losses after every evaluation, which are fewer and less noisy. So the default step is
    larger than its 0.01: with excess losses of some tenths of a nat, 1 ends nearest to the saddle point for 25 to 400
    evaluations (docs/choosing.md). Its weighted loss, group adjustment and early stopping belong to a training loop.

    The paper has no smoothing; with it no domain loses its weight permanently. A domain whose loss is missing, NaN or
    infinite keeps its weight, the others share the rest.
    """

    name: ClassVar[str] = "group_dro"
    eta: float = step_size(1.0)
    smoothing: float = uniform_share(1e-4)
    bounds: Bounds = UNBOUNDED

    def rule(self, evaluation: Evaluation) -> Decision:
        """Multiply the weights of the domains with a loss up by their loss or excess."""
        compared, reference = evaluation.baselined_losses()
        return _ascend(self, evaluation, compared, reference)


@documented
@dataclass(frozen=True, kw_only=True)
class DoReMi(RuleStrategy):
    """DoReMi (Xie et al. 2023, algorithm 1): group DRO of a proxy model on its excess over a reference model.

    ``w <- (1 - smoothing) softmax(log w + eta max(0, loss - reference_loss)) + smoothing / n``. The result is not the
    last mixture but the mean of all of them over the stage, ``update.average_weights``: the mixture to train the
    model proper with, for instance as ``data.reference_ratio`` of :class:`Constant`.

    ``reference_loss`` are the losses of a finished reference model of the proxy's size, given to :meth:`init`. A domain
    without one is measured against its first finite loss, so only a loss above the start counts as excess. While the
    proxy is far above its reference, as at the start of pretraining, every update is a large one; one update here
    corresponds to one batch there, and the excess is clipped at zero per domain, not per token.

    A domain whose loss is missing, NaN or infinite keeps its weight, the others share the rest. An update without any
    loss does not enter the mean. The smoothing is that of the paper; its public code has 1e-4.
    """

    name: ClassVar[str] = "doremi"
    state_entries: ClassVar[Entries] = {
        "updates": COUNT,
        "sum_weights": Entry(
            "{n} numbers >= 0 with sum `updates`",
            lambda value, state: is_vector(value, state, 0.0) and sums_to(value, state["updates"]),
        ),
    }
    eta: float = step_size(1.0)
    smoothing: float = uniform_share(1e-3)
    bounds: Bounds = UNBOUNDED

    def stage_state(self, state: State) -> State:
        """Return an empty mean."""
        return {"updates": 0, "sum_weights": [0.0] * len(state["domains"])}

    def rule(self, evaluation: Evaluation) -> Decision:
        """Multiply the weights of the domains with a loss up by their excess."""
        reference = evaluation.first_losses()
        return _ascend(self, evaluation, np.maximum(0.0, evaluation.losses - reference), reference)

    def update(self, state: State, observation: Observation) -> tuple[State, Update]:
        """See :meth:`Strategy.update`; the update has the mean of the weights of the stage."""
        state, update = super().update(state, observation)
        if update.status != UpdateStatus.UNCHANGED:
            state["updates"] += 1
            state["sum_weights"] = (np.array(state["sum_weights"]) + state["weights"]).tolist()
        mean = np.array(state["sum_weights"]) / state["updates"] if state["updates"] else np.array(state["weights"])
        return state, replace(update, average_weights=dict(zip(state["domains"], mean.tolist(), strict=True)))


def _ascend(
    strategy: ShearedLoading | GroupDRO | DoReMi, evaluation: Evaluation, gradient: Vector, reference: Vector
) -> Decision:
    """Take a step of size ``eta`` along ``gradient``, nats per token, ``[n]``, in the domains with a loss."""
    known = evaluation.known
    if not known.any():
        return Decision(UpdateStatus.UNCHANGED, reference)
    shares = exponentiated(evaluation.weights[known], strategy.eta * gradient[known], strategy.smoothing)
    return evaluation.divide(shares, UpdateStatus.EXPONENTIATED, reference)


def exponentiated(weights: Vector, step: Vector, smoothing: float) -> Vector:
    """Return ``(1 - c) softmax(log w + step) + c / n``.

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
