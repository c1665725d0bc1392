"""A table of runs as papers print it: domains as columns, methods as rows, paired differences with marks.

Runs that have the same strategy and different seeds are one method: its row is the mean over seeds, with half the width
of a 95% Student interval of that mean if there are at least two. Differences are paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from drpruning.formatting import number, signed
from drpruning.intervals import student_half_width
from drpruning.report.loss_tables import StrategyRow, compare_strategies
from drpruning.report.read.run import Run
from drpruning.tables import Cell, Row, Table

SUMMARIES = ("mean", "ratio-weighted mean", "worst excess")


def method_table(run: Run) -> Table | None:
    """Tabulate ``run`` and the runs compared with it; return None if there are none.

    Losses are those of the recovered models, in nats per token. A difference whose interval excludes zero is marked.
    """
    if not run.others:
        return None
    runs = [run, *run.others]
    compared = compare_strategies({str(at): each.records for at, each in enumerate(runs)})
    methods = _by_method(runs, [_values(row, compared.domains) for row in compared.rows])
    columns = [*compared.domains, *SUMMARIES]
    rows = [_method_row(name, columns, list(by_seed.values())) for name, by_seed in methods.items()]
    first, *others = methods
    for other in others:
        seeds = [seed for seed in methods[first] if seed in methods[other]]
        pairs = [[methods[first][seed][at] - methods[other][seed][at] for seed in seeds] for at in range(len(columns))]
        rows.append(Row.of(f"{first} − {other}", *map(_difference_cell, pairs), kind="difference"))
    most = max(len(by_seed) for by_seed in methods.values())
    seeds_note = (
        f"means over up to {most} seeds with 95% intervals over seeds, differences paired by seed; bold: {first} is "
        "better, italics: worse, if the interval excludes zero"
        if most > 1
        else "one seed each, so no intervals and no marks"
    )
    note = f"Held-out loss after recovery in nats per token; {seeds_note}."
    return Table(["method", *columns], rows, title="Runs side by side", note=note)


def _method_row(name: str, columns: Sequence[str], by_seed: Sequence[Sequence[float]]) -> Row:
    """Return the row of a method: each column's mean over the seeds, with its interval."""
    cells = []
    for column, values in zip(columns, zip(*by_seed, strict=True), strict=True):
        write = signed if column == SUMMARIES[-1] else number
        cells.append(Cell.of(_mean(values), write, interval=_interval(values)))
    return Row.of(name, *cells)


def _difference_cell(values: Sequence[float]) -> Cell:
    mean, half = _mean(values), student_half_width(values)
    return Cell(signed(mean), mean, _interval(values), best=mean < -half, worse=mean > half)


def _by_method(runs: Sequence[Run], values: Sequence[list[float]]) -> dict[str, dict[int, list[float]]]:
    """Group values by method and seed; each run is a method if strategy and seed do not identify it."""
    keys = [(run.started.strategy, run.started.seed) if run.started else (run.label, 0) for run in runs]
    unique = len(set(keys)) == len(keys)
    methods: dict[str, dict[int, list[float]]] = {}
    for run, (strategy, seed), row in zip(runs, keys, values, strict=True):
        methods.setdefault(strategy if unique else run.label, {})[seed] = row
    return methods


def _values(row: StrategyRow, domains: Sequence[str]) -> list[float]:
    return [*(row.recovered.get(name, math.nan) for name in domains), row.mean, row.ratio_weighted, row.worst_excess]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _interval(values: Sequence[float]) -> str:
    half = student_half_width(values)
    return f"±{half:.3f}" if math.isfinite(half) else ""
