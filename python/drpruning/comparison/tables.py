"""The tables of a comparison as text cells, which Markdown, LaTeX, HTML and the terminal share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from drpruning.comparison.metrics import (
    MEAN,
    WEIGHTED,
    WORST,
    Difference,
    Measured,
    final_means,
    mean_mixture,
    tokens_to_reach,
)
from drpruning.comparison.results import Results
from drpruning.formatting import NONE, count, duration, number, percent, signed
from drpruning.report.loss_tables import best

SUMMARY = (WORST, MEAN, WEIGHTED)
ACCURACIES = ("acc_mutual_info", "acc_norm", "acc")
"""What a model scored on a task, by lm-evaluation-harness's names. The domain benchmark's tasks have all three; by the
first of them small models are above chance (docs/benchmark.md)."""


@dataclass(frozen=True)
class Table:
    """Rows of text under a title. ``strong`` holds the (row, column) of cells to set in bold.

    The first ``text`` columns hold words, the others numbers.
    """

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]
    text: int = 1
    strong: set[tuple[int, int]] = field(default_factory=set)


def make_tables(results: Results, against: Sequence[str]) -> list[Table]:
    """All tables of a comparison, in the order to be read.

    Args:
        results: What the runs reached.
        against: Methods to take differences to.
    """
    measured = Measured(results)
    tables = [
        _losses(results, measured, excess=False),
        _losses(results, measured, excess=True),
        *(_differences(results, measured, other) for other in against if results.of(other)),
        _perplexities(results, measured),
    ]
    if any(run.tasks for run in results.runs):
        tables.append(_tasks(results))
    tables += [*(_mixture(results, stage) for stage in ("prune", "continue")), _cost(results, against), _what(results)]
    return [table for table in tables if table.rows]


def _losses(results: Results, measured: Measured, *, excess: bool) -> Table:
    rows = []
    values: list[list[float]] = []
    base = {domain: _mean([losses[domain] for losses in results.base.values()]) for domain in results.domains}
    weighted = sum(results.reference_ratio[domain] * base[domain] for domain in results.domains)
    write = signed if excess else number
    if not excess and results.base:
        unpruned = [*base.values(), _mean(list(base.values())), weighted]
        rows.append([f"*{_large(results)}*", "", *map(number, unpruned)])
    for method in results.methods:
        runs = results.of(method)
        if not runs or (excess and not measured.seeds(method)):
            continue
        if excess:
            own = [measured.average(domain, method) for domain in results.domains]
            own += [measured.average(WORST, method), _mean(own)]
        else:
            own = [_mean([run.recovered[domain] for run in runs]) for domain in results.domains]
            own += [
                _mean(own),
                sum(share * loss for share, loss in zip(results.reference_ratio.values(), own, strict=False)),
            ]
        values.append(own)
        rows.append([method, str(len(runs)), *map(write, own)])
    above = len(rows) - len(values)
    last = [WORST, "mean"] if excess else [MEAN, WEIGHTED]
    return Table(
        f"Excess over the {_large(results)} model, nats per token" if excess else "Held-out loss, nats per token",
        "Means over the seeds; worst excess is the mean of each seed's worst domain."
        if excess
        else "Means over the seeds; the lowest of each column in bold.",
        ["method", "seeds", *results.domains, *last],
        rows,
        strong=_lowest(values, above, 2),
    )


def _large(results: Results) -> str:
    """What the model is called that all runs start from: where nothing is pruned it is the base."""
    return "base" if results.recipe and results.recipe.get("prune") is None else "unpruned"


def _differences(results: Results, measured: Measured, other: str) -> Table:
    rows, strong = [], set()
    for method in results.methods:
        found = [measured.difference(name, method, other) for name in (*SUMMARY, *results.domains)]
        known = [each for each in found if each is not None]
        if not known:
            continue
        rows.append([method, str(known[0].pairs), *map(_interval, found)])
        strong |= {
            (len(rows) - 1, column + 2)
            for column, each in enumerate(found)
            if each is not None and each.clear and each.value < 0
        }
    return Table(
        f"Paired differences to {other}, nats per token",
        "Below zero the method is better. Means over pairs with the same seed, with 95% intervals over seeds and "
        "held-out documents (over documents alone where there is one seed); bold: better, and the interval leaves out "
        "zero. Domains: excess.",
        ["method", "seeds", *SUMMARY, *results.domains],
        rows,
        strong=strong,
    )


def _perplexities(results: Results, measured: Measured) -> Table:
    rows, values = [], []
    for method in results.methods:
        runs = results.of(method)
        if not runs:
            continue
        own = [_mean([math.exp(run.recovered[domain]) for run in runs]) for domain in results.domains]
        own.append(_mean(own))
        values.append(own)
        rows.append([method, str(len(runs)), *(f"{value:.1f}" for value in own)])
    return Table(
        "Perplexity per token",
        "Means over the seeds.",
        ["method", "seeds", *results.domains, "mean"],
        rows,
        strong=_lowest(values, 0, 2, decimals=1),
    )


def _tasks(results: Results) -> Table:
    names = list(dict.fromkeys(task for run in results.runs for task in run.tasks))
    rows, values = [], []
    for method in results.methods:
        runs = [run for run in results.of(method) if run.tasks]
        if not runs:
            continue
        own = [_mean([_score(run.tasks.get(task, {})) for run in runs]) for task in names]
        own.append(_mean(own))
        values.append([-value for value in own])
        rows.append(
            [method, str(len(runs)), *(f"{100 * value:.2f}" if math.isfinite(value) else NONE for value in own)]
        )
    return Table(
        "Accuracy, %",
        f"Of the final models; of {', '.join(ACCURACIES)} the first that a task has.",
        ["method", "seeds", *names, "mean"],
        rows,
        strong=_lowest(values, 0, 2, decimals=4),
    )


def _mixture(results: Results, stage: str) -> Table:
    rows = [["*reference ratio*", *(percent(results.reference_ratio[domain]) for domain in results.domains)]]
    for method in results.methods:
        mixture = mean_mixture(results.of(method), stage, results.domains)
        if mixture:
            rows.append([method, *(percent(mixture[domain]) for domain in results.domains)])
    return Table(
        f"Mixture trained on, {stage} stage",
        "Mean over the stage's tokens and the seeds.",
        ["method", *results.domains],
        rows if len(rows) > 1 else [],
    )


def _cost(results: Results, against: Sequence[str]) -> Table:
    others = [other for other in against if results.of(other)][:1]
    rows = []
    for method in results.methods:
        runs = results.of(method)
        if not runs:
            continue
        if results.methods[method].model:
            rows.append([method, count(runs[0].parameters), NONE, *(NONE for _ in others)])
            continue
        row = [method, count(runs[0].parameters), duration(_mean([run.seconds for run in runs]))]
        for other in others:
            target = final_means(results.of(other))
            fraction, reached = tokens_to_reach(runs, target)
            paired = sum(run.seed in target for run in runs)
            row.append(f"{percent(fraction)} ({reached} of {paired})" if reached else f"not reached (0 of {paired})")
        rows.append(row)
    return Table(
        "Cost",
        "Seconds are those of the stages on the machine of the runs. The last column: the part of the method's own "
        "continued pretraining after which its plain mean loss is where the other's ends, and by how many seeds; "
        "learning rates fall over the whole stage, so this is no schedule to stop at.",
        ["method", "parameters", "time", *(f"tokens to {other}'s plain mean" for other in others)],
        rows,
    )


def _what(results: Results) -> Table:
    rows = []
    for name, method in results.methods.items():
        if method.model:
            rows.append([name, NONE, f"model: {method.model}", method.what or "A finished model, not trained here."])
            continue
        parts = [f"{key}={value}" for key, value in method.set.items()]
        parts += [f"{key} x {value:g}" for key, value in method.times.items()]
        if method.references:
            parts.append(f"references: {method.references}")
        if method.shift:
            parts.append("references shifted: " + ", ".join(f"{key} {value:+g}" for key, value in method.shift.items()))
        rows.append([name, method.strategy, "; ".join(parts), method.what])
    return Table("What each row is", "", ["method", "strategy", "settings", "meaning"], rows, text=4)


def _interval(found: Difference | None) -> str:
    return NONE if found is None else f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"


def _lowest(values: list[list[float]], above: int, before: int, decimals: int = 3) -> set[tuple[int, int]]:
    """Where the lowest of each column is, in a table with rows ``above`` and columns ``before`` the values."""
    if not values:
        return set()
    return {
        (row + above, column + before)
        for column in range(len(values[0]))
        for row, lowest in enumerate(best([own[column] for own in values], decimals))
        if lowest
    }


def _score(metrics: dict[str, float]) -> float:
    return next((metrics[name] for name in ACCURACIES if name in metrics), math.nan)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
