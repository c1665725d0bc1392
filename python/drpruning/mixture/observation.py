"""The input of a strategy after an evaluation, and its output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral
from typing import Any

from drpruning.errors import WeightError
from drpruning.scaling import LearningRates

State = dict[str, Any]
"""The state of a strategy: JSON-able data that the caller stores."""

LARGEST_LOSS = 1e6
"""Nats per token; a number beyond this is a failure of the evaluation, and is treated as a missing loss."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The input of an update: the losses of an evaluation, and those of the training steps since the last update.

    Attributes:
        step: Optimizer steps taken in this stage.
        tokens: Tokens trained on in this stage.
        params: Parameters of the model that the evaluation measured; while units are pruned they fall to the target's.
        losses: Held-out loss of each domain, nats per token; NaN, infinite or beyond 10^6 where it is missing; empty
            for an update between evaluations.
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

    Numbers are stored as Python's ``int`` and ``float``, so that states and records are JSON.

    Raises:
        WeightError: A count is negative or not finite, a number of parameters or of final tokens is not positive, or
            a value is not a number.
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
            number = getattr(self, name)
            if not (is_finite(number) and number >= 0):
                raise WeightError(f"{name} of an observation: expected a finite number >= 0, got {number}")
            self._store(name, plain_number(number))
        for name in ("params", "final_tokens", "final_params"):
            number = getattr(self, name)
            if number is not None:
                if not (is_finite(number) and number > 0):
                    raise WeightError(f"{name} of an observation: expected a finite number > 0, got {number}")
                self._store(name, plain_number(number))
        counts = ("domain_tokens", "consumed", "training_tokens")
        for name in ("losses", "standard_errors", "training_losses", *counts):
            numbers = getattr(self, name)
            if numbers is not None or name == "losses":
                self._store(name, _by_domain(name, numbers, counts=name in counts))

    def _store(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def is_finite(number: Any) -> bool:
    """Return whether ``number`` is a finite number that float64 can hold; False for what is not a number."""
    try:
        return math.isfinite(number)
    except (TypeError, ValueError, OverflowError):
        return False


def plain_number(number: Any) -> int | float:
    """Return a number as Python's own, which JSON can hold: also those of numpy and 0-dimensional arrays."""
    return int(number) if isinstance(number, Integral) else float(number)


def _by_domain(name: str, numbers: Any, *, counts: bool) -> dict[str, int | float]:
    """Return numbers by domain as Python's own; counts must be finite and >= 0."""
    if not isinstance(numbers, Mapping):
        raise WeightError(f"{name} of an observation: expected a number for each domain, got {numbers!r}")
    plain = {}
    for domain, number in numbers.items():
        try:
            if isinstance(number, str):  # float() would parse it
                raise TypeError
            plain[domain] = plain_number(math.nan if number is None and not counts else number)
        except (TypeError, ValueError, OverflowError) as error:
            raise WeightError(f"{name} of domain {domain!r}: expected a number, got {number!r}") from error
        if counts and not (is_finite(plain[domain]) and plain[domain] >= 0):
            raise WeightError(f"{name} of domain {domain!r}: expected a finite number >= 0, got {number}")
    return plain


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
