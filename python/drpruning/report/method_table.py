"""A table of runs as papers print it: domains as columns, methods as rows, the best in bold, paired differences.

Runs that share a label's strategy and differ in their seed are one method: its row is the mean over seeds, and where
there are at least two, the half-width of a 95% Student interval of that mean stands beneath. Differences are taken
seed by seed, so that what the seeds share cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drpruning.formatting import number, signed
from drpruning.report.loss_tables import StrategyRow, best, comparison
from drpruning.report.read.run import Run

SUMMARIES = ("mean", "ratio-weighted mean", "worst excess")


@dataclass(frozen=True)
class Cell:
    """A printed number, whether it is the best of its column, and its interval if known."""

    text: str
    best: bool = False
    interval: str = ""


@dataclass(frozen=True)
class MethodRow:
    """One method, or with ``difference`` the first method less another one."""

    name: str
    cells: list[Cell]
    difference: bool = False


@dataclass(frozen=True)
class MethodTable:
    """A table to print: the columns are domains, then the means and the worst excess."""

    caption: str
    columns: list[str]
    rows: list[MethodRow]


def method_table(run: Run) -> MethodTable | None:
    """Tabulate ``run`` and the runs compared with it; return None if there are none.

    Losses are those of the recovered models, in nats per token; the lowest of each column is the best.
    """
    if not run.others:
        return None
    runs = [run, *run.others]
    compared = comparison({str(at): each.records for at, each in enumerate(runs)})
    methods = _by_method(runs, [_values(row, compared.domains) for row in compared.rows])
    columns = [*compared.domains, *SUMMARIES]
    means = {name: [_mean([seen[at] for seen in by_seed.values()]) for at in range(len(columns))]
             for name, by_seed in methods.items()}  # fmt: skip
    bold = [best([values[at] for values in means.values()]) for at in range(len(columns))]
    rows = []
    for rank, (name, values) in enumerate(means.items()):
        seen = list(methods[name].values())
        cells = [
            Cell(_write(column, values[at]), bold[at][rank], _interval([row[at] for row in seen]))
            for at, column in enumerate(columns)
        ]
        rows.append(MethodRow(name, cells))
    first, *rest = methods
    for other in rest:
        seeds = [seed for seed in methods[first] if seed in methods[other]]
        pairs = [[methods[first][seed][at] - methods[other][seed][at] for seed in seeds] for at in range(len(columns))]
        rows.append(
            MethodRow(
                f"{first} − {other}", [Cell(signed(_mean(each)), interval=_interval(each)) for each in pairs], True
            )
        )
    most = max(len(by_seed) for by_seed in methods.values())
    seeds_said = (
        f"means over up to {most} seeds with 95% intervals, differences paired by seed"
        if most > 1
        else "one seed each, so no intervals"
    )
    caption = f"Held-out loss after recovery in nats per token; the lowest of each column in bold; {seeds_said}."
    return MethodTable(caption, columns, rows)


def _by_method(runs: Sequence[Run], values: Sequence[list[float]]) -> dict[str, dict[int, list[float]]]:
    """Group values by method and seed; each run is a method if strategy and seed do not identify it."""
    marks = [(run.started.strategy, run.started.seed) if run.started else (run.label, 0) for run in runs]
    apart = len(set(marks)) == len(marks)
    methods: dict[str, dict[int, list[float]]] = {}
    for run, (strategy, seed), row in zip(runs, marks, values, strict=True):
        methods.setdefault(strategy if apart else run.label, {})[seed] = row
    return methods


def _values(row: StrategyRow, domains: Sequence[str]) -> list[float]:
    return [*(row.recovered.get(name, math.nan) for name in domains), row.mean, row.ratio_weighted, row.worst_excess]


def _write(column: str, value: float) -> str:
    return signed(value) if column == SUMMARIES[-1] else number(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _interval(values: Sequence[float]) -> str:
    half = half_width(values)
    return f"±{half:.3f}" if math.isfinite(half) else ""


def half_width(values: Sequence[float], level: float = 0.95) -> float:
    """Return half the width of Student's interval for the mean of ``values``; NaN for fewer than two.

    >>> round(half_width([1.0, 2.0, 3.0]), 4)
    2.4841
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    from scipy.special import stdtrit  # noqa: PLC0415 - only several seeds need it

    mean = _mean(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return float(stdtrit(len(values) - 1, 0.5 + level / 2)) * math.sqrt(variance / len(values))
