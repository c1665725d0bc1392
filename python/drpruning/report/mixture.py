"""Figures of the mixture: the weights sampled, the reference ratio they move around, and how far they are from it."""

from __future__ import annotations

import math

from drpruning.records import Evaluated, RunStarted
from drpruning.report.drawing import (
    ACCENT,
    BLOCKS,
    HATCHES,
    INK,
    PAPER,
    SERIES,
    Key,
    Panel,
    axes,
    drawable,
    label_ends,
    series_color,
    series_keys,
    to_svg,
    token_axis,
)
from drpruning.report.losses import MOST_LABELS
from drpruning.report.run import Run, last, points, spans


def shares(run: Run, field: str, title: str, note: str = "") -> Panel | None:
    """Stacked shares of the domains over tokens; ``field`` is ``weights`` or ``reference_ratio``.

    What is chosen at an evaluation holds until the next one, so the areas have steps.
    """
    laid, domains = spans(run.records), run.domains
    named = len(domains) <= MOST_LABELS
    ax = axes(right=92 if named else 14)
    ax.grid(visible=False)
    token_axis(ax, laid)
    tops: list[float] = []
    for span in laid:
        chosen = points(run.records, Evaluated, span.stage)
        if not chosen:
            continue
        x = [span.at(record.tokens) for record in chosen] + [span.right]
        tops = [0.0] * len(x)
        middles = []
        for index, name in enumerate(domains):
            values = [_share(getattr(record, field).get(name, 0.0)) for record in chosen]
            bottoms = tops
            tops = [low + value for low, value in zip(bottoms, [*values, values[-1]], strict=True)]
            ax.fill_between(
                x, bottoms, tops, step="post", facecolor=series_color(index), edgecolor=PAPER, linewidth=0.5,
                hatch=HATCHES[index // len(SERIES) % len(HATCHES)],
            )  # fmt: skip
            middles.append(((bottoms[-1] + tops[-1]) / 2, name, series_color(index)))
    if not any(tops):
        return None
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    ax.set_ylabel("share of the batch" if field == "weights" else "share")
    if named:
        label_ends(ax, middles)
    svg = to_svg(ax, field.replace("_", "-"), f"{title}, as shares that sum to one, over tokens")
    return Panel(title, svg, note=note, keys=() if named else series_keys(domains, BLOCKS))


def remarks(run: Run) -> str:
    """What the picture of the weights does not show: domains held by bounds, the mean mixture where it is a result."""
    evaluations = [record for record in run.records if isinstance(record, Evaluated)]
    held = {name: sum(name in record.bounded for record in evaluations) for name in run.domains}
    sentences = [
        f"{name} was held by its bounds at {count} of {len(evaluations)} evaluations."
        for name, count in held.items()
        if count
    ]
    average = evaluations[-1].average_weights if evaluations else None
    if average:
        mean = ", ".join(f"{name} {_share(share):.1%}" for name, share in average.items())
        sentences.append(f"Mean mixture of the stage: {mean}.")
    return " ".join(sentences)


def divergence(run: Run) -> Panel | None:
    """Chi-square divergence of the weights from the reference ratio, against the radius of the ball."""
    laid = spans(run.records)
    ax = axes()
    token_axis(ax, laid)
    drawn = False
    for span in laid:
        line = [
            (span.at(record.tokens), record.divergence)
            for record in points(run.records, Evaluated, span.stage)
            if record.divergence is not None and drawable(record.divergence)
        ]
        if line:
            x, y = zip(*line, strict=True)
            ax.plot(x, y, color=ACCENT, drawstyle="steps-post")
            drawn = True
    if not drawn:
        return None
    keys = [Key("weights from reference ratio", "var(--accent)")]
    started = last(run.records, RunStarted)
    if started is not None and started.rho is not None and drawable(started.rho):
        ax.axhline(started.rho, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        keys.append(Key(f"radius rho = {started.rho:g}", "var(--ink)", "dashed"))
    ax.set_ylim(bottom=0)
    ax.margins(y=0.1)
    ax.set_ylabel("divergence (halved chi-square)")
    svg = to_svg(ax, "divergence", "Divergence of the weights from the reference ratio over tokens")
    return Panel("How far the mixture leans", svg, keys=tuple(keys))


def _share(value: float) -> float:
    return min(value, 1.0) if math.isfinite(value) and value > 0 else 0.0
