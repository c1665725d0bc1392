"""Output of ``drpruning eval tasks``: scores of one model, or of several side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from drpruning.evaluation.models import NamedModel
from drpruning.evaluation.tasks import TaskScore
from drpruning.formatting import NONE, number, printable
from drpruning.intervals import NORMAL_95
from drpruning.records import with_shots
from drpruning.tables import Cell, Row, Table
from drpruning.tables.terminal import print_table

if TYPE_CHECKING:
    from rich.console import Console

ScoredModel = tuple[NamedModel, list[TaskScore]]


def print_scores(console: Console, scored: Sequence[ScoredModel]) -> None:
    """Print a table of all metrics for one model; for several models, a table for each metric.

    Tasks of a list come first, in one table, with the metric that the list names.
    """
    listed = [(model, [score for score in scores if score.counts is not None]) for model, scores in scored]
    if any(scores for _, scores in listed):
        print_table(console, _list_table(listed))
    single = [(model, [score for score in scores if score.counts is None]) for model, scores in scored]
    if any(scores for _, scores in single):
        metrics = list(dict.fromkeys(metric for _, scores in single for score in scores for metric in score.metrics))
        if len(single) == 1:
            print_table(console, _metrics_table(single[0][1], metrics))
        else:
            for at, metric in enumerate(metrics):
                if at:
                    console.print()
                print_table(console, _models_table(single, metric))
    console.print("± half of a 95% interval over the documents of a task", style="dim")


def scores_to_dict(scored: Sequence[ScoredModel]) -> list[dict[str, Any]]:
    """Return the scores as JSON-able data."""
    return [
        {"model": model.name, "path": model.path, "tasks": [asdict(score) for score in scores]}
        for model, scores in scored
    ]


def _list_table(scored: Sequence[ScoredModel]) -> Table:
    """Tabulate, for the tasks of a list, the metric that the list names, for each model, and the mean."""
    rows = []
    for at, score in enumerate(scored[0][1]):
        cells = [_score_cell(scores[at], str(score.counts)) for _, scores in scored]
        metric = str(score.counts).partition(",")[0]
        rows.append(Row.of(score.task, str(score.shots), metric, *cells, f"{score.samples:,}"))
    if len(rows) > 1:
        values = [[score.metrics.get(str(score.counts), math.nan) for score in scores] for _, scores in scored]
        means = (number(statistics.fmean(values_of_model)) for values_of_model in values)
        rows.append(Row.of("mean", "", "", *means, "", kind="summary"))
    return Table(["task", "shots", "metric", *(printable(model.name) for model, _ in scored), "documents"], rows)


def _metrics_table(scores: Sequence[TaskScore], metrics: Sequence[str]) -> Table:
    """Tabulate all metrics of one model."""
    rows = [
        Row.of(
            with_shots(score.task, score.shots),
            *(_score_cell(score, metric) for metric in metrics),
            f"{score.samples:,}",
        )
        for score in scores
    ]
    if len(rows) > 1:
        rows.append(Row.of("mean", *(_mean(scores, metric) for metric in metrics), "", kind="summary"))
    return Table(["task", *metrics, "documents"], rows)


def _models_table(scored: Sequence[ScoredModel], metric: str) -> Table:
    """Tabulate one metric of several models."""
    by_task = [
        {with_shots(score.task, score.shots): score for score in scores if metric in score.metrics}
        for _, scores in scored
    ]
    tasks = dict.fromkeys(task for scores in by_task for task in scores)
    rows = [
        Row.of(task, *(_score_cell(scores[task], metric) if task in scores else Cell(NONE) for scores in by_task))
        for task in tasks
    ]
    if len(rows) > 1:
        rows.append(Row.of("mean", *(_mean(scores, metric) for _, scores in scored), kind="summary"))
    return Table(["task", *(printable(model.name) for model, _ in scored)], rows, title=metric)


def _score_cell(score: TaskScore, metric: str) -> Cell:
    if metric not in score.metrics:
        return Cell("")
    error = score.errors.get(metric)
    return Cell.of(score.metrics[metric], interval="" if error is None else f"± {NORMAL_95 * error:.3f}")


def _mean(scores: Sequence[TaskScore], metric: str) -> str:
    values = [score.metrics[metric] for score in scores if metric in score.metrics]
    return number(statistics.fmean(values)) if len(values) == len(scores) else ""
