"""Every strategy in a world where the right mixture is known: how far the worst domain ends from the best possible.

    python -m benches.strategies [--evaluations 25 100]

Three domains follow ``loss_d = E_d + A_d tokens_d^-b_d`` in their own tokens (tests/mixture/world.py). A figure is the
largest excess over ``E`` at the end, divided by the least that any mixture can reach: 1 is perfect. Last, for the
rightmost run, the means of the excess, plain and weighted with the reference ratio, divided by the constant mixture's.
"""

from __future__ import annotations

import argparse

import numpy as np
from tests.mixture.world import World

from drpruning.mixture import (
    ADO,
    ODM,
    Aioli,
    ChiSquareDRO,
    Constant,
    CVaR,
    DoReMi,
    DRPruning,
    GroupDRO,
    ShearedLoading,
    Strategy,
)

STRATEGIES: dict[str, Strategy] = {
    "constant": Constant(),
    "sheared": ShearedLoading(),
    "group_dro": GroupDRO(),
    "group_dro, eta 0.1": GroupDRO(eta=0.1),
    "cvar": CVaR(),
    "cvar, alpha 0.05, floor 0": CVaR(alpha=0.05, floor=0.0),
    "chi_square": ChiSquareDRO(),
    "chi_square, rho 1": ChiSquareDRO(rho=1.0),
    "chi_square, rho inf, floor 0": ChiSquareDRO(rho=np.inf, floor=0.0),
    "drpruning": DRPruning(),
    "drpruning, predictions replace": DRPruning(predictions="replace"),
    "drpruning, ratio_bound 2": DRPruning(ratio_bound=2.0),
    "drpruning, no predictions": DRPruning(predict_after_fraction=1.0),
    "drpruning, delta 0.2, no predictions": DRPruning(delta=0.2, predict_after_fraction=1.0),
    "ado": ADO(min_points=5),
    "doremi": DoReMi(),
    "odm": ODM(),
    "odm, published": ODM.published(),
    "aioli": Aioli(),
    "aioli, eta 10": Aioli(eta=10.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[25, 100])
    counts = parser.parse_args().evaluations
    world = World()
    least, mixture = world.minimax()
    shares = ", ".join(f"{share:.2f} {domain}" for domain, share in zip(world.domains, mixture, strict=True))
    print(f"least possible largest excess {least:.4f} nats, at {shares}\n")
    columns = [(count, given) for given in (False, True) for count in counts]
    heads = [f"{count}, {'E given' if given else 'nothing'}" for count, given in columns]
    print("| strategy | " + " | ".join([*heads, "mean", "weighted mean"]) + " |")
    print("|---" * (len(columns) + 3) + "|")
    constant = world.excess(world.run(Constant())[0])
    for name, strategy in STRATEGIES.items():
        row = []
        for count, given in columns:
            consumed, _ = world.run(strategy, count, reference_loss=world.named(world.E) if given else None)
            excess = world.excess(consumed)
            row.append(f"{excess.max() / least:.2f}")
        row.append(f"{excess.mean() / constant.mean():.2f}")
        row.append(f"{excess @ world.ratio / (constant @ world.ratio):.2f}")
        print(f"| {name} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
