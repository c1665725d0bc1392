"""Predict finished models from other sizes of their family: `python benches/scaling_backtest/sizes.py [CURVES]`.

Families are the OLMo ladder at each length of training (0.5 to 10 times Chinchilla's, 3 or 4 sizes, 11 domains) and the
runs of Luo et al. (25M, 100M, 400M) at one schedule. Every one, two or three sizes predict each of the others.
"""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import curves
import numpy as np

from drpruning.scaling import fit_size_law

Model = tuple[float, float]
"""Parameters and final loss."""
FAMILY = re.compile(r"(olmo|mpl)_\d+[MB]_(.*xC|cosine_24000|wsd_20000_24000)")


def main() -> None:
    packed = Path(__file__).with_name("curves.json.gz")
    families: dict[tuple[str, str], list[Model]] = defaultdict(list)
    for curve in curves.read(Path(sys.argv[1]) if len(sys.argv) > 1 else packed):
        if match := FAMILY.fullmatch(curve.run):
            finite = curve.losses[np.isfinite(curve.losses)]
            families["_".join(match.groups()), curve.domain].append((float(curve.params[-1]), float(finite[-1])))
    found: dict[tuple[int, str], list[tuple[float, float, bool]]] = defaultdict(list)
    for models in families.values():
        for known, (size, loss) in _splits(sorted(models)):
            law = fit_size_law([P for P, _ in known], [seen for _, seen in known])
            value, low, high = law.predict(size)
            distance = min(abs(math.log(P / size)) for P, _ in known)
            place = "smaller" if size < known[0][0] else "larger" if size > known[-1][0] else "between"
            found[len(known), place].append(
                (abs(value - loss), abs(math.log(value / loss)) / distance, low <= loss <= high)
            )
    print("| sizes | the model predicted is | predictions | error, nats | per unit of log P | inside the band |")
    print("|---|---|---|---|---|---|")
    for (sizes, place), rows in sorted(found.items()):
        errors, rates, inside = np.array(rows).T
        near, far = np.quantile(errors, [0.5, 0.9])
        rate = np.quantile(rates, 0.9)
        print(f"| {sizes} | {place} | {len(rows)} | {near:.3f}, {far:.3f} | {rate:.3f} | {inside.mean():.0%} |")


def _splits(models: list[Model]) -> Iterator[tuple[list[Model], Model]]:
    """Yield one to three models of a family, and another one to predict."""
    for count in (1, 2, 3):
        for known in combinations(models, count):
            for other in models:
                if other not in known:
                    yield list(known), other


if __name__ == "__main__":
    main()
