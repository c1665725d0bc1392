"""The constant mixture, the baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from drpruning.mixture.bounds import UNBOUNDED, Bounds
from drpruning.mixture.observation import UpdateStatus
from drpruning.mixture.strategy import Decision, Evaluation, RuleStrategy


@dataclass(frozen=True, kw_only=True)
class Constant(RuleStrategy):
    """The reference ratio, whatever the losses, missing ones included: the baseline of every comparison."""

    name: ClassVar[str] = "constant"
    bounds: Bounds = UNBOUNDED

    def rule(self, evaluation: Evaluation) -> Decision:
        """Return the reference ratio."""
        return Decision(UpdateStatus.CONSTANT, evaluation.given_reference, evaluation.ratio)
