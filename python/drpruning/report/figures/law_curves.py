"""Figures of `drpruning fit` and `drpruning advise`: loss curves with laws and bands, and the mixture over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from drpruning.files import write_bytes
from drpruning.formatting import number, printable, shorten
from drpruning.report.figures.style import INK, MUTED, PAPER, SERIES, drawing, series_color, space_labels, to_bytes

if TYPE_CHECKING:
    from drpruning.loss_table import LossTable
    from drpruning.scaling import ScalingLaw

HATCHES = ["", "////", "...."]

PANEL = (3.3, 2.25)
"""Inches of a domain's panel."""
MIXTURE = 2.9
"""Height of the mixture in inches; more if the names of the domains need it."""
NAME = 12 / 72
"""Height of the name of a domain in inches."""
SMOOTH = 200
"""Places at which a law is drawn."""
FAR = 8.0
"""Ratio of the end to the last evaluation above which the axis is logarithmic."""
SINGLE = 1.5
"""Scale of a single panel."""
EARLY = 0.1
"""Share of the tokens whose losses may lie above a panel: the first ones would flatten all that follows."""


def draw_laws(path: Path, table: LossTable, laws: Sequence[ScalingLaw | None], end: float | None) -> None:
    """Draw a panel per domain: losses, the fitted law, and the band up to ``end``.

    Args:
        path: File to write; its suffix is the format.
        table: The losses.
        laws: One for each domain of the table; None where there is none.
        end: Tokens to draw the laws up to, in the table's unit; the last evaluation if None.
    """
    with _style():
        across = _across(len(table.domains))
        down = math.ceil(len(table.domains) / across)
        larger = SINGLE if across == 1 else 1.0
        size = (larger * across * PANEL[0], larger * down * PANEL[1] + 0.35)
        figure = Figure(figsize=size, layout="constrained")
        _panels(figure, across, table, laws, end)
        _save(figure, path)


def draw_mixture(
    path: Path,
    table: LossTable,
    laws: Sequence[ScalingLaw | None],
    end: float | None,
    mixtures: Sequence[Sequence[float]],
    *,
    title: str,
) -> None:
    """Draw the mixture over time, and below it the panels of :func:`draw_laws`.

    Args:
        path: File to write; its suffix is the format.
        table: The losses.
        laws: One for each domain of the table; None where there is none.
        end: Tokens at the end of training, in the table's unit; the last evaluation if None.
        mixtures: The weights chosen at each evaluation, in the order of the table's domains.
        title: Who chose them.
    """
    with _style():
        across = max(_across(len(table.domains)), 2)
        down = math.ceil(len(table.domains) / across)
        width, rest = across * PANEL[0], down * PANEL[1] + 0.35
        left, right, above, below_ax = 0.6, 1.6, 0.35, 0.55  # inches
        height = max(MIXTURE - above - below_ax, NAME * len(table.domains))
        whole = height + above + below_ax
        figure = Figure(figsize=(width, whole + rest), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[whole, rest])
        top, below = parts
        ax = top.add_axes((left / width, below_ax / whole, 1 - (left + right) / width, height / whole))
        _shares(ax, height, table, np.array(mixtures, dtype=np.float64), end, title)
        _panels(below, across, table, laws, end)
        _save(figure, path)


def _across(panels: int) -> int:
    """Return the number of panels in a row: up to four, with few left empty in the last row.

    >>> [_across(panels) for panels in (1, 4, 6, 7, 11)]
    [1, 4, 3, 4, 4]
    """
    return panels if panels <= 4 else min((4, 3), key=lambda across: -panels % across)


def _panels(
    figure: FigureBase, across: int, table: LossTable, laws: Sequence[ScalingLaw | None], end: float | None
) -> None:
    grid = figure.add_gridspec(math.ceil(len(laws) / across), across)
    x, unit = _axis(table, end)
    last = x.max() if end is None else max(end / _scale(table, end), x.max())
    for index, law in enumerate(laws):
        ax = figure.add_subplot(grid[index // across, index % across])
        color = series_color(index)
        losses = table.losses[:, index]
        measured = np.isfinite(losses)
        ax.set_title(shorten(table.domains[index], 22), loc="left", color=color, size=10.5)
        ax.plot(x[measured], losses[measured], "o", color=color, markersize=2.6, markeredgewidth=0, alpha=0.75)
        heights = _visible(x[measured], losses[measured])
        if last > FAR * x.max() > 0:
            ax.set_xscale("log")
            ax.set_xlim(x[x > 0].min() / 1.1, last * 1.3)
            ax.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))
            ax.xaxis.set_minor_formatter(NullFormatter())
        else:
            ax.set_xlim(0, (last or 1.0) * 1.03)
            ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if law is not None and law.status == "identified":
            heights += _law(ax, table, law, color, float(x[measured].min()), float(last), end)
        if heights:
            low, high = min(heights), max(heights)
            margin = 0.07 * (high - low) or 0.05 * abs(high) or 0.1
            ax.set_ylim(low - margin, high + margin)
            above = int((losses[measured] > high + margin).sum())
            if above:
                ax.set_title(f"{above} earlier above", loc="right", color=MUTED, size=8.5)
        if law is None or law.status != "identified":
            ax.set_title("no losses" if law is None else "no law", loc="right", color=MUTED, size=8.5)
        ax.yaxis.set_major_locator(MaxNLocator(5))
    figure.supxlabel(unit, size=10, color=MUTED)
    figure.supylabel("held-out loss, nats per token", size=10, color=MUTED)


def _law(
    ax: Axes, table: LossTable, law: ScalingLaw, color: str, first: float, last: float, end: float | None
) -> list[float]:
    """Draw a law with its band beyond the last evaluation; return heights that should be in view."""
    scale = _scale(table, end)
    params = float(table.params[-1])
    start = max(first, last / 1000)
    at = (np.geomspace if ax.get_xscale() == "log" else np.linspace)(start, last, SMOOTH)
    values = np.array([law.predict(params, place * scale) for place in at])
    beyond = at >= float(table.tokens[-1]) / scale
    if law.alpha_identified:  # while the size changes the law is not a single curve: draw its value at each evaluation
        seen = [(P, T) for P, T in zip(table.params, table.tokens, strict=True) if start * scale <= T]
        ax.plot([T / scale for _, T in seen], [law.predict(P, T)[0] for P, T in seen], color=INK, linewidth=1.1)
        ax.plot(at[beyond], values[beyond, 0], color=INK, linewidth=1.1)
    else:
        ax.plot(at, values[:, 0], color=INK, linewidth=1.1)
    if end is None or end <= table.tokens[-1]:
        return []
    ax.fill_between(at[beyond], values[beyond, 1], values[beyond, 2], color=color, alpha=0.2, linewidth=0)
    value, low, high = (float(number) for number in values[-1])
    ax.plot([last], [value], "o", color=INK, markersize=4)
    ax.annotate(
        f"{number(value)}", (last, value), xytext=(0, 7), textcoords="offset points", ha="right", color=INK, size=9
    )
    return [value, *(edge for edge in (low, high) if abs(edge - value) < 0.5 * value)]


def _visible(x: NDArray[np.float64], losses: NDArray[np.float64]) -> list[float]:
    """Return the lowest and highest loss in view; losses of the first tenth of training may lie outside."""
    if not losses.size:
        return []
    late = losses[x >= x.min() + EARLY * (x.max() - x.min())]
    return [float(losses.min()), float(late.max())]


def _shares(
    ax: Axes, height: float, table: LossTable, mixtures: NDArray[np.float64], end: float | None, title: str
) -> None:
    """Stack the weights on axes ``height`` inches high: the weights of an evaluation hold until the next."""
    x, unit = _axis(table, end)
    last = x[-1] if end is None else max(end / _scale(table, end), x[-1])
    until = last if last > x[-1] else x[-1] + (x[-1] - x[-2] if x.size > 1 else 1)
    places = np.append(x, until)
    tops = np.zeros(places.size)
    middles = []
    for index, name in enumerate(table.domains):
        bottoms, tops = tops, tops + np.append(mixtures[:, index], mixtures[-1, index])
        color = series_color(index)
        ax.fill_between(
            places, bottoms, tops, step="post", facecolor=color, edgecolor=PAPER, linewidth=0.4,
            hatch=HATCHES[index // len(SERIES) % len(HATCHES)],
        )  # fmt: skip
        middles.append(((bottoms[-1] + tops[-1]) / 2, f"{mixtures[-1, index]:.1%} {shorten(name)}", color))
    if until > x[-1]:
        ax.axvline(float(x[-1]), color=INK, linewidth=1, linestyle=(0, (3, 2)))
    ax.grid(visible=False)
    ax.set_xlim(float(x[0]), float(until))
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    ax.set_title(f"Mixture chosen by {printable(title)}; dashed: now", loc="left", size=11, color=INK)
    ax.set_xlabel(unit)
    places_of_names = space_labels([middle for middle, _, _ in middles], gap=NAME / height, low=0.0, high=1.0)
    for at, (_, text, color) in zip(places_of_names, middles, strict=True):
        ax.annotate(
            text, (1, at), xycoords="axes fraction", xytext=(5, 0), textcoords="offset points",
            va="center", color=color, size=9,
        )  # fmt: skip


def _axis(table: LossTable, end: float | None) -> tuple[NDArray[np.float64], str]:
    """Return the places of the evaluations and their unit."""
    scale = _scale(table, end)
    words = {1.0: "", 1e3: "thousand ", 1e6: "million ", 1e9: "billion ", 1e12: "trillion "}
    return table.tokens / scale, f"{words[scale]}{'tokens' if table.counts_tokens else 'steps'}"


def _scale(table: LossTable, end: float | None) -> float:
    longest = max(float(table.tokens[-1]), end or 0.0)
    return next((scale for scale in (1e12, 1e9, 1e6, 1e3) if longest >= 2 * scale), 1.0)


@contextmanager
def _style() -> Iterator[None]:
    alone: dict[Any, Any] = {"savefig.transparent": False, "xtick.labelsize": 9, "ytick.labelsize": 9}
    with drawing(), mpl.rc_context(alone):
        yield


def _save(figure: Figure, path: Path) -> None:
    write_bytes(path, to_bytes(figure, path.suffix[1:].lower(), dpi=160))
