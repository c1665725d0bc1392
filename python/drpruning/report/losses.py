"""Figures of held-out loss: what recovery left, each domain over tokens, and the excess the mixture reacted to."""

from __future__ import annotations

import math
from collections.abc import Iterator

from drpruning.records import Evaluated, Record
from drpruning.report.drawing import (
    ACCENT,
    INK,
    MUTED,
    SERIES,
    VARIABLES,
    Key,
    Panel,
    axes,
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
OTHERS: list[tuple[str, tuple[float, ...], str]] = [
    ("dashed", (5, 2), "s"),
    ("dotted", (1.2, 1.6), "D"),
    ("dashed", (8, 2, 2, 2), "^"),
]


def outcome(summary: Summary, compared: Comparison | None) -> Panel | None:
    """Excess over the base per domain after recovery, of this run and of those beside it."""
    rows = [row for row in summary.rows if math.isfinite(row.excess)]
    if not rows:
        return None
    heights = list(range(len(rows)))[::-1]
    ax = axes(430, 66 + 24 * len(rows), left=112, right=20, top=10)
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    ax.axvline(0, color=MUTED, linewidth=1)
    others = compared.rows[1:] if compared else []
    for height, row in zip(heights, rows, strict=True):
        ends = [row.excess, *(other.excess.get(row.name, math.nan) for other in others)]
        known = [end for end in ends if math.isfinite(end)]
        ax.plot([min(0, *known), max(0, *known)], [height, height], color=MUTED, linewidth=0.8)
    keys = [Key(compared.rows[0].name if compared else "after recovery", "var(--accent)", "dot")]
    for index, other in enumerate(others):
        marker = OTHERS[index % len(OTHERS)][2]
        ends = [other.excess.get(row.name, math.nan) for row in rows]
        ax.plot(ends, heights, marker, color=SERIES[1], markersize=6, markerfacecolor="none", markeredgewidth=1.6)
        shape = {"s": "square", "D": "diamond", "^": "triangle"}[marker]
        keys.append(Key(other.name, VARIABLES[SERIES[1]], shape))
    ax.plot([row.excess for row in rows], heights, "o", color=ACCENT, markersize=7.5)
    ax.set_yticks(heights, [shorten(row.name, 16) for row in rows], color=INK)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.margins(x=0.06)
    ax.set_xlabel("loss above the base model, nats per token")
    svg = to_svg(ax, "outcome", "Loss above the base model after recovery, per domain")
    return Panel("Left to recover, per domain", svg, keys=tuple(keys))


def over_tokens(run: Run, summary: Summary) -> list[Panel]:
    """One small figure per domain: held-out loss through pruning and recovery, with reference loss and base."""
    laid = spans(run.records)
    panels = []
    for index, row in enumerate(summary.rows):
        ax = axes(300, 190, right=10)
        scale = token_axis(ax, laid, ticks=4) if laid else 1.0
        drawn = False
        for rank, other in enumerate(run.others):
            dash = OTHERS[rank % len(OTHERS)][1]
            for x, y in _segments(other.records, laid, scale, "losses", row.name):
                ax.plot(x, y, color=MUTED, linewidth=1.2, linestyle=(0, dash))
        for x, y in _segments(run.records, laid, scale, "reference_loss", row.name):
            ax.plot(x, y, color=INK, linewidth=1, linestyle=(0, (1, 1.6)), drawstyle="steps-post")
        for x, y in _segments(run.records, laid, scale, "losses", row.name):
            ax.plot(x, y, color=series_color(index), linestyle=series_dash(index), linewidth=1.8)
            drawn = True
        if not drawn:
            continue
        if math.isfinite(row.base):
            ax.axhline(row.base, color=MUTED, linewidth=0.8)
        ax.margins(y=0.08)
        svg = to_svg(ax, f"loss-{index}", f"Held-out loss of {row.name} over tokens, in nats per token")
        panels.append(Panel(shown(row.name), svg, note=_ends(row.base, row.recovered)))
    return panels


def over_tokens_keys(run: Run) -> tuple[Key, ...]:
    """The legend that the figures of :func:`over_tokens` share."""
    others = (Key(other.label, "var(--muted)", OTHERS[rank % len(OTHERS)][0]) for rank, other in enumerate(run.others))
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
    scale = token_axis(ax, laid) if laid else 1.0
    ends = []
    for index, name in enumerate(domains):
        for x, y in (drawn := list(_segments(run.records, laid, scale, "excess_loss", name))):
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
        keys=() if named else series_keys(domains, "line"),
    )


def _segments(
    records: tuple[Record, ...], laid: list[Span], scale: float, field: str, name: str
) -> Iterator[tuple[list[float], list[float]]]:
    """One line per stage, since a stage starts from another model; points that are not finite are left out."""
    for span in laid:
        line = [
            ((span.start + record.tokens) / scale, (getattr(record, field) or {}).get(name, math.nan))
            for record in points(records, Evaluated, span.stage)
        ]
        line = [(x, y) for x, y in line if math.isfinite(y)]
        if line:
            yield [x for x, _ in line], [y for _, y in line]


def _ends(base: float, recovered: float) -> str:
    if not math.isfinite(base) or not math.isfinite(recovered):
        return ""
    return f"{recovered:.3f} after recovery, base {base:.3f}"
