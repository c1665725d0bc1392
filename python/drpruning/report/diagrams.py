"""Dot plots and cell maps as data: the page draws them as SVG, :mod:`drpruning.report.figures` draws them for files.

Colours are CSS variables of the page's style sheet, such as ``var(--accent)``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from drpruning.records import Kept
from drpruning.report.loss_tables import StrategyComparison, Summary

NATS = "nats per token"
LARGEST_DRAWN = 1e12  # no loss, speed or multiplier comes near; memory is drawn in GiB
MOST_LAYERS, MOST_UNITS = 1000, 200_000  # beyond any model; a record that claims more is not drawn
SHADES = 8  # of a cell, between nothing and everything kept
FFN_BINS = 16  # rows of the FFN map, each the share kept of that many consecutive units
INK, MUTED, GRID, ACCENT = "var(--ink)", "var(--muted)", "var(--grid)", "var(--accent)"
SERIES = tuple(f"var(--s{index})" for index in range(8))
RUN_SHAPES = ("square", "diamond", "triangle")


@dataclass(frozen=True)
class Key:
    """One entry of a legend.

    ``shape`` is a class of the page's style sheet: line, dashed, dotted, thin, dot, ring, tick, square, diamond,
    triangle, cross, block, block striped or block spotted. ``color`` is CSS.
    """

    text: str
    color: str
    shape: str = "line"


@dataclass(frozen=True)
class Dots:
    """One series of a dot plot: its legend entry, which also gives the shape of its marks, and a value per row."""

    key: Key
    values: tuple[float, ...]


@dataclass(frozen=True)
class DotPlot:
    """A row per domain with one mark per series on a common axis; values that cannot be drawn are NaN.

    Series are drawn in order, so the last is on top. ``keys`` is the order of the legend.
    """

    name: str
    title: str
    description: str
    axis: str
    rows: tuple[str, ...]
    series: tuple[Dots, ...]
    keys: tuple[Key, ...]
    zero_line: bool = False
    note: str = ""


@dataclass(frozen=True)
class CellMap:
    """A grid of cells, each shaded by the share kept, 0 to 1.

    Attributes:
        columns: Number of columns.
        rows: Number of rows, counted from the top.
        shares: Share kept, by (column, row).
        crosses: Columns marked with a cross instead of cells.
        counts: Labels above columns.
        x_ticks: Labels under the columns: (place in columns, text).
        y_ticks: Labels next to the rows: (place in rows, text).
        square: Whether cells are square; else the map has a fixed height.
    """

    name: str
    title: str
    description: str
    columns: int
    rows: int
    shares: dict[tuple[int, int], float]
    x_label: str
    y_label: str = ""
    crosses: tuple[int, ...] = ()
    counts: dict[int, str] = field(default_factory=dict)
    x_ticks: tuple[tuple[float, str], ...] = ()
    y_ticks: tuple[tuple[float, str], ...] = ()
    square: bool = False
    note: str = ""
    keys: tuple[Key, ...] = ()


MAP_KEYS = (Key("kept", ACCENT, "block"), Key("removed", GRID, "block"), Key("layer removed", MUTED, "cross"))


def is_drawable(value: float) -> bool:
    """Return whether a number has a place in a figure: finite, and too small to overflow the scale of an axis."""
    return abs(value) < LARGEST_DRAWN


def recovery(summary: Summary) -> DotPlot | None:
    """Plot the loss of the base, right after pruning and after recovery; None before the base is measured."""
    rows = [row for row in summary.rows if is_drawable(row.base)]
    if not rows:
        return None
    base = Key("base", INK, "tick")
    pruned = Key("right after pruning", MUTED, "ring")
    after = Key("after recovery" if summary.prunes else "after training", ACCENT, "dot")
    series = [Dots(base, tuple(row.base for row in rows))]
    if summary.prunes:
        series.append(Dots(pruned, _or_nan(row.pruned for row in rows)))
    series.append(Dots(after, _or_nan(row.recovered for row in rows)))
    return DotPlot(
        "recovery",
        "Loss before pruning, after pruning and after recovery" if summary.prunes else "Before and after",
        "Held-out loss per domain of the base, right after pruning and after recovery"
        if summary.prunes
        else "Held-out loss per domain of the base and after training",
        f"held-out loss, {NATS}",
        tuple(row.name for row in rows),
        tuple(series),
        tuple(dots.key for dots in series),
    )


def outcome(compared: StrategyComparison) -> DotPlot | None:
    """Plot the excess over the base after recovery, of the run and of those compared with it."""
    first, *others = compared.rows
    domains = [name for name in compared.domains if is_drawable(first.excess[name])]
    if not domains:
        return None
    series = []
    for index, other in enumerate(others):
        color = SERIES[1 + index // len(RUN_SHAPES) % (len(SERIES) - 1)]
        key = Key(other.name, color, RUN_SHAPES[index % len(RUN_SHAPES)])
        series.append(Dots(key, _or_nan(other.excess[name] for name in domains)))
    own = Dots(Key(first.name, ACCENT, "dot"), tuple(first.excess[name] for name in domains))
    return DotPlot(
        "outcome",
        "Excess after recovery",
        "Loss above the base after recovery, per domain and strategy",
        f"loss above the base, {NATS}",
        tuple(domains),
        (*series, own),
        (own.key, *(dots.key for dots in series)),
        zero_line=True,
    )


def mask_maps(kept: Kept) -> list[CellMap]:
    """Map the kept units: heads and FFN units per layer, and hidden dimensions, for which the record has indices."""
    layers = max([kept.source.get("layers", 0), *(layer + 1 for layer in kept.layers)])
    indices = [kept.layers, kept.hidden, *kept.heads, *kept.intermediate]
    if any(index < 0 for row in indices for index in row):
        return []
    if layers > MOST_LAYERS or max([0, *kept.hidden, *kept.source.values()]) > MOST_UNITS:
        return []
    maps = [
        _layer_map(kept, layers, kept.heads, kept.source.get("kv_heads", kept.source.get("heads", 0)), "heads"),
        _layer_map(kept, layers, kept.intermediate, kept.source.get("intermediate", 0), "intermediate"),
        _hidden_map(kept),
    ]
    return [each for each in maps if each is not None]


def _layer_map(kept: Kept, layers: int, units: list[list[int]], size: int, kind: str) -> CellMap | None:
    """Map a column per source layer and a row per head or per bin of FFN units."""
    size = max([size, *(unit + 1 for row in units for unit in row)])
    if not layers or not any(units) or size > MOST_UNITS:
        return None
    rows = min(size, 64 if kind == "heads" else FFN_BINS)
    capacity = Counter(unit * rows // size for unit in range(size))
    shares: dict[tuple[int, int], float] = {}
    for layer, row in zip(kept.layers, units, strict=False):
        filled = Counter(unit * rows // size for unit in row)
        shares |= {(layer, index): filled[index] / capacity[index] for index in range(rows)}
    counts = [len(row) for row in units]
    labels = {}
    if layers <= 16:
        labels = {
            layer: f"{count}/{size}" if kind == "heads" else f"{count / size:.0%}"
            for layer, count in zip(kept.layers, counts, strict=False)
        }
    word = "key/value heads" if kind == "heads" else "FFN units"
    span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    note = f"{span} of {size} {word} kept in each of {len(kept.layers)} of {layers} layers."
    if rows < size:
        y_ticks: list[tuple[float, str]] = [(0, "0"), (rows, f"{size}")]
        note += f" Each cell shows {-(-size // rows)} units; its depth is the share kept."
    else:
        y_ticks = [(index + 0.5, str(index)) for index in range(0, rows, -(-rows // 8))]
    return CellMap(
        f"kept-{kind}",
        "Heads per layer" if kind == "heads" else "FFN units per layer",
        note,
        layers,
        rows,
        shares,
        "layer of the source model",
        "key/value head" if kind == "heads" else "FFN unit",
        crosses=tuple(sorted(set(range(layers)) - set(kept.layers))),
        counts=labels,
        x_ticks=tuple((index + 0.5, str(index)) for index in range(0, layers, -(-layers // 16))),
        y_ticks=tuple(y_ticks),
        note=note,
        keys=MAP_KEYS,
    )


def _hidden_map(kept: Kept) -> CellMap | None:
    """Map the hidden dimensions, 64 or 128 in a row."""
    size = max([kept.source.get("hidden", 0), *(unit + 1 for unit in kept.hidden)])
    if not kept.hidden:
        return None
    columns = 64 if size <= 1024 else 128
    rows = -(-size // columns)
    alive = set(kept.hidden)
    note = f"{len(alive)} of {size} hidden dimensions kept, the same in every layer."
    return CellMap(
        "kept-hidden",
        "Hidden dimensions",
        note,
        columns,
        rows,
        {(unit % columns, unit // columns): float(unit in alive) for unit in range(size)},
        f"hidden dimension, {columns} a row" if rows > 1 else "hidden dimension",
        x_ticks=tuple((place, str(place)) for place in (0, columns // 2, columns)),
        y_ticks=((0, "0"), (rows, f"{size}")) if rows > 1 else (),
        square=True,
        note=note,
        keys=MAP_KEYS[:2],
    )


def _or_nan(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(value if is_drawable(value) else math.nan for value in values)
