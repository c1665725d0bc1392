"""The cards at the top of the page, the state of a run, and remarks on its losses and its mixture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from drpruning.formatting import count, held_out, percent, printable, shape, signed
from drpruning.records import Kept, ModelMeasured
from drpruning.report.read.run import STAGES, Run, last, measured, planned

FACTS_OF_SHAPE = ("layers", "hidden", "heads", "kv_heads", "intermediate", "experts")


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
    """Describe on how much text the curves and the tables are measured, and the worst excess on either."""
    started = run.started
    if started is None or not (started.eval_tokens and started.final_eval_tokens):
        return ""
    curves, tables = held_out(started.eval_tokens, "validation"), held_out(started.final_eval_tokens, "test")
    text = f"Curves and the line of the base are measured on {curves}, the tables on {tables}."
    worst = [_worst_excess(run, validation=validation) for validation in (True, False)]
    if "" not in worst:
        text += (
            f" So the end of a curve is not the table's number: the worst excess is {worst[0]} here, {worst[1]} there."
        )
    return text


def _worst_excess(run: Run, *, validation: bool) -> str:
    """Return the largest excess after recovery and its domain, on validation or test rows; empty if unknown."""
    base, final = (measured(run.records, model) for model in ("base", "recovered"))
    if base is None or final is None:
        return ""
    before, after = (each.evaluation_losses if validation else each.losses for each in (base, final))
    excess = {name: loss - (before or {}).get(name, math.nan) for name, loss in (after or {}).items()}
    if not excess or not all(map(math.isfinite, excess.values())):
        return ""
    worst = max(excess, key=excess.__getitem__)
    return f"{signed(excess[worst])} ({printable(worst)})"


def facts_of(run: Run) -> list[Fact]:
    """Return the cards; values that are not recorded have none."""
    return [*_model(run), *_strategy(run), *_speed(run)]


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
        facts.append(Fact("Shape", value or "as the source"))
    if base and small:
        facts.append(
            Fact("Parameters", f"{count(base.parameters)} → {count(small.parameters)}", _removed_share(base, small))
        )
    return facts


def _removed_share(base: ModelMeasured, small: ModelMeasured) -> str:
    return f"{percent(1 - small.parameters / base.parameters)} removed" if base.parameters > 0 else ""


def _strategy(run: Run) -> list[Fact]:
    started = run.started
    if started is None:
        return []
    rho = started.rho
    radius = f"rho {rho:g}, " if rho is not None and math.isfinite(rho) else ""
    detail = f"{radius}seed {started.seed}, {len(started.domains)} domains"
    return [Fact("Strategy", printable(started.strategy), detail)]


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
    name, (low, small, high) = "Training speed", quartiles["continue"]
    sizes = {plan.tokens_per_step for stage in ("pretrain", "continue") if (plan := planned(run.records, stage))}
    if "pretrain" not in quartiles or len(sizes) > 1:
        return [Fact(name, f"{count(small)} tokens/s", "median of continue")]
    base_low, base, base_high = quartiles["pretrain"]
    if low > base_high or high < base_low:
        detail = f"{small / base:.2f} times the base's, if the machine was as busy; medians of pretrain and continue"
        return [Fact(name, f"{count(base)} → {count(small)} tokens/s", detail)]
    detail = f"median of continue; the base's in pretrain, {count(base)}, is within the scatter"
    return [Fact(name, f"{count(small)} tokens/s", detail)]
