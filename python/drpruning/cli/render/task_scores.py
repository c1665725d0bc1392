"""What ``drpruning eval --tasks`` prints: scores of one model, or of several side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from drpruning.evaluation.models import NamedModel
from drpruning.evaluation.tasks import TaskScore
from drpruning.formatting import number, printable
from drpruning.tables.terminal import NORMAL_95, new_table

Scored = tuple[NamedModel, list[TaskScore]]


def print_scores(console: Console, scored: Sequence[Scored]) -> None:
    """Prints a table of all metrics for one model, a table for each metric for several.

    Tasks of a list come first, in one table, with the metric that counts.
    """
    lists = [(model, [score for score in scores if score.counts is not None]) for model, scores in scored]
    if any(scores for _, scores in lists):
        console.print(_listed(lists))
    scored = [(model, [score for score in scores if score.counts is None]) for model, scores in scored]
    if any(scores for _, scores in scored):
        _print_metrics(console, scored)
    console.print("± half of a 95% interval over the documents of a task", style="dim")


def _print_metrics(console: Console, scored: Sequence[Scored]) -> None:
    metrics = list(dict.fromkeys(metric for _, scores in scored for score in scores for metric in score.metrics))
    if len(scored) == 1:
        console.print(_one(scored[0][1], metrics))
    else:
        for at, metric in enumerate(metrics):
            console.print(("\n" if at else "") + metric, style="bold")
            console.print(_side_by_side(scored, metric))


def _listed(scored: Sequence[Scored]) -> Table:
    """The metric that counts of each task of a list, for each model, and their mean."""
    table = new_table(["task", "shots", "metric", *(printable(model.name) for model, _ in scored), "documents"])
    for at, score in enumerate(scored[0][1]):
        cells = [_cell(scores[at], str(score.counts)) for _, scores in scored]
        metric = str(score.counts).partition(",")[0]
        table.add_row(printable(score.task), str(score.shots), metric, *cells, f"{score.samples:,}")
    if len(scored[0][1]) > 1:
        table.add_section()
        values = [[score.metrics.get(str(score.counts), math.nan) for score in scores] for _, scores in scored]
        table.add_row("mean", "", "", *(number(statistics.fmean(each)) for each in values))
    return table


def scores_described(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [
        {"model": model.name, "path": model.path, "tasks": [asdict(score) for score in scores]}
        for model, scores in scored
    ]


def _one(scores: Sequence[TaskScore], metrics: Sequence[str]) -> Table:
    table = new_table(["task", *metrics, "documents"])
    for score in scores:
        table.add_row(printable(score.task), *(_cell(score, metric) for metric in metrics), f"{score.samples:,}")
    if len(scores) > 1:
        table.add_section()
        table.add_row("mean", *(_mean(scores, metric) for metric in metrics))
    return table


def _side_by_side(scored: Sequence[Scored], metric: str) -> Table:
    table = new_table(["task", *(printable(model.name) for model, _ in scored)])
    tasks = [score.task for score in scored[0][1] if metric in score.metrics]
    for at, task in enumerate(tasks):
        table.add_row(printable(task), *(_cell(_with(scores, metric)[at], metric) for _, scores in scored))
    if len(tasks) > 1:
        table.add_section()
        table.add_row("mean", *(_mean(scores, metric) for _, scores in scored))
    return table


def _with(scores: Sequence[TaskScore], metric: str) -> list[TaskScore]:
    return [score for score in scores if metric in score.metrics]


def _cell(score: TaskScore, metric: str) -> str:
    if metric not in score.metrics:
        return ""
    error = score.errors.get(metric)
    around = "" if error is None else f" ± {NORMAL_95 * error:.3f}"
    return number(score.metrics[metric]) + around


def _mean(scores: Sequence[TaskScore], metric: str) -> str:
    values = [score.metrics[metric] for score in scores if metric in score.metrics]
    return number(statistics.fmean(values)) if len(values) == len(scores) else ""
