"""The trade of worst excess against ratio-weighted mean as data: a point per method, and the front of static mixtures.

The page draws it as SVG, :mod:`drpruning.report.figures` draws it for files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from drpruning.formatting import signed
from drpruning.report.diagrams import ACCENT, INK, MUTED, NATS, Key, is_drawable
from drpruning.report.loss_tables import StrategyComparison

MOVING, STATIC = (
    Key("mixture moves", ACCENT, "dot"),
    Key("static mixture", INK, "square"),
)
FRONT = Key("static front", INK, "dashed")
INTERVAL = Key("95% interval", MUTED)
SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
"""Sides of a mark on which its label may be, the preferred one first."""


@dataclass(frozen=True)
class MethodPoint:
    """One method: weighted mean ``x`` and worst excess ``y``, each with the ends of an interval (NaN if unknown)."""

    name: str
    x: float
    y: float
    static: bool
    x_ends: tuple[float, float] = (math.nan, math.nan)
    y_ends: tuple[float, float] = (math.nan, math.nan)
    in_view: bool = True

    @property
    def key(self) -> Key:
        """The legend entry of its mark."""
        return STATIC if self.static else MOVING


@dataclass(frozen=True)
class ParetoPlot:
    """Points in view, and the corners of the static front, from the lowest weighted mean to the lowest worst excess."""

    points: tuple[MethodPoint, ...]
    front: tuple[tuple[float, float], ...]
    note: str
    keys: tuple[Key, ...]
    name: str = "pareto"
    title: str = "Worst excess against weighted mean"
    x_axis: str = f"ratio-weighted mean loss, {NATS}"
    y_axis: str = f"worst excess, {NATS}"

    @property
    def description(self) -> str:
        """The plot in words."""
        return "Worst excess and ratio-weighted mean loss of " + ", ".join(point.name for point in self.points)

    def view(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the limits of both axes: all points, and intervals up to the same again."""
        limits = []
        for values, ends in (
            ([point.x for point in self.points], [end for point in self.points for end in point.x_ends]),
            ([point.y for point in self.points], [end for point in self.points for end in point.y_ends]),
        ):
            low, high = min(values), max(values)
            room = (high - low) or 0.1 * abs(high) or 0.1
            known = [end for end in ends if math.isfinite(end)]
            low, high = max(min([low, *known]), low - room / 2), min(max([high, *known]), high + room / 2)
            limits.append((low - 0.08 * room, high + 0.08 * room))
        return limits[0], limits[1]


def pareto_plot(points: Iterable[MethodPoint], note: str = "") -> ParetoPlot | None:
    """Return the plot of the points that can be drawn; None for fewer than two in view."""
    drawn = [point for point in points if is_drawable(point.x) and is_drawable(point.y)]
    shown = tuple(sorted((point for point in drawn if point.in_view), key=lambda point: point.static))  # static on top
    if len(shown) < 2:
        return None
    outside = [f"{point.name} ({point.x:.3f}, {signed(point.y)})" for point in drawn if not point.in_view]
    corners = static_front([(point.x, point.y) for point in shown if point.static])
    intervals = any(math.isfinite(end) for point in shown for end in (*point.x_ends, *point.y_ends))
    keys = [key for key in (MOVING, STATIC) if any(point.key == key for point in shown)]
    keys += [FRONT] * (len(corners) > 1) + [INTERVAL] * intervals
    sentences = ["Lower and further left is better.", note]
    if outside:
        sentences.append(f"Not shown: {', '.join(outside)}.")
    return ParetoPlot(shown, corners, " ".join(filter(None, sentences)), tuple(keys))


def pareto_of_runs(compared: StrategyComparison, static: Sequence[bool]) -> ParetoPlot | None:
    """Plot runs side by side; ``static`` is true for those whose mixture does not move."""
    rows = zip(compared.rows, static, strict=True)
    return pareto_plot(MethodPoint(row.name, row.ratio_weighted, row.worst_excess, fixed) for row, fixed in rows)


def static_front(places: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return the places that no other place beats in both coordinates, by the first; lower is better.

    >>> static_front([(1.0, 3.0), (2.0, 1.0), (2.0, 2.0), (3.0, 1.5)])
    ((1.0, 3.0), (2.0, 1.0))
    """
    front: list[tuple[float, float]] = []
    for place in sorted(places):
        if not front or place[1] < front[-1][1]:
            front.append(place)
    return tuple(front)


def place_labels(
    marks: Sequence[tuple[float, float]], widths: Sequence[float], height: float, size: tuple[float, float]
) -> list[tuple[float, float]]:
    """Choose the centre of each label, next to its mark and off other marks and labels where there is room.

    Args:
        marks: Centres of the marks, in the units of the drawing; ``y`` grows downwards.
        widths: Width of each label.
        height: Height of a line.
        size: Width and height of the drawing.
    """
    taken = [(x, y, height * 0.8, height * 0.8) for x, y in marks]
    centres = []
    for (x, y), width in zip(marks, widths, strict=True):
        options = []
        for lines in (0.9, 1.8, 2.7, 3.6):
            for across, down in SIDES:
                at = (x + across * (width / 2 + (0.2 if down else 0.7) * height), y + down * lines * height)
                box = (*at, width, height)
                beyond = at[0] - width / 2 < 0 or at[0] + width / 2 > size[0] or not 0 < at[1] < size[1]
                cost = 10 * beyond + 0.1 * lines + sum(_overlap(box, other) for other in taken)
                options.append((cost, box))
        _, chosen = min(options, key=lambda option: option[0])
        taken.append(chosen)
        centres.append(chosen[:2])
    return centres


def leader_end(
    mark: tuple[float, float], centre: tuple[float, float], width: float, height: float
) -> tuple[float, float] | None:
    """Return where a line from ``mark`` meets its label at ``centre``; None if the label is next to the mark.

    >>> leader_end((0.0, 0.0), (30.0, 0.0), 40.0, 10.0), leader_end((0.0, 0.0), (30.0, 25.0), 40.0, 10.0)
    (None, (10.0, 20.0))
    """
    x, y = (
        min(max(at, middle - size / 2), middle + size / 2)
        for at, middle, size in zip(mark, centre, (width, height), strict=True)
    )
    return (x, y) if math.dist(mark, (x, y)) > height else None


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Return the share of the smaller box, by centre and size, that is in the other one."""
    across = (one[2] + other[2]) / 2 - abs(one[0] - other[0])
    down = (one[3] + other[3]) / 2 - abs(one[1] - other[1])
    if across <= 0 or down <= 0:
        return 0.0
    return min(across, one[2], other[2]) * min(down, one[3], other[3]) / min(one[2] * one[3], other[2] * other[3])
