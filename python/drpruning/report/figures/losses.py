"""Figures of held-out loss over tokens: each domain, all domains, and the excess over the reference losses."""

from __future__ import annotations

import math

import numpy as np

from drpruning.formatting import shorten
from drpruning.report.diagrams import LARGEST_DRAWN, NATS, Key, is_drawable
from drpruning.report.figures.style import (
    INK,
    LINES,
    MUTED,
    Panel,
    axes,
    figure_of,
    grid,
    label_ends,
    lines,
    series_color,
    series_dash,
    series_keys,
    spans,
    token_axis,
)
from drpruning.report.read.run import Run, base_of_curves

MOST_LABELS = 10  # lines that can be named at their ends; more go by the legend
MOST_PANELS = 40
OTHER_LINES = [("dashed", (5, 2)), ("dotted", (1.2, 1.6)), ("dashed", (8, 2, 2, 2))]


def over_tokens(run: Run) -> Panel | None:
    """Draw a panel per domain: held-out loss, reference loss, prediction with its band, and base."""
    laid, base = spans(run), base_of_curves(run.records)
    tables = run.series.evaluations
    names = [name for name in run.domains if any(lines(tables, laid, "losses", name))][:MOST_PANELS]
    if not names:
        return None
    for ax, name in zip(grid(len(names)), names, strict=True):
        index = run.domains.index(name)
        token_axis(ax, laid, ticks=4)
        for rank, other in enumerate(run.others):
            dash = OTHER_LINES[rank % len(OTHER_LINES)][1]
            for x, y in lines(other.series.evaluations, laid, "losses", name):
                ax.plot(x, y, color=MUTED, linewidth=1.2, linestyle=(0, dash))
        for span in laid:
            if span.stage in tables:
                bins = tables[span.stage]
                low, high = (bins.mean((f"predicted_{end}", name)) for end in ("low", "high"))
                known = (np.abs(low) < LARGEST_DRAWN) & (np.abs(high) < LARGEST_DRAWN)
                if known.any():
                    x = span.at(bins.mean(("tokens", "")))
                    ax.fill_between(
                        x, low, high, where=known.tolist(), color=series_color(index), alpha=0.18, linewidth=0
                    )
        for x, y in lines(tables, laid, "predicted_loss", name):
            ax.plot(x, y, color=series_color(index), linewidth=1, linestyle=(0, (4, 1.6)))
        for x, y in lines(tables, laid, "reference_loss", name):
            ax.plot(x, y, color=INK, linewidth=1.4, linestyle=(0, (1, 1.3)), drawstyle="steps-post")
        for x, y in lines(tables, laid, "losses", name):
            ax.plot(x, y, color=series_color(index), linestyle=series_dash(index), linewidth=1.8)
        if is_drawable(base.get(name, math.nan)):
            ax.axhline(base[name], color=MUTED, linewidth=0.8)
        ax.margins(y=0.08)
        ax.set_title(shorten(name, 30), loc="left", pad=16, size=10, color=INK)
    others = (
        Key(other.label, "var(--muted)", OTHER_LINES[rank % len(OTHER_LINES)][0])
        for rank, other in enumerate(run.others)
    )
    keys = (
        Key(f"{run.label} (in the domain's colour)", "var(--ink)"),
        *others,
        Key("reference loss", "var(--ink)", "dotted"),
        Key("base model", "var(--muted)", "thin"),
    )
    return Panel("losses", "Loss in each domain", figure_of(ax), keys=keys)


def excess(run: Run) -> Panel | None:
    """Draw the excess over the reference loss, which the mixture responds to, for all domains in one plot."""
    return _per_domain(run, "excess", "excess_loss", "Excess over the reference loss", zero=True)


def held_out(run: Run) -> Panel | None:
    """Draw the held-out losses of all domains in one plot."""
    return _per_domain(run, "held-out", "losses", "Held-out loss", zero=False)


def _per_domain(run: Run, name: str, field: str, title: str, *, zero: bool) -> Panel | None:
    laid, domains = spans(run), run.domains
    named = len(domains) <= MOST_LABELS
    ax = axes(right=92 if named else 14)
    token_axis(ax, laid)
    ends = []
    for index, domain in enumerate(domains):
        for x, y in (drawn := list(lines(run.series.evaluations, laid, field, domain))):
            ax.plot(x, y, color=series_color(index), linestyle=series_dash(index))
        if drawn:
            ends.append((float(drawn[-1][1][-1]), domain, series_color(index)))
    if not ends:
        return None
    if zero:
        ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.margins(y=0.06)
    ax.set_ylabel(NATS)
    if named:
        label_ends(ax, ends)
    keys = () if named else series_keys(domains, LINES)
    return Panel(name, title, figure_of(ax), keys=keys)
