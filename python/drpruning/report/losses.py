"""Figures of held-out loss: what recovery left, each domain over tokens, and the excess the mixture reacted to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from matplotlib.axes import Axes

from drpruning.records import Evaluated, Record
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
    label_ends,
    series_color,
    series_dash,
    series_keys,
    shorten,
    to_svg,
    token_axis,
)
from drpruning.report.run import Run, Span, points, shown, spans
from drpruning.report.tables import Comparison, Summary

NATS = "nats per token"
MOST_LABELS = 10  # lines that can be named at their ends; more go by the legend
MARKERS = [("s", "square"), ("D", "diamond"), ("^", "triangle")]
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
    ax.plot(_drawn(row.pruned for row in rows), heights, "o", color=MUTED, markersize=6.5, markerfacecolor=PAPER)
    ax.plot(_drawn(row.recovered for row in rows), heights, "o", color=ACCENT, markersize=7.5)
    ax.set_xlabel(f"held-out loss, {NATS}")
    keys = (
        Key("base", "var(--ink)", "tick"),
        Key("right after pruning", "var(--muted)", "ring"),
        Key("after recovery", "var(--accent)", "dot"),
    )
    svg = to_svg(ax, "recovery", "Held-out loss per domain of the base, right after pruning and after recovery")
    return Panel("The way down and back", svg, keys=keys)


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
        marker, shape = MARKERS[index % len(MARKERS)]
        ends = _drawn(other.excess[name] for name in domains)
        ax.plot(ends, heights, marker, color=SERIES[1], markersize=6, markerfacecolor="none", markeredgewidth=1.6)
        keys.append(Key(other.name, VARIABLES[SERIES[1]], shape))
    ax.plot([first.excess[name] for name in domains], heights, "o", color=ACCENT, markersize=7.5)
    ax.set_xlabel(f"loss above the base, {NATS}")
    svg = to_svg(ax, "outcome", "Loss above the base after recovery, per domain and strategy")
    return Panel("Excess after recovery", svg, keys=tuple(keys))


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


def over_tokens(run: Run, summary: Summary) -> list[Panel]:
    """One small figure per domain: held-out loss through pruning and recovery, with reference loss and base."""
    laid = spans(run.records)
    panels = []
    for index, row in enumerate(summary.rows):
        ax = axes(264, 190, left=38, right=8)
        token_axis(ax, laid, ticks=4)
        drawn = False
        for rank, other in enumerate(run.others):
            dash = OTHER_LINES[rank % len(OTHER_LINES)][1]
            for x, y in _segments(other.records, laid, "losses", row.name):
                ax.plot(x, y, color=MUTED, linewidth=1.2, linestyle=(0, dash))
        for x, y in _segments(run.records, laid, "reference_loss", row.name):
            ax.plot(x, y, color=INK, linewidth=1.4, linestyle=(0, (1, 1.3)), drawstyle="steps-post")
        for x, y in _segments(run.records, laid, "losses", row.name):
            ax.plot(x, y, color=series_color(index), linestyle=series_dash(index), linewidth=1.8)
            drawn = True
        if not drawn:
            continue
        if drawable(row.base):
            ax.axhline(row.base, color=MUTED, linewidth=0.8)
        ax.margins(y=0.08)
        svg = to_svg(ax, f"loss-{index}", f"Held-out loss of {row.name} over tokens, in nats per token")
        panels.append(Panel(shown(row.name), svg, note=_ends(row.base, row.recovered)))
    return panels


def over_tokens_keys(run: Run) -> tuple[Key, ...]:
    """The legend that the figures of :func:`over_tokens` share."""
    others = (
        Key(other.label, "var(--muted)", OTHER_LINES[rank % len(OTHER_LINES)][0])
        for rank, other in enumerate(run.others)
    )
    return (
        Key(f"{run.label} (in the domain's colour)", "var(--ink)"),
        *others,
        Key("reference loss", "var(--ink)", "dotted"),
        Key("base model", "var(--muted)", "thin"),
    )


def excess(run: Run) -> Panel | None:
    """Excess over the reference loss, the quantity that the mixture answers to, for all domains together."""
    laid, domains = spans(run.records), run.domains
    named = len(domains) <= MOST_LABELS
    ax = axes(right=92 if named else 14)
    token_axis(ax, laid)
    ends = []
    for index, name in enumerate(domains):
        for x, y in (drawn := list(_segments(run.records, laid, "excess_loss", name))):
            ax.plot(x, y, color=series_color(index), linestyle=series_dash(index))
        if drawn:
            ends.append((drawn[-1][1][-1], name, series_color(index)))
    if not ends:
        return None
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.margins(y=0.06)
    ax.set_ylabel(NATS)
    if named:
        label_ends(ax, ends)
    svg = to_svg(ax, "excess", "Excess loss per domain over tokens, in nats per token")
    return Panel(
        "Excess over the reference loss",
        svg,
        note="The domains that lie highest are the ones the robust mixture gives more data.",
        keys=() if named else series_keys(domains, LINES),
    )


def _segments(
    records: tuple[Record, ...], laid: list[Span], field: str, name: str
) -> Iterator[tuple[list[float], list[float]]]:
    """One line per stage, since a stage starts from another model; points that cannot be drawn are left out."""
    for span in laid:
        line = [
            (span.at(record.tokens), (getattr(record, field) or {}).get(name, math.nan))
            for record in points(records, Evaluated, span.stage)
        ]
        line = [(x, y) for x, y in line if drawable(y)]
        if line:
            yield [x for x, _ in line], [y for _, y in line]


def _drawn(values: Iterable[float]) -> list[float]:
    return [value if drawable(value) else math.nan for value in values]


def _ends(base: float, recovered: float) -> str:
    if not math.isfinite(base) or not math.isfinite(recovered):
        return ""
    return f"{recovered:.3f} after recovery, base {base:.3f}"
