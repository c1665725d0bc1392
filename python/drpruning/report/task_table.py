"""Scores on tasks as a table: a row for each task and metric, a column for each model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from drpruning.formatting import NONE
from drpruning.records import Record, TaskMeasured
from drpruning.report.read.run import records_of
from drpruning.tables.cells import Cell, Row, Table, is_best

MOST_ROWS, MOST_MODELS = 400, 40
LOWER_IS_BETTER = ("perplexity", "loss", "bits_per_byte", "word_perplexity", "byte_perplexity")

Score = tuple[float, float, int | None]
"""Value, standard error (NaN if unknown) and number of samples."""


def task_table(records: Iterable[Record]) -> Table:
    """Return the scores among ``records``; of two with the same number of examples, the later one."""
    scores: dict[tuple[str, str], dict[str, Score]] = {}
    models: dict[str, None] = {}
    for record in records_of(records, TaskMeasured):
        model = record.model if record.step is None else f"{record.model}, {record.stage or ''} step {record.step}"
        models[model] = None
        for metric, value in record.metrics.items():
            error = record.errors.get(metric, math.nan)
            scores.setdefault((record.label, metric), {})[model] = (value, error, record.samples)
    columns = list(models)[-MOST_MODELS:]
    return Table(
        ["task", "metric", "samples", *columns],
        [_row(*key, found, columns) for key, found in list(scores.items())[:MOST_ROWS]],
        note="Scores with their standard errors where known; the best of each row in bold.",
    )


def _row(task: str, metric: str, scores: Mapping[str, Score], models: Sequence[str]) -> Row:
    values = [scores.get(model, (math.nan, math.nan, None)) for model in models]
    sign = 1 if metric in LOWER_IS_BETTER else -1
    marks = is_best([sign * value for value, _, _ in values])
    samples = {count for _, _, count in scores.values() if count is not None}
    cells = [
        replace(
            Cell.of(value, _three_digits, interval=f"±{error:.3f}" if math.isfinite(error) else ""),
            best=best,
        )
        for (value, error, _), best in zip(values, marks, strict=True)
    ]
    return Row.of(task, metric, ", ".join(f"{count:,}" for count in sorted(samples)) or NONE, *cells)


def _three_digits(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else NONE
