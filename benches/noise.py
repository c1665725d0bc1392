"""What noise does to the worst case, with and without `noise=`: the table of docs/ball.md.

    python benches/noise.py [--ramp 0.25]

--ramp sets RAMP of drpruning.chi2: how far above the noise, in parts of it, a response is complete.
Seven domains with the shares of the 1.3B recipe, or even ones; standard errors of 0.04 nats, rho 0.1, floor 0.2.
"""

from __future__ import annotations

import argparse

import numpy as np

from drpruning import chi2

ERROR, RHO, FLOOR, DRAWS = 0.04, 0.1, 0.2, 400
SHARES = {"recipe": [0.67, 0.15, 0.045, 0.045, 0.045, 0.025, 0.02], "even": [1 / 7] * 7}
SIGNALS = {"none": (6, 0.0), "rarest +0.1": (6, 0.1), "rarest +0.3": (6, 0.3), "largest +0.1": (0, 0.1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ramp", type=float, default=chi2.RAMP)
    chi2.RAMP = parser.parse_args().ramp
    print("| shares | signal | standard errors that count | gain of that domain | scatter over draws |")
    print("|---|---|---|---|---|")
    for shares, p in ((name, np.array(values)) for name, values in SHARES.items()):
        draws = np.random.default_rng(0).normal(0, ERROR, (DRAWS, p.size))
        for signal, (domain, size) in SIGNALS.items():
            excess = draws + size * (np.arange(p.size) == domain)
            for multiple in (0, 1, 2, 3):
                answers = [chi2.worst_case(row, p, RHO, FLOOR, noise=multiple * ERROR).weights for row in excess]
                weights = np.array(answers)
                moved = np.abs(weights - weights.mean(0)).sum(1).mean()
                print(
                    f"| {shares} | {signal} | {multiple} | {weights[:, domain].mean() / p[domain]:.2f} | {moved:.3f} |"
                )


if __name__ == "__main__":
    main()
