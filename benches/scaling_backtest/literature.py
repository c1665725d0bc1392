"""The laws of the literature in their own setting: `python benches/scaling_backtest/literature.py`.

Luo et al. (2025) fit their law to three schedules of one model and predict the others. The packed curves have this for
the 100M model: cosine, constant and a step of the rate (24,000 and 16,000 steps) predict a constant rate for 72,000
steps, two decays at the end, and a larger step. Prints the errors over whole curves, next to those that the README of
thu-yao-01-luo/MultiPowerLaw reports for its six test curves of that model.
"""

from __future__ import annotations

from pathlib import Path

import annealing_laws
import curves
import numpy as np
from annealing_laws import MultiPower, Steps, Tissue

FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
PREDICTED = ("constant_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3")
LAWS = {"Tissue et al. (2024)": Tissue(), "Luo et al. (2025)": MultiPower()}
REPORTED = (0.00435, 0.9983)
"""Mean absolute error and R^2 that the README reports for 100M, over cosine_72000 and wsdcon_18 as well."""


def errors(name: str, *, decay_known: bool = False) -> tuple[float, float]:
    """Return the mean absolute error in nats and the R^2 of the predicted curves, averaged over the curves."""
    law = LAWS[name]
    found = {curve.run: curve for curve in curves.read(Path(__file__).with_name("curves.json.gz"))}

    def run(schedule: str) -> tuple[Steps, annealing_laws.Vector]:
        curve = found[f"mpl_100M_{schedule}"]
        assert curve.learning_rates is not None
        return Steps.of(curve.learning_rates, curve.steps), curve.losses

    fitted = annealing_laws.fit(law, [run(schedule) for schedule in FITTED], decay_known=decay_known)
    absolute, explained = [], []
    for at, losses in map(run, PREDICTED):
        off = annealing_laws.predict(law, fitted, at) - losses
        absolute.append(np.abs(off).mean())
        explained.append(1 - (off @ off) / ((losses - losses.mean()) @ (losses - losses.mean())))
    return float(np.mean(absolute)), float(np.mean(explained))


def main() -> None:
    print("\n### Laws of the literature in their own setting\n\n| law | mean absolute error | R^2 |\n|---|---|---|")
    for name in LAWS:
        fixed = "decay of 0.13 nats" if name.startswith("Tissue") else "published decay"
        for decay_known, words in ((False, "all fitted"), (True, fixed)):
            error, explained = errors(name, decay_known=decay_known)
            print(f"| {name}, {words} | {error:.4f} | {explained:.4f} |", flush=True)
    print(f"| Luo et al. (2025), as their README reports for six curves | {REPORTED[0]:.4f} | {REPORTED[1]:.4f} |")


if __name__ == "__main__":
    main()
