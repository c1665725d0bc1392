"""The trade of worst excess against ratio-weighted mean of the methods of a comparison, as a plot and as files."""

from __future__ import annotations

import math
from pathlib import Path

from drpruning.comparison.methods import Method
from drpruning.comparison.metrics import WEIGHTED, WORST, RunMetrics, seeds_note
from drpruning.comparison.results import Results
from drpruning.report.pareto import MethodPoint, ParetoPlot, pareto_plot

UNKNOWN = (math.nan, math.nan)


def pareto_of(results: Results, other: str) -> ParetoPlot | None:
    """Return the plot: a point per method, with intervals of its paired differences to ``other``.

    Static methods have one mixture throughout. A model from new weights and a finished model may lie far away and are
    named in the note. None for fewer than two other methods.
    """
    metrics = RunMetrics(results)
    points = []
    for name, method in results.methods.items():
        if metrics.seeds(name):
            x, y = metrics.average(WEIGHTED, name, other), metrics.average(WORST, name, other)
            x_ends, y_ends = _ends(metrics, WEIGHTED, name, other, x), _ends(metrics, WORST, name, other, y)
            in_view = not (method.scratch or method.model)
            points.append(MethodPoint(name, x, y, _is_static(method), x_ends, y_ends, in_view))
    note = f"Lines: 95% intervals of the paired difference to {other}. {seeds_note(results, other)}"
    return pareto_plot(points, note.strip())


def write_pareto(plot: ParetoPlot, folder: Path) -> list[Path]:
    """Write ``compare.png`` and ``compare.svg``; each replaces an earlier one atomically."""
    from drpruning.files import write_bytes  # noqa: PLC0415 - with matplotlib, which only this function needs
    from drpruning.report.figures.diagrams import draw_pareto  # noqa: PLC0415
    from drpruning.report.figures.style import ALONE, drawing, to_bytes, with_legend  # noqa: PLC0415

    files = []
    with drawing():
        figure = with_legend(draw_pareto(plot))
        for suffix in ("png", "svg"):
            files.append(folder / f"compare.{suffix}")
            write_bytes(files[-1], to_bytes(figure, suffix, dpi=200, **ALONE))
    return files


def _is_static(method: Method) -> bool:
    return method.strategy == "constant" and not method.scratch and method.model is None


def _ends(metrics: RunMetrics, metric: str, name: str, other: str, at: float) -> tuple[float, float]:
    """Return the ends of an interval around ``at``, as wide as that of the difference."""
    difference = metrics.difference(metric, name, other)
    return UNKNOWN if difference is None else (at - difference.half_width, at + difference.half_width)
