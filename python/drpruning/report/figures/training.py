"""Figures of the optimisation: sparsity and multipliers while pruning; training loss, speed, memory throughout."""

from __future__ import annotations

from drpruning.formatting import shorten
from drpruning.report.diagrams import NATS, Key
from drpruning.report.figures.style import (
    ACCENT,
    INK,
    Panel,
    axes,
    figure_of,
    grid,
    label_ends,
    lines,
    series_color,
    series_dash,
    spans,
    token_axis,
)
from drpruning.report.read.run import STAGES, Run, mask_kinds

SPARSITY_KEYS = (Key("expected", "var(--ink)"), Key("scheduled", "var(--ink)", "dotted"))
QUANTITIES = {
    "training-loss": ("loss", "Training loss", NATS, 1),
    "throughput": ("tokens_per_second", "Throughput", "tokens per second", 1),
    "utilisation": ("utilisation", "Model FLOPs utilisation", "share of the device's peak", 1),
    "loader-wait": ("loader_wait", "Waiting for data", "seconds per step", 1),
    "memory": ("memory", "Peak memory", "GiB", 2**30),
    "learning-rate": ("learning_rate", "Learning rate", "learning rate", 1),
    "gradient-norm": ("grad_norm", "Gradient norm", "norm before clipping", 1),
}
"""Name of the figure: field of the record, title, unit, and what one of the unit is in the field's."""
FROM_ZERO = ("throughput", "utilisation", "loader-wait", "memory", "learning-rate", "gradient-norm")


def sparsity(run: Run) -> Panel | None:
    """Draw a panel per mask kind: the expected and the scheduled sparsity."""
    laid, kinds = spans(run, ["prune"]), mask_kinds([run])
    if not laid or not kinds:
        return None
    for index, (ax, kind) in enumerate(zip(grid(len(kinds), height=180), kinds, strict=True)):
        token_axis(ax, laid, ticks=4)
        for x, y in lines(run.series.steps, laid, "scheduled", kind):
            ax.plot(x, y, color=INK, linewidth=1.4, linestyle=(0, (1, 1.3)))
        for x, y in lines(run.series.steps, laid, "expected", kind):
            ax.plot(x, y, color=series_color(index), linestyle=series_dash(index), linewidth=1.8)
        ax.margins(y=0.08)
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        ax.set_ylabel("fraction removed" if index % 4 == 0 else "")
        ax.set_title(shorten(kind, 30), loc="left", size=10, color=INK)
    return Panel("sparsity", "Sparsity", figure_of(ax), keys=SPARSITY_KEYS)


def multipliers(run: Run, which: str) -> Panel | None:
    """Draw the ``linear`` or ``quadratic`` multipliers of the constraints, per mask kind."""
    laid = spans(run, ["prune"])
    ax = axes(right=92, top=10)
    token_axis(ax, laid)
    ends = []
    for index, kind in enumerate(mask_kinds([run])):
        for x, y in lines(run.series.steps, laid, which, kind):
            ax.plot(x, y, color=series_color(index), linestyle=series_dash(index))
            ends.append((float(y[-1]), kind, series_color(index)))
    if not ends:
        return None
    ax.margins(y=0.08)
    ax.set_ylabel("multiplier, nats")
    label_ends(ax, ends)
    title = f"{which.capitalize()} multipliers"
    return Panel(f"multipliers-{which}", title, figure_of(ax))


def over_stages(run: Run, name: str) -> Panel | None:
    """Draw one of ``QUANTITIES`` over all stages: the mean, and the range where steps were joined."""
    field, title, unit, size = QUANTITIES[name]
    laid = spans(run, STAGES)
    ax = axes(left=52)
    token_axis(ax, laid)
    drawn = False
    for span in laid:
        bins = run.series.steps.get(span.stage)
        if bins is not None and bins.width > 1:
            x, low, high = (
                values / by
                for values, by in (
                    (span.at(bins.mean(("tokens", ""))), 1),
                    (bins.low((field, "")), size),
                    (bins.high((field, "")), size),
                )
            )
            ax.fill_between(x, low, high, color=ACCENT, alpha=0.2, linewidth=0)
    for x, y in lines(run.series.steps, laid, field):
        ax.plot(x, y / size, color=ACCENT, linewidth=1.2)
        drawn = True
    if not drawn:
        return None
    if name in FROM_ZERO:
        ax.set_ylim(bottom=0)
    if name == "throughput":
        ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.margins(y=0.08)
    ax.set_ylabel(unit)
    return Panel(name, title, figure_of(ax))
