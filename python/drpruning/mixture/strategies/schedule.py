"""A mixture that follows a plan: weights written by hand, or recorded in another run and replayed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np

from drpruning.errors import ConfigError, WeightError
from drpruning.mixture.bounds import UNBOUNDED, Bounds
from drpruning.mixture.observation import State, UpdateStatus
from drpruning.mixture.state_schema import COUNT, Entries
from drpruning.mixture.strategy import Decision, Evaluation, RuleStrategy, check_names

Unit = Literal["step", "tokens"]


@dataclass(frozen=True)
class ScheduleChange:
    """From a moment on, these weights.

    Attributes:
        at: Optimizer steps, or tokens, of the stage; >= 0.
        weights: Mixture of all domains: finite, >= 0, sum one within 1e-6.
    """

    at: float
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.at) and self.at >= 0):
            raise ConfigError(f"a schedule changes at {self.at}; it must be finite and at least 0")
        for domain, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise WeightError(
                    f'weight of domain "{domain}" at {self.at:g} is {weight}; it must be finite and at least 0'
                )
        total = math.fsum(self.weights.values())
        if abs(total - 1) > 1e-6:
            raise WeightError(f"the weights at {self.at:g} sum to {total:.9g}; they must sum to 1")

    @classmethod
    def of(cls, item: Any) -> ScheduleChange:
        """Return a change, also from plain data: ``{"at": 100, "weights": {"web": 0.5, "code": 0.5}}``.

        Raises:
            ConfigError: The data has another shape.
            WeightError: A weight is negative or not finite, or the weights do not sum to 1.
        """
        if isinstance(item, cls):
            return item
        if isinstance(item, Mapping) and isinstance(item.get("weights"), str):
            raise ConfigError(
                f"a change at {item.get('at')} has the name of a mixture, {item['weights']!r}; here no corpus is known",
                "Give a weight for each domain, or write the schedule itself as mixture.schedule of a recipe.",
            )
        if not isinstance(item, Mapping) or set(item) != {"at", "weights"} or not isinstance(item["weights"], Mapping):
            raise ConfigError(f"a change is {{at: 100, weights: {{web: 0.5, code: 0.5}}}}, got {item!r}")
        try:
            at = item["at"] if isinstance(item["at"], int) else float(item["at"])
            weights = {str(domain): float(share) for domain, share in item["weights"].items()}
        except (TypeError, ValueError) as error:
            raise ConfigError(f"a change holds numbers, got {item!r}") from error
        return cls(at, weights)


@dataclass(frozen=True)
class ScheduleSpan:
    """Weights that hold from ``start`` up to ``stop``, in the unit of the schedule."""

    start: float
    stop: float
    weights: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Schedule(RuleStrategy):
    """Replays a history of weights, whatever the losses, missing ones included.

    ``w(t) = weights of the last change with at <= t``, ``t`` counted in steps or tokens of the stage; before the first
    change the weights of :meth:`init`, the reference ratio. A stage without changes keeps the last mixture
    of the stage before it. A change comes into force after the step that reaches its moment, with or without an
    evaluation there, so a run draws by exactly the weights of the recorded one.

    :mod:`drpruning.mixture.schedule_io` reads schedules from files and from a run's records, and writes them for other
    trainers.

    Attributes:
        stages: Changes of each stage, in the order of training and of time; also as plain data
            (:meth:`ScheduleChange.of`). The order of the stages counts, their names do not.
        unit: What ``at`` counts.
        bounds: Limits on the mixture.

    Example:
        >>> Schedule.of([(0, {"web": 0.8, "code": 0.2}), (100, {"web": 0.5, "code": 0.5})]).spans(150)[-1].weights
        {'web': 0.5, 'code': 0.5}
    """

    name: ClassVar[str] = "schedule"
    state_entries: ClassVar[Entries] = {"stage": COUNT, "changes": COUNT}
    stages: Mapping[str, Sequence[ScheduleChange]] | None = None
    unit: Unit = "step"
    bounds: Bounds = UNBOUNDED

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in ("step", "tokens"):
            raise ConfigError(f'unit is {self.unit!r}; it can be "step" or "tokens"')
        if self.stages is not None:
            stages = {name: tuple(map(ScheduleChange.of, changes or ())) for name, changes in self.stages.items()}
            object.__setattr__(self, "stages", stages)
        for name, changes in (self.stages or {}).items():
            moments = [change.at for change in changes]
            if any(later <= earlier for earlier, later in pairwise(moments)):
                raise ConfigError(
                    f"the changes of stage {name!r} are at {moments}; each must come after the one before"
                )

    @classmethod
    def of(cls, changes: Iterable[tuple[float, Mapping[str, float]]], unit: Unit = "step") -> Schedule:
        """Build a schedule of one stage from pairs of moment and weights."""
        return cls(stages={"stage": [ScheduleChange(at, weights) for at, weights in changes]}, unit=unit)

    def for_stages(self, names: Sequence[str]) -> Schedule:
        """Return the part of the schedule for the stages ``names`` of a run, in this order.

        A stage of the run that the schedule does not name has no changes. A schedule none of whose stages is ``prune``
        or ``continue`` goes by its order.

        Raises:
            ConfigError: It names stages of a run, but none of these.
        """
        if self.stages is None or not {"prune", "continue"} & set(self.stages):
            return self
        if not set(names) & set(self.stages):
            raise ConfigError(
                f"the schedule has the stages {', '.join(self.stages)}; the strategy works in {', '.join(names)}",
                "Give changes for a stage of this run, or rename the schedule's.",
            )
        return replace(self, stages={name: self.stages.get(name, ()) for name in names})

    def init(
        self,
        domains: Sequence[str],
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> State:
        """See :meth:`Strategy.init`; a reference loss only shows up as excess loss in the updates.

        Raises:
            WeightError: A change does not name exactly the domains.
        """
        for name, changes in (self.stages or {}).items():
            for change in changes:
                check_names(f"the schedule of stage {name!r} at {change.at:g}", domains, change.weights, complete=True)
        return super().init(domains, reference_ratio, reference_loss=reference_loss)

    def stage_state(self, state: State) -> State:
        """Return the number of the stage, and that none of its changes is in force."""
        return {"stage": state.get("stage", -1) + 1, "changes": 0}

    def update_due(self, state: State, step: int, tokens: int) -> bool:
        """See :meth:`Strategy.update_due`."""
        changes, now = self._changes(state["stage"]), step if self.unit == "step" else tokens
        return state["changes"] < len(changes) and changes[state["changes"]].at <= now

    def rule(self, evaluation: Evaluation) -> Decision:
        """Return the weights of the last change so far."""
        state, observation = evaluation.state, evaluation.observation
        now = observation.step if self.unit == "step" else observation.tokens
        weights, changes = None, [change for change in self._changes(state["stage"]) if change.at <= now]
        state["changes"] = len(changes)
        if changes:
            check_names(f"the schedule at {changes[-1].at:g}", state["domains"], changes[-1].weights, complete=True)
            weights = np.array([changes[-1].weights[domain] for domain in state["domains"]], dtype=np.float64)
        return Decision(UpdateStatus.SCHEDULED, evaluation.given_reference, weights)

    def spans(self, length: float, stage: int = 0) -> list[ScheduleSpan]:
        """Return the mixtures of a stage of ``length`` steps or tokens in their order; equal neighbours are joined.

        Bounds on epochs depend on a run and are not in it. What comes before the first change is left out.
        """
        changes = [change for change in self._changes(stage) if change.at < length]
        spans: list[ScheduleSpan] = []
        for k, change in enumerate(changes):
            stop = changes[k + 1].at if k + 1 < len(changes) else length
            if spans and spans[-1].weights == change.weights:
                spans[-1] = ScheduleSpan(spans[-1].start, stop, change.weights)
            else:
                spans.append(ScheduleSpan(change.at, stop, dict(change.weights)))
        return spans

    def _changes(self, stage: int) -> Sequence[ScheduleChange]:
        stages = list((self.stages or {}).values())
        return stages[stage] if stage < len(stages) else ()
