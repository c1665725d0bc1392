"""Figure of `drpruning mix`: the predicted trade between weighted mean and worst target, with the observed runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from drpruning.files import write_bytes
from drpruning.report.diagrams import Key
from drpruning.report.figures.style import (
    ACCENT,
    ALONE,
    DASHES,
    INK,
    MUTED,
    Panel,
    axes,
    drawing,
    figure_of,
    series_color,
    to_bytes,
    with_legend,
)

if TYPE_CHECKING:
    from drpruning.swarm import Trade, TradeCurve

DPI = 160


def draw_trade(path: Path, trade: Trade, *, excess: bool, title: str) -> None:
    """Draw the worst target against the weighted mean.

    Args:
        path: File to write; its suffix is the format.
        trade: Predictions and runs.
        excess: Whether reference losses are subtracted.
        title: Printed above the figure.
    """
    with drawing():
        ax = axes(500, 340, left=58, right=24)
        unit = "excess loss" if excess else "loss"
        ax.set_xlabel(f"weighted mean of the targets, {unit}, nats per token")
        ax.set_ylabel(f"worst target, {unit}, nats per token")
        ax.grid(visible=True, axis="both")
        runs = trade.runs[np.isfinite(trade.runs).all(axis=1)]
        ax.plot(*runs.T, linestyle="", marker="o", fillstyle="none", color=MUTED, markersize=5)
        _curve(ax, trade.prior_weight, series_color(1), dashed=True)
        _curve(ax, trade.robustness, series_color(0), dashed=False)
        ax.plot(*trade.prior, linestyle="", marker="D", color=INK, markersize=7, fillstyle="none", markeredgewidth=1.6)
        ax.plot(
            *trade.mixture, linestyle="", marker="s", color=ACCENT, markersize=9, fillstyle="none", markeredgewidth=1.8
        )
        ax.margins(0.08)
        ax.set_title(title, loc="left", size=10, color=INK, pad=10)
        keys = (
            Key("observed runs", "var(--muted)", "ring"),
            Key("robustness (rho)", "var(--s0)"),
            Key("weight of the prior (kl)", "var(--s1)", "dashed"),
            Key("prior, predicted", "var(--ink)", "diamond"),
            Key("mixture, predicted", "var(--accent)", "square"),
        )
        figure = with_legend(Panel("mixture-trade", title, figure_of(ax), keys=keys))
        write_bytes(path, to_bytes(figure, path.suffix[1:].lower(), dpi=DPI, **ALONE))


def _curve(ax: Axes, curve: TradeCurve, color: str, *, dashed: bool) -> None:
    """Draw a curve with a dot for each value of its setting, the first and the last of them named."""
    ax.plot(*curve.outcomes.T, color=color, linestyle=DASHES[1] if dashed else "-", marker="o", markersize=3.5)
    for at, offset in ((0, (6, 8)), (-1, (6, -12))):
        value = curve.values[at]
        ax.annotate(
            f"{curve.setting} {'inf' if math.isinf(value) else f'{value:g}'}",
            curve.outcomes[at],
            xytext=offset,
            textcoords="offset points",
            size=8.5,
            color=color,
        )
