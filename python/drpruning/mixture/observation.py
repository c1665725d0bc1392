"""The input of a strategy after an evaluation, and its output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from drpruning.errors import WeightError
from drpruning.scaling import LearningRates

State = dict[str, Any]
"""The state of a strategy: JSON-able data that the caller stores."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The input of an update: the losses of an evaluation, and those of the training steps since the last update.

    Attributes:
        step: Optimizer steps taken in this stage.
        tokens: Tokens trained on in this stage.
        params: Parameters in use; the expected number while masks close.
        losses: Held-out loss of each domain, nats per token; empty for an update between evaluations.
        final_tokens: Tokens this stage will have at its end; needed by strategies that predict and by ``max_epochs``.
        final_params: Parameters in use at the end of the stage; ``params`` if not given.
        domain_tokens: Training tokens that each domain has, once through; needed by ``max_epochs``.
        consumed: Tokens of each domain trained on in this stage; needed by ``max_epochs``.
        standard_errors: Standard error of each domain's excess loss, nats per token; NaN where it is not known.
        learning_rates: Schedule of the whole stage, in its tokens. Strategies that fit laws fit them with it, to all
            points so far: pass the same schedule to every evaluation. It is not part of their state.
        training_losses: Mean training loss over the tokens of each domain that were trained on since the observation
            before, nats per token; a domain without such tokens is missing. Needed by ``odm``.
        training_tokens: Those tokens.

    Raises:
        WeightError: A count is negative or not finite, or a number of parameters or of final tokens is not positive.
    """

    step: int
    tokens: int
    params: float
    losses: Mapping[str, float]
    final_tokens: int | None = None
    final_params: float | None = None
    domain_tokens: Mapping[str, int] | None = None
    consumed: Mapping[str, int] | None = None
    standard_errors: Mapping[str, float] | None = None
    learning_rates: LearningRates | None = None
    training_losses: Mapping[str, float] | None = None
    training_tokens: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        for name in ("step", "tokens"):
            if not 0 <= getattr(self, name) < math.inf:
                raise WeightError(f"{name} of an observation: expected a finite number >= 0, got {getattr(self, name)}")
        for name in ("params", "final_tokens", "final_params"):
            number = getattr(self, name)
            if number is not None and not 0 < number < math.inf:
                raise WeightError(f"{name} of an observation: expected a finite number > 0, got {number}")


class UpdateStatus(StrEnum):
    """The reason for the weights of an update; equal to its name in lower case."""

    CONSTANT = "constant"
    """The weights are the reference ratio."""
    SCHEDULED = "scheduled"
    """The weights are those of the last change of a schedule."""
    EXPONENTIATED = "exponentiated"
    """The weights were multiplied by an exponential of the losses."""
    WORST_FRACTION = "worst_fraction"
    """The weights are those of the worst fraction of the reference ratio (CVaR)."""
    CENTER = "center"
    """Chi-square ball: the weights are the reference ratio, because all excess losses are equal or the radius is 0."""
    INTERIOR = "interior"
    """Chi-square ball: the noise penalty determines the weights, which are inside the ball."""
    BOUNDARY = "boundary"
    """Chi-square ball: the divergence of the weights is the radius."""
    FACE = "face"
    """Chi-square ball: the floors determine the weights."""
    PUBLISHED = "published"
    """The weights are those of the update in the paper's public code."""
    LEARNING_SPEED = "learning_speed"
    """The weights follow the learning speed of each domain's scaling law (ADO)."""
    BANDIT = "bandit"
    """The weights are the policy of a bandit whose rewards are training losses (ODM)."""
    INTERACTION = "interaction"
    """The weights follow the interaction matrix that probes measured (Aioli)."""
    PROBING = "probing"
    """The weights are those of a probe: the steps up to the next evaluation measure how this mixture changes losses."""
    WAITING = "waiting"
    """The weights do not move yet: DRPruning and ODM before ``update_after_fraction``, ADO before its first law, Aioli
    before its first interaction matrix."""
    INCOMPLETE = "incomplete"
    """Some domains had no finite loss and kept their weights; the others share the rest."""
    UNCHANGED = "unchanged"
    """No domain had a finite loss; all weights stay."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """The mixture from the next batch on, and the reason. Mappings are from domain to number.

    Attributes:
        weights: The mixture, every entry finite and >= 0, sum one.
        reference_ratio: The mixture at the centre of the ball, after this update.
        status: The reason for the weights.
        reference_loss: The loss each domain was measured against.
        excess_loss: Loss less reference loss, for the domains that had a loss.
        predicted_loss: The law's prediction for the end of the stage, for the domains that have one.
        predicted_band: The 90% band of each prediction, [low, high].
        divergence: Halved chi-square divergence of the weights from the ratio they were chosen around.
        average_weights: DoReMi's result so far: the mean of its weights over the updates of the stage.
        at_bound: Domains whose weight is at a bound of :class:`Bounds`.
    """

    weights: dict[str, float]
    reference_ratio: dict[str, float]
    status: UpdateStatus
    reference_loss: dict[str, float] | None = None
    excess_loss: dict[str, float] | None = None
    predicted_loss: dict[str, float] | None = None
    predicted_band: dict[str, list[float]] | None = None
    divergence: float | None = None
    average_weights: dict[str, float] | None = None
    at_bound: tuple[str, ...] = ()
