"""The tables of a report as plain data: `drpruning report --json`."""

from __future__ import annotations

import math
from typing import Any

from drpruning.records import StageEnded, flops_of_stages
from drpruning.report.excess import RunExcess, excess_of
from drpruning.report.headline import headline_of
from drpruning.report.loss_tables import LossRow, compare_strategies, summary_table
from drpruning.report.page.summary_cards import facts_of, state_of
from drpruning.report.read.run import Run, StageProgress, records_of


def summary_json(run: Run) -> dict[str, Any]:
    """Return losses per domain, the progress of each stage, and the compared runs; null is not measured.

    ``half_width`` is that of the 95% interval of the excess.
    """
    summary = summary_table(run.records)
    compared = compare_strategies({each.label: each.records for each in (run, *run.others)})
    started, headline, own = run.started, headline_of(run), excess_of(run)
    ended = records_of(run.records, StageEnded)
    flops = flops_of_stages(ended)
    return {
        "run": str(run.folder),
        "name": started.name if started else None,
        "strategy": started.strategy if started else None,
        "seed": started.seed if started else None,
        "eval_tokens": started.eval_tokens if started else {},
        "final_eval_tokens": started.final_eval_tokens if started else {},
        "ended": run.ended,
        "state": state_of(run),
        "headline": {"sentence": headline.sentence, "notes": list(headline.notes)},
        "facts": {fact.name: fact.value for fact in facts_of(run)},
        "stages": [_stage(stage) for stage in run.stages],
        "charged_flops": flops.charged if ended else None,
        "flops": {each.stage: each.flops for each in ended},
        "domains": {row.name: _row(row) | {"half_width": _half_width(own, row.name)} for row in summary.rows},
        "mean": _row(summary.mean),
        "ratio_weighted_mean": _row(summary.ratio_weighted),
        "worst": summary.worst.name if summary.worst else None,
        "skipped_steps": run.series.skipped,
        "incidents": run.series.incidents,
        "runs": {
            row.name: {
                "recovered": {name: _number(value) for name, value in row.recovered.items()},
                "worst_excess": _number(row.worst_excess),
                "mean": _number(row.mean),
                "ratio_weighted_mean": _number(row.ratio_weighted),
            }
            for row in compared.rows
        },
    }


def _stage(stage: StageProgress) -> dict[str, Any]:
    return {"stage": stage.name, "steps": stage.steps, "tokens": stage.tokens, "seconds": round(stage.seconds, 1)}


def _row(row: LossRow) -> dict[str, float | None]:
    return {
        "base": _number(row.base),
        "pruned": _number(row.pruned),
        "recovered": _number(row.recovered),
        "excess": _number(row.excess),
    }


def _half_width(own: RunExcess | None, domain: str) -> float | None:
    return _number(own.domain(domain).half_width) if own and own.model == "recovered" and domain in own.excess else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
