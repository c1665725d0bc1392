"""Draw dot plots, cell maps and Pareto plots as SVG elements for the page.

Colours are CSS variables, so that one drawing serves the light theme, the dark theme and print. Text stays text: it can
be searched and read aloud. Names are escaped, and no element has an id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from drpruning.formatting import printable, shorten
from drpruning.report.diagrams import ACCENT, GRID, INK, MUTED, SHADES, CellMap, DotPlot, Dots
from drpruning.report.pareto import ParetoPlot, leader_end, place_labels

WIDTH = 430  # units of the view box; the page scales drawings to the width of their column
FONT, SMALL = 10, 8.5
DOT_LEFT, DOT_RIGHT, DOT_TOP, DOT_ROW, DOT_BOTTOM = 112, 16, 10, 26, 40
MAP_LEFT, MAP_RIGHT, MAP_TOP, MAP_BOTTOM, MAP_HEIGHT = 46, 14, 18, 38, 164
PARETO_LEFT, PARETO_HEIGHT = 52, 340
LETTER = 0.55
"""Mean width of a letter, in font sizes."""
MARGIN = 0.06  # of the axis, beyond the first and the last mark
INSET = 0.06  # of a cell, on each side
OUTLINES = {
    "square": "m-3 -3h6v6h-6z",
    "diamond": "m0 -4.2l4.2 4.2l-4.2 4.2l-4.2 -4.2z",
    "triangle": "m0 -4l4 7h-8z",
}


def dot_plot_svg(plot: DotPlot) -> Markup:
    """Draw a dot plot: a row per domain, a thin line from the least to the largest value, a mark per series."""
    height = DOT_TOP + DOT_ROW * len(plot.rows) + DOT_BOTTOM
    base = height - DOT_BOTTOM
    ends = [end for dots in plot.series for row in range(len(plot.rows)) for end in dots.interval(row)]
    ends = [end for end in ends if math.isfinite(end)]
    low, high = min(ends), max(ends)
    if plot.zero_line:
        low, high = min(low, 0.0), max(high, 0.0)
    pad = MARGIN * (high - low) or 0.5 * abs(high) or 0.5
    low, high = low - pad, high + pad
    labels = [text for dots in plot.series for text in dots.labels.values()]
    if labels:  # room for the longest one, right of its mark
        room = LETTER * FONT * max(map(len, labels)) + 8
        high += (high - low) * room / (WIDTH - DOT_LEFT - DOT_RIGHT - room)
    scale = (WIDTH - DOT_LEFT - DOT_RIGHT) / (high - low)

    def x_of(value: float) -> float:
        return DOT_LEFT + (value - low) * scale

    parts = []
    for tick in nice_ticks(low, high):
        at = x_of(tick)
        parts += [
            _line(at, DOT_TOP, at, base, GRID, 0.7),
            _line(at, base, at, base + 3, MUTED, 0.7),
            _text(at, base + 14, f"{tick:g}".replace("-", "−"), MUTED),
        ]
    parts.append(_line(DOT_LEFT, base, WIDTH - DOT_RIGHT, base, MUTED, 0.7))
    parts.append(_line(DOT_LEFT, DOT_TOP, DOT_LEFT, base, MUTED, 0.7))
    if plot.zero_line:
        parts.append(_line(x_of(0), DOT_TOP, x_of(0), base, MUTED, 1))
    marks = []
    for row, name in enumerate(plot.rows):
        y = DOT_TOP + DOT_ROW * (row + 0.5)
        parts.append(_text(DOT_LEFT - 6, y + 3.5, shorten(name, 16), INK, anchor="end"))
        shown = [dots for dots in plot.series if math.isfinite(dots.values[row])]
        places = [x_of(dots.values[row]) for dots in shown]
        if plot.zero_line:
            places.append(x_of(0))
        parts.append(_line(min(places), y, max(places), y, GRID if plot.zero_line else MUTED, 0.8))
        for dots in shown:
            left, right = map(x_of, dots.interval(row))
            if right > left:
                parts.append(_interval(left, right, y, dots.key.color))
            marks.append(_mark(dots.key.shape, x_of(dots.values[row]), y, dots.key.color))
            if row in dots.labels:
                marks.append(_label(dots, shown, row, y, x_of))
    parts += marks
    parts.append(_text((DOT_LEFT + WIDTH - DOT_RIGHT) / 2, height - 8, plot.axis, MUTED))
    return _svg(height, plot.description, parts)


def cell_map_svg(plot: CellMap) -> Markup:
    """Draw a map of cells, the cells of one shade as one path."""
    across = WIDTH - MAP_LEFT - MAP_RIGHT
    cell_x = across / plot.columns
    drawn = max(plot.rows * cell_x, 12) if plot.square else MAP_HEIGHT
    cell_y = drawn / plot.rows
    height = MAP_TOP + drawn + MAP_BOTTOM
    parts = []
    by_shade: dict[int, list[tuple[int, int]]] = {}
    for cell, share in plot.shares.items():
        by_shade.setdefault(round(share * SHADES), []).append(cell)
    for shade, cells in sorted(by_shade.items()):
        outline = "".join(
            f"M{_round(MAP_LEFT + (x + INSET) * cell_x)} {_round(MAP_TOP + (y + INSET) * cell_y)}"
            f"h{_round((1 - 2 * INSET) * cell_x)}v{_round((1 - 2 * INSET) * cell_y)}"
            f"h{_round(-(1 - 2 * INSET) * cell_x)}z"
            for x, y in cells
        )
        color, opacity = (GRID, 1.0) if shade == 0 else (ACCENT, shade / SHADES)
        parts.append(Markup('<path d="{}" style="fill:{}" fill-opacity="{}"/>').format(outline, color, f"{opacity:g}"))
    middle = MAP_TOP + drawn / 2
    parts += [_mark("cross", MAP_LEFT + (column + 0.5) * cell_x, middle, MUTED) for column in plot.crosses]
    for column, label in plot.counts.items():
        parts.append(_text(MAP_LEFT + (column + 0.5) * cell_x, MAP_TOP - 4, label, MUTED, size=SMALL))
    for place, label in plot.x_ticks:
        parts.append(_text(MAP_LEFT + place * cell_x, MAP_TOP + drawn + 12, label, MUTED))
    for place, label in plot.y_ticks:
        parts.append(_text(MAP_LEFT - 5, MAP_TOP + place * cell_y + 3.5, label, MUTED, anchor="end"))
    parts.append(_text(MAP_LEFT + across / 2, MAP_TOP + drawn + 28, plot.x_label, MUTED))
    if plot.y_label:
        parts.append(_text(10, MAP_TOP + drawn / 2, plot.y_label, MUTED, turned=True))
    return _svg(height, plot.description, parts)


def pareto_svg(plot: ParetoPlot) -> Markup:
    """Draw a mark and a name per method, its intervals as thin lines, and the static front as a dashed staircase."""
    (low_x, high_x), (low_y, high_y) = plot.view()
    bottom, right = PARETO_HEIGHT - DOT_BOTTOM, WIDTH - DOT_RIGHT
    scale_x, scale_y = (right - PARETO_LEFT) / (high_x - low_x), (bottom - DOT_TOP) / (high_y - low_y)

    def x_of(value: float) -> float:
        return PARETO_LEFT + (min(max(value, low_x), high_x) - low_x) * scale_x

    def y_of(value: float) -> float:
        return bottom - (min(max(value, low_y), high_y) - low_y) * scale_y

    parts = []
    for tick in nice_ticks(low_x, high_x):
        parts.append(_line(x_of(tick), DOT_TOP, x_of(tick), bottom, GRID, 0.7))
        parts.append(_text(x_of(tick), bottom + 14, f"{tick:g}".replace("-", "−"), MUTED))
    for tick in nice_ticks(low_y, high_y):
        parts.append(_line(PARETO_LEFT, y_of(tick), right, y_of(tick), GRID, 0.7))
        parts.append(_text(PARETO_LEFT - 5, y_of(tick) + 3.5, f"{tick:g}".replace("-", "−"), MUTED, anchor="end"))
    parts.append(_line(PARETO_LEFT, bottom, right, bottom, MUTED, 0.7))
    parts.append(_line(PARETO_LEFT, DOT_TOP, PARETO_LEFT, bottom, MUTED, 0.7))
    for point in plot.points:
        if all(map(math.isfinite, (*point.x_ends, *point.y_ends))):
            (left, end), (lower, upper) = map(x_of, point.x_ends), map(y_of, point.y_ends)
            x, y = x_of(point.x), y_of(point.y)
            cross = f"M{_round(left)} {_round(y)}H{_round(end)}M{_round(x)} {_round(lower)}V{_round(upper)}"
            parts.append(Markup('<path d="{}" style="fill:none;stroke:{};stroke-opacity:.4"/>').format(cross, MUTED))
    if len(plot.front) > 1:
        (x, y), *corners = ((x_of(x), y_of(y)) for x, y in plot.front)
        steps = "".join(f"H{_round(x)}V{_round(y)}" for x, y in corners)
        outline = f"M{_round(x)} {_round(y)}{steps}"
        dashes = Markup('<path d="{}" style="fill:none;stroke:{};stroke-width:1.2;stroke-dasharray:4 3"/>')
        parts.append(dashes.format(outline, INK))
    marks = [(x_of(point.x), y_of(point.y)) for point in plot.points]
    names = [shorten(point.name, 26) for point in plot.points]
    widths, height = [LETTER * SMALL * len(name) for name in names], SMALL * 1.15
    inside = [(x - PARETO_LEFT, y) for x, y in marks]  # of the axes
    centres = [(x + PARETO_LEFT, y) for x, y in place_labels(inside, widths, height, (right - PARETO_LEFT, bottom))]
    for mark, centre, width in zip(marks, centres, widths, strict=True):
        if tip := leader_end(mark, centre, width, height):
            parts.append(_line(*mark, *tip, INK, 0.6))
    parts += [_mark(point.key.shape, *mark, point.key.color) for point, mark in zip(plot.points, marks, strict=True)]
    for (x, y), name in zip(centres, names, strict=True):
        halo = f"{INK};paint-order:stroke;stroke:var(--paper);stroke-width:2.5px"
        parts.append(_text(x, y + 3, name, halo, size=SMALL))
    parts.append(_text((PARETO_LEFT + right) / 2, PARETO_HEIGHT - 8, plot.x_axis, MUTED))
    parts.append(_text(10, (DOT_TOP + bottom) / 2, plot.y_axis, MUTED, turned=True))
    return _svg(PARETO_HEIGHT, plot.description, parts)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most ``most`` round numbers in [low, high], a multiple of 1, 2, 2.5 or 5 times a power of ten apart.

    >>> nice_ticks(-0.03, 1.04)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = factor * power
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first < most:
            break
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def _svg(height: float, description: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" style="font:{}px var(--sans)">{}</svg>').format(
        WIDTH, _round(height), printable(description), FONT, Markup("").join(parts)
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float) -> Markup:
    return Markup('<path d="M{} {}L{} {}" style="stroke:{};stroke-width:{}"/>').format(
        _round(x1), _round(y1), _round(x2), _round(y2), color, f"{width:g}"
    )


def _text(
    x: float, y: float, text: str, color: str, *, anchor: str = "middle", size: float = FONT, turned: bool = False
) -> Markup:
    turn = Markup(' transform="rotate(-90 {} {})"').format(_round(x), _round(y)) if turned else ""
    style = f"fill:{color};text-anchor:{anchor}" + (f";font-size:{size:g}px" if size != FONT else "")
    return Markup('<text x="{}" y="{}" style="{}"{}>{}</text>').format(_round(x), _round(y), style, turn, text)


def _interval(left: float, right: float, y: float, color: str) -> Markup:
    return Markup('<path d="M{} {}H{}" style="stroke:{};stroke-width:2.2;stroke-opacity:.38"/>').format(
        _round(left), _round(y), _round(right), color
    )


def _label(dots: Dots, shown: Sequence[Dots], row: int, y: float, x_of: Callable[[float], float]) -> Markup:
    """Write the label of a mark right of the row's marks, or left of them if another mark is further right."""
    text, ends = dots.labels[row], [x_of(end) for each in shown for end in each.interval(row)]
    style = f"{dots.key.color};font-weight:650;paint-order:stroke;stroke:var(--paper);stroke-width:3px"
    if dots.values[row] == max(each.values[row] for each in shown):
        return _text(max(ends) + 8, y + 3.5, text, style, anchor="start")
    left = min(ends) - 8
    if left - LETTER * FONT * len(text) > DOT_LEFT:
        return _text(left, y + 3.5, text, style, anchor="end")
    return _text(max(ends) + 8, y + 3.5 + FONT, text, style, anchor="start")


def _mark(shape: str, x: float, y: float, color: str) -> Markup:
    """Draw the mark of a legend entry; an unknown shape is a filled dot."""
    at_x, at_y = _round(x), _round(y)
    if shape == "tick":
        return Markup('<path d="M{} {}v11" style="stroke:{};stroke-width:2"/>').format(at_x, _round(y - 5.5), color)
    if shape == "cross":
        outline = f"M{_round(x - 3.5)} {_round(y - 3.5)}l7 7m0 -7l-7 7"
        return Markup('<path d="{}" style="stroke:{};stroke-width:1"/>').format(outline, color)
    if shape in OUTLINES:
        return Markup('<path d="M{} {}{}" style="fill:none;stroke:{};stroke-width:1.6"/>').format(
            at_x, at_y, OUTLINES[shape], color
        )
    if shape == "ring":
        return Markup('<circle cx="{}" cy="{}" r="3.2" style="fill:var(--paper);stroke:{};stroke-width:1"/>').format(
            at_x, at_y, color
        )
    return Markup('<circle cx="{}" cy="{}" r="3.7" style="fill:{}"/>').format(at_x, at_y, color)


def _round(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
