"""How well the end of a real loss curve is told from its beginning: `python benches/scaling_backtest [CURVES]`.

CURVES is a folder with `manifest.json` and one CSV a run, or a packed file as `pack.py` writes it; by default the
curves beside this file. Prints Markdown tables: for each way to predict and each part of the curve seen, the median and
the 90th percentile of the absolute error in nats; for the law also the share of ends inside its 90% band. Every run
counts once, however many domains it has. The runs kept aside took no part in any choice; `--chosen-on` leaves them out.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import curves
import numpy as np
import predictors
from curves import Curve
from numpy.typing import NDArray
from predictors import Predictor, Told

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


@dataclass
class Outcome:
    """What one method told of one set of curves, seen up to one part; vectors run over the curves."""

    errors: list[float] = field(default_factory=list)
    inside: list[bool] = field(default_factory=list)
    banded: bool = True
    failures: int = 0
    unidentified: int = 0
    seconds: list[float] = field(default_factory=list)


def run(method: Predictor, chosen: list[Curve], part: float) -> Outcome:
    """Predicts the end of every curve. A raised exception and a value that is not finite count as failures."""
    outcome = Outcome()
    for curve in chosen:
        seen, end = predictors.beginning(curve, part), float(curve.losses[-1])
        started = time.perf_counter()
        try:
            told = method(seen)
        except Exception as error:
            print(f"{curve.run}, {curve.domain}, first {part:.0%}: {error!r}", file=sys.stderr)
            told = Told(math.nan)
        outcome.seconds.append(time.perf_counter() - started)
        outcome.failures += not math.isfinite(told.value)
        outcome.unidentified += not told.identified
        outcome.errors.append(abs(told.value - end) if math.isfinite(told.value) else math.inf)
        outcome.banded &= math.isfinite(told.low + told.high)
        outcome.inside.append(told.low <= end <= told.high)
    return outcome


def weights(chosen: list[Curve]) -> Vector:
    """One for each run, shared by its curves."""
    names = [curve.run for curve in chosen]
    return np.array([1 / names.count(name) for name in names])


def quantile(values: list[float], weight: Vector, level: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weight[order]) / weight.sum()
    return float(np.array(values)[order][np.searchsorted(reached, level - 1e-12)])


def table(title: str, chosen: list[Curve], methods: dict[str, Predictor]) -> None:
    weight = weights(chosen)
    print(f"\n### {title}: {len({curve.run for curve in chosen})} runs, {len(chosen)} curves\n")
    print("| | " + " | ".join(f"first {part:.0%}" for part in PARTS) + " | failures | no law | ms a fit |")
    print("|---|" + "---|" * (len(PARTS) + 3))
    for name, method in methods.items():
        outcomes = [run(method, chosen, part) for part in PARTS]
        cells = []
        for outcome in outcomes:
            cell = f"{quantile(outcome.errors, weight, 0.5):.3f}, {quantile(outcome.errors, weight, 0.9):.3f}"
            if outcome.banded:
                cell += f" ({weight[outcome.inside].sum() / weight.sum():.0%})"
            cells.append(cell)
        taken = 1e3 * float(np.median([second for outcome in outcomes for second in outcome.seconds]))
        failures, unidentified = (sum(getattr(o, what) for o in outcomes) for what in ("failures", "unidentified"))
        print(f"| {name} | {' | '.join(cells)} | {failures} | {unidentified} | {taken:.2f} |", flush=True)


def main() -> None:
    warnings.simplefilter("error")
    paths = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    path = paths[0] if paths else Path(__file__).with_name("curves.json.gz")
    found = curves.read(path)
    print(f"{path.name}: {len({curve.run for curve in found})} runs, {len(found)} curves.")
    print("Median and 90th percentile of |predicted end - end| in nats; in brackets, ends inside the 90% band.")
    for aside, title in ((False, "Chosen on"), (True, "Kept aside")):
        if "--chosen-on" in sys.argv and aside:
            continue
        chosen = [curve for curve in found if curve.kept_aside == aside]
        table(title, chosen, METHODS)
        known = [curve for curve in chosen if curve.rates is not None]
        table(f"{title}, learning rates known", known, dict(list(METHODS.items())[3:]))


if __name__ == "__main__":
    main()
