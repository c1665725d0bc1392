"""The tables of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

from drpruning.comparison.metrics import (
    MEAN,
    WEIGHTED,
    WORST,
    RunMetrics,
    final_means,
    mean_mixture,
    tokens_to_reach,
)
from drpruning.comparison.results import Results
from drpruning.formatting import NONE, count, duration, percent, signed
from drpruning.intervals import Difference
from drpruning.tables import Cell, Row, Table, mark_best

SUMMARY = (WORST, MEAN, WEIGHTED)
ACCURACIES = ("acc_mutual_info", "acc_norm", "acc")
"""Accuracies of a task, by lm-evaluation-harness's names, the preferred one first. The tasks of the domain benchmark
have all three; only by the first are small models above chance (docs/benchmark.md)."""


def make_tables(results: Results, against: Sequence[str]) -> list[Table]:
    """Return all tables of a comparison, in reading order.

    Args:
        results: The results of the runs.
        against: Methods whose differences to the others are tabulated.
    """
    metrics = RunMetrics(results)
    tables = [
        _losses(results),
        _excess(results, metrics),
        *(_differences(results, metrics, other) for other in against if results.of(other)),
        _perplexities(results),
    ]
    if any(run.tasks for run in results.runs):
        tables.append(_tasks(results))
    tables += [*(_mixture(results, stage) for stage in ("prune", "continue")), _cost(results, against)]
    return [table for table in [*tables, _methods(results)] if table.rows]


def _losses(results: Results) -> Table:
    def row(name: str, seeds: str, losses: Sequence[float], *, reference: bool = False) -> Row:
        weighted = sum(
            results.reference_ratio[domain] * loss for domain, loss in zip(results.domains, losses, strict=True)
        )
        cells = map(Cell.of, [*losses, _mean(losses), weighted])
        return Row.of(name, seeds, *cells, kind="reference" if reference else "plain")

    rows = []
    for method in results.methods:
        if runs := results.of(method):
            losses = [_mean([run.recovered[domain] for run in runs]) for domain in results.domains]
            rows.append(row(method, str(len(runs)), losses))
    unpruned = []
    if results.base:
        losses = [_mean([losses[domain] for losses in results.base.values()]) for domain in results.domains]
        unpruned = [row(_large(results), "", losses, reference=True)]
    return Table(
        ["method", "seeds", *results.domains, MEAN, WEIGHTED],
        [*unpruned, *mark_best(rows)],
        title="Held-out loss, nats per token",
        note="Means over the seeds; the lowest of each column in bold.",
    )


def _excess(results: Results, metrics: RunMetrics) -> Table:
    rows = []
    for method in results.methods:
        runs = results.of(method)
        if runs and metrics.seeds(method):
            excess = [metrics.average(domain, method) for domain in results.domains]
            worst = metrics.average(WORST, method)
            cells = (Cell.of(value, signed) for value in (*excess, worst, _mean(excess)))
            rows.append(Row.of(method, str(len(runs)), *cells))
    return Table(
        ["method", "seeds", *results.domains, WORST, "mean"],
        mark_best(rows),
        title=f"Excess over the {_large(results)} model, nats per token",
        note="Means over the seeds; worst excess is the mean of each seed's worst domain.",
    )


def _large(results: Results) -> str:
    """Return the name of the model from which all runs start; without pruning it is the base."""
    return "base" if results.recipe and results.recipe.get("prune") is None else "unpruned"


def _differences(results: Results, metrics: RunMetrics, other: str) -> Table:
    rows = []
    for method in results.methods:
        differences = [metrics.difference(name, method, other) for name in (*SUMMARY, *results.domains)]
        if known := [difference for difference in differences if difference is not None]:
            rows.append(Row.of(method, str(known[0].pairs), *map(_difference_cell, differences)))
    return Table(
        ["method", "seeds", *SUMMARY, *results.domains],
        rows,
        title=f"Paired differences to {other}, nats per token",
        note="Below zero the method is better. Means over pairs with the same seed, with 95% intervals over seeds and "
        "held-out documents (over documents alone if there is one seed); bold: better, and the interval excludes zero. "
        "Domains: excess.",
    )


def _perplexities(results: Results) -> Table:
    rows = []
    for method in results.methods:
        if runs := results.of(method):
            values = [_mean([math.exp(run.recovered[domain]) for run in runs]) for domain in results.domains]
            cells = (Cell.of(value, "{:.1f}".format) for value in (*values, _mean(values)))
            rows.append(Row.of(method, str(len(runs)), *cells))
    return Table(
        ["method", "seeds", *results.domains, "mean"],
        mark_best(rows, decimals=1),
        title="Perplexity per token",
        note="Means over the seeds.",
    )


def _tasks(results: Results) -> Table:
    names = list(dict.fromkeys(task for run in results.runs for task in run.tasks))
    rows = []
    for method in results.methods:
        if runs := [run for run in results.of(method) if run.tasks]:
            values = [_mean([_accuracy(run.tasks.get(task, {})) for run in runs]) for task in names]
            cells = (Cell.of(value, _hundredths) for value in (*values, _mean(values)))
            rows.append(Row.of(method, str(len(runs)), *cells))
    return Table(
        ["method", "seeds", *names, "mean"],
        mark_best(rows, decimals=4, highest=True),
        title="Accuracy, %",
        note=f"Of the final models; the first of {', '.join(ACCURACIES)} that a task has.",
    )


def _mixture(results: Results, stage: str) -> Table:
    rows = [
        Row.of(method, *(percent(mixture[domain]) for domain in results.domains))
        for method in results.methods
        if (mixture := mean_mixture(results.of(method), stage, results.domains))
    ]
    reference = (percent(results.reference_ratio[domain]) for domain in results.domains)
    return Table(
        ["method", *results.domains],
        [Row.of("reference ratio", *reference, kind="reference"), *rows] if rows else [],
        title=f"Mixture trained on, {stage} stage",
        note="Mean over the stage's tokens and the seeds.",
    )


def _cost(results: Results, against: Sequence[str]) -> Table:
    others = [other for other in against if results.of(other)][:1]
    rows = []
    for method in results.methods:
        runs = results.of(method)
        if not runs:
            continue
        if results.methods[method].model:
            rows.append(Row.of(method, count(runs[0].parameters), NONE, *(NONE for _ in others)))
            continue
        cells = [count(runs[0].parameters), duration(_mean([run.seconds for run in runs]))]
        for other in others:
            target = final_means(results.of(other))
            fraction, reached = tokens_to_reach(runs, target)
            paired = sum(run.seed in target for run in runs)
            cells.append(f"{percent(fraction)} ({reached} of {paired})" if reached else f"not reached (0 of {paired})")
        rows.append(Row.of(method, *cells))
    return Table(
        ["method", "parameters", "time", *(f"tokens to {other}'s plain mean" for other in others)],
        rows,
        title="Cost",
        note="The time is that of the stages, on the machine of the runs. The last column is the fraction of the "
        "method's own continued pretraining after which its plain mean loss equals the other method's final one, and "
        "for how many seeds; learning rates decay over the whole stage, so this is no schedule to stop at.",
    )


def _methods(results: Results) -> Table:
    rows = []
    for name, method in results.methods.items():
        if method.model:
            rows.append(
                Row.of(name, NONE, f"model: {method.model}", method.what or "A baseline model, not trained here.")
            )
            continue
        parts = [f"{key}={value}" for key, value in method.set.items()]
        parts += [f"{key} x {value:g}" for key, value in method.times.items()]
        if method.references:
            parts.append(f"references: {method.references}")
        if method.average_of:
            parts.append(
                f"average of {method.average_of}, {'all seeds' if method.average_over == 'seeds' else 'by seed'}"
            )
        if method.shift:
            parts.append("references shifted: " + ", ".join(f"{key} {value:+g}" for key, value in method.shift.items()))
        rows.append(Row.of(name, method.strategy, "; ".join(parts), method.what))
    return Table(
        ["method", "strategy", "settings", "meaning"],
        rows,
        title="What each row is",
        text_columns=("strategy", "settings", "meaning"),
    )


def _difference_cell(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(NONE)
    return Cell(
        signed(difference.value),
        difference.value,
        interval=f"[{signed(difference.low)}, {signed(difference.high)}]",
        best=difference.excludes_zero and difference.value < 0,
    )


def _accuracy(metrics: dict[str, float]) -> float:
    return next((metrics[name] for name in ACCURACIES if name in metrics), math.nan)


def _hundredths(value: float) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else NONE


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
