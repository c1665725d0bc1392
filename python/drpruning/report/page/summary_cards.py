"""The cards at the top of the page, the state of a run, and remarks on its losses and its mixture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drpruning.formatting import count, duration, held_out, number, percent, printable, shape, signed
from drpruning.records import Kept, ModelMeasured, RunEnded, RunStarted, StageEnded
from drpruning.report.loss_tables import Summary
from drpruning.report.read.run import STAGES, Run, last, measured, planned, records_of

FACTS_OF_SHAPE = ("layers", "hidden", "heads", "kv_heads", "intermediate")


@dataclass(frozen=True)
class Fact:
    """One card at the top of the page."""

    name: str
    value: str
    detail: str = ""


def state_of(run: Run) -> str:
    """Describe an unfinished run in one sentence; return an empty string for a finished one."""
    if not run.records and not run.stages:
        return "This run has recorded nothing yet."
    if run.ended:
        return ""
    reached = {stage.name: stage.steps for stage in run.stages if stage.name in run.series.steps}
    for stage in reversed(STAGES):
        if stage in reached:
            plan = planned(run.records, stage)
            of = f" of {plan.steps:,}" if plan else ""
            return f"This run has not ended: the last record is {stage} step {reached[stage]:,}{of}."
    return "This run has not ended: no step has been recorded yet."


def mixture_remarks(run: Run) -> str:
    """Describe domains held by bounds, and the mean mixture of a stage whose result it is."""
    seen = run.series
    sentences = [
        f"{printable(name)} was held by its bounds at {seen.held[name]} of {seen.num_evaluations} evaluations."
        for name in run.domains
        if seen.held[name]
    ]
    if seen.average_weights:
        mean = ", ".join(f"{printable(name)} {share:.1%}" for name, share in seen.average_weights.items())
        sentences.append(f"Mean mixture of the stage: {mean}.")
    return " ".join(sentences)


def loss_remarks(run: Run) -> str:
    """Describe on how much text the curves and the tables are measured."""
    started = run.started
    if started is None or not (started.eval_tokens and started.final_eval_tokens):
        return ""
    curves, tables = held_out(started.eval_tokens, "validation"), held_out(started.final_eval_tokens, "test")
    return f"Curves and the line of the base are measured on {curves}, the tables on {tables}."


def facts_of(run: Run, summary: Summary) -> list[Fact]:
    """Return the cards; values that are not recorded have none."""
    facts = [*_model(run), *_loss(summary), *_cost(run)]
    return [fact for fact in facts if fact is not None]


def _loss(summary: Summary) -> list[Fact]:
    facts = []
    before, after, mean = summary.worst_pruned, summary.worst, summary.mean
    if not summary.prunes:
        if after:
            facts.append(Fact("Worst domain, loss above the base", signed(after.excess), printable(after.name)))
        if math.isfinite(mean.base) and math.isfinite(mean.recovered):
            facts.append(
                Fact("Mean loss", f"{number(mean.base)} → {number(mean.recovered)}", "base, and after training")
            )
        return facts
    if after and before:
        where = printable(after.name)
        if before.name != after.name:
            where = f"{printable(before.name)} after pruning, {where} after recovery"
        value = f"{signed(before.excess_pruned)} → {signed(after.excess)}"
        facts.append(Fact("Worst domain, loss above the base", value, where))
    elif before:
        facts.append(Fact("Worst domain, loss above the base", signed(before.excess_pruned), printable(before.name)))
    if math.isfinite(mean.recovered) and math.isfinite(mean.pruned):
        closed = f", {percent(mean.gap_closed)} of the gap closed" if math.isfinite(mean.gap_closed) else ""
        facts.append(
            Fact("Mean loss", f"{number(mean.pruned)} → {number(mean.recovered)}", f"base {number(mean.base)}{closed}")
        )
    return facts


def _model(run: Run) -> list[Fact]:
    facts = []
    record, base = last(run.records, Kept), measured(run.records, "base")
    small = measured(run.records, "recovered") or measured(run.records, "pruned")
    plan = planned(run.records, "prune")
    source = record.source if record else base.shape if base else plan.shape if plan else {}
    target = record.target if record else small.shape if small else (plan.target if plan else None) or {}
    if source or target:
        changed = [key for key in FACTS_OF_SHAPE if key in target and source.get(key) != target[key]] or list(target)
        value = ", ".join(shape(printable(key), source.get(key), target[key]) for key in changed)
        met = record.target_met if record else {}
        missed = [printable(key) for key, reached in met.items() if not reached]
        detail = (
            f"target missed in {', '.join(missed)}" if missed else "every dimension of the target met" if met else ""
        )
        facts.append(Fact("Shape", value or "as the source", detail))
    if base and small:
        facts.append(Fact("Parameters", f"{count(base.parameters)} → {count(small.parameters)}", _removed(base, small)))
    return facts


def _removed(base: ModelMeasured, small: ModelMeasured) -> str:
    return f"{percent(1 - small.parameters / base.parameters)} removed" if base.parameters > 0 else ""


def _cost(run: Run) -> list[Fact]:
    facts = []
    laid = [stage for stage in run.stages if stage.name in STAGES and stage.tokens > 0]
    if laid:
        pruned = [stage for stage in laid if stage.name != "pretrain"]
        total = sum(stage.tokens for stage in pruned or laid)
        parts = ", ".join(f"{stage.name} {count(stage.tokens)}" for stage in laid)
        facts.append(Fact("Tokens", count(total), parts))
    facts += _speed(run)
    started, ended = last(run.records, RunStarted), last(run.records, RunEnded)
    if started:
        rho = started.rho
        radius = f"rho {rho:g}, " if rho is not None and math.isfinite(rho) else ""
        facts.append(
            Fact(
                "Strategy", printable(started.strategy), f"{radius}seed {started.seed}, {len(started.domains)} domains"
            )
        )
    if ended:
        stages = {stage.stage: stage.seconds for stage in records_of(run.records, StageEnded)}
        detail = ", ".join(f"{printable(stage)} {duration(seconds)}" for stage, seconds in stages.items())
        facts.append(Fact("Time", duration(ended.seconds), detail))
    return facts


def _speed(run: Run) -> list[Fact]:
    """Return the training speed of the small model, and the base's if both trained in steps of the same size.

    Other work on the machine scatters the steps, so a ratio is given only where the middle halves of the two stages'
    steps lie apart.
    """
    quartiles = {}
    for stage in ("pretrain", "continue"):
        if stage in run.series.steps:
            speed = run.series.steps[stage].mean(("tokens_per_second", ""))
            known = speed[np.isfinite(speed) & (speed > 0)]
            if known.size:
                quartiles[stage] = np.percentile(known, (25, 50, 75)).tolist()
    if "continue" not in quartiles:
        return []
    name, (low, small, high) = "Training speed measured", quartiles["continue"]
    sizes = {plan.tokens_per_step for stage in ("pretrain", "continue") if (plan := planned(run.records, stage))}
    if "pretrain" not in quartiles or len(sizes) > 1:
        return [Fact(name, f"{count(small)} tokens/s", "median of continue")]
    base_low, base, base_high = quartiles["pretrain"]
    if low > base_high or high < base_low:
        detail = f"{small / base:.2f} times the base's, if the machine was as busy; medians of pretrain and continue"
        return [Fact(name, f"{count(base)} → {count(small)} tokens/s", detail)]
    detail = f"median of continue; the base's in pretrain, {count(base)}, is within the scatter"
    return [Fact(name, f"{count(small)} tokens/s", detail)]
