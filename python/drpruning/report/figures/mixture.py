"""Figures of the mixture: the weights sampled, the reference ratio, and the divergence between them."""

from __future__ import annotations

import numpy as np

from drpruning.report.diagrams import Key, is_drawable
from drpruning.report.figures.losses import MOST_LABELS
from drpruning.report.figures.style import (
    ACCENT,
    BLOCKS,
    HATCHES,
    INK,
    PAPER,
    SERIES,
    Panel,
    axes,
    figure_of,
    label_ends,
    lines,
    series_color,
    series_keys,
    spans,
    token_axis,
)
from drpruning.report.read.downsample import Vector
from drpruning.report.read.run import Run


def shares(run: Run, field: str, title: str) -> Panel | None:
    """Stack the shares of the domains over tokens; ``field`` is ``weights`` or ``reference_ratio``.

    What is chosen at an evaluation holds until the next one, so the areas have steps.
    """
    laid, domains = spans(run), run.domains
    named = len(domains) <= MOST_LABELS
    ax = axes(right=92 if named else 14)
    ax.grid(visible=False)
    token_axis(ax, laid)
    middles: list[tuple[float, str, str]] = []
    drawn = False
    for span in laid:
        bins = run.series.evaluations.get(span.stage)
        if bins is None or not len(bins):
            continue
        x = np.append(span.at(bins.mean(("tokens", ""))), span.right)
        tops = np.zeros(x.size)
        middles = []
        for index, name in enumerate(domains):
            values = _share(bins.mean((field, name)))
            bottoms, tops = tops, tops + np.append(values, values[-1])
            ax.fill_between(
                x, bottoms, tops, step="post", facecolor=series_color(index), edgecolor=PAPER, linewidth=0.5,
                hatch=HATCHES[index // len(SERIES) % len(HATCHES)],
            )  # fmt: skip
            middles.append((float(bottoms[-1] + tops[-1]) / 2, name, series_color(index)))
        drawn = drawn or bool(tops.any())
    if not drawn:
        return None
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    ax.set_ylabel("share of the batch" if field == "weights" else "share")
    if named:
        label_ends(ax, middles)
    keys = () if named else series_keys(domains, BLOCKS)
    return Panel(field.replace("_", "-"), title, figure_of(ax), keys=keys)


def divergence(run: Run) -> Panel | None:
    """Draw the chi-square divergence of the weights from the reference ratio, and the radius of the ball."""
    laid = spans(run)
    ax = axes()
    token_axis(ax, laid)
    drawn = list(lines(run.series.evaluations, laid, "divergence"))
    for x, y in drawn:
        ax.plot(x, y, color=ACCENT, drawstyle="steps-post")
    if not drawn:
        return None
    keys = [Key("weights from reference ratio", "var(--accent)")]
    started = run.started
    if started is not None and started.rho is not None and is_drawable(started.rho):
        ax.axhline(started.rho, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        keys.append(Key(f"radius rho = {started.rho:g}", "var(--ink)", "dashed"))
    ax.set_ylim(bottom=0)
    ax.margins(y=0.1)
    ax.set_ylabel("divergence (halved chi-square)")
    return Panel("divergence", "How far the mixture leans", figure_of(ax), keys=tuple(keys))


def _share(values: Vector) -> Vector:
    return np.clip(np.nan_to_num(values), 0, 1)
