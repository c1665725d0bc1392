"""A learning-rate schedule from a CSV file: a column of steps or tokens, and one of rates."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drpruning.errors import LossTableError, WeightError
from drpruning.loss_table.columns import count, rate, role
from drpruning.loss_table.table import listed
from drpruning.loss_table.text import lines, open_table
from drpruning.scaling import LearningRates

MOST = 1000
"""Maximum number of rows; of a longer file evenly spaced rows are used, since a schedule is smooth."""


def read_learning_rates(path: Path, *, counts_tokens: bool, tokens_per_step: float | None) -> LearningRates:
    """Read the schedule of a whole training: a row for each corner, or for each step.

    Args:
        path: A CSV file with a column ``tokens`` or ``step`` and a column ``lr``, named as in a table of losses.
        counts_tokens: Whether the losses count tokens; if not, the file needs steps.
        tokens_per_step: Tokens per step, for a file of steps with losses that count tokens.

    Raises:
        LossTableError: The file is not such a table.
        DiskError: The operating system cannot open it.
    """
    source = str(path)
    with open_table(path) as stream:
        rows = [(number, text) for number, text in lines(stream, source)]
    header = rows[0][1] if rows else ""
    separator = max(",;\t", key=header.count)
    try:
        names, *cells = csv.reader((text for _, text in rows), delimiter=separator, strict=True, skipinitialspace=True)
    except (csv.Error, ValueError) as error:
        raise LossTableError(f"{source} is not a CSV file of learning rates: {error}") from error
    roles = [role(name) for name in names]
    unit = "tokens" if counts_tokens and "tokens" in roles else "step"
    if unit not in roles or "rate" not in roles:
        raise LossTableError(
            f"{source} needs a column {unit} and a column lr; its columns are {listed(names)}",
            "Write one row for each corner of the schedule: step,lr.",
        )
    if counts_tokens and unit == "step" and tokens_per_step is None:
        raise LossTableError(f"{source} has steps, and the losses have tokens", "Write tokens into it: tokens,lr.")
    scale = tokens_per_step if counts_tokens and unit == "step" and tokens_per_step else 1.0
    places, rates = [], []
    for (number, _), row in zip(rows[1:], cells, strict=False):
        where = f"{source}, line {number}"
        if len(row) != len(names):
            raise LossTableError(f"{where} has {len(row)} cells; the header has {len(names)}")
        place = count(row[roles.index(unit)], f"{where}, column {unit!r}")
        height = rate(row[roles.index("rate")], f"{where}, column 'lr'")
        if place is not None and height is not None:
            places.append(scale * place)
            rates.append(height)
    kept = _spread(rates)
    try:
        return LearningRates([places[k] for k in kept], [rates[k] for k in kept])
    except WeightError as error:
        raise LossTableError(f"{source} is not a schedule: {error}") from error


def _spread(rates: Sequence[float]) -> list[int]:
    """Return the rows to use: all, or ``MOST`` of them with the first peak."""
    if len(rates) <= MOST:
        return list(range(len(rates)))
    chosen = np.rint(np.linspace(0, len(rates) - 1, MOST)).astype(int).tolist()
    return sorted({*chosen, int(np.argmax(rates))})
