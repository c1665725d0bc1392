"""How well laws of mixtures predict runs they have not seen, on two public sets of runs.

RegMix (Liu et al. 2024): 512 runs of 1M parameters to fit, and 256 runs of 1M, 256 of 60M and 64 of 1B parameters to
predict, each with 17 domains and 13 losses. Data Mixing Laws (Ye et al. 2024): 20 to 42 runs each of 70M to 410M
parameters on 7 or 5 domains with 22 losses, predicted by leaving one run out. A prediction counts by its rank
correlation (Spearman, x 100) with the measured losses, averaged over the losses.

    git clone https://github.com/sail-sg/regmix
    git clone https://github.com/yegcjs/mixinglaws
    python benches/mixture_search.py --regmix regmix --mixinglaws mixinglaws --out benches/mixture_search.json

LightGBM, RegMix's own regression, takes part where it is installed (`pip install lightgbm`), with the settings of
RegMix's notebook and 1,000 trees. (The notebook stops early by the losses of the test rows.)
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
MIXING_LAWS_FILES = tuple(
    f"{data}/{size}" for data in ("RedPajama", "5Mix") for size in ("70M", "160M", "305M", "410M")
)
Predict = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regmix", type=Path, help="a clone of sail-sg/regmix")
    parser.add_argument("--mixinglaws", type=Path, help="a clone of yegcjs/mixinglaws")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    }
    if options.regmix:
        found["regmix"] = regmix(options.regmix / "data")
    if options.mixinglaws:
        found["mixinglaws"] = mixinglaws(options.mixinglaws / "data")
    if options.out:
        write_text(options.out, json.dumps(found, indent=1) + "\n")


def regmix(data: Path) -> list[dict[str, Any]]:
    """Fit on 1M runs, all and random subsets; predict the test runs of three sizes."""
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
    return rows


def mixinglaws(data: Path) -> list[dict[str, Any]]:
    """Predict each run by a law of the others."""
    rows = []
    for name in MIXING_LAWS_FILES:
        swarm = read_mixinglaws(data / f"{name}.txt")
        for form in FORMS[:3]:
            fit = fit_law(swarm, form=form, resamples=0, folds=len(swarm))  # type: ignore[arg-type]
            row = {
                "file": name,
                "runs": len(swarm),
                "form": form,
                "rank_correlation": round(100 * float(fit.rank_correlation.mean()), 1),
                "explained_median": round(float(np.median(fit.explained)), 3),
                "error_median": round(float(np.median(fit.error)), 4),
                "error_mean": round(float(fit.error.mean()), 4),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def read_mixinglaws(path: Path, step: int = 30_000) -> Swarm:
    """Read the losses after ``step`` steps: lines of model path (it ends in shares and step), data path and loss."""
    losses: dict[tuple[float, ...], dict[str, float]] = {}
    for line in path.read_text().splitlines():
        model, text, loss = line.split("\t")
        run, at = model.split("/")[-2:]
        if at == str(step):
            mixture = tuple(float(share) for share in run.split("_")[-1].split("-")[1:])
            losses.setdefault(mixture, {})[text.rsplit(".", 2)[-2]] = float(loss)
    most = max(len(each) for each in losses.values())
    runs = [mixture for mixture, each in losses.items() if len(each) == most]
    targets = sorted(losses[runs[0]])
    domains = [f"domain {number}" for number in range(len(runs[0]))]
    return Swarm.of(domains, runs, targets, [[losses[run][target] for target in targets] for run in runs])


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
