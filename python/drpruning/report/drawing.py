"""How figures are drawn: one size, one palette, and SVG that follows the page's light or dark theme.

Figures are drawn in colours that stand for a role; on the way to SVG each becomes a CSS variable of the page
(``var(--ink)``), so that one figure serves both themes and print. Text stays text: it can be searched and read aloud.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from drpruning.report.run import Span, shown

INK, MUTED, GRID, ACCENT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
ROLES = {INK: "ink", MUTED: "muted", GRID: "grid", ACCENT: "accent", PAPER: "paper"}
SERIES = [f"#0600{index:02x}" for index in range(8)]  # the page defines --s0 to --s7
DASHES = ["-", (0, (4, 1.6)), (0, (1.2, 1.2))]  # a second and third round through the colours
HATCHES = ["", "//", ".."]
LINES, BLOCKS = ("line", "dashed", "dotted"), ("block", "block striped", "block spotted")
VARIABLES = {color: f"var(--{role})" for color, role in ROLES.items()} | {
    color: f"var(--s{index})" for index, color in enumerate(SERIES)
}
LARGEST = 1e12  # no loss, speed or multiplier comes near
FONT = "DejaVu Sans"  # comes with matplotlib and is wider than system fonts, so labels measured with it fit
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "drpruning",
    "text.parse_math": False,  # a domain may be called $x$
    "font.family": [FONT],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "butt",
    "hatch.color": PAPER,
    "hatch.linewidth": 0.8,
    "figure.dpi": 72,
    "savefig.transparent": True,
}


@dataclass(frozen=True)
class Key:
    """One entry of a legend, which the page sets in HTML so that it wraps on a narrow screen."""

    text: str
    color: str  # CSS
    shape: str = "line"  # line, dashed, dotted, dot, square, block: a class of the page's style


@dataclass(frozen=True)
class Panel:
    """One figure as the page shows it."""

    title: str
    svg: Markup
    note: str = ""
    keys: tuple[Key, ...] = ()


def series_color(index: int) -> str:
    """The colour of the ``index``-th domain or kind."""
    return SERIES[index % len(SERIES)]


def series_dash(index: int) -> str | tuple[int, tuple[float, ...]]:
    """Its dashes: solid for the first eight."""
    return DASHES[index // len(SERIES) % len(DASHES)]  # type: ignore[return-value]


def axes(width: float = 430, height: float = 250, *, left: float = 46, right: float = 14, top: float = 22) -> Axes:
    """Axes on a figure of its own, sizes in points; every figure of a size has its axes in the same place."""
    figure = Figure(figsize=(width / 72, height / 72))
    FigureCanvasSVG(figure)
    bottom = 38
    return figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))


def series_keys(names: Sequence[str], shapes: Sequence[str]) -> tuple[Key, ...]:
    """A legend of domains in their colours; ``shapes`` are those of the first, second and third round of colours."""
    return tuple(
        Key(name, VARIABLES[series_color(index)], shapes[index // len(SERIES) % len(shapes)])
        for index, name in enumerate(names)
    )


def drawable(value: float) -> bool:
    """Whether a number has a place in a figure: finite, and not so large that the scale of an axis overflows."""
    return abs(value) < LARGEST


def thinned(x: Sequence[float], y: Sequence[float], most: int = 300) -> tuple[list[float], list[float]]:
    """At most ``most`` points, each the mean of its neighbours; what is not finite is left out.

    >>> thinned([1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0], most=2)
    ([1.5, 3.5], [2.0, 6.0])
    """
    pairs = [(at, value) for at, value in zip(x, y, strict=True) if drawable(value)]
    size = -(-len(pairs) // most) or 1
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return (
        [math.fsum(at for at, _ in group) / len(group) for group in groups],
        [math.fsum(value for _, value in group) / len(group) for group in groups],
    )


def token_axis(ax: Axes, laid: Sequence[Span], *, ticks: int = 6) -> None:
    """Labels the axis of tokens, counted within each stage, and marks where one stage ends and the next begins."""
    longest = max((span.tokens for span in laid), default=0)
    scale, unit = (1e9, "billion tokens") if longest >= 2e9 else (1e6, "million tokens")
    ax.set_xlim(0, 1)
    ax.set_xlabel(f"{unit} in the stage" if len(laid) > 1 else unit)
    places: list[tuple[float, str]] = []
    for index, span in enumerate(laid):
        bins = max(1, round(ticks * (span.right - span.left)))
        nice = MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10]).tick_values(0, span.tokens / scale)
        # The end of a stage is the start of the next: a label there would meet the next stage's zero.
        most = span.tokens / scale * (1 if span is laid[-1] else 0.75)
        fitting = [float(tick) for tick in nice if 0 <= tick <= most]
        places += [(span.at(tick * scale), f"{tick:g}") for tick in fitting]
        if index:
            ax.axvline(span.left, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
        if len(laid) > 1:
            ax.annotate(
                shown(span.stage),
                ((span.left + span.right) / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                color=MUTED,
                size=9,
            )
    ax.set_xticks([place for place, _ in places], [text for _, text in places])


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near as possible to ``wanted``, in its order, at least ``gap`` apart, within ``low`` and ``high``.

    >>> spread([1.0, 1.1, 3.0], gap=0.5, low=0.0, high=4.0)
    [0.8, 1.3, 3.0]
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    groups: list[tuple[list[int], float]] = []  # members, position of the first
    for index in order:
        members, start = [index], min(max(wanted[index], low), high)
        while groups and groups[-1][1] + gap * len(groups[-1][0]) > start:
            members = groups.pop()[0] + members
            centre = math.fsum(wanted[member] - gap * rank for rank, member in enumerate(members)) / len(members)
            start = min(max(centre, low), high - gap * (len(members) - 1))
        groups.append((members, start))
    placed = [0.0] * len(wanted)
    for members, start in groups:
        for rank, member in enumerate(members):
            placed[member] = round(start + gap * rank, 9)
    return placed


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names lines at the right edge, moved apart where they would overlap: (height in data, text, colour) each."""
    low, high = ax.get_ylim()
    points = ax.get_position().height * ax.get_figure(root=True).get_figheight() * 72  # type: ignore[union-attr]
    heights = spread([y for y, _, _ in ends], gap=12 * (high - low) / points, low=low, high=high)
    for height, (_, text, color) in zip(heights, ends, strict=True):
        ax.annotate(
            shorten(text),
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=color,
            size=9.5,
            annotation_clip=False,
        )


def shorten(text: str, limit: int = 14) -> str:
    """``text`` fit for a label."""
    text = shown(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def to_svg(ax: Axes, name: str, description: str) -> Markup:
    """The figure of ``ax`` as an ``<svg>`` element to stand in the page.

    Args:
        ax: Axes on the figure.
        name: Prefix of every id, so that figures in one page do not clash.
        description: What a screen reader says.
    """
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Labels may be in any script: the browser draws them, matplotlib only guesses their width.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        ax.get_figure(root=True).savefig(file, format="svg", metadata={"Date": None})  # type: ignore[union-attr]
    root = ET.fromstring(file.getvalue())  # noqa: S314 - written by matplotlib a moment ago
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in {"metadata", "style"}:
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _attribute(_local(key), value, name) for key, value in element.attrib.items()}
        if "fill" in element.attrib:  # hatches have it outside of the style
            element.attrib["style"] = _attribute("style", f"fill: {element.attrib.pop('fill')}", name)
        if element.tag == "g":
            element.attrib.pop("id", None)
        if element.tag != "text":
            element.text = None
        element.tail = None
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": shown(description)}
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 - serialised, hence escaped


def drawing() -> AbstractContextManager[None]:
    """The style above, for as long as the context lasts; the caller's own matplotlib settings come back after it."""
    # Reading the default of "backend" would choose one and load pyplot; figures here never need it.
    defaults: dict[Any, Any] = {
        key: mpl.rcParamsDefault[key] for key in mpl.rcParamsDefault if not key.startswith("backend")
    }
    return mpl.rc_context({**defaults, **STYLE})


_COLOR = re.compile("|".join(VARIABLES))
_LONG = re.compile(r"(\d+\.\d\d)\d+")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _attribute(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key == "href":
        return value.replace("#", f"#{prefix}-")
    if key == "d":
        return " ".join(_LONG.sub(r"\1", value).split())
    value = value.replace("url(#", f"url(#{prefix}-")
    if key == "style":
        return _COLOR.sub(lambda match: VARIABLES[match[0]], value).replace(f"'{FONT}'", "var(--sans)")
    return value
