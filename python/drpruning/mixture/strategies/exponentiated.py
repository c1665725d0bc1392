"""Exponentiated weights: Sheared LLaMA's dynamic loading, group DRO and DoReMi share this step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from drpruning import published
from drpruning.mixture.bounds import UNBOUNDED, Bounds
from drpruning.mixture.observation import Observation, State, Update
from drpruning.mixture.strategy import Decision, Evaluation, RuleStrategy, check_range

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ShearedLoading(RuleStrategy):
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

    def rule(self, evaluation: Evaluation) -> Decision:
        """Multiply the weights of the domains with a loss up by their excess."""
        reference = evaluation.first_losses()
        excess = evaluation.losses - reference
        return _ascend(self, evaluation, np.maximum(0.0, excess) if self.clip_excess else excess, reference)


@dataclass(frozen=True, kw_only=True)
class GroupDRO(RuleStrategy):
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

    def rule(self, evaluation: Evaluation) -> Decision:
        """Multiply the weights of the domains with a loss up by their loss or excess."""
        compared, reference = evaluation.baselined_losses()
        return _ascend(self, evaluation, compared, reference)


@dataclass(frozen=True, kw_only=True)
class DoReMi(RuleStrategy):
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
        if update.status != "held":
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
        return Decision("held", reference)
    shares = exponentiated(evaluation.weights[known], strategy.eta * gradient[known], strategy.smoothing)
    return evaluation.divide(shares, "loading", reference)


def exponentiated(weights: Vector, step: Vector, smoothing: float) -> Vector:
    """``w <- (1 - c) softmax(log w + step) + c / n``.

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
