"""Figures of what was kept: heads and FFN units per layer, layers removed, and the hidden dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from drpruning.records import Kept
from drpruning.report.drawing import ACCENT, GRID, MUTED, Key, Panel, axes, figure_of

MOST_LAYERS, MOST_UNITS = 1000, 200_000  # beyond any model; a record that claims more is not drawn
HEIGHT = 220
FFN_BINS = 16  # rows of the FFN map, each the share kept of that many consecutive units
SHADES = 8
LEGEND = (
    Key("kept", "var(--accent)", "block"),
    Key("removed", "var(--grid)", "block"),
    Key("layer removed", "var(--muted)", "cross"),
)


def what_was_kept(kept: Kept) -> list[Panel]:
    """The maps that the record has indices for."""
    layers = max([kept.source.get("layers", 0), *(layer + 1 for layer in kept.layers)])
    indices = [kept.layers, kept.hidden, *kept.heads, *kept.intermediate]
    if any(index < 0 for row in indices for index in row):
        return []
    if layers > MOST_LAYERS or max([0, *kept.hidden, *kept.source.values()]) > MOST_UNITS:
        return []
    panels = [
        _units(kept, layers, kept.heads, kept.source.get("kv_heads", kept.source.get("heads", 0)), "heads"),
        _units(kept, layers, kept.intermediate, kept.source.get("intermediate", 0), "intermediate"),
        _hidden(kept),
    ]
    return [panel for panel in panels if panel is not None]


def _units(kept: Kept, layers: int, units: list[list[int]], size: int, kind: str) -> Panel | None:
    """A column per source layer, a row per head or per bin of FFN units; the deeper the colour, the more is kept."""
    size = max([size, *(unit + 1 for row in units for unit in row)])
    if not layers or not any(units) or size > MOST_UNITS:
        return None
    rows = min(size, 64 if kind == "heads" else FFN_BINS)
    capacity = Counter(unit * rows // size for unit in range(size))
    share: dict[tuple[int, int], float] = {}
    for layer, row in zip(kept.layers, units, strict=False):
        filled = [0] * rows
        for unit in row:
            filled[unit * rows // size] += 1
        share |= {(layer, index): filled[index] / capacity[index] for index in range(rows)}
    ax = _map_axes(HEIGHT, layers, rows)
    for shade in range(SHADES + 1):
        cells = [cell for cell, value in share.items() if round(value * SHADES) == shade]
        _fill(ax, cells, GRID if shade == 0 else ACCENT, shade / SHADES if shade else 1.0)
    for layer in sorted(set(range(layers)) - set(kept.layers)):
        ax.plot(layer + 0.5, rows / 2, "x", color=MUTED, markersize=7)
    ax.set_xlabel("layer of the source model")
    ax.set_ylabel("key/value head" if kind == "heads" else "FFN unit")
    counts = [len(row) for row in units]
    if layers <= 16:
        for layer, count in zip(kept.layers, counts, strict=False):
            label = f"{count}/{size}" if kind == "heads" else f"{count / size:.0%}"
            ax.annotate(label, (layer + 0.5, 0), (0, 4), textcoords="offset points", ha="center", color=MUTED, size=8.5)
    span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    title = "Heads per layer" if kind == "heads" else "FFN units per layer"
    word = "key/value heads" if kind == "heads" else "FFN units"
    note = f"{span} of {size} {word} kept in each of {len(kept.layers)} of {layers} layers."
    if rows < size:
        ax.set_yticks([0, rows], ["0", f"{size}"])
        note += f" Each cell stands for {-(-size // rows)} units; its depth is the share kept."
    else:
        ax.set_yticks(
            [index + 0.5 for index in range(0, rows, -(-rows // 8))],
            [str(index) for index in range(0, rows, -(-rows // 8))],
        )
    return Panel(f"kept-{kind}", title, figure_of(ax), note, note=note, keys=LEGEND)


def _hidden(kept: Kept) -> Panel | None:
    size = max([kept.source.get("hidden", 0), *(unit + 1 for unit in kept.hidden)])
    if not kept.hidden:
        return None
    columns = 64 if size <= 1024 else 128
    rows = -(-size // columns)
    ax = _map_axes(64 + max(rows * 370 / columns, 12), columns, rows)
    alive = set(kept.hidden)
    for color, wanted in ((GRID, False), (ACCENT, True)):
        _fill(ax, [(unit % columns, unit // columns) for unit in range(size) if (unit in alive) is wanted], color)
    ax.set_xticks([0, columns // 2, columns])
    ax.set_yticks([0, rows] if rows > 1 else [], [f"{0}", f"{size}"] if rows > 1 else [])
    ax.set_xlabel(f"hidden dimension, {columns} a row" if rows > 1 else "hidden dimension")
    note = f"{len(alive)} of {size} hidden dimensions kept, the same in every layer."
    return Panel("kept-hidden", "Hidden dimensions", figure_of(ax), note, note=note, keys=LEGEND[:2])


def _map_axes(height: float, columns: int, rows: int) -> Axes:
    ax = axes(430, height, top=18)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_xlim(0, columns)
    ax.set_ylim(rows, 0)
    if columns <= 64:
        stride = -(-columns // 16)
        ax.set_xticks(
            [index + 0.5 for index in range(0, columns, stride)], [str(index) for index in range(0, columns, stride)]
        )
    ax.tick_params(length=0)
    return ax


def _fill(ax: Axes, cells: Iterable[tuple[int, int]], color: str, alpha: float = 1.0, inset: float = 0.06) -> None:
    """Many cells as one outline: a page of separate rectangles would be ten times the size."""
    corners: list[tuple[float, float]] = []
    codes: list[Any] = []  # matplotlib types them as numpy bytes
    for x, y in cells:
        low, high = inset, 1 - inset
        corners += [
            (x + low, y + low),
            (x + high, y + low),
            (x + high, y + high),
            (x + low, y + high),
            (x + low, y + low),
        ]
        codes += [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY]
    if corners:
        ax.add_patch(PathPatch(Outline(corners, codes), facecolor=color, edgecolor="none", alpha=alpha))
