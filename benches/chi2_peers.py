"""Compare the chi-square ball with other solvers, in one process: `python benches/chi2_peers.py [--large]`.

Normal losses, an exponential mixture, rho 0.1, no floor. Prints the median time of a call, its ratio to sorting the
losses, and the largest difference to the weights of drpruning, which `chi2_accuracy.py` compares with 60 digits.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import cvxpy
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

import drpruning as dp

Vector = NDArray[np.float64]
RHO = 0.1


def drpruning(v: Vector, p: Vector) -> Vector:
    return dp.worst_case(v, p, RHO).weights


def bisection(v: Vector, p: Vector) -> Vector:
    """Halve the interval of the threshold until float64 has no number between."""
    low, high = v.max() - 10 * np.ptp(v), v.max()
    for _ in range(60):
        eta = 0.5 * (low + high)
        u = p * np.maximum(v - eta, 0)
        u /= u.sum()
        low, high = (low, eta) if 0.5 * ((u - p) ** 2 / p).sum() > RHO else (eta, high)
    return u


def sorting(v: Vector, p: Vector) -> Vector:
    """Sort, form prefix sums, and apply the closed form on the first support that fits."""
    order = np.argsort(-v)
    x, w = v[order] - p @ v, p[order]
    mass, first, second = np.cumsum(w), np.cumsum(w * x), np.cumsum(w * x * x)
    mean = first / mass
    room = 2 * RHO * mass - (1 - mass)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt((second / mass - mean**2) / room)
        fits = (room > 0) & (mean - spread >= np.append(x[1:], -np.inf))
    k = int(np.argmax(fits))
    return p / mass[k] * np.maximum(1 + (v - p @ v - mean[k]) / spread[k], 0)


def slsqp(v: Vector, p: Vector) -> Vector:
    ball = {
        "type": "ineq",
        "fun": lambda q: RHO - 0.5 * ((q - p) ** 2 / p).sum(),
        "jac": lambda q: -(q - p) / p,
    }
    simplex = {"type": "eq", "fun": lambda q: q.sum() - 1, "jac": np.ones_like}
    options = {"ftol": 1e-12, "maxiter": 1000}
    found = minimize(
        lambda q: -(q @ v),
        p,
        jac=lambda _: -v,
        bounds=[(0, None)] * p.size,
        constraints=[ball, simplex],
        method="SLSQP",
        options=options,
    )
    return np.asarray(found.x)


def clarabel(v: Vector, p: Vector) -> Vector:
    q = cvxpy.Variable(p.size)
    ball = cvxpy.sum_squares(cvxpy.multiply(1 / np.sqrt(p), q - p)) <= 2 * RHO
    cvxpy.Problem(cvxpy.Maximize(v @ q), [q >= 0, cvxpy.sum(q) == 1, ball]).solve(solver=cvxpy.CLARABEL)
    return np.asarray(q.value)


def median(call: Callable[[], object], seconds: float = 1.0) -> float:
    """Measure the median time of 3 to 300 calls, after a warm-up call."""
    call()
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < seconds and len(taken) < 300):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--large", action="store_true", help="Clarabel at 10^5 entries as well (half a minute)")
    limits = {
        "`worst_case`": (drpruning, 10**6),
        "scipy SLSQP": (slsqp, 7),
        "cvxpy and Clarabel": (clarabel, 10**5 if arguments.parse_args().large else 1000),
        "NumPy bisection": (bisection, 10**6),
        "NumPy sort and closed form": (sorting, 10**6),
        "`np.sort` of the losses": (None, 10**6),
    }
    print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}\n")
    print("| n | solver | time of a call | of `np.sort` | largest difference of a weight |\n|---|---|---|---|---|")
    for n in (7, 1000, 100_000, 1_000_000):
        draw = np.random.default_rng(n)
        v, p = draw.normal(size=n), draw.dirichlet(np.ones(n))
        reference, yardstick = drpruning(v, p), median(lambda v=v: np.sort(v))
        for name, (solve, limit) in limits.items():
            if n > limit:
                continue
            taken = yardstick if solve is None else median(lambda s=solve, v=v, p=p: s(v, p))
            difference = "" if solve is None else f"{np.abs(solve(v, p) - reference).max():.1e}"
            print(f"| {n} | {name} | {1e6 * taken:.3g} us | {taken / yardstick:.2f} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
