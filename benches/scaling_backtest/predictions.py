"""The predictions of every method for every curve: computed in minutes, and stored in `predictions.csv.gz`.

A row is a curve known up to one part. The prefix of a column states whether the method gets the schedule. Our law is
stored without its constants (the decay ahead and the drift of the band), and for several sizes of the annealing term,
so that `constants.py` can refit all of them without a family.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import Pool
from pathlib import Path
from unittest.mock import patch

import numpy as np
import predictors
from annealing_laws import MultiPower, Tissue
from curves import Curve
from numpy.typing import NDArray
from predictors import Predictor, Seen

from drpruning.scaling import annealing

Vector = NDArray[np.float64]

PARTS = (0.2, 0.3, 0.5, 0.7)
ANNEALINGS = (0.02, 0.03, 0.035, 0.04, 0.05)
"""Sizes of the annealing term that a refit chooses from."""
WITHOUT_SCHEDULE: dict[str, Predictor] = {
    "last value": predictors.last_value,
    "running minimum": predictors.running_minimum,
    "power law without E": predictors.without_floor,
    "the paper's fit": predictors.papers_way,
}
WITH_SCHEDULE: dict[str, Predictor] = {
    name: predictors.with_schedule(method) for name, method in WITHOUT_SCHEDULE.items()
} | {
    "Tissue et al. (2024), all fitted": predictors.annealing_law(Tissue(), decay_known=False),
    "Tissue et al. (2024), decay of 0.13 nats": predictors.annealing_law(Tissue(), decay_known=True),
    "Luo et al. (2025), all fitted": predictors.annealing_law(MultiPower(), decay_known=False),
    "Luo et al. (2025), published decay": predictors.annealing_law(MultiPower(), decay_known=True),
}
DOMAINS = 2
"""Domains of a run that the methods with a schedule predict, to save time; our law predicts all."""
PLACES = 6


@dataclass(frozen=True, eq=False)
class Predictions:
    """All predictions, with n rows: one for each part of each curve.

    Attributes:
        words: Text columns ``run``, ``family``, ``domain``, ``[n]``.
        numbers: Columns ``held_out`` and ``known`` (1 or 0), ``part``, ``ahead`` (log of the last step over the last
            step seen), ``end`` (the loss reached, nats), and one for each method, NaN where it was not run,
            ``[n]``.
    """

    words: dict[str, NDArray[np.str_]]
    numbers: dict[str, Vector]

    def __getitem__(self, name: str) -> Vector:
        return self.numbers[name]

    @property
    def families(self) -> list[str]:
        return sorted(set(self.words["family"].tolist()))

    @cached_property
    def weight(self) -> Vector:
        """One over the number of domains of the run: every run counts once."""
        _, inverse, counts = np.unique(self.words["run"], return_inverse=True, return_counts=True)
        return len(np.unique(self["part"])) / counts[inverse]

    @cached_property
    def weight_of_families(self) -> Vector:
        """Weights that give each family the same sum, and each run of a family the same."""
        _, inverse = np.unique(self.words["family"], return_inverse=True)
        return self.weight / np.bincount(inverse, self.weight)[inverse]

    def where(self, mask: NDArray[np.bool_]) -> Predictions:
        """Return the rows of a mask."""
        return Predictions(
            {name: column[mask] for name, column in self.words.items()},
            {name: column[mask] for name, column in self.numbers.items()},
        )


def column_of_law(annealing_size: float | None) -> str:
    """Return the name of the column with our law: with a size of the annealing term, or without schedule (None)."""
    return "no schedule: law" if annealing_size is None else f"schedule: law {annealing_size:g}"


def compute(curves: Sequence[Curve], processes: int) -> Predictions:
    """Run every method on every part of every curve. A method that raises is a failure: its prediction is infinite."""
    earlier = [sum(other.run == curve.run for other in curves[:k]) for k, curve in enumerate(curves)]
    jobs = [(curve, part, place < DOMAINS) for part in PARTS for curve, place in zip(curves, earlier, strict=True)]
    with Pool(processes) as pool:
        rows = pool.starmap(_row, jobs, chunksize=8)
    words = {name: np.array([str(row[name]) for row in rows]) for name in ("run", "family", "domain")}
    names = [name for name in rows[0] if name not in words]
    numbers = {name: np.array([float(row.get(name, math.nan)) for row in rows]) for name in names}
    return Predictions(words, numbers)


def _row(curve: Curve, part: float, all_methods: bool) -> dict[str, float | str]:
    seen = predictors.beginning(curve, part)
    row: dict[str, float | str] = {
        "run": curve.run,
        "family": curve.family,
        "domain": curve.domain,
        "held_out": curve.held_out,
        "known": curve.rates is not None,
        "part": part,
        "ahead": math.log(seen.final_steps / seen.steps[-1]),
        "end": float(curve.losses[-1]),
    }
    known = curve.rates is not None
    for name, method in WITHOUT_SCHEDULE.items():
        row[f"no schedule: {name}"] = _value(method, seen, curve)
    for name, method in WITH_SCHEDULE.items():
        row[f"schedule: {name}"] = _value(method, seen, curve) if known and all_methods else math.nan
    for size in (None, *ANNEALINGS):
        column = column_of_law(size)
        if size is not None and not known:
            row |= {column: math.nan, f"{column}, half": math.nan, f"{column}, identified": math.nan}
            continue
        with patch.object(annealing, "ANNEALING", size or 0.0):
            ours = predictors.our_law(seen, None if size is None else seen.learning_rates)
        row |= {column: ours.value, f"{column}, half": ours.half, f"{column}, identified": ours.identified}
    return row


def _value(method: Predictor, seen: Seen, curve: Curve) -> float:
    try:
        value = method(seen)
    except Exception as error:  # counted, whatever it is
        print(f"{curve.run}, {curve.domain}: {error!r}", file=sys.stderr)
        return math.inf
    return value if math.isfinite(value) else math.inf


def write(predictions: Predictions, path: Path) -> None:
    """Store predictions as a compressed CSV, rounded to 6 places."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*predictions.words, *predictions.numbers])
    for k in range(predictions["part"].size):
        numbers = [column[k] for column in predictions.numbers.values()]
        cells = ["" if math.isnan(number) else repr(round(float(number), PLACES)) for number in numbers]
        writer.writerow([*(column[k] for column in predictions.words.values()), *cells])
    path.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))


def read(path: Path) -> Predictions:
    """Read what `write` stored."""
    header, *rows = csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode()))
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    words = {name: np.array(columns.pop(name)) for name in ("run", "family", "domain")}
    numbers = {name: np.array([float(cell) if cell else math.nan for cell in cells]) for name, cells in columns.items()}
    return Predictions(words, numbers)
