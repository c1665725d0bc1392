"""A table of runs as papers print it: methods as rows, domains as columns, the best in bold, paired differences below.

Runs that have the same strategy and different seeds are one method: its row is the mean over seeds, with half the width
of a 95% Student interval of that mean. Differences are paired by seed; those of one seed are paired by part of the test
text (:mod:`drpruning.report.excess`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from drpruning.formatting import NONE, count, flops_in_words, number, signed
from drpruning.intervals import student_half_width
from drpruning.report.excess import RunExcess, excess_of, same_corpus
from drpruning.report.loss_tables import StrategyRow, compare_strategies, summary_table
from drpruning.report.read.run import Run
from drpruning.report.stage_costs import StageTotals, stage_costs, total_cost
from drpruning.tables import Cell, Row, Table
from drpruning.tables.cells import is_best

MEAN, WEIGHTED, WORST = "mean", "ratio-weighted mean", "worst excess"
SUMMARIES = (MEAN, WEIGHTED, WORST)


@dataclass(frozen=True)
class Result:
    """One run of a method: its value in each column, its excess with parts, and its cost without the base's."""

    values: list[float]
    excess: RunExcess | None
    cost: StageTotals


Seeds = Mapping[int, Result]


@dataclass(frozen=True)
class Methods:
    """The results of runs by method and seed; the method of the first run is the first."""

    columns: list[str]
    by_name: dict[str, dict[int, Result]]


def methods_of(run: Run) -> Methods:
    """Return the results of ``run`` and of the runs compared with it, by method.

    Losses are those of the recovered models, in nats per token.
    """
    runs = [run, *run.others]
    compared = compare_strategies({str(at): each.records for at, each in enumerate(runs)})
    results = [_result(run, each, row, compared.domains) for each, row in zip(runs, compared.rows, strict=True)]
    return Methods([*compared.domains, *SUMMARIES], _by_method(runs, results))


def method_table(run: Run) -> Table | None:
    """Tabulate ``run`` and the runs compared with it; return None if there are none. Costs are means over seeds."""
    if not run.others:
        return None
    found = methods_of(run)
    columns, methods = found.columns, found.by_name
    costs = _cost_columns(methods)
    rows = [_base_row(run, columns, len(costs)), *_method_rows(methods, columns, costs)]
    first, *others = methods
    for other in others:
        pairs = [difference(columns, at, methods[first], methods[other]) for at in range(len(columns))]
        rows.append(
            Row.of(
                f"{first} − {other}",
                *(_difference_cell(*pair) for pair in pairs),
                *[""] * len(costs),
                kind="difference",
            )
        )
    return Table(
        ["method", *columns, *costs], rows, title="Runs side by side", note=_note(methods, first), sortable=True
    )


def over_seeds(run: Run, other: str) -> str:
    """Write the difference to another method over two or more seeds; empty for fewer."""
    found = methods_of(run)
    first = next(iter(found.by_name))
    if other not in found.by_name or other == first:
        return ""
    ours, theirs = found.by_name[first], found.by_name[other]
    seeds = ours.keys() & theirs.keys()
    parts = []
    for name in (WORST, MEAN, WEIGHTED):
        value, half = difference(found.columns, found.columns.index(name, -len(SUMMARIES)), ours, theirs)
        if len(seeds) > 1 and math.isfinite(half):
            verdict = "" if abs(value) > half else ", not significant"
            parts.append(
                f"the {name} is {number(abs(value))} {'lower' if value <= 0 else 'higher'} (±{half:.3f}{verdict})"
            )
    if not parts:
        return ""
    return f"Over {len(seeds)} seeds, with {first} instead of {other} {', '.join(parts)}; 95% intervals over seeds."


def difference(columns: Sequence[str], at: int, one: Seeds, other: Seeds) -> tuple[float, float]:
    """Return the mean difference of two methods in a column, and half the width of its interval; NaN if unknown."""
    seeds = [seed for seed in one if seed in other]
    values = [one[seed].values[at] - other[seed].values[at] for seed in seeds]
    if len(values) != 1:
        return _mean(values), student_half_width(values)
    ours, theirs = one[seeds[0]].excess, other[seeds[0]].excess
    if ours is None or theirs is None or ours.excess.keys() != theirs.excess.keys():
        return values[0], math.nan
    both, column = ours.minus(theirs), columns[at]
    if column == WORST:
        found = ours.worst_minus(theirs)
    elif at >= len(columns) - len(SUMMARIES):
        found = both.mean if column == MEAN else both.ratio_weighted
    elif column in both.excess:
        found = both.domain(column)
    else:
        return values[0], math.nan
    same_base = abs(found.value - values[0]) < 1e-9  # else losses and excess losses differ by another amount
    return values[0], found.half_width if same_base else math.nan


def _result(first: Run, run: Run, row: StrategyRow, domains: Sequence[str]) -> Result:
    values = [*(row.recovered.get(name, math.nan) for name in domains), row.mean, row.ratio_weighted, row.worst_excess]
    excess = excess_of(run, first.records) if same_corpus(first, run) else None
    after = [cost for cost in stage_costs(run) if cost.name != "pretrain"]
    return Result(values, excess if excess and excess.model == "recovered" else None, total_cost(after))


def _base_row(run: Run, columns: Sequence[str], costs: int) -> Row:
    summary = summary_table(run.records)
    losses = {row.name: row.base for row in summary.rows}
    name = "unpruned" if summary.prunes else "start"
    cells = [Cell.of(losses.get(column, math.nan)) for column in columns[: -len(SUMMARIES)]]
    means = (Cell.of(summary.mean.base), Cell.of(summary.ratio_weighted.base))
    return Row.of(name, *cells, *means, *[NONE] * (1 + costs), kind="reference")


def _method_rows(
    methods: Mapping[str, Seeds], columns: Sequence[str], costs: Mapping[str, Callable[[StageTotals], Cell]]
) -> list[Row]:
    """Return a row for each method: means over the seeds with their intervals; the best of a column is marked."""
    table = []
    for at, column in enumerate(columns):
        values = [[result.values[at] for result in seeds.values()] for seeds in methods.values()]
        cells = [
            Cell.of(_mean(each), signed if column == WORST else number, interval=_interval(student_half_width(each)))
            for each in values
        ]
        marks = _best(columns, at, list(methods.values()))
        table.append([replace(cell, best=best) for cell, best in zip(cells, marks, strict=True)])
    rows = []
    for index, (name, seeds) in enumerate(methods.items()):
        cost = total_cost([result.cost for result in seeds.values()])
        per_seed = replace(
            cost,
            tokens=round(cost.tokens / len(seeds)),
            seconds=cost.seconds / len(seeds),
            flops=cost.flops / len(seeds),
        )
        rows.append(Row.of(name, *(column[index] for column in table), *(write(per_seed) for write in costs.values())))
    return rows


def _best(columns: Sequence[str], at: int, methods: Sequence[Seeds]) -> list[bool]:
    """Return which methods have the lowest mean, or a difference to it whose interval includes zero."""
    means = [_mean([result.values[at] for result in seeds.values()]) for seeds in methods]
    lowest = is_best(means)
    if True not in lowest:
        return lowest
    best = methods[lowest.index(True)]
    within = []
    for seeds in methods:
        value, half = difference(columns, at, seeds, best)
        within.append(seeds is not best and value <= half)  # false for NaN
    return [each or near for each, near in zip(lowest, within, strict=True)]


def _cost_columns(methods: Mapping[str, Seeds]) -> dict[str, Callable[[StageTotals], Cell]]:
    """Return the columns of costs that any run recorded."""
    found = [result.cost for seeds in methods.values() for result in seeds.values()]
    columns: dict[str, Callable[[StageTotals], Cell]] = {}
    if any(cost.tokens for cost in found):
        columns["tokens"] = lambda cost: Cell(count(cost.tokens) if cost.tokens else NONE, cost.tokens)
    if any(math.isfinite(cost.flops) for cost in found):
        columns["FLOPs"] = lambda cost: Cell(flops_in_words(cost.flops), cost.flops)
    return columns


def _note(methods: Mapping[str, Seeds], first: str) -> str:
    most = max(len(seeds) for seeds in methods.values())
    text = "Held-out loss after recovery in nats per token; tokens without the base's. "
    if most > 1:
        text += f"Means over up to {most} seeds with 95% intervals over seeds, differences paired by seed. "
    elif any(result.excess and result.excess.parts for seeds in methods.values() for result in seeds.values()):
        text += (
            "One seed each: intervals of differences are over parts of the test text (95%), the chance of training is "
            "not in them. "
        )
    else:
        return (
            text + "Bold: the lowest of a column; one seed each and no intervals, so small differences may be chance."
        )
    return text + (
        f"Bold: the lowest of a column, and those whose difference to it is not significant; below, {first} is better "
        "(bold) or worse (italics) if the interval excludes zero."
    )


def _difference_cell(value: float, half: float) -> Cell:
    return Cell(signed(value), value, _interval(half), best=value < -half, worse=value > half)


def _by_method(runs: Sequence[Run], results: Sequence[Result]) -> dict[str, dict[int, Result]]:
    """Group results by method and seed; each run is a method if strategy and seed do not identify it."""
    keys = [(run.started.strategy, run.started.seed) if run.started else (run.label, 0) for run in runs]
    unique = len(set(keys)) == len(keys)
    methods: dict[str, dict[int, Result]] = {}
    for run, (strategy, seed), result in zip(runs, keys, results, strict=True):
        methods.setdefault(strategy if unique else run.label, {})[seed] = result
    return methods


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _interval(half: float) -> str:
    return f"±{half:.3f}" if math.isfinite(half) else ""
