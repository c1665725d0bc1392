"""Figures of the optimisation: sparsity and multipliers while pruning, training loss and speed throughout."""

from __future__ import annotations

import math

from drpruning.records import StepTaken
from drpruning.report.drawing import (
    ACCENT,
    INK,
    Key,
    Panel,
    axes,
    label_ends,
    series_color,
    series_dash,
    thinned,
    to_svg,
    token_axis,
)
from drpruning.report.losses import NATS
from drpruning.report.run import Run, Span, points, shown, spans

KINDS = ["layer", "head", "intermediate", "hidden"]
STAGES = ("pretrain", "prune", "continue")
SPARSITY_KEYS = (Key("expected", "var(--ink)"), Key("wanted", "var(--ink)", "dotted"))


def kinds(run: Run) -> list[str]:
    """The mask kinds of the run: the known ones in their order, then any other."""
    seen = {kind for record in points(run.records, StepTaken, "prune") for kind in record.expected or {}}
    return [kind for kind in KINDS if kind in seen] + sorted(seen - set(KINDS))


def sparsity(run: Run) -> list[Panel]:
    """One small figure per mask kind: expected sparsity following the wanted one."""
    laid = spans(run.records, ["prune"])
    steps = points(run.records, StepTaken, "prune") if laid else []
    panels = []
    for index, kind in enumerate(kinds(run) if laid else []):
        ax = axes(264, 176, left=44, right=8, top=10)
        token_axis(ax, laid, ticks=4)
        x = [laid[0].at(record.tokens) for record in steps]
        expected = [(record.expected or {}).get(kind, math.nan) for record in steps]
        wanted = [(record.wanted or {}).get(kind, math.nan) for record in steps]
        ax.plot(*thinned(x, wanted), color=INK, linewidth=1.4, linestyle=(0, (1, 1.3)))
        ax.plot(*thinned(x, expected), color=series_color(index), linestyle=series_dash(index), linewidth=1.8)
        ax.margins(y=0.08)
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        ax.set_ylabel("fraction removed")
        svg = to_svg(ax, f"sparsity-{index}", f"Expected and wanted sparsity of kind {kind} over tokens")
        ends = [value for value in zip(expected, wanted, strict=True) if all(map(math.isfinite, value))]
        note = f"{ends[-1][0]:.3f} expected at the last step, {ends[-1][1]:.3f} wanted" if ends else ""
        panels.append(Panel(shown(kind), svg, note=note))
    return panels


def multipliers(run: Run) -> list[Panel]:
    """Linear and quadratic multipliers of the constraints, per mask kind."""
    laid = spans(run.records, ["prune"])
    steps = [record for record in points(run.records, StepTaken, "prune") if record.multipliers and laid]
    panels = []
    for position, title in enumerate(["Linear multipliers", "Quadratic multipliers"]):
        ax = axes(right=92, top=10)
        token_axis(ax, laid)
        ends = []
        for index, kind in enumerate(kinds(run)):
            x, y = [], []
            for record in steps:
                values = (record.multipliers or {}).get(kind, [])
                if len(values) > position:
                    x.append(laid[0].at(record.tokens))
                    y.append(values[position])
            line = thinned(x, y)
            if line[0]:
                ax.plot(*line, color=series_color(index), linestyle=series_dash(index))
                ends.append((line[1][-1], kind, series_color(index)))
        if not ends:
            continue
        ax.margins(y=0.08)
        ax.set_ylabel("multiplier, nats")
        label_ends(ax, ends)
        panels.append(Panel(title, to_svg(ax, f"multipliers-{position}", f"{title} per mask kind over tokens")))
    return panels


def optimisation(run: Run) -> list[Panel]:
    """Training loss and tokens per second over all stages."""
    laid = spans(run.records, STAGES)
    return [
        panel
        for panel in (
            _over_stages(run, laid, "loss", "Training loss", NATS),
            _over_stages(run, laid, "tokens_per_second", "Speed", "tokens per second"),
        )
        if panel is not None
    ]


def _over_stages(run: Run, laid: list[Span], field: str, title: str, unit: str) -> Panel | None:
    ax = axes(left=52)
    token_axis(ax, laid)
    drawn = False
    for span in laid:
        steps = points(run.records, StepTaken, span.stage)
        x, y = thinned([span.at(step.tokens) for step in steps], [getattr(step, field) for step in steps])
        ax.plot(x, y, color=ACCENT, linewidth=1.2)
        drawn = drawn or bool(x)
    if not drawn:
        return None
    if field == "tokens_per_second":
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.margins(y=0.08)
    ax.set_ylabel(unit)
    return Panel(title, to_svg(ax, field.replace("_", "-"), f"{title} over tokens, in {unit}"))
