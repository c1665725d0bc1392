"""Dot plots and cell maps as data: the page draws them as SVG, :mod:`drpruning.report.figures` draws them for files.

Colours are CSS variables of the page's style sheet, such as ``var(--accent)``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from drpruning.formatting import held_out, signed
from drpruning.records import Kept
from drpruning.report.excess import RunExcess
from drpruning.report.loss_tables import Summary

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
    """One series of a dot plot: its legend entry, which also gives the shape of its marks, and a value per row.

    ``half_widths`` are those of intervals, NaN where unknown; empty without intervals. ``labels`` are texts next to
    marks, by row.
    """

    key: Key
    values: tuple[float, ...]
    half_widths: tuple[float, ...] = ()
    labels: dict[int, str] = field(default_factory=dict)

    def interval(self, row: int) -> tuple[float, float]:
        """Return the ends of the interval of a row; both are the value if it has none."""
        half = self.half_widths[row] if self.half_widths else math.nan
        half = half if is_drawable(half) else 0.0
        return self.values[row] - half, self.values[row] + half


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


def outcome(own: RunExcess, others: Sequence[RunExcess]) -> DotPlot | None:
    """Plot the excess over the base by domain, the largest first, of a run and of others; the worst have labels."""
    domains = sorted(
        (name for name, value in own.excess.items() if is_drawable(value)), key=lambda name: -own.excess[name]
    )
    if not domains:
        return None
    series = []
    for index, other in enumerate(others):
        color = SERIES[1 + index // len(RUN_SHAPES) % (len(SERIES) - 1)]
        key = Key(other.label, color, RUN_SHAPES[index % len(RUN_SHAPES)])
        series.append(_excess_dots(other, key, domains, label=len(others) == 1))
    first = _excess_dots(own, Key(own.label, ACCENT, "dot"), domains, label=True)
    intervals = any(dots.half_widths for dots in (first, *series))
    what = "after recovery" if own.model == "recovered" and own.pruned else f"of the {own.model} model"
    return DotPlot(
        "outcome",
        f"Loss above the base {what}",
        "Loss above the base by domain",
        f"loss above the base, {NATS}",
        tuple(domains),
        (*series, first),
        (first.key, *(dots.key for dots in series), *((Key("95% interval", MUTED),) if intervals else ())),
        zero_line=True,
        note=f"Measured on {held_out(own.tokens, 'test')}." if own.tokens else "",
    )


def _excess_dots(run: RunExcess, key: Key, domains: Sequence[str], *, label: bool) -> Dots:
    """Return the marks of a run; ``label`` writes the largest excess next to its mark."""
    halves = [run.domain(name).half_width if name in run.parts else math.nan for name in domains]
    worst = {domains.index(run.worst_domain): f"worst {signed(run.worst.value)}"} if run.worst_domain in domains else {}
    return Dots(
        key,
        _or_nan(run.excess.get(name, math.nan) for name in domains),
        tuple(halves) if any(map(math.isfinite, halves)) else (),
        worst if label else {},
    )


def mask_maps(kept: Kept) -> list[CellMap]:
    """Map the kept units that the record has: heads, FFN units or experts per layer, and hidden dimensions."""
    layers = max([kept.source.get("layers", 0), *(layer + 1 for layer in kept.layers)])
    indices = [kept.layers, kept.hidden, *kept.heads, *kept.intermediate, *kept.experts]
    if any(index < 0 for row in indices for index in row):
        return []
    if layers > MOST_LAYERS or max([0, *kept.hidden, *kept.source.values()]) > MOST_UNITS:
        return []
    maps = [
        _layer_map(kept, layers, kept.heads, kept.source.get("kv_heads", kept.source.get("heads", 0)), "heads"),
        _layer_map(kept, layers, kept.experts, kept.source.get("experts", 0), "experts")
        if kept.experts
        else _layer_map(kept, layers, kept.intermediate, kept.source.get("intermediate", 0), "intermediate"),
        _hidden_map(kept),
    ]
    return [each for each in maps if each is not None]


def _layer_map(kept: Kept, layers: int, units: list[list[int]], size: int, kind: str) -> CellMap | None:
    """Map a column per source layer and a row per head or per bin of FFN units."""
    size = max([size, *(unit + 1 for row in units for unit in row)])
    if not layers or not any(units) or size > MOST_UNITS:
        return None
    rows = min(size, FFN_BINS if kind == "intermediate" else 64)
    capacity = Counter(unit * rows // size for unit in range(size))
    shares: dict[tuple[int, int], float] = {}
    for layer, row in zip(kept.layers, units, strict=False):
        filled = Counter(unit * rows // size for unit in row)
        shares |= {(layer, index): filled[index] / capacity[index] for index in range(rows)}
    counts = [len(row) for row in units]
    labels = {}
    if layers <= 16:
        labels = {
            layer: f"{count / size:.0%}" if kind == "intermediate" else f"{count}/{size}"
            for layer, count in zip(kept.layers, counts, strict=False)
        }
    word = {"heads": "key/value heads", "intermediate": "FFN units", "experts": "experts"}[kind]
    span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    note = f"{span} of {size} {word} kept in each of {len(kept.layers)} of {layers} layers."
    if rows < size:
        y_ticks: list[tuple[float, str]] = [(0, "0"), (rows, f"{size}")]
        note += f" Each cell shows {-(-size // rows)} units; its depth is the share kept."
    else:
        y_ticks = [(index + 0.5, str(index)) for index in range(0, rows, -(-rows // 8))]
    return CellMap(
        f"kept-{kind}",
        f"{'Heads' if kind == 'heads' else 'FFN units' if kind == 'intermediate' else 'Experts'} per layer",
        note,
        layers,
        rows,
        shares,
        "layer of the source model",
        word.removesuffix("s"),
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
