"""Error of predicting the end of real loss curves from their beginning: `python benches/scaling_backtest [CURVES]`.

CURVES is a folder with `manifest.json` and one CSV per run, or a packed file written by `pack.py`; by default the
curves in this folder. Prints Markdown tables: for each predictor and each fraction of the curve, the median and the
90th percentile of the absolute error in nats; for the law also the share of ends inside its 90% band. Every run counts
once, whatever its number of domains. Held-out runs took no part in any choice of settings; `--chosen-on` and
`--held-out` print one half.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import curves
import numpy as np
import predictors
from curves import Curve
from numpy.typing import NDArray
from predictors import Prediction, Predictor

Vector = NDArray[np.float64]

PARTS = (0.2, 0.3, 0.5, 0.7)
METHODS: dict[str, Predictor] = {
    "last value": predictors.last_value,
    "running minimum": predictors.running_minimum,
    "power law without E": predictors.without_floor,
    "the paper's way": predictors.papers_way,
    "our law": predictors.our_law,
    "our law, learning rates where known": predictors.our_law_with_schedule,
}


@dataclass(frozen=True)
class Outcome:
    """Error of one method on one curve, seen up to one fraction."""

    error: float
    inside: bool
    banded: bool
    identified: bool
    seconds: float


def outcome(method: Predictor, curve: Curve, part: float) -> Outcome:
    """Predict the end of the curve. An exception and a non-finite value are failures: infinite error."""
    seen, end = predictors.beginning(curve, part), float(curve.losses[-1])
    started = time.perf_counter()
    try:
        prediction = method(seen)
    except Exception as error:  # any exception counts as a failure
        print(f"{curve.run}, {curve.domain}, first {part:.0%}: {error!r}", file=sys.stderr)
        prediction = Prediction(math.nan)
    return Outcome(
        error=abs(prediction.value - end) if math.isfinite(prediction.value) else math.inf,
        inside=prediction.low <= end <= prediction.high,
        banded=math.isfinite(prediction.low + prediction.high),
        identified=prediction.identified,
        seconds=time.perf_counter() - started,
    )


def quantile(values: Vector, weight: Vector, level: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weight[order]) / weight.sum()
    return float(values[order][np.searchsorted(reached, level - 1e-12)])


def row(outcomes: list[list[Outcome]], weight: Vector) -> str:
    """Return a row of the table; ``outcomes`` by part, then by curve."""
    cells = []
    for each in outcomes:
        errors = np.array([one.error for one in each])
        cell = f"{quantile(errors, weight, 0.5):.3f}, {quantile(errors, weight, 0.9):.3f}"
        if all(one.banded for one in each):
            cell += f" ({weight[[one.inside for one in each]].sum() / weight.sum():.0%})"
        cells.append(cell)
    every = [one for each in outcomes for one in each]
    cells.append(str(sum(math.isinf(one.error) for one in every)))
    cells.append(str(sum(not one.identified for one in every)))
    cells.append(f"{1e3 * float(np.median([one.seconds for one in every])):.2f}")
    return " | ".join(cells)


def tables(title: str, chosen: list[Curve]) -> None:
    """Print a table of all curves, and one of those with known learning rates."""
    outcomes = {
        name: [[outcome(method, curve, part) for curve in chosen] for part in PARTS] for name, method in METHODS.items()
    }
    runs = [curve.run for curve in chosen]
    weight = np.array([1 / runs.count(name) for name in runs])  # every run counts once
    known = [i for i, curve in enumerate(chosen) if curve.rates is not None]
    for subset, words in ((list(range(len(chosen))), ""), (known, ", learning rates known")):
        print(f"\n### {title}{words}: {len({runs[i] for i in subset})} runs, {len(subset)} curves\n")
        print("| | " + " | ".join(f"first {part:.0%}" for part in PARTS) + " | failures | no law | ms per fit |")
        print("|---|" + "---|" * (len(PARTS) + 3))
        for name, by_part in outcomes.items():
            print(f"| {name} | {row([[each[i] for i in subset] for each in by_part], weight[subset])} |", flush=True)


def main() -> None:
    warnings.simplefilter("error")
    paths = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    path = paths[0] if paths else Path(__file__).with_name("curves.json.gz")
    found = curves.read(path)
    print(f"{path.name}: {len({curve.run for curve in found})} runs, {len(found)} curves.")
    print("Median and 90th percentile of |predicted end - end| in nats; in brackets, ends inside the 90% band.")
    for held_out, title, word in ((False, "Chosen on", "--held-out"), (True, "Held out", "--chosen-on")):
        if word not in sys.argv:
            tables(title, [curve for curve in found if curve.held_out == held_out])


if __name__ == "__main__":
    main()
