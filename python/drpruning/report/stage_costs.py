"""What each stage of a run cost: steps, tokens and time, and their sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drpruning.flops import FlopCounts
from drpruning.formatting import count, duration, flops_in_words, printable
from drpruning.records import StageEnded
from drpruning.report.read.run import STAGES, Run, StageProgress, records_of
from drpruning.tables import Cell, Row, Table


@dataclass(frozen=True)
class StageTotals:
    """The cost of a stage, or of several.

    Attributes:
        name: The stage.
        steps: Optimizer steps.
        tokens: Tokens trained on.
        seconds: Time of the stage; NaN until it ends.
        flops: Charged floating point operations; NaN where not recorded.
    """

    name: str
    steps: int
    tokens: int
    seconds: float
    flops: float = math.nan

    @property
    def in_words(self) -> list[str]:
        """The known amounts, with units."""
        words = [f"{count(self.tokens)} tokens"] if self.tokens else []
        words += [duration(self.seconds)] if math.isfinite(self.seconds) else []
        return words + ([flops_in_words(self.flops)] if math.isfinite(self.flops) else [])


def stage_costs(run: Run) -> list[StageTotals]:
    """Return the cost of each stage of a run so far, in order."""
    ended = {record.stage: record for record in records_of(run.records, StageEnded)}
    return [_cost(stage, ended.get(stage.name)) for stage in run.stages if stage.name in STAGES and stage.tokens > 0]


def _cost(stage: StageProgress, end: StageEnded | None) -> StageTotals:
    seconds = math.nan if end is None else end.seconds
    flops = FlopCounts.of(end.flops).charged if end is not None and end.flops else math.nan
    return StageTotals(stage.name, stage.steps, stage.tokens, seconds, flops)


def total_cost(costs: Sequence[StageTotals], name: str = "total") -> StageTotals:
    """Add up costs; a time or FLOPs that are not known make their sum unknown."""
    return StageTotals(
        name,
        sum(cost.steps for cost in costs),
        sum(cost.tokens for cost in costs),
        sum(cost.seconds for cost in costs) if costs else math.nan,
        sum(cost.flops for cost in costs) if costs else math.nan,
    )


def cost_table(run: Run) -> Table | None:
    """Tabulate the cost of the stages and its sum; None before the first step."""
    costs = stage_costs(run)
    if not costs:
        return None
    with_flops = any(math.isfinite(cost.flops) for cost in costs)
    after = [cost for cost in costs if cost.name != "pretrain"]
    rows = [_row(cost, with_flops) for cost in costs]
    if 1 < len(after) < len(costs):
        rows.append(_row(total_cost(after, " + ".join(cost.name for cost in after)), with_flops, summary=True))
    if len(costs) > 1:
        rows.append(_row(total_cost(costs), with_flops, summary=True))
    notes = ["Time of training and evaluations in each stage, without loading and final measurements."]
    if run.started and "pretrain" in run.started.stages and len(after) == len(costs):
        notes.append("The base was trained by an earlier run.")
    columns = ["stage", "steps", "tokens", "time", *(["FLOPs"] if with_flops else [])]
    return Table(columns, rows, title="Cost by stage", note=" ".join(notes))


def _row(cost: StageTotals, with_flops: bool, *, summary: bool = False) -> Row:
    cells = [
        Cell(f"{cost.steps:,}", cost.steps),
        Cell(f"{cost.tokens:,}", cost.tokens),
        Cell(duration(cost.seconds), cost.seconds),
    ]
    if with_flops:
        cells.append(Cell(flops_in_words(cost.flops), cost.flops))
    return Row.of(printable(cost.name), *cells, kind="summary" if summary else "plain")
