"""The page: which sections there are, what each says when its data is missing, and the template they go into."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jinja2

from drpruning.records import Incident, Kept, ModelMeasured, RunEnded, RunStarted, StageEnded, StepTaken
from drpruning.report import kept, losses, mixture, training
from drpruning.report.drawing import VARIABLES, Key, Panel, drawing, series_color
from drpruning.report.run import Run, last, measured, of_kind, planned, points, shown, spans
from drpruning.report.tables import Comparison, Summary, best, comparison, summary_table
from drpruning.report.words import count, duration, number, percent, shape, signed

FACTS_OF_SHAPE = ("layers", "hidden", "heads", "kv_heads", "intermediate")


@dataclass(frozen=True)
class Fact:
    """One line of the headline."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with its figures, or with the reason why there are none."""

    anchor: str
    title: str
    lead: str = ""
    panels: list[Panel] = field(default_factory=list)
    small: list[Panel] = field(default_factory=list)
    keys: tuple[Key, ...] = ()
    missing: str = ""


def render_page(run: Run) -> str:
    """The whole report of ``run`` as HTML."""
    summary = summary_table(run.records)
    compared = comparison({run.label: run.records, **{other.label: other.records for other in run.others}})
    started = last(run.records, RunStarted)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("drpruning.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "number": number, "signed": signed, "percent": percent}
    environment.tests["finite"] = math.isfinite
    with drawing():
        recovery = losses.recovery(summary)
        outcome = losses.outcome(compared) if run.others else None
        sections = _sections(run, summary)
    return environment.get_template("report.html.j2").render(
        name=started.name if started else run.folder.resolve().name,
        label=run.label,
        state=_state(run),
        facts=_facts(run, summary),
        summary=summary,
        compared=compared if run.others else None,
        table=_comparison_table(compared),
        verdict=_verdict(compared),
        recovery=recovery,
        outcome=outcome,
        colors=[VARIABLES[series_color(index)] for index in range(len(summary.rows))],
        sections=sections,
        incidents=of_kind(run.records, Incident),
        recipe=run.recipe,
        started=started,
    )


def _sections(run: Run, summary: Summary) -> list[Section]:
    evaluated = "No evaluation has been recorded yet."
    no_steps = "No step of the prune stage has been recorded."
    record = last(run.records, Kept)
    mixtures = [
        mixture.shares(run, "weights", "Weights sampled", mixture.remarks(run)),
        mixture.shares(run, "reference_ratio", "Reference ratio", "The centre of the ball that the weights stay in."),
        losses.excess(run),
        mixture.divergence(run),
    ]
    return [
        Section(
            "losses",
            "Loss in each domain",
            "Held-out loss in nats per token through pruning and recovery. "
            "Each domain has its own scale and keeps its colour throughout the page.",
            small=losses.over_tokens(run, summary),
            keys=losses.over_tokens_keys(run),
            missing=evaluated,
        ),
        Section(
            "mixture",
            "The mixture",
            "What each evaluation made of the losses: the shares that the next batches were drawn with.",
            panels=[panel for panel in mixtures if panel],
            missing=evaluated,
        ),
        Section(
            "sparsity",
            "Sparsity",
            "Expected share of each mask kind that is removed, held to a target that warms up from zero.",
            small=training.sparsity(run),
            keys=training.SPARSITY_KEYS,
            panels=training.multipliers(run),
            missing=no_steps,
        ),
        Section(
            "kept",
            "What was kept",
            panels=kept.what_was_kept(record) if record else [],
            keys=kept.LEGEND,
            missing="The pruned model has not been exported yet, so nothing is known about what was kept."
            if record is None
            else "The record of what was kept holds no indices that can be drawn.",
        ),
        Section(
            "training",
            "Training",
            panels=training.optimisation(run),
            missing="No optimizer step has been recorded yet.",
        ),
    ]


def _state(run: Run) -> str:
    """One sentence for a run that is not finished, empty for one that is."""
    if not run.records:
        return "This run has recorded nothing yet."
    if last(run.records, RunEnded):
        return ""
    for stage in reversed(training.STAGES):
        steps = points(run.records, StepTaken, stage)
        if steps:
            plan = planned(run.records, stage)
            of = f" of {plan.steps:,}" if plan else ""
            return f"This run has not ended: the last record is {stage} step {steps[-1].step:,}{of}."
    return "This run has not ended: no step has been recorded yet."


def _facts(run: Run, summary: Summary) -> list[Fact]:
    facts = [*_model_facts(run), *_cost_facts(run)]
    before, after, mean = summary.worst_pruned, summary.worst, summary.mean
    if after and before:
        where = shown(after.name)
        if before.name != after.name:
            where = f"{shown(before.name)} after pruning, {where} after recovery"
        value = f"{signed(before.excess_pruned)} → {signed(after.excess)}"
        facts.append(Fact("Worst domain, loss above the base", value, where))
    elif before:
        facts.append(Fact("Worst domain, loss above the base", signed(before.excess_pruned), shown(before.name)))
    if math.isfinite(mean.recovered) and math.isfinite(mean.pruned):
        closed = f", {percent(mean.gap_closed)} of the gap closed" if math.isfinite(mean.gap_closed) else ""
        facts.append(
            Fact("Mean loss", f"{number(mean.pruned)} → {number(mean.recovered)}", f"base {number(mean.base)}{closed}")
        )
    return facts


def _model_facts(run: Run) -> list[Fact]:
    facts = []
    record, base = last(run.records, Kept), measured(run.records, "base")
    small = measured(run.records, "recovered") or measured(run.records, "pruned")
    plan = planned(run.records, "prune")
    source = record.source if record else base.shape if base else plan.shape if plan else {}
    target = record.target if record else small.shape if small else (plan.target if plan else None) or {}
    if source or target:
        changed = [key for key in FACTS_OF_SHAPE if key in target and source.get(key) != target[key]] or list(target)
        value = ", ".join(shape(shown(key), source.get(key), target[key]) for key in changed)
        met = record.target_met if record else {}
        missed = [shown(key) for key, reached in met.items() if not reached]
        detail = (
            f"target missed in {', '.join(missed)}" if missed else "every dimension of the target met" if met else ""
        )
        facts.append(Fact("Shape", value or "as the source", detail))
    if base and small:
        facts.append(
            Fact(
                "Parameters",
                f"{count(base.parameters)} → {count(small.parameters)}",
                _removed(base, small),
            )
        )
    return facts


def _removed(base: ModelMeasured, small: ModelMeasured) -> str:
    return f"{percent(1 - small.parameters / base.parameters)} removed" if base.parameters > 0 else ""


def _cost_facts(run: Run) -> list[Fact]:
    facts = []
    laid = spans(run.records, training.STAGES)
    if laid:
        pruned = [span for span in laid if span.stage != "pretrain"]
        total = sum(span.tokens for span in pruned or laid)
        parts = ", ".join(f"{span.stage} {count(span.tokens)}" for span in laid)
        facts.append(Fact("Tokens", count(total), parts))
    started, ended = last(run.records, RunStarted), last(run.records, RunEnded)
    if started:
        rho = started.rho
        radius = f"rho {rho:g}, " if rho is not None and math.isfinite(rho) else ""
        facts.append(
            Fact("Strategy", shown(started.strategy), f"{radius}seed {started.seed}, {len(started.domains)} domains")
        )
    if ended:
        stages = {stage.stage: stage.seconds for stage in of_kind(run.records, StageEnded)}
        detail = ", ".join(f"{shown(stage)} {duration(seconds)}" for stage, seconds in stages.items())
        facts.append(Fact("Time", duration(ended.seconds), detail))
    return facts


def _comparison_table(compared: Comparison) -> list[tuple[str, str, list[tuple[str, bool]]]]:
    """Rows of the side-by-side table: name, what it is, and each strategy's value with whether it is the best."""
    rows = compared.rows
    lines = [
        ("Worst excess", "summary", [row.worst_excess for row in rows]),
        ("Plain mean", "summary", [row.mean for row in rows]),
        ("Ratio-weighted mean", "summary", [row.ratio_weighted for row in rows]),
        *((domain, "domain", [row.recovered.get(domain, math.nan) for row in rows]) for domain in compared.domains),
    ]
    return [
        (
            name,
            kind,
            [
                (signed(value) if name == "Worst excess" and kind == "summary" else number(value), bold)
                for value, bold in zip(values, best(values), strict=True)
            ],
        )
        for name, kind, values in lines
    ]


def _verdict(compared: Comparison) -> list[str]:
    """One sentence per comparison run, naming what is worse as plainly as what is better."""
    sentences = []
    first = compared.rows[0]
    for other in compared.rows[1:]:
        parts = [
            f"{what} {abs(ours - theirs):.3f} {'lower' if ours <= theirs else 'higher'}"
            for what, ours, theirs in (
                ("the worst excess is", first.worst_excess, other.worst_excess),
                ("the plain mean", first.mean, other.mean),
                ("the ratio-weighted mean", first.ratio_weighted, other.ratio_weighted),
            )
            if math.isfinite(ours - theirs)
        ]
        if parts:
            joined = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
            sentences.append(f"With {shown(first.name)} instead of {shown(other.name)}, {joined}.")
        else:
            sentences.append(f"{shown(other.name)} has no recovered model to compare yet.")
    return sentences
