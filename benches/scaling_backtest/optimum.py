"""Check that the fit is the global optimum, and measure its cost: `python benches/scaling_backtest/optimum.py [SETS]`.

Draws SETS (10,000) synthetic curves: 5 to 64 points, exponents 0 to 1.5, noise from none to 5%, outliers, bends. For
each, the objective of the fit is compared with the smallest on a grid of 1,000 exponents, level and share being optimal
at each (for a hundredth of the sets the parameter count varies too, and the grid has 25 x 100 exponents). Then 7
domains of 64 points are fitted by us and by L-BFGS from 36 starts, in turn; times are those of the processor.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import predictors
from numpy.typing import NDArray
from predictors import Seen

from drpruning import _native
from drpruning.scaling import fit_scaling_laws
from drpruning.scaling.fit import HUBER

Vector = NDArray[np.float64]

BETAS = np.append(np.geomspace(1e-3, 3, 1000)[:-1], 3.0)
COARSE_BETAS = BETAS[::10]
ALPHAS = np.append(0.0, np.append(np.geomspace(0.02, 3, 24)[:-1], 3.0))
WITHIN = 1e-9
ROUNDING = 1e-16
PAIRS = 9


def synthetic(draw: np.random.Generator, *, sizes: bool) -> tuple[Vector, Vector, Vector]:
    """Draw a curve: logarithms of parameters, tokens and losses."""
    points = int(draw.choice([5, 8, 12, 20, 32, 64]))
    evenly = draw.random() < 0.7
    T = np.cumsum(draw.uniform(0.5, 1.5, points)) if evenly else np.geomspace(1, 10 ** draw.uniform(0.5, 4), points)
    beta = 0.0 if draw.random() < 0.05 else draw.uniform(0.02, 1.5)
    E = 0.0 if draw.random() < 0.15 else draw.uniform(0.5, 3)
    x = np.linspace(draw.uniform(0.1, 1), 0, points) if sizes else np.zeros(points)
    loss = np.exp(draw.uniform(-2, 2) - draw.uniform(0, 0.6) * x) * (T / T[0]) ** -beta + E
    loss *= np.exp(draw.choice([0, 1e-4, 1e-3, 3e-3, 1e-2, 5e-2]) * draw.normal(size=points))
    if draw.random() < 0.2:
        loss[draw.integers(points)] *= draw.uniform(0.5, 2)
    if draw.random() < 0.15:
        loss *= 1 - 0.05 * np.clip(2 * T / T[-1] - 1, 0, 1)
    return x, np.log(T), np.log(loss)


def excess(x: Vector, t: Vector, y: Vector, *, sizes: bool) -> float:
    """Return the relative excess of the fit's objective over the grid's smallest; 0 if it is not above."""
    *_, ours = _native.fit_law(x, t, y, HUBER, sizes)
    exponents = [(a, b) for a in ALPHAS for b in COARSE_BETAS] if sizes else [(0.0, b) for b in BETAS]
    grid = min(_native.profile_law(x, t, y, HUBER, a, b)[4] for a, b in exponents)
    return 0.0 if ours <= grid + ROUNDING else ours / grid - 1


def check(count: int) -> None:
    draw = np.random.default_rng(0)
    for sizes, sets in ((False, count), (True, max(count // 100, 1))):
        above = [excess(*synthetic(draw, sizes=sizes), sizes=sizes) for _ in range(sets)]
        what = "varying P" if sizes else "constant P"
        print(
            f"{what}: {sum(e > WITHIN for e in above)} of {sets} sets above the grid by 1e-9; largest {max(above):.1e}"
        )


def cost() -> None:
    draw = np.random.default_rng(1)
    T = 1e6 * np.arange(1.0, 65.0)
    P = np.full(64, 1e8)
    losses = (2 + 30 * T[:, None] ** -0.25) * np.exp(0.005 * draw.normal(size=(64, 7)))
    ours, theirs = [], []
    for _ in range(PAIRS):
        started = time.process_time()
        fit_scaling_laws(P, T, losses)
        ours.append(time.process_time() - started)
        started = time.process_time()
        for column in losses.T:
            predictors.papers_way(Seen(P, T, column, 1e8, 1e8, None))
        theirs.append(time.process_time() - started)
    ratio = np.quantile(np.array(ours) / theirs, [0.25, 0.5, 0.75])
    print(f"7 domains of 64 points: {1e3 * np.median(ours):.1f} ms, L-BFGS from 36 starts {np.median(theirs):.2f} s")
    print(f"time of ours / L-BFGS: {ratio[1]:.4f} ({ratio[0]:.4f} to {ratio[2]:.4f})")


if __name__ == "__main__":
    check(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    cost()
