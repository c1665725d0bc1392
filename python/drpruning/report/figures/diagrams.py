"""Draw dot plots and cell maps with matplotlib."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from drpruning.formatting import shorten
from drpruning.report.diagrams import SHADES, CellMap, DotPlot
from drpruning.report.figures.style import ACCENT, COLORS, GRID, INK, MARKERS, MUTED, PAPER, Panel, axes, figure_of

MAP_HEIGHT = 220
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
        ax.plot(dots.values, heights, marker, color=color, **STYLES.get(dots.key.shape, outline))
    ax.set_xlabel(plot.axis)
    return Panel(plot.name, plot.title, figure_of(ax), plot.keys)


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
