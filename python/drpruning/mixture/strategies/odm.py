"""Online data mixing: a bandit whose arms are the domains and whose rewards are their training losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from drpruning.mixture.bounds import UNBOUNDED, Bounds
from drpruning.mixture.observation import State, UpdateStatus
from drpruning.mixture.settings import FRACTION, documented, setting
from drpruning.mixture.state_schema import COUNT, Entries, Entry, is_number, is_vector
from drpruning.mixture.strategy import Decision, Evaluation, RuleStrategy

Vector = NDArray[np.float64]

PUBLISHED: dict[str, Any] = {"policy": "published", "reward_decay": 0.5}
"""Settings of the public code (alon-albalak/online-data-mixing at edbfdad): its class ``SmoothedMeanWeightUpdater`` and
its scripts of 1B and 3B parameters."""

LARGEST_EXPONENT = 700.0
"""Beyond this absolute value of a loss, exp overflows or is zero."""


@documented
@dataclass(frozen=True, kw_only=True)
class ODM(RuleStrategy):
    """Online data mixing (Albalak et al. 2023, algorithm 1): EXP3 with the training loss of a domain as its reward.

    With ``n`` domains, turn ``t`` (an update) and mean training losses ``L`` since the turn before ::

        eps_t  =  min(1/n, sqrt(ln n / (n t)))                        exploration; eps_0 = 1/n
        R_d   <-  reward_decay R_d + (1 - reward_decay) L_d / w_d     for the domains drawn since; R_d = 0 first
        w_d    =  (1 - n eps_t) softmax(eps_{t-1} R)_d + eps_t

    The division by the weight makes the reward of a rarely drawn domain as large as that of one drawn often would be
    (importance weighting). No weight is below ``eps_t``. Turns before ``update_after_fraction`` (the paper's warm-up
    of 1%) count, but change neither rewards nor weights.

    ``policy="published"`` is the update of the public code: the reward is ``exp(L_d)`` without importance weighting,
    and the weights are proportional to it, ``(1 - n eps_t) R_d / sum R + eps_t``.

    The weights start from the reference ratio and do not return to it: rewards alone determine them. Reference losses
    only appear as excess loss in the updates. An observation without ``training_losses`` changes nothing. The rewards
    and turns start over in each stage; in a stage of unknown length there is no warm-up.

    A loss is also high where a domain's entropy is high, so such a domain is drawn most, whether or not it can improve.
    """

    name: ClassVar[str] = "odm"
    state_entries: ClassVar[Entries] = {
        "turn": COUNT,
        "exploration": Entry("a number in [0, 1]", lambda value, _: is_number(value, 0.0, 1.0)),
        "rewards": Entry("{n} numbers", is_vector),
    }
    update_every: int = setting(
        1, "Optimizer steps between updates from training losses. Each update waits for the device.", ge=1
    )
    reward_decay: float = setting(0.9, "Weight of earlier rewards in the mean reward of a domain.", ge=0.0, lt=1.0)
    update_after_fraction: float = setting(
        0.01, "Fraction of the stage before the weights move for the first time.", **FRACTION
    )
    policy: Literal["exp3", "published"] = setting(
        "exp3",
        "`exp3` as in the paper, or `published` for the public code: rewards exp(loss) without importance weighting, "
        "and weights in proportion to them.",
    )
    bounds: Bounds = UNBOUNDED

    @classmethod
    def published(cls, **settings: Any) -> ODM:
        """Return the strategy with the settings of the public code, and ``settings`` in their place."""
        return cls(**{**PUBLISHED, **settings})

    def stage_state(self, state: State) -> State:
        """Return zero rewards and the exploration of the first turn."""
        count = len(state["domains"])
        return {"turn": 0, "exploration": 1 / count, "rewards": [0.0] * count}

    def update_due(self, state: State, step: int, tokens: int) -> bool:
        """See :meth:`Strategy.update_due`."""
        return step % self.update_every == 0

    def rule(self, evaluation: Evaluation) -> Decision:
        """Add the rewards of the domains with a training loss, and return the policy of the next turn."""
        state, observation, losses = evaluation.state, evaluation.observation, evaluation.training_losses
        weights, reference = evaluation.weights, evaluation.given_reference
        drawn = np.isfinite(losses) & (weights > 0)
        if not drawn.any():
            return Decision(UpdateStatus.UNCHANGED, reference)
        state["turn"] += 1
        if observation.final_tokens and observation.tokens / observation.final_tokens < self.update_after_fraction:
            return Decision(UpdateStatus.WAITING, reference)
        if self.policy == "exp3":
            found = losses[drawn] / weights[drawn]
        else:
            found = np.exp(np.clip(losses[drawn], -LARGEST_EXPONENT, LARGEST_EXPONENT))
        rewards = np.array(state["rewards"])
        rewards[drawn] = self.reward_decay * rewards[drawn] + (1 - self.reward_decay) * found
        before, after = state["exploration"], exploration(rewards.size, state["turn"])
        state["rewards"], state["exploration"] = rewards.tolist(), after
        shares = softmax(before * rewards) if self.policy == "exp3" else rewards / rewards.sum()
        chosen = (1 - rewards.size * after) * shares + after
        return Decision(UpdateStatus.BANDIT, reference, chosen / chosen.sum())


def exploration(num_domains: int, turn: int) -> float:
    """Return the exploration ``eps_t`` of EXP3 at turn ``turn``, from 1: the least share of a domain.

    Example:
        >>> [round(exploration(4, turn), 4) for turn in (1, 10, 1000)]
        [0.25, 0.1862, 0.0186]
    """
    return min(1 / num_domains, math.sqrt(math.log(num_domains) / (num_domains * turn)))


def softmax(exponents: Vector) -> Vector:
    """Return ``exp(exponents)`` divided by its sum, ``[n]``; exponents are finite and can be large."""
    shares = np.exp(exponents - exponents.max())
    return np.asarray(shares / shares.sum())
