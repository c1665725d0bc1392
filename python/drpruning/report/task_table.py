"""Scores on tasks as a table: a row for each task and metric, a column for each model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from drpruning.formatting import NONE
from drpruning.records import Record, TaskMeasured
from drpruning.report.loss_tables import best
from drpruning.report.method_table import Cell
from drpruning.report.read.run import records_of

MOST_ROWS, MOST_MODELS = 400, 40
LOWER_IS_BETTER = ("perplexity", "loss", "bits_per_byte", "word_perplexity", "byte_perplexity")


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task."""

    task: str
    metric: str
    samples: str
    cells: list[Cell]


@dataclass(frozen=True)
class TaskTable:
    """Scores of ``models``, in the order in which they were first measured."""

    models: list[str]
    rows: list[TaskRow]


def task_table(records: Iterable[Record]) -> TaskTable:
    """Return the scores among ``records``; of a score measured twice, the later one."""
    scores: dict[tuple[str, str], dict[str, tuple[float, float, int | None]]] = {}
    models: dict[str, None] = {}
    for record in records_of(records, TaskMeasured):
        model = record.model if record.step is None else f"{record.model}, {record.stage or ''} step {record.step}"
        models[model] = None
        for metric, value in record.metrics.items():
            error = record.errors.get(metric, math.nan)
            scores.setdefault((record.task, metric), {})[model] = (value, error, record.samples)
    columns = list(models)[-MOST_MODELS:]
    return TaskTable(columns, [_row(*key, found, columns) for key, found in list(scores.items())[:MOST_ROWS]])


def _row(task: str, metric: str, found: dict[str, tuple[float, float, int | None]], models: list[str]) -> TaskRow:
    values = [found.get(model, (math.nan, math.nan, None)) for model in models]
    sign = 1 if metric in LOWER_IS_BETTER else -1
    bold = best([sign * value for value, _, _ in values])
    samples = {count for _, _, count in found.values() if count is not None}
    return TaskRow(
        task,
        metric,
        ", ".join(f"{count:,}" for count in sorted(samples)) or NONE,
        [
            Cell(
                f"{value:.3f}" if math.isfinite(value) else NONE,
                flag,
                f"±{error:.3f}" if math.isfinite(error) else "",
            )
            for (value, error, _), flag in zip(values, bold, strict=True)
        ],
    )
