"""The style of figures for files and notebooks: sizes, palette, axes of tokens, legends.

Figures have the colours of the page's light theme. Text in SVG files stays text: it can be searched and edited.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from drpruning.formatting import printable, shorten
from drpruning.report.diagrams import LARGEST_DRAWN, Key
from drpruning.report.read.downsample import Bins, Vector
from drpruning.report.read.run import Run

PRUNED_STAGES = ("prune", "continue")
NARROWEST = 0.25  # of the token axis

INK, MUTED, GRID, ACCENT, PAPER = "#1b1f24", "#5c6670", "#e3e6ea", "#1f5fa8", "#ffffff"
SERIES = ["#0b6bb8", "#d1560a", "#00875f", "#b0418f", "#9a7400", "#1d8cb3", "#5a3fb5", "#6b7178"]  # --s0 to --s7
DASHES = ["-", (0, (4, 1.6)), (0, (1.2, 1.2))]  # a second and third round through the colours
HATCHES = ["", "//", ".."]
LINES, BLOCKS = ("line", "dashed", "dotted"), ("block", "block striped", "block spotted")
COLORS = {
    "var(--ink)": INK,
    "var(--muted)": MUTED,
    "var(--grid)": GRID,
    "var(--accent)": ACCENT,
    **{f"var(--s{index})": color for index, color in enumerate(SERIES)},
}
"""Colours of the light theme, by the CSS variables that legends name."""
MARKERS = {"ring": "o", "square": "s", "diamond": "D", "triangle": "^", "tick": "|", "cross": "x"}
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

ALONE: dict[str, Any] = {"bbox_inches": "tight", "facecolor": PAPER, "transparent": False}
"""Options for saving a figure as a file."""


class ReportFigure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        with drawing():
            return to_bytes(self, "png", dpi=144, **ALONE)


@dataclass(frozen=True)
class Panel:
    """One figure; ``name`` is the stem of its file, ``keys`` its legend, which :func:`with_legend` draws."""

    name: str
    title: str
    figure: Figure
    keys: tuple[Key, ...] = ()


def with_legend(panel: Panel) -> Figure:
    """Add the legend above the figure, for a file or a notebook."""
    if panel.keys and not panel.figure.legends:
        panel.figure.legend(
            [_handle(key) for key in panel.keys],
            [shorten(key.text, 40) for key in panel.keys],
            loc="lower left",
            bbox_to_anchor=(0.02, 1.0),
            ncols=min(4, len(panel.keys)),
            frameon=False,
        )
    return panel.figure


def _handle(key: Key) -> Artist:
    color = COLORS.get(key.color, INK)
    if key.shape.startswith("block"):
        return Patch(facecolor=color, hatch=HATCHES[BLOCKS.index(key.shape)] if key.shape in BLOCKS else "")
    if key.shape in MARKERS:
        return Line2D([], [], color=color, linestyle="", marker=MARKERS[key.shape], fillstyle="none")
    if key.shape == "dot":
        return Line2D([], [], color=color, linestyle="", marker="o")
    dash = {"dashed": DASHES[1], "dotted": DASHES[2]}.get(key.shape, "-")
    return Line2D([], [], color=color, linestyle=dash, linewidth=0.8 if key.shape == "thin" else 1.6)  # type: ignore[arg-type]


def series_color(index: int) -> str:
    """Return the colour of the ``index``-th domain or kind."""
    return SERIES[index % len(SERIES)]


def series_dash(index: int) -> str | tuple[int, tuple[float, ...]]:
    """Return the dashes of the ``index``-th domain or kind: solid for the first eight."""
    return DASHES[index // len(SERIES) % len(DASHES)]  # type: ignore[return-value]


def axes(width: float = 430, height: float = 250, *, left: float = 46, right: float = 14, top: float = 22) -> Axes:
    """Create a figure with one pair of axes; sizes in points."""
    figure = ReportFigure(figsize=(width / 72, height / 72))
    FigureCanvasSVG(figure)
    bottom = 38
    return figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))


def figure_of(ax: Axes) -> Figure:
    """Return the figure of ``ax``."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def grid(count: int, width: float = 264, height: float = 190, *, left: float = 44) -> list[Axes]:
    """Create axes of ``count`` panels on one figure, at most four in a row; sizes of a panel in points."""
    across = min(count, 4)
    down = -(-count // across)
    figure = ReportFigure(figsize=(across * width / 72, down * height / 72))
    FigureCanvasSVG(figure)
    right, top, bottom = 10, 34, 38
    return [
        figure.add_axes(
            (
                (index % across * width + left) / (across * width),
                ((down - 1 - index // across) * height + bottom) / (down * height),
                (width - left - right) / (across * width),
                (height - top - bottom) / (down * height),
            )
        )
        for index in range(count)
    ]


def series_keys(names: Sequence[str], shapes: Sequence[str]) -> tuple[Key, ...]:
    """Build a legend of domains; ``shapes`` are those of the first, second and third round of colours."""
    return tuple(
        Key(name, f"var(--s{index % len(SERIES)})", shapes[index // len(SERIES) % len(shapes)])
        for index, name in enumerate(names)
    )


Place = TypeVar("Place", float, Vector)


@dataclass(frozen=True)
class Span:
    """A stage of ``tokens`` tokens, and the part of a common axis from 0 to 1 that it is drawn on."""

    stage: str
    tokens: int
    left: float
    right: float

    def at(self, tokens: Place) -> Place:
        """Return the place of ``tokens`` on the axis."""
        return self.left + (self.right - self.left) * tokens / self.tokens


def spans(run: Run, stages: Iterable[str] = PRUNED_STAGES) -> list[Span]:
    """Concatenate the stages of a run; a running stage ends at its last record.

    Widths follow the tokens, but a stage is never narrower than ``NARROWEST`` before they are scaled to fill the axis:
    pruning is one percent of a real run, and where most happens.
    """
    seen = {stage.name: stage.tokens for stage in run.stages if stage.tokens > 0}
    lengths = {stage: seen[stage] for stage in stages if stage in seen}
    widths = {stage: max(length / sum(lengths.values()), NARROWEST) for stage, length in lengths.items()}
    laid: list[Span] = []
    left = 0.0
    for stage, width in widths.items():
        right = left + width / sum(widths.values())
        laid.append(Span(stage, lengths[stage], left, right))
        left = right
    return laid


def lines(
    tables: Mapping[str, Bins], laid: Sequence[Span], field: str, name: str = ""
) -> Iterator[tuple[Vector, Vector]]:
    """Yield places and values of a column, one line per stage, without points that cannot be drawn."""
    for span in laid:
        if span.stage in tables:
            bins = tables[span.stage]
            x, y = span.at(bins.mean(("tokens", ""))), bins.mean((field, name))
            drawn = np.isfinite(x) & (np.abs(y) < LARGEST_DRAWN)
            if drawn.any():
                yield x[drawn], y[drawn]


def token_axis(ax: Axes, laid: Sequence[Span], *, ticks: int = 6) -> None:
    """Label the axis of tokens, counted within each stage, and mark the border between stages."""
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
                printable(span.stage),
                ((span.left + span.right) / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                color=MUTED,
                size=9,
            )
    ax.set_xticks([place for place, _ in places], [text for _, text in places])


def space_labels(preferred: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions nearest to ``preferred``, in its order, at least ``gap`` apart, within ``low`` and ``high``.

    >>> space_labels([1.0, 1.1, 3.0], gap=0.5, low=0.0, high=4.0)
    [0.8, 1.3, 3.0]
    """
    order = sorted(range(len(preferred)), key=lambda index: preferred[index])
    gap = min(gap, (high - low) / max(len(preferred) - 1, 1))
    groups: list[tuple[list[int], float]] = []  # members, position of the first
    for index in order:
        members, start = [index], min(max(preferred[index], low), high)
        while groups and groups[-1][1] + gap * len(groups[-1][0]) > start:
            members = groups.pop()[0] + members
            centre = math.fsum(preferred[member] - gap * rank for rank, member in enumerate(members)) / len(members)
            start = min(max(centre, low), high - gap * (len(members) - 1))
        groups.append((members, start))
    placed = [0.0] * len(preferred)
    for members, start in groups:
        for rank, member in enumerate(members):
            placed[member] = round(start + gap * rank, 9)
    return placed


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name lines at the right edge, without overlaps; ``ends`` are (height in data, text, colour)."""
    low, high = ax.get_ylim()
    points = ax.get_position().height * figure_of(ax).get_figheight() * 72
    heights = space_labels([y for y, _, _ in ends], gap=12 * (high - low) / points, low=low, high=high)
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


def to_bytes(figure: Figure, kind: str, **options: Any) -> bytes:
    """Return ``figure`` as a file of a ``kind`` that matplotlib writes; the bytes are reproducible."""
    file = io.BytesIO()
    stamp = {"svg": "Date", "pdf": "CreationDate"}.get(kind)
    with warnings.catch_warnings():
        # Labels may be in any script: the browser draws them, matplotlib only guesses their width.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(file, format=kind, metadata={stamp: None} if stamp else None, **options)
    return file.getvalue()


def drawing() -> AbstractContextManager[None]:
    """Apply the style above within a context; the caller's matplotlib settings are restored after it."""
    # Reading the default of "backend" would choose one and load pyplot; figures here never need it.
    defaults: dict[Any, Any] = {
        key: mpl.rcParamsDefault[key] for key in mpl.rcParamsDefault if not key.startswith("backend")
    }
    return mpl.rc_context({**defaults, **STYLE})
