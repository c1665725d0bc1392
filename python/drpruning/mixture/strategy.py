"""The strategy interface, and the driver that every strategy of this package shares.

A strategy of this package is a frozen dataclass of settings with a method ``rule``, which reads the losses of an
evaluation and returns a mixture. :class:`RuleStrategy` does the rest: it creates and checks the state, reads losses,
keeps the mixture within the bounds, and writes the update.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import SolverError, WeightError
from drpruning.mixture.bounds import SMALLEST, Bounds
from drpruning.mixture.observation import LARGEST_LOSS, Observation, State, Update, UpdateStatus, is_finite
from drpruning.mixture.settings import check_settings
from drpruning.mixture.state_schema import (
    MIXTURE,
    STATE_VERSION,
    SUM_TOLERANCE,
    Entries,
    copy_state,
    is_names,
)

Vector = NDArray[np.float64]


class Strategy(Protocol):
    """Chooses the mixture from the losses. Implementations are frozen dataclasses of settings.

    A training loop passes an :class:`Observation` to :meth:`update` after each evaluation. Two methods request more:
    :meth:`update_due` an update without an evaluation, :meth:`probe_end` an evaluation at the end of a probe, that is
    of some steps on a mixture that the strategy measures.
    """

    name: ClassVar[str]

    @property
    def bounds(self) -> Bounds:
        """Limits on the mixture."""

    def init(
        self,
        domains: Sequence[str],
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> State:
        """Return the state before the first evaluation, JSON-able; ``state["weights"]`` is the mixture to start with.

        Args:
            domains: Their names; the order of everything in the state.
            reference_ratio: Mixture to start from, positive, sum one.
            reference_loss: Loss each domain should reach, nats per token, if known.

        Raises:
            WeightError: ``domains`` is empty or repeats a name; the ratio or the reference losses name an unknown
                domain, or the ratio lacks one; a share is not positive and finite, or the shares do not sum to 1; a
                reference loss is not finite, or its size is 10^6 nats or more.
            ConfigError: No mixture of these domains is within the bounds.
        """

    def next_stage(self, state: State) -> State:
        """Return the state for the start of another stage of the same run: reference losses stay, curves start over."""

    def update_due(self, state: State, step: int, tokens: int) -> bool:
        """Return whether an update has to follow ``step`` of the stage, with ``tokens``, even without an evaluation."""

    def probe_end(self, state: State) -> int | None:
        """Return the step of the stage after which the probe in progress needs an evaluation; None without a probe."""

    def checked(self, state: State) -> State:
        """Return a copy of a state from outside, such as a checkpoint's.

        Raises:
            StateError: It is not a state of this strategy and version, or is damaged; the message names the entry.
        """

    def update(self, state: State, observation: Observation) -> tuple[State, Update]:
        """Return the next state and the mixture to use from the next batch on; ``state`` itself is not changed.

        Raises:
            WeightError: A loss is of an unknown domain.
            StateError: The state is not one of this strategy and version, or is damaged.
            ConfigError: The observation lacks something the settings need, or the bounds cannot be kept.
        """


@dataclass(frozen=True)
class Decision:
    """The answer of a rule, before the bounds.

    Attributes:
        status: The reason for the weights.
        reference: Reference losses, nats per token, ``[n]``; NaN where there is none.
        weights: The mixture, ``[n]``; missing: the one before.
        predicted: Predicted losses, ``[n]``, NaN where there is none.
        band: Low and high ends of the bands of the predictions, ``[n]`` each.
        center: The ratio the mixture was chosen around, ``[n]``; missing: the state's reference ratio.
    """

    status: UpdateStatus
    reference: Vector
    weights: Vector | None = None
    predicted: Vector | None = None
    band: Sequence[Vector] = ()
    center: Vector | None = None


class Evaluation:
    """The input of a rule: the losses of one evaluation with the state, which the rule may change.

    Attributes:
        state: A copy of the strategy's state.
        observation: The argument of :meth:`Strategy.update`.
        losses: Nats per token in the state's order, ``[n]``; NaN for a domain that has none.
        known: Which domains have a loss, ``[n]``.
        training_losses: Mean training loss since the observation before, nats per token, ``[n]``; NaN for a domain that
            has none.
    """

    def __init__(self, state: State, observation: Observation) -> None:
        self.state, self.observation = state, observation
        self.losses = _in_order("loss", state["domains"], observation.losses)
        self.known = np.isfinite(self.losses)
        self.training_losses = _in_order("training loss", state["domains"], observation.training_losses or {})

    @property
    def weights(self) -> Vector:
        """The mixture before this evaluation, ``[n]``."""
        return np.array(self.state["weights"])

    @property
    def ratio(self) -> Vector:
        """The reference ratio, ``[n]``."""
        return np.array(self.state["reference_ratio"])

    @property
    def given_reference(self) -> Vector:
        """The reference losses given to :meth:`Strategy.init`, ``[n]``; NaN where there is none."""
        return vector(self.state["reference_loss"])

    def first_losses(self) -> Vector:
        """Return the reference losses given, and for other domains their first loss, which is stored in the state."""
        reference = fill(self.given_reference, self.losses)
        self.state["reference_loss"] = nullable(reference)
        return reference

    def baselined_losses(self) -> tuple[Vector, Vector]:
        """Return what robust optimisation compares, and the reference losses behind it (NaN where there are none).

        Without a single reference loss that is the losses themselves. Otherwise it is the excess over the reference
        losses given, and for a domain that was given none, over its first loss.
        """
        if all(loss is None for loss in self.state["reference_loss"]):
            return self.losses, np.full(self.losses.size, np.nan)
        reference = self.first_losses()
        return self.losses - reference, reference

    def divide(self, shares: Vector, status: UpdateStatus, reference: Vector) -> Decision:
        """Divide the weight of the domains with a loss among them; the other domains keep theirs.

        Args:
            shares: Shares of the domains with a loss, sum one.
            status: UpdateStatus if every domain has a loss; else it is :attr:`UpdateStatus.INCOMPLETE`.
            reference: Reference losses, ``[n]``.
        """
        weights = self.weights
        weights[self.known] = weights[self.known].sum() * shares
        return Decision(status if self.known.all() else UpdateStatus.INCOMPLETE, reference, weights / weights.sum())


class RuleStrategy(ABC):
    """The driver of a strategy: everything but its settings and its rule.

    ``state_entries`` declares the entries of its state that are not common to all.
    """

    name: ClassVar[str]
    state_entries: ClassVar[Entries] = {}
    bounds: Bounds

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def rule(self, evaluation: Evaluation) -> Decision:
        """Choose the mixture from an evaluation; may change ``evaluation.state``."""

    def stage_state(self, state: State) -> State:
        """Return the entries of the state that start over with each stage; none by default."""
        return {}

    def update_due(self, state: State, step: int, tokens: int) -> bool:
        """See :meth:`Strategy.update_due`; only after evaluations by default."""
        return False

    def probe_end(self, state: State) -> int | None:
        """See :meth:`Strategy.probe_end`; no probes by default."""
        return None

    def init(
        self,
        domains: Sequence[str],
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> State:
        """See :meth:`Strategy.init`."""
        state = new_state(self.name, domains, reference_ratio, reference_loss, self.bounds)
        return state | self.stage_state(state)

    def next_stage(self, state: State) -> State:
        """See :meth:`Strategy.next_stage`."""
        state = self.checked(state)
        return state | self.stage_state(state)

    def update(self, state: State, observation: Observation) -> tuple[State, Update]:
        """See :meth:`Strategy.update`."""
        evaluation = Evaluation(self.checked(state), observation)
        decision = self.rule(evaluation)
        return evaluation.state, _apply(decision, evaluation, self.bounds)

    def checked(self, state: State) -> State:
        """See :meth:`Strategy.checked`."""
        return copy_state(self.name, self.state_entries, state)


def _apply(decision: Decision, evaluation: Evaluation, bounds: Bounds) -> Update:
    """Store the decision in the state, within the bounds, and describe it as an update."""
    state, observation = evaluation.state, evaluation.observation
    domains = state["domains"]
    weights = evaluation.weights if decision.weights is None else decision.weights
    at_bound: tuple[str, ...] = ()
    if bounds:
        weights = bounds.nearest(weights, domains, observation, ratio=evaluation.ratio)
        low, high = bounds.limits(domains, observation)
        touches = (weights <= low * (1 + 1e-12)) & (low > 0) | (weights >= high * (1 - 1e-12)) & (high < 1)
        at_bound = tuple(domain for domain, flag in zip(domains, touches, strict=True) if flag)
    state["weights"] = weights.tolist()
    if not MIXTURE.holds(state["weights"], state):
        raise SolverError(f"strategy {state['strategy']!r}: expected weights >= 0 with sum 1, got {state['weights']}")
    center = evaluation.ratio if decision.center is None else decision.center

    def by_domain(values: Vector | None) -> dict[str, float] | None:
        """Return the domains that have a number; None if there is none."""
        if values is None or not np.isfinite(values).any():
            return None
        return {domain: float(value) for domain, value in zip(domains, values, strict=True) if math.isfinite(value)}

    low_band, high_band = map(by_domain, decision.band) if decision.band else (None, None)
    return Update(
        weights=dict(zip(domains, state["weights"], strict=True)),
        reference_ratio=dict(zip(domains, state["reference_ratio"], strict=True)),
        status=decision.status,
        reference_loss=by_domain(decision.reference),
        excess_loss=by_domain(evaluation.losses - decision.reference),
        predicted_loss=by_domain(decision.predicted),
        predicted_band={name: [low_band[name], high_band[name]] for name in low_band}
        if low_band and high_band
        else None,
        divergence=float(0.5 * ((weights - center) ** 2 / center).sum()),
        at_bound=at_bound,
    )


def new_state(
    name: str,
    domains: Sequence[str],
    reference_ratio: Mapping[str, float],
    reference_loss: Mapping[str, float] | None,
    bounds: Bounds,
) -> State:
    """Return the state of a strategy before the first evaluation: the reference ratio, within the bounds on shares."""
    if not is_names(list(domains), {}):
        raise WeightError(f"domains must be different names, at least one; got {list(domains)}")
    given: dict[str, object] = {"reference_ratio": reference_ratio, "reference_loss": reference_loss or {}}
    for argument, value in given.items():
        if not isinstance(value, Mapping):
            example = ", ".join(f'"{domain}": {1 / len(domains):.3g}' for domain in domains[:3])
            raise WeightError(
                f"{argument} is {value!r}; expected a mapping with a number for each domain",
                f"For example {argument}={{{example}}}.",
            )
    check_names("reference ratio", domains, reference_ratio, complete=True)
    check_names("reference loss", domains, reference_loss or {}, complete=False)
    for domain, share in reference_ratio.items():
        if not (is_finite(share) and share >= SMALLEST):
            raise WeightError(f'reference ratio of domain "{domain}" is {share}; it must be positive and finite')
    for domain, loss in (reference_loss or {}).items():
        if not (is_finite(loss) and abs(loss) < LARGEST_LOSS):
            raise WeightError(
                f'reference loss of domain "{domain}" is {loss}; it must be finite, and below {LARGEST_LOSS:g} nats'
            )
    total = math.fsum(reference_ratio.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise WeightError(f"reference ratio sums to {total}; it must sum to 1")
    ratio = [float(reference_ratio[domain]) / total for domain in domains]
    return {
        "version": STATE_VERSION,
        "strategy": name,
        "domains": list(domains),
        "weights": bounds.nearest(ratio, domains).tolist(),
        "reference_ratio": ratio,
        "reference_loss": [None if loss is None else float(loss) for loss in map((reference_loss or {}).get, domains)],
    }


def _in_order(what: str, domains: Sequence[str], losses: Mapping[str, float]) -> Vector:
    """Return losses in the order of the domains, ``[n]``; NaN for a domain whose loss is missing or not usable."""
    check_names(what, domains, losses, complete=False)
    values = np.array([losses.get(domain, math.nan) for domain in domains], dtype=np.float64)
    values[~(np.abs(values) < LARGEST_LOSS)] = np.nan
    return values


def fill(known: Vector, losses: Vector) -> Vector:
    """Return ``known`` where it is a number, ``losses`` where it is NaN."""
    return np.where(np.isfinite(known), known, losses)


def vector(values: Sequence[float | None]) -> Vector:
    """Convert numbers from JSON, which has null for NaN."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def nullable(values: Vector) -> list[float | None]:
    """Convert numbers for JSON, which has no NaN."""
    return [float(value) if math.isfinite(value) else None for value in values]


def check_names(what: str, domains: Sequence[str], values: Mapping[str, float], *, complete: bool) -> None:
    """Refuse numbers for unknown domains, and with ``complete`` also a domain without one."""
    unknown = [domain for domain in values if domain not in domains]
    missing = [domain for domain in domains if domain not in values]
    if unknown:
        raise WeightError(f'{what} names domain "{unknown[0]}"; the domains are {", ".join(domains)}')
    if complete and missing:
        raise WeightError(f'{what} of domain "{missing[0]}" is missing')
