"""How well laws of mixtures predict runs they have not seen, on the public rows of RegMix (Liu et al. 2024).

The rows are 512 runs of 1M parameters to fit, and 256 runs of 1M, 256 of 60M and 64 of 1B parameters to predict, each
with 17 domains and 13 losses. A prediction counts by its rank correlation (Spearman, x 100) with the measured losses.

    git clone https://github.com/sail-sg/regmix
    python benches/mixture_search.py regmix --out docs/benchmarks/mixture_search.json

LightGBM, RegMix's own regression, takes part where it is installed (`pip install lightgbm`), with the settings of
RegMix's notebook, and 1,000 trees: the notebook stops earlier by the losses of the test rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from drpruning.files import write_text
from drpruning.swarm import Swarm, fit_law, read_swarm

SIZES = {"1M": "1m", "60M": "60m", "1B": "1B"}
KEY_TARGET = "pile_cc"
RUNS = (20, 32, 64, 128, 256, 512)
FORMS = ("effective-data", "log-linear", "linear", "lightgbm")
SUBSETS = 5
Predict = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a clone of sail-sg/regmix")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args()
    data = options.checkout / "data"
    swarm = read_swarm(data / "train_mixture_1m.csv", data / "train_pile_loss_1m.csv")
    tests = {
        size: read_swarm(data / f"test_mixture_{name}.csv", data / f"test_pile_loss_{name}.csv")
        for size, name in SIZES.items()
    }
    rows = []
    for runs in RUNS:
        for form in FORMS:
            repeats = 1 if runs == len(swarm) else SUBSETS
            measured = [measure(subset(swarm, runs, seed), form, tests) for seed in range(repeats)]
            if not all(measured):
                continue
            row = {"runs": runs, "form": form, "subsets": repeats}
            row |= {key: round(float(np.mean([each[key] for each in measured])), 3) for key in measured[0]}
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.out:
        machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
        body = json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n"
        write_text(options.out, body)


def subset(swarm: Swarm, runs: int, seed: int) -> Swarm:
    """Return ``runs`` runs drawn without replacement; all of them in their order if there are no more."""
    if runs == len(swarm):
        return swarm
    chosen = np.random.default_rng(seed).permutation(len(swarm))[:runs]
    return Swarm.of(swarm.domains, swarm.mixtures[chosen], swarm.targets, swarm.losses[chosen])


def measure(swarm: Swarm, form: str, tests: dict[str, Swarm]) -> dict[str, float]:
    """Return rank correlations by size, the processor seconds of the fit, and how good the mixture found is.

    ``chosen`` is the mean loss of the test run of 1B parameters that the law predicts to be best, less that of the
    best one: what trusting the law costs among mixtures that were really run.
    """
    started = time.process_time()
    predict = _fit(swarm, form)
    if predict is None:
        return {}
    found: dict[str, float] = {"cpu_seconds": time.process_time() - started}
    for size, test in tests.items():
        predicted = predict(test.mixtures)
        each = [
            100 * float(np.corrcoef(rankdata(predicted[:, target]), rankdata(test.losses[:, target]))[0, 1])
            for target in range(len(test.targets))
        ]
        found |= {
            f"mean_{size}": float(np.mean(each)),
            f"lowest_{size}": min(each),
            f"{KEY_TARGET}_{size}": each[test.targets.index(KEY_TARGET)],
        }
    largest = tests["1B"]
    means = largest.losses.mean(axis=1)
    found["chosen"] = float(means[int(predict(largest.mixtures).mean(axis=1).argmin())] - means.min())
    return found


def _fit(swarm: Swarm, form: str) -> Predict | None:
    if form != "lightgbm":
        return fit_law(swarm, form=form, resamples=0, folds=0).law.losses  # type: ignore[arg-type]
    try:
        import lightgbm
    except ImportError:
        return None
    settings: dict[str, Any] = {"objective": "regression", "n_estimators": 1000, "learning_rate": 0.01, "seed": 42}
    if len(swarm) < 40:
        settings["min_child_samples"] = 3  # with its default of 20, no tree splits
    models = [
        lightgbm.LGBMRegressor(**settings, verbosity=-1, n_jobs=1).fit(swarm.mixtures, swarm.losses[:, target])
        for target in range(len(swarm.targets))
    ]
    return lambda mixtures: np.column_stack([model.predict(mixtures) for model in models])


if __name__ == "__main__":
    main()
