"""What each stage of a run cost: steps, tokens and time, and their sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drpruning.formatting import count, duration, printable
from drpruning.records import StageEnded
from drpruning.report.read.run import STAGES, Run, records_of
from drpruning.tables import Cell, Row, Table


@dataclass(frozen=True)
class StageCost:
    """The cost of a stage, or of several.

    Attributes:
        name: The stage.
        steps: Optimizer steps.
        tokens: Tokens trained on.
        seconds: Time of the stage; NaN until it ends.
    """

    name: str
    steps: int
    tokens: int
    seconds: float

    @property
    def in_words(self) -> list[str]:
        """The known amounts, with units."""
        words = [f"{count(self.tokens)} tokens"] if self.tokens else []
        return [*words, *([duration(self.seconds)] if math.isfinite(self.seconds) else [])]


def stage_costs(run: Run) -> list[StageCost]:
    """Return the cost of each stage of a run so far, in order."""
    ended = {record.stage: record for record in records_of(run.records, StageEnded)}
    return [
        StageCost(stage.name, stage.steps, stage.tokens, ended[stage.name].seconds if stage.name in ended else math.nan)
        for stage in run.stages
        if stage.name in STAGES and stage.tokens > 0
    ]


def total_cost(costs: Sequence[StageCost], name: str = "total") -> StageCost:
    """Add up costs; a time that is not known makes the sum unknown."""
    return StageCost(
        name,
        sum(cost.steps for cost in costs),
        sum(cost.tokens for cost in costs),
        sum(cost.seconds for cost in costs) if costs else math.nan,
    )


def cost_table(run: Run) -> Table | None:
    """Tabulate the cost of the stages and its sum; None before the first step."""
    costs = stage_costs(run)
    if not costs:
        return None
    rows = [_row(cost) for cost in costs]
    if len(costs) > 1:
        rows.append(_row(total_cost(costs), summary=True))
    notes = ["Time of training and evaluations in each stage, without loading and final measurements."]
    if run.started and "pretrain" in run.started.stages and all(cost.name != "pretrain" for cost in costs):
        notes.append("The base was trained by an earlier run.")
    return Table(["stage", "steps", "tokens", "time"], rows, title="Cost by stage", note=" ".join(notes))


def _row(cost: StageCost, *, summary: bool = False) -> Row:
    cells = (
        Cell(f"{cost.steps:,}", cost.steps),
        Cell(f"{cost.tokens:,}", cost.tokens),
        Cell(duration(cost.seconds), cost.seconds),
    )
    return Row.of(printable(cost.name), *cells, kind="summary" if summary else "plain")
