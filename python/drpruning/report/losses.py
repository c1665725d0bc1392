"""Figures of held-out loss: what recovery left, each domain over tokens, and the excess the mixture reacted to."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes

from drpruning.report.data import LARGEST
from drpruning.report.drawing import (
    ACCENT,
    INK,
    LINES,
    MUTED,
    PAPER,
    SERIES,
    VARIABLES,
    Key,
    Panel,
    axes,
    drawable,
    figure_of,
    grid,
    label_ends,
    lines,
    series_color,
    series_dash,
    series_keys,
    shorten,
    spans,
    token_axis,
)
from drpruning.report.run import Run, base_of_curves
from drpruning.report.tables import Comparison, Summary

NATS = "nats per token"
MOST_LABELS = 10  # lines that can be named at their ends; more go by the legend
MOST_PANELS = 40
BESIDE = [("s", "square"), ("D", "diamond"), ("^", "triangle")]
OTHER_LINES = [("dashed", (5, 2)), ("dotted", (1.2, 1.6)), ("dashed", (8, 2, 2, 2))]


def recovery(summary: Summary) -> Panel | None:
    """Loss of the base, right after pruning and after recovery, a line per domain."""
    rows = [row for row in summary.rows if drawable(row.base)]
    if not rows:
        return None
    ax, heights = _domain_axes([row.name for row in rows])
    for height, row in zip(heights, rows, strict=True):
        known = [value for value in (row.base, row.pruned, row.recovered) if drawable(value)]
        ax.plot([min(known), max(known)], [height, height], color=MUTED, linewidth=0.8)
    ax.plot([row.base for row in rows], heights, "|", color=INK, markersize=11, markeredgewidth=2)
    if summary.prunes:
        ax.plot(_drawn(row.pruned for row in rows), heights, "o", color=MUTED, markersize=6.5, markerfacecolor=PAPER)
    ax.plot(_drawn(row.recovered for row in rows), heights, "o", color=ACCENT, markersize=7.5)
    ax.set_xlabel(f"held-out loss, {NATS}")
    base, ring = Key("base", "var(--ink)", "tick"), Key("right after pruning", "var(--muted)", "ring")
    keys: tuple[Key, ...] = (base, Key("after training", "var(--accent)", "dot"))
    if not summary.prunes:
        said = "Held-out loss per domain of the base and after training"
        return Panel("recovery", "Before and after", figure_of(ax), said, keys=keys)
    said = "Held-out loss per domain of the base, right after pruning and after recovery"
    keys = (base, ring, Key("after recovery", "var(--accent)", "dot"))
    return Panel("recovery", "The way down and back", figure_of(ax), said, keys=keys)


def outcome(compared: Comparison) -> Panel | None:
    """Excess over the base per domain after recovery, of this run and of those beside it."""
    first, *others = compared.rows
    domains = [name for name in compared.domains if drawable(first.excess[name])]
    if not domains:
        return None
    ax, heights = _domain_axes(domains)
    ax.axvline(0, color=MUTED, linewidth=1)
    for height, name in zip(heights, domains, strict=True):
        known = [row.excess[name] for row in compared.rows if drawable(row.excess[name])]
        ax.plot([min(known), max(known)], [height, height], color=MUTED, linewidth=0.8)
    keys = [Key(first.name, "var(--accent)", "dot")]
    for index, other in enumerate(others):
        marker, shape = BESIDE[index % len(BESIDE)]
        color = SERIES[1 + index // len(BESIDE) % (len(SERIES) - 1)]
        ends = _drawn(other.excess[name] for name in domains)
        ax.plot(ends, heights, marker, color=color, markersize=6, markerfacecolor="none", markeredgewidth=1.6)
        keys.append(Key(other.name, VARIABLES[color], shape))
    ax.plot([first.excess[name] for name in domains], heights, "o", color=ACCENT, markersize=7.5)
    ax.set_xlabel(f"loss above the base, {NATS}")
    said = "Loss above the base after recovery, per domain and strategy"
    return Panel("outcome", "Excess after recovery", figure_of(ax), said, keys=tuple(keys))


def _domain_axes(names: list[str]) -> tuple[Axes, list[int]]:
    """Axes with a row per domain, and the height of each, the first at the top."""
    heights = list(range(len(names)))[::-1]
    ax = axes(430, 66 + 26 * len(names), left=112, right=16, top=10)
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    ax.set_yticks(heights, [shorten(name, 16) for name in names], color=INK)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.margins(x=0.06)
    return ax, heights


def over_tokens(run: Run) -> Panel | None:
    """A panel per domain: held-out loss with reference loss, prediction, its band, and the base."""
    laid, base = spans(run), base_of_curves(run.records)
    tables = run.collected.evaluations
    names = [name for name in run.domains if any(lines(tables, laid, "losses", name))][:MOST_PANELS]
    if not names:
        return None
    for ax, name in zip(grid(len(names)), names, strict=True):
        index = run.domains.index(name)
        token_axis(ax, laid, ticks=4)
        for rank, other in enumerate(run.others):
            dash = OTHER_LINES[rank % len(OTHER_LINES)][1]
            for x, y in lines(other.collected.evaluations, laid, "losses", name):
                ax.plot(x, y, color=MUTED, linewidth=1.2, linestyle=(0, dash))
        for span in laid:
            if span.stage in tables:
                bins = tables[span.stage]
                low, high = (bins.mean((f"predicted_{end}", name)) for end in ("low", "high"))
                known = (np.abs(low) < LARGEST) & (np.abs(high) < LARGEST)
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
        if drawable(base.get(name, math.nan)):
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
    said = "Held-out loss of each domain over tokens, in nats per token"
    return Panel("losses", "Loss in each domain", figure_of(ax), said, keys=keys)


def excess(run: Run) -> Panel | None:
    """Excess over the reference loss, the quantity that the mixture answers to, for all domains together."""
    return _per_domain(run, "excess", "excess_loss", "Excess over the reference loss", zero=True)


def held_out(run: Run) -> Panel | None:
    """Held-out losses of all domains in one plot."""
    return _per_domain(run, "held-out", "losses", "Held-out loss", zero=False)


def _per_domain(run: Run, name: str, field: str, title: str, *, zero: bool) -> Panel | None:
    laid, domains = spans(run), run.domains
    named = len(domains) <= MOST_LABELS
    ax = axes(right=92 if named else 14)
    token_axis(ax, laid)
    ends = []
    for index, domain in enumerate(domains):
        for x, y in (drawn := list(lines(run.collected.evaluations, laid, field, domain))):
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
    return Panel(name, title, figure_of(ax), f"{title} per domain over tokens, in nats per token", keys=keys)


def _drawn(values: Iterable[float]) -> list[float]:
    return [value if drawable(value) else math.nan for value in values]
