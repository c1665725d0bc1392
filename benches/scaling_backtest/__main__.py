"""Predict the end of real loss curves from their beginning: `python benches/scaling_backtest [CURVES]`.

Runs every method on every curve (minutes), stores the predictions in `predictions.csv.gz` next to this file and prints
the Markdown tables of `docs/benchmarks/law.md`. With `--stored` it prints the tables of the stored predictions. CURVES
is a folder with `manifest.json` and one CSV a run, or a packed file as `pack.py` writes it; by default the curves in
this folder. Predictions for other curves are not stored.

In the main tables every family is predicted with constants fitted on the other families. Every run counts once, however
many domains it has. Errors are in nats: the median and the 90th percentile of the absolute error, and the median of the
signed error (predicted less reached). Intervals in square brackets hold 90% of 1,000 resamples of the families.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import constants
import curves
import literature
import numpy as np
import predictions
from constants import Constants, quantile
from numpy.typing import NDArray
from predictions import PARTS, Predictions, column_of_law

from drpruning.scaling import annealing, law

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]

HERE = Path(__file__).parent
STORED = HERE / "predictions.csv.gz"
PACKAGE = Constants(law.DECAY_AHEAD, law.DRIFT, annealing.ANNEALING, law.DRIFT_ANNEALED)
"""The constants of the package."""
RESAMPLES = 1000
EARLY = 0.3
"""The part of the tables by family and of the ratio to the paper's fit."""
OUTSIDE = 2 / (1 - constants.LEVEL)
"""Price of a nat outside the band, in the interval score of Winkler (1972) for a 90% band."""


@dataclass(frozen=True, eq=False)
class Method:
    """The predictions of one method with its band: value and half width in log loss, ``[n]``."""

    name: str
    value: Vector
    half: Vector


def main() -> None:
    warnings.simplefilter("error")
    paths = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    if "--stored" in sys.argv:
        found = predictions.read(STORED)
    else:
        read = curves.read(paths[0] if paths else HERE / "curves.json.gz")
        found = predictions.compute(read, processes=os.cpu_count() or 1)
        if not paths:
            predictions.write(found, STORED)
            found = predictions.read(STORED)
    failed = {name: int(np.isinf(column).sum()) for name, column in found.numbers.items() if np.isinf(column).any()}
    print(
        f"{len(set(found.words['run']))} runs, {found['part'].size // len(PARTS)} curves; failures: {failed or 'none'}"
    )
    training = found.where(found["held_out"] == 0)
    known = ~np.isnan(found["schedule: the paper's fit"])
    print(f"\nConstants of the training half: {constants.fit(training)}\nof the package: {PACKAGE}")
    left_out = constants.leave_one_family_out(found)
    for family, each in left_out.items():
        print(f"without {family}: {each}")
    print("\n### Corrections on the training half\n")
    print_table(
        ["correction", "size", "error", "error of families left out"],
        [[name, f"{size:.3f}", f"{a:.4f}", f"{b:.4f}"] for name, size, a, b in constants.candidates(training)],
    )
    every = np.ones(known.size, dtype=bool)
    for scheduled, rows, words in ((False, every, "schedule unknown, all runs"), (True, known, "schedule known")):
        compared = methods(found, left_out, scheduled=scheduled)
        accuracy(f"Families left out: {words}", found, compared, rows)
        bands(f"Bands, families left out: {words}", found, compared, rows)
    families(found, methods(found, left_out, scheduled=False), methods(found, left_out, scheduled=True))
    package = dict.fromkeys(found.families, PACKAGE)
    held_out = found["held_out"] == 1
    for scheduled, rows, words in ((False, held_out, "schedule unknown"), (True, held_out & known, "schedule known")):
        compared = methods(found, package, scheduled=scheduled)
        accuracy(f"Held-out half: {words}", found, compared, rows)
        bands(f"Bands, held-out half: {words}", found, compared, rows)
    accuracy(
        "Held-out half: schedule not used, runs with a known one",
        found,
        methods(found, package, scheduled=False),
        held_out & known,
    )
    literature.main()


def methods(found: Predictions, by_family: dict[str, Constants], *, scheduled: bool) -> list[Method]:
    """Return all methods, with or without the schedule, with the constants of each family.

    A method without a band gets one of half width ``drift sqrt(ahead)``, fitted as that of our law.
    """
    prefix = "schedule: " if scheduled else "no schedule: "
    made = []
    for column in found.numbers:
        name = column.removeprefix(prefix)
        if column == name or name.startswith("law"):
            continue
        half = np.full(found["end"].size, math.nan)
        for family in found.families:
            mine = found.words["family"] == family
            others = found.where(~np.isnan(found[column]) & ~mine)
            half[mine] = constants.drift(others, others[column], np.zeros(others["end"].size))
        made.append(Method(name, found[column], half * np.sqrt(found["ahead"])))
    value, half = (np.full(found["end"].size, math.nan) for _ in range(2))
    for family, used in by_family.items():
        mine = found.words["family"] == family
        column = column_of_law(used.annealing if scheduled else None)
        value[mine] = constants.corrected(found, column, 0.0 if scheduled else used.decay)[mine]
        drift = (used.drift_scheduled if scheduled else used.drift) * np.sqrt(found["ahead"])
        drift *= found[f"{column}, identified"]
        half[mine] = np.hypot(constants.halves(found, column), drift)[mine]
    return [*made, Method("our law", value, half)]


def accuracy(title: str, found: Predictions, compared: list[Method], rows: Mask) -> None:
    """Print the errors of all methods, and the ratio of their median error to that of the paper's fit."""
    print(f"\n### {title}: {count(found, rows)}\n")
    lines = []
    (papers,) = (method for method in compared if method.name == "the paper's fit")
    for method in compared:
        cells = [method.name]
        for part in PARTS:
            here = rows & (found["part"] == part)
            signed, weight = (method.value - found["end"])[here], found.where(here).weight
            near, far = (quantile(np.abs(signed), weight, level) for level in (0.5, 0.9))
            cells.append(f"{near:.3f}, {far:.3f}, {sign(quantile(signed, weight, 0.5))}")
        here = rows & (found["part"] == EARLY)
        errors, theirs = (np.abs(each.value - found["end"])[here] for each in (method, papers))
        families = found.words["family"][here]

        def median(weight: Vector, errors: Vector = errors) -> float:
            return quantile(errors, weight, 0.5)

        def ratio(weight: Vector, errors: Vector = errors, theirs: Vector = theirs) -> float:
            return quantile(errors, weight, 0.5) / quantile(theirs, weight, 0.5)

        weight = found.where(here).weight
        low, high = interval(median, families, weight)
        cells.append(f"[{low:.3f}, {high:.3f}]")
        low, high = interval(ratio, families, weight)
        cells.append(f"{ratio(weight):.2f} [{low:.2f}, {high:.2f}]")
        lines.append(cells)
    early = f"first {EARLY:.0%}"
    print_table(["", *(f"first {part:.0%}" for part in PARTS), f"median, {early}", f"to the paper's, {early}"], lines)


def bands(title: str, found: Predictions, compared: list[Method], rows: Mask) -> None:
    """Print coverage, median width and mean interval score of the 90% bands."""
    print(f"\n### {title}\n")
    parts = [rows & (found["part"] == part) for part in PARTS]
    lines = [[method.name, *(band(found, method, here) for here in parts)] for method in compared]
    print_table(["coverage, width, interval score", *(f"first {part:.0%}" for part in PARTS)], lines)


def band(found: Predictions, method: Method, rows: Mask) -> str:
    """Return coverage, median width and mean interval score, the latter two in nats."""
    value, half, end = method.value[rows], method.half[rows], found["end"][rows]
    weight = found.where(rows).weight
    low, high = value * np.exp(-half), value * np.exp(half)
    inside = weight[(low <= end) & (end <= high)].sum() / weight.sum()
    score = high - low + OUTSIDE * (np.maximum(low - end, 0) + np.maximum(end - high, 0))
    return f"{inside:.0%}, {quantile(high - low, weight, 0.5):.3f}, {float(score @ weight / weight.sum()):.3f}"


def families(found: Predictions, plain: list[Method], scheduled: list[Method]) -> None:
    """Print the errors and bands of each family from the first 30%, predicted with constants of the others."""
    print(f"\n### Families, first {EARLY:.0%}\n")
    lines = []
    for family in found.families:
        rows = (found["part"] == EARLY) & (found.words["family"] == family)
        cells = [family, str(len(set(found.words["run"][rows])))]
        known = rows & ~np.isnan(found["schedule: the paper's fit"])
        for compared, names, here in (
            (plain, ("the paper's fit", "our law"), rows),
            (scheduled, ("the paper's fit", "Luo et al. (2025), published decay", "our law"), known),
        ):
            by_name = {method.name: method for method in compared}
            weight = found.where(here).weight
            for name in names:
                signed = (by_name[name].value - found["end"])[here]
                bias = f", {sign(quantile(signed, weight, 0.5))}" if name == "our law" else ""
                cells.append(f"{quantile(np.abs(signed), weight, 0.5):.3f}{bias}")
            cells.append(band(found, by_name["our law"], here))
        lines.append(cells)
    head = ["family", "runs", "unknown: paper's", "our law, bias", "coverage, width, score"]
    print_table([*head, "known: paper's", "Luo et al.", "our law, bias", "coverage, width, score"], lines)


def interval(statistic: Callable[[Vector], float], families: NDArray[np.str_], weight: Vector) -> tuple[float, float]:
    """Return the 5% and 95% quantiles of a statistic of the weights over resamples of the families."""
    names, index = np.unique(families, return_inverse=True)
    draw = np.random.default_rng(0)
    times = draw.multinomial(names.size, np.full(names.size, 1 / names.size), RESAMPLES)
    values = [statistic(weight * each[index]) for each in times]
    low, high = np.quantile(values, [0.05, 0.95])
    return float(low), float(high)


def count(found: Predictions, rows: Mask) -> str:
    """Return the number of runs and curves of the rows, in words."""
    runs = found.words["run"][rows].tolist()
    pairs = set(zip(runs, found.words["domain"][rows].tolist(), strict=True))
    return f"{len(set(runs))} runs, {len(pairs)} curves"


def sign(number: float) -> str:
    """Format a signed number with a minus sign of the same width as the plus.

    >>> sign(-0.0312), sign(0.5)
    ('\u22120.031', '+0.500')
    """
    return f"{number:+.3f}".replace("-", "\u2212")


def print_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a Markdown table."""
    cells = list(head)
    print("| " + " | ".join(cells) + " |")
    print("|" + "---|" * len(cells))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
