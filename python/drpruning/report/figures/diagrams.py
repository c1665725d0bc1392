"""Draw dot plots, cell maps and Pareto plots with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from drpruning.formatting import shorten
from drpruning.report.diagrams import SHADES, CellMap, DotPlot
from drpruning.report.figures.style import ACCENT, COLORS, GRID, INK, MARKERS, MUTED, PAPER, Panel, axes, figure_of
from drpruning.report.pareto import ParetoPlot, leader_end, place_labels

MAP_HEIGHT = 220
NAME_SIZE = 8
"""Points of the names in a Pareto plot."""
STYLES: dict[str, dict[str, Any]] = {
    "dot": {"markersize": 7.5},
    "tick": {"markersize": 11, "markeredgewidth": 2},
    "ring": {"markersize": 6.5, "markerfacecolor": PAPER},
}
"""Style of a mark by its shape; other shapes are outlines."""


def draw_dot_plot(plot: DotPlot) -> Panel:
    """Draw a row per domain with one mark per series."""
    heights = list(range(len(plot.rows)))[::-1]
    ax = axes(430, 66 + 26 * len(plot.rows), left=112, right=16, top=10)
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    ax.set_yticks(heights, [shorten(name, 16) for name in plot.rows], color=INK)
    ax.set_ylim(-0.6, len(plot.rows) - 0.4)
    ax.margins(x=0.06)
    if plot.zero_line:
        ax.axvline(0, color=MUTED, linewidth=1)
    for height, values in zip(heights, zip(*(dots.values for dots in plot.series), strict=True), strict=True):
        known = [value for value in values if value == value]  # noqa: PLR0124 - NaN is not equal to itself
        ax.plot([min(known), max(known)], [height, height], color=MUTED, linewidth=0.8)
    outline = {"markersize": 6, "markerfacecolor": "none", "markeredgewidth": 1.6}
    for dots in plot.series:
        marker = MARKERS.get(dots.key.shape, "o")
        color = COLORS[dots.key.color]
        for row, height in enumerate(heights):
            ax.plot(dots.interval(row), [height, height], color=color, linewidth=2.2, alpha=0.38)
        ax.plot(dots.values, heights, marker, color=color, **STYLES.get(dots.key.shape, outline))
        for row, text in dots.labels.items():
            ends = [end for each in plot.series for end in each.interval(row) if math.isfinite(end)]
            right = dots.values[row] >= max(each.values[row] for each in plot.series if math.isfinite(each.values[row]))
            ax.annotate(
                text, (max(ends) if right else min(ends), heights[row]), (7 if right else -7, 0), color=color,
                textcoords="offset points", ha="left" if right else "right", va="center", fontsize=NAME_SIZE,
                fontweight="bold",
            )  # fmt: skip
    if any(dots.labels for dots in plot.series):  # room for a label right of the last mark
        low, high = ax.get_xlim()
        ax.set_xlim(low, high + 0.3 * (high - low))
    ax.set_xlabel(plot.axis)
    return Panel(plot.name, plot.title, figure_of(ax), plot.keys)


def draw_pareto(plot: ParetoPlot) -> Panel:
    """Draw a mark and a name per method, its intervals as thin lines, and the static front as a dashed staircase."""
    ax = axes(430, 340, left=58, right=16, top=10)
    ax.grid(visible=True, axis="both")
    (low_x, high_x), (low_y, high_y) = plot.view()
    ax.set_xlim(low_x, high_x)
    ax.set_ylim(low_y, high_y)
    for point in plot.points:
        ax.plot(point.x_ends, [point.y, point.y], color=MUTED, linewidth=1, alpha=0.4)
        ax.plot([point.x, point.x], point.y_ends, color=MUTED, linewidth=1, alpha=0.4)
    if len(plot.front) > 1:
        across, up = zip(*plot.front, strict=True)
        ax.plot(across, up, color=INK, linewidth=1.2, linestyle=(0, (4, 2.5)), drawstyle="steps-post")
    for point in plot.points:
        outline = {"markersize": 6, "markerfacecolor": "none", "markeredgewidth": 1.6}
        style = STYLES.get(point.key.shape, outline)
        marker = MARKERS.get(point.key.shape, "o")
        ax.plot([point.x], [point.y], marker, color=COLORS[point.key.color], **style)
    figure = figure_of(ax)
    box = ax.get_window_extent()
    places = ax.transData.transform([(point.x, point.y) for point in plot.points])
    marks = [(float(x - box.x0), float(box.y1 - y)) for x, y in places]
    names = [shorten(point.name, 26) for point in plot.points]
    unit = figure.dpi / 72
    widths, height = [0.62 * NAME_SIZE * unit * len(name) for name in names], 1.2 * NAME_SIZE * unit
    centres = place_labels(marks, widths, height, (box.width, box.height))
    for mark, (x, y), width, name in zip(marks, centres, widths, names, strict=True):
        at = (x / box.width, 1 - y / box.height)
        if end := leader_end(mark, (x, y), width, height):
            across, down = zip(mark, end, strict=True)
            ax.plot(
                [x / box.width for x in across],
                [1 - y / box.height for y in down],
                color=INK,
                linewidth=0.6,
                transform=ax.transAxes,
            )
        ax.annotate(
            name,
            at,
            xycoords="axes fraction",
            ha="center",
            va="center",
            color=INK,
            size=NAME_SIZE,
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )
    ax.set_xlabel(plot.x_axis)
    ax.set_ylabel(plot.y_axis)
    return Panel(plot.name, plot.title, figure, plot.keys)


def draw_cell_map(plot: CellMap) -> Panel:
    """Draw a grid of cells shaded by the share kept."""
    height = 64 + max(plot.rows * 370 / plot.columns, 12) if plot.square else MAP_HEIGHT
    ax = axes(430, height, top=18)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_xlim(0, plot.columns)
    ax.set_ylim(plot.rows, 0)
    ax.tick_params(length=0)
    for shade in range(SHADES + 1):
        cells = [cell for cell, share in plot.shares.items() if round(share * SHADES) == shade]
        _fill(ax, cells, GRID if shade == 0 else ACCENT, shade / SHADES if shade else 1.0)
    for column in plot.crosses:
        ax.plot(column + 0.5, plot.rows / 2, "x", color=MUTED, markersize=7)
    for column, label in plot.counts.items():
        ax.annotate(label, (column + 0.5, 0), (0, 4), textcoords="offset points", ha="center", color=MUTED, size=8.5)
    ax.set_xticks([place for place, _ in plot.x_ticks], [text for _, text in plot.x_ticks])
    ax.set_yticks([place for place, _ in plot.y_ticks], [text for _, text in plot.y_ticks])
    ax.set_xlabel(plot.x_label)
    ax.set_ylabel(plot.y_label)
    return Panel(plot.name, plot.title, figure_of(ax), plot.keys)


def _fill(ax: Axes, cells: Iterable[tuple[int, int]], color: str, alpha: float = 1.0, inset: float = 0.06) -> None:
    """Draw many cells as one outline: a file of separate rectangles would be ten times the size."""
    corners: list[tuple[float, float]] = []
    codes: list[Any] = []  # matplotlib types them as numpy bytes
    for x, y in cells:
        left, right, top, bottom = x + inset, x + 1 - inset, y + inset, y + 1 - inset
        corners += [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        codes += [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY]
    if corners:
        ax.add_patch(PathPatch(Outline(corners, codes), facecolor=color, edgecolor="none", alpha=alpha))
