"""Figure of `drpruning mix`: the predicted trade between weighted mean and worst target, with the observed runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from drpruning.files import write_bytes
from drpruning.report.diagrams import Key
from drpruning.report.figures.style import (
    ACCENT,
    ALONE,
    DASHES,
    INK,
    MUTED,
    Panel,
    drawing,
    figure_of,
    grid,
    series_color,
    to_bytes,
    with_legend,
)

if TYPE_CHECKING:
    from drpruning.swarm import Trade, TradeCurve

DPI = 160
ZOOM_MARGIN = 0.25
"""Margin of the second panel around the curve of rho, in parts of its extent."""


def draw_trade(path: Path, trade: Trade, *, excess: bool, title: str) -> None:
    """Draw the worst target against the weighted mean: with all runs, and enlarged around the curve of rho.

    Args:
        path: File to write; its suffix is the format.
        trade: Predictions and runs.
        excess: Whether reference losses are subtracted.
        title: Printed above the first panel.
    """
    with drawing():
        panels = grid(2, width=330, height=300, left=58)
        for ax in panels:
            _draw(ax, trade, "excess loss" if excess else "loss")
        panels[0].margins(0.08)
        panels[0].set_title(title, loc="left", size=10, color=INK, pad=8)
        low, high = trade.robustness.outcomes.min(axis=0), trade.robustness.outcomes.max(axis=0)
        margin = np.maximum(ZOOM_MARGIN * (high - low), 1e-4)
        panels[1].set_xlim(low[0] - margin[0], high[0] + margin[0])
        panels[1].set_ylim(low[1] - margin[1], high[1] + margin[1])
        panels[1].set_title("enlarged around the curve of rho", loc="left", size=10, color=INK, pad=8)
        _name_values(panels[1], trade.robustness)
        keys = (
            Key("robustness (rho)", "var(--s0)"),
            *([Key("weight of the prior (kl)", "var(--s1)", "dashed")] if trade.prior_weight is not None else []),
            Key("mixture, predicted", "var(--accent)", "square"),
            Key("prior, predicted", "var(--ink)", "diamond"),
            Key("observed runs", "var(--muted)", "ring"),
        )
        figure = with_legend(Panel("mixture-trade", title, figure_of(panels[0]), keys=keys))
        write_bytes(path, to_bytes(figure, path.suffix[1:].lower(), dpi=DPI, **ALONE))


def _draw(ax: Axes, trade: Trade, unit: str) -> None:
    ax.set_xlabel(f"weighted mean {unit}, nats per token")
    ax.set_ylabel(f"worst {unit}, nats per token")
    ax.grid(visible=True, axis="both")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    runs = trade.runs[np.isfinite(trade.runs).all(axis=1)]
    ax.plot(*runs.T, linestyle="", marker="o", fillstyle="none", color=MUTED, markersize=5)
    for curve, color, dashes in (
        (trade.prior_weight, series_color(1), DASHES[1]),
        (trade.robustness, series_color(0), "-"),
    ):
        if curve is not None:
            ax.plot(*curve.outcomes.T, color=color, linestyle=dashes, marker="o", markersize=3.5)
    for (x, y), marker, color in ((trade.prior, "D", INK), (trade.mixture, "s", ACCENT)):
        ax.plot(x, y, linestyle="", marker=marker, color=color, markersize=8, fillstyle="none", markeredgewidth=1.7)


def _name_values(ax: Axes, curve: TradeCurve) -> None:
    """Name the values of a curve's setting; of values with the same place the last is named."""
    names: dict[tuple[float, float], str] = {}
    extent = np.maximum(np.ptp(curve.outcomes, axis=0), 1e-9)
    for value, outcome in zip(curve.values, curve.outcomes, strict=True):
        x, y = np.round(outcome / extent, 1).tolist()
        names[x, y] = "inf" if math.isinf(value) else f"{value:g}"
    for place, name in names.items():
        at = np.array(place) * extent
        nearest = curve.outcomes[np.argmin((((curve.outcomes - at) / extent) ** 2).sum(axis=1))]
        ax.annotate(
            name,
            nearest,
            xytext=(7, 5),
            textcoords="offset points",
            size=9,
            color=series_color(0),
            annotation_clip=True,
        )
