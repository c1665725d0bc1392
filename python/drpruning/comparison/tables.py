"""The tables of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

from drpruning.comparison.difference_table import SUMMARY, difference_table, marked
from drpruning.comparison.methods import ENDPOINTS
from drpruning.comparison.metrics import (
    MEAN,
    WEIGHTED,
    WORST,
    RunMetrics,
    final_means,
    mean_mixture,
    paired_mean,
    seeds_note,
    tokens_to_reach,
)
from drpruning.comparison.results import Results
from drpruning.comparison.verdict import verdict
from drpruning.formatting import NONE, count, duration, flops_in_words, percent, signed
from drpruning.tables import Cell, Row, Table

METRICS = dict(zip(ENDPOINTS, SUMMARY, strict=True))
"""Metrics by their names in a methods file; other endpoints are domains."""
ACCURACIES = ("acc_mutual_info", "acc_norm", "acc")
"""Accuracies of a task, by lm-evaluation-harness's names, the preferred one first. The tasks of the domain benchmark
have all three; only by the first are small models above chance (docs/benchmark.md)."""


def make_tables(results: Results, against: Sequence[str], metrics: RunMetrics | None = None) -> list[Table]:
    """Return all tables of a comparison, in reading order.

    Args:
        results: The results of the runs.
        against: Methods whose differences to the others are tabulated.
        metrics: Metrics of these results; None: they are computed.
    """
    metrics = metrics or RunMetrics(results)
    others = compared_with(results, against)
    tables = [
        *_primary(results, metrics, others),
        _losses(results, metrics, others[0]),
        _excess(results, metrics, others[0]),
        *(
            difference_table(
                metrics, (*SUMMARY, *results.domains), other, f"Paired differences to {other}, nats per token"
            )
            for other in others
        ),
        _perplexities(results),
    ]
    if any(run.tasks for run in results.runs):
        tables.append(_tasks(results))
    tables += [*(_mixture(results, stage) for stage in ("prune", "continue")), _cost(results, others[0])]
    return [table for table in [*tables, _methods(results)] if table.rows]


def results_verdict(results: Results, against: Sequence[str], metrics: RunMetrics) -> str:
    """Return the verdict on the primary endpoints, without any on worst excess and means; see :func:`.verdict`."""
    return verdict(metrics, _primary_metrics(results) or SUMMARY, compared_with(results, against)[0])


def compared_with(results: Results, against: Sequence[str]) -> list[str]:
    """Return the methods of ``against`` that have a finished run, each once; without any, that of the first run."""
    return list(dict.fromkeys(other for other in against if results.of(other))) or [results.runs[0].method]


def _primary_metrics(results: Results) -> list[str]:
    return [METRICS.get(name, name) for name in results.primary or results.first_primary]


def _primary(results: Results, metrics: RunMetrics, others: Sequence[str]) -> list[Table]:
    """Tabulate the endpoints that the methods file declares, before all other tables."""
    columns = _primary_metrics(results)
    if not columns:
        return []
    when = "Declared before the first run."
    if results.first_primary != results.primary:
        before, now = (", ".join(names) or "none" for names in (results.first_primary, results.primary))
        when = f"Warning: the primary endpoints were changed after the first run: before it {before}, now {now}."
    return [
        difference_table(metrics, columns, other, f"Primary endpoints, differences to {other}, nats per token", when)
        for other in others
    ]


def _losses(results: Results, metrics: RunMetrics, other: str) -> Table:
    columns = [*results.domains, MEAN, WEIGHTED]

    def row(name: str, seeds: str, losses: Sequence[float], *, reference: bool = False) -> Row:
        weighted = sum(
            results.reference_ratio[domain] * loss for domain, loss in zip(results.domains, losses, strict=True)
        )
        cells = [Cell.of(loss) for loss in (*losses, _mean(losses), weighted)]
        if reference:
            return Row.of(name, seeds, *cells, kind="reference")
        return Row.of(name, seeds, *_marked(cells, columns, metrics, name, other))

    rows = []
    if results.base:
        losses = [_mean([losses[domain] for losses in results.base.values()]) for domain in results.domains]
        rows.append(row(_large(results), "", losses, reference=True))
    for method in results.methods:
        if runs := results.of(method):
            losses = [
                paired_mean(
                    {run.seed: run.recovered[domain] for run in runs},
                    {run.seed: run.recovered[domain] for run in results.of(other)},
                )
                for domain in results.domains
            ]
            rows.append(row(method, str(len(runs)), losses))
    return Table(
        ["method", "seeds", *columns],
        rows,
        title="Held-out loss, nats per token",
        note=" ".join(filter(None, ["Means over the seeds.", seeds_note(results, other), _rule_of_marks(other)])),
    )


def _excess(results: Results, metrics: RunMetrics, other: str) -> Table:
    columns = [*results.domains, WORST, MEAN]
    rows = []
    means = "Means over the seeds; worst excess is the mean of each seed's worst domain."
    for method in results.methods:
        runs = results.of(method)
        if runs and metrics.seeds(method):
            excess = [metrics.average(domain, method, other) for domain in results.domains]
            worst = metrics.average(WORST, method, other)
            cells = [Cell.of(value, signed) for value in (*excess, worst, _mean(excess))]
            seeds = str(len(metrics.seeds(method)))
            rows.append(Row.of(method, seeds, *_marked(cells, columns, metrics, method, other)))
    return Table(
        ["method", "seeds", *results.domains, WORST, "mean"],
        rows,
        title=f"Excess over the {_large(results)} model, nats per token",
        note=" ".join(filter(None, [means, seeds_note(results, other), _rule_of_marks(other)])),
    )


def _marked(cells: Sequence[Cell], columns: Sequence[str], metrics: RunMetrics, method: str, other: str) -> list[Cell]:
    """Mark the cells of a method whose paired difference to ``other`` excludes zero."""
    return [marked(cell, metrics.difference(name, method, other)) for cell, name in zip(cells, columns, strict=True)]


def _rule_of_marks(other: str) -> str:
    return f"Bold: better than {other}, italics: worse, and the interval of the paired difference excludes zero."


def _large(results: Results) -> str:
    """Return the name of the model from which all runs start; without pruning it is the base."""
    return "base" if results.recipe and results.recipe.get("prune") is None else "unpruned"


def _perplexities(results: Results) -> Table:
    rows = []
    for method in results.methods:
        if runs := results.of(method):
            values = [_mean([_perplexity(run.recovered[domain]) for run in runs]) for domain in results.domains]
            cells = (Cell.of(value, _tenths) for value in (*values, _mean(values)))
            rows.append(Row.of(method, str(len(runs)), *cells))
    return Table(
        ["method", "seeds", *results.domains, "mean"],
        rows,
        title="Perplexity per token",
        note="Means over the seeds. The table of losses has marks.",
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
        rows,
        title="Accuracy, %",
        note=f"Of the final models; the first of {', '.join(ACCURACIES)} that a task has. No marks: the answers to "
        "single questions, which intervals need, are not stored.",
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


def _cost(results: Results, other: str) -> Table:
    columns = ["tokens", "charged FLOPs", *(["steps of continue"] if results.equal == "flops" else []), "time"]
    rows = []
    for method in results.methods:
        runs = results.of(method)
        if not runs:
            continue
        if results.methods[method].model:
            rows.append(Row.of(method, count(runs[0].parameters), *(NONE for _ in columns), NONE))
            continue
        tokens = [sum(run.drawn.values()) for run in runs]
        charged = [math.nan if run.charged_flops is None else run.charged_flops for run in runs]
        steps = [math.nan if run.continue_steps is None else run.continue_steps for run in runs]
        cells = [
            count(runs[0].parameters),
            count(_mean(tokens)) if all(tokens) else NONE,
            flops_in_words(_mean(charged)),
            *([f"{_mean(steps):,.0f}"] if results.equal == "flops" else []),
            duration(_mean([run.seconds for run in runs])),
        ]
        target = final_means(results.of(other))
        fraction, reached = tokens_to_reach(runs, target)
        paired = sum(run.seed in target for run in runs)
        not_reached = f"not reached (0 of {paired})" if paired else NONE
        cells.append(f"{percent(fraction)} ({reached} of {paired})" if reached else not_reached)
        rows.append(Row.of(method, *cells))
    return Table(
        ["method", "parameters", *columns, f"tokens to {other}'s plain mean"],
        rows,
        title="Cost",
        note="Means over the seeds; tokens and FLOPs without the stage pretrain. Charged are the passes of student and "
        "teacher and those for importance, neither evaluations nor runs whose losses or mixture a method reads. The "
        "time is that of the stages, on the machine of the runs. The last column is the fraction of the "
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


def _accuracy(metrics: dict[str, float]) -> float:
    return next((metrics[name] for name in ACCURACIES if name in metrics), math.nan)


def _perplexity(loss: float) -> float:
    """Return the exponential of a loss; infinite above the range of a float."""
    return math.exp(loss) if loss < 700 else math.inf


def _tenths(value: float) -> str:
    """Format a perplexity; a large one with its order of magnitude, as it is that of a broken model."""
    if not math.isfinite(value):
        return NONE
    return f"{value:.1f}" if value < 1e7 else f"{value:.1e}"


def _hundredths(value: float) -> str:
    return f"{100 * value:.2f}" if math.isfinite(value) else NONE


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
