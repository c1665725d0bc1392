"""The constants of our law, fitted to predictions: the decay ahead, the annealing term and the drift of the band.

Each family has the same weight, because the law is for runs of new families. `fit` on the training half gives the
constants that the package has; `leave_one_family_out` fits them for each family on all other families.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from predictions import ANNEALINGS, Predictions, column_of_law

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]

DECAYS = np.arange(0, 0.0801, 0.002)
"""Sizes of the decay ahead that a fit chooses from."""
POWER = 3
LEVEL = 0.9


@dataclass(frozen=True)
class Constants:
    """The constants of one fit.

    Attributes:
        decay: Size of the decay ahead of an unknown schedule.
        drift: Of the band, unknown schedule.
        annealing: Size of the annealing term.
        drift_scheduled: Of the band, known schedule.
    """

    decay: float
    drift: float
    annealing: float
    drift_scheduled: float


def quantile(values: Vector, weight: Vector, level: float) -> float:
    """Return the weighted quantile of values, the smallest that reaches ``level``."""
    order = np.argsort(values)
    reached = np.cumsum(weight[order]) / weight.sum()
    return float(values[order][min(np.searchsorted(reached, level - 1e-12), values.size - 1)])


def error(predictions: Predictions, values: Vector) -> float:
    """Return the median relative error of predicted values, averaged over the parts."""
    relative, weight = np.abs(values / predictions["end"] - 1), predictions.weight_of_families
    masks = [predictions["part"] == part for part in np.unique(predictions["part"])]
    return float(np.mean([quantile(relative[mask], weight[mask], 0.5) for mask in masks]))


def corrected(predictions: Predictions, column: str, decay: float, power: int = POWER) -> Vector:
    """Return the values of a column times the decay ahead; those of laws that are not identified unchanged."""
    factor = 1 - decay * (1 - np.exp(-predictions["ahead"])) ** power
    identified = predictions.numbers.get(f"{column}, identified", np.ones(factor.size))
    return predictions[column] * np.where(identified == 1, factor, 1.0)


def best_decay(predictions: Predictions, column: str, power: int = POWER) -> float:
    """Return the size of the decay ahead with the least error."""
    errors = [error(predictions, corrected(predictions, column, decay, power)) for decay in DECAYS.tolist()]
    return float(DECAYS[int(np.argmin(errors))])


def drift(predictions: Predictions, values: Vector, halves: Vector) -> float:
    """Return the drift, for one unit of ``sqrt(ahead)``, with which the band has nine in ten ends."""
    distance = np.abs(np.log(predictions["end"] / values))
    needed = np.sqrt(np.maximum(distance**2 - halves**2, 0.0) / predictions["ahead"])
    return quantile(needed, predictions.weight_of_families, LEVEL)


def halves(predictions: Predictions, column: str) -> Vector:
    """Return the statistical half widths of a column, 0 for a method that has none."""
    return predictions.numbers.get(f"{column}, half", np.zeros(predictions["end"].size))


def fit(predictions: Predictions) -> Constants:
    """Fit all constants to these predictions."""
    plain = column_of_law(None)
    decay = best_decay(predictions, plain)
    known = predictions.where(predictions["known"] == 1)
    annealing = min(ANNEALINGS, key=lambda size: error(known, known[column_of_law(size)]))
    scheduled = column_of_law(annealing)
    return Constants(
        decay=decay,
        drift=drift(predictions, corrected(predictions, plain, decay), halves(predictions, plain)),
        annealing=annealing,
        drift_scheduled=drift(known, known[scheduled], halves(known, scheduled)),
    )


def leave_one_family_out(predictions: Predictions) -> dict[str, Constants]:
    """Return for each family the constants fitted on all others."""
    return {family: fit(predictions.where(predictions.words["family"] != family)) for family in predictions.families}


def candidates(predictions: Predictions, powers: Sequence[int] = (1, 2, 3, 4)) -> list[tuple[str, float, float, float]]:
    """Compare corrections: name, size on all families, error with it, and error of families left out of the fit."""
    rows = []
    for column, words, used in (
        (column_of_law(None), "unknown schedule", predictions),
        (column_of_law(0.035), "known schedule", predictions.where(predictions["known"] == 1)),
    ):
        plain = error(used, used[column])
        rows.append((f"{words}: none", 0.0, plain, plain))
        for power in powers:
            size = best_decay(used, column, power)
            left_out = np.full(used["end"].size, math.nan)
            for family in used.families:
                mine = used.words["family"] == family
                other = best_decay(used.where(~mine), column, power)
                left_out[mine] = corrected(used, column, other, power)[mine]
            fitted = error(used, corrected(used, column, size, power))
            rows.append((f"{words}: (1 - fraction)^{power}", size, fitted, error(used, left_out)))
    return rows
