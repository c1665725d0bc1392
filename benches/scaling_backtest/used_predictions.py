"""When DRPruning uses a prediction on real runs: `python benches/scaling_backtest/used_predictions.py [CURVES]`.

Replays the curves with known learning rates and at least 40 points through the rule of DRPruning (ten points, from 2%
of the run on; half width of the band within `max_band`), with and without the learning rates. Prints a
Markdown table: the part of the run at which a domain is first used; at half of the run the error of the newest
prediction, and of the reference loss, which is the lowest prediction used so far; and of how many runs there is
one. Errors are absolute, in nats, against the end reached; a run counts as the mean of its domains, and the figures are
the median and the 90th percentile over runs.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from multiprocessing import Pool
from pathlib import Path

import curves
import numpy as np
from curves import Curve

from drpruning import DRPruning, fit_scaling_law

LEAST_POINTS = 40
HALF = 0.5
SETTINGS = [
    DRPruning(),
    DRPruning(predict_after_fraction=0.3),
    DRPruning(max_band=0.15),
    DRPruning(max_band=0.1),
]


def predictions(curve: Curve, with_rates: bool) -> list[tuple[float, float, float]]:
    """Part of the run, prediction of its end and half width of the band, after each point up to the end."""
    learning_rates = curve.learning_rates if with_rates else None
    least, found = DRPruning(), []
    parts = curve.steps / curve.steps[-1]
    kept = parts >= least.collect_after_fraction
    for k in np.flatnonzero(parts >= least.predict_after_fraction).tolist():
        seen = np.flatnonzero(kept[: k + 1])
        if seen.size < least.min_points:
            continue
        columns = (curve.params[seen], curve.steps[seen], curve.losses[seen])
        law = fit_scaling_law(*columns, learning_rates=learning_rates)
        if law.status == "identified":
            value, low, high = law.predict(float(curve.params[-1]), float(curve.steps[-1]))
            found.append((float(parts[k]), value, (high - low) / 2))
    return found


def spread(values: dict[str, list[float]], digits: int) -> str:
    """Median and 90th percentile over runs."""
    means = [float(np.mean(each)) for each in values.values()]
    return f"{np.median(means):.{digits}f}, {np.quantile(means, 0.9):.{digits}f}"


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("curves.json.gz")
    known = [curve for curve in curves.read(path) if curve.rates is not None and curve.steps.size >= LEAST_POINTS]
    print(f"{len({curve.run for curve in known})} runs, {len(known)} curves\n")
    print(
        "| learning rates | max_band | predict_after_fraction | first used | newest at half | reference at half "
        "| runs |"
    )
    print("|---|---|---|---|---|---|---|")
    for with_rates in (False, True):
        with Pool() as pool:
            made = pool.starmap(predictions, [(curve, with_rates) for curve in known], chunksize=4)
        for strategy in SETTINGS:
            first, newest, lowest = (defaultdict(list) for _ in range(3))
            for curve, each in zip(known, made, strict=True):
                used = [
                    (part, value)
                    for part, value, half in each
                    if part >= strategy.predict_after_fraction and half <= strategy.max_band
                ]
                first[curve.run].append(used[0][0] if used else 1.0)
                early = [value for part, value in used if part <= HALF]
                if early:
                    newest[curve.run].append(abs(early[-1] - curve.losses[-1]))
                    lowest[curve.run].append(abs(min(early) - curve.losses[-1]))
            cells = [
                "known" if with_rates else "unknown",
                f"{strategy.max_band:g}",
                f"{strategy.predict_after_fraction:g}",
            ]
            cells += [spread(first, 2), spread(newest, 3), spread(lowest, 3), str(len(newest))]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
