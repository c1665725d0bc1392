"""The ball against 60 decimal digits: `python benches/chi2_accuracy.py [--large]`.

Prints the largest error of a weight and of each constraint, by size, over radii from 1e-12 to 1e6, reference weights
down to 1e-9 and floors up to 0.99. The reference for the worst case is the closed form on a sorted support; for the
projection it is Newton's method on the multiplier of the ball. Both are in Decimal and share nothing with the package.
"""

from __future__ import annotations

import argparse
from decimal import Decimal, getcontext

import numpy as np
from numpy.typing import NDArray

import drpruning as dp

getcontext().prec = 60
Numbers = list[Decimal]
ZERO, ONE, HALF = Decimal(0), Decimal(1), Decimal("0.5")


def exact_worst_case(v: Numbers, p: Numbers, rho: Decimal) -> Numbers:
    """Solve by the first top set of losses whose threshold is at or above the next loss."""
    order = sorted(range(len(v)), key=lambda i: -v[i])
    best = v[order[0]]
    mass = first = second = ZERO
    for k, i in enumerate(order):
        mass, first, second = mass + p[i], first + p[i] * (v[i] - best), second + p[i] * (v[i] - best) ** 2
        after = v[order[k + 1]] - best if k + 1 < len(order) else None
        if after is not None and after == v[i] - best:
            continue  # ties enter together
        mean = first / mass
        variance, room = second / mass - mean**2, 2 * rho * mass - (ONE - mass)
        if v[i] == best:
            if room >= 0:  # the face
                return [pj / mass if vj == best else ZERO for pj, vj in zip(p, v, strict=True)]
            continue
        if room <= 0:
            continue
        spread = (variance / room).sqrt()
        if after is None or mean - spread >= after:
            t = [(vj - best - mean) / spread for vj in v]
            return [pj / mass * max(1 + tj, ZERO) for pj, tj in zip(p, t, strict=True)]
    raise AssertionError("no support fits")


def exact_projection(z: Numbers, p: Numbers, rho: Decimal, start: float) -> Numbers:
    """Newton's method on the multiplier of the ball, from a start near it, with the threshold from a scan."""
    order = sorted(range(len(z)), key=lambda i: -z[i])

    def at(multiplier: Decimal) -> tuple[Numbers, Decimal, Decimal]:
        total = weighted = ZERO
        for k, i in enumerate(order):
            share = p[i] / (p[i] + multiplier)
            total, weighted = total + share, weighted + share * z[i]
            threshold = (weighted - ONE) / total
            if k + 1 == len(order) or z[order[k + 1]] <= threshold:
                break
        u = [pi * max(zi - threshold, ZERO) / (pi + multiplier) for zi, pi in zip(z, p, strict=True)]
        inside = [(pi, ui / pi - 1) for ui, pi in zip(u, p, strict=True) if ui > 0]
        slopes = [(pi / (pi + multiplier), t) for pi, t in inside]
        middle = sum(s * t for s, t in slopes) / total
        decrease = sum(s * (t - middle) ** 2 for s, t in slopes)
        return u, HALF * sum((ui - pi) ** 2 / pi for ui, pi in zip(u, p, strict=True)), decrease

    u, divergence, _ = at(ZERO)
    if divergence <= rho:
        return u
    multiplier = Decimal(start)
    for _ in range(30):
        u, divergence, decrease = at(multiplier)
        if abs(divergence - rho) <= rho * Decimal("1e-35"):
            return u
        multiplier += 2 * divergence / decrease * ((divergence / rho).sqrt() - 1)
    raise AssertionError("the reference did not converge")


def errors(problem: str, values: NDArray[np.float64], p: NDArray[np.float64], rho: float, floor: float) -> list[float]:
    """Largest error of a weight; of the sum; of the divergence over the larger of rho and one; below the floor."""
    found = (dp.worst_case if problem == "worst_case" else dp.project)(values, p, rho, floor)
    exact_p = [Decimal(x) for x in p.tolist()]
    total, f = sum(exact_p), Decimal(floor)
    exact_p, v = [x / total for x in exact_p], [Decimal(x) for x in values.tolist()]
    radius = Decimal(rho) / (1 - f) ** 2
    if problem == "worst_case":
        u = exact_worst_case(v, exact_p, radius)
    else:
        z = [(vi - f * pi) / (1 - f) for vi, pi in zip(v, exact_p, strict=True)]
        # With u for q, the multiplier is that of the floor-free problem
        u = exact_projection(z, exact_p, radius, found.ball_multiplier)
    q = [Decimal(x) for x in found.weights.tolist()]
    exact_q = [f * pi + (1 - f) * ui for ui, pi in zip(u, exact_p, strict=True)]
    divergence = HALF * sum((qi - pi) ** 2 / pi for qi, pi in zip(q, exact_p, strict=True))
    below = max(f * pi - qi for qi, pi in zip(q, exact_p, strict=True))
    return [
        float(max(abs(a - b) for a, b in zip(q, exact_q, strict=True))),
        float(abs(sum(q) - 1)),
        float(max(divergence - Decimal(rho), ZERO) / max(Decimal(rho), ONE)),
        float(max(below, ZERO)),
    ]


def problem(draw: np.random.Generator, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw losses of one of several kinds, and a mixture of one of several skews with entries above about 1e-9."""
    p = draw.dirichlet(np.full(n, draw.choice([0.05, 0.3, 1.0, 10.0]))) + 1e-9
    p /= p.sum()
    kinds = [draw.normal(size=n), 3 + 1e-3 * draw.normal(size=n), draw.pareto(1.5, size=n), draw.integers(0, 4, n) / 2]
    return kinds[draw.integers(len(kinds))].astype(np.float64), p


def main() -> None:
    """Run all cases and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--large", action="store_true", help="one case of 10^5 and 10^6 entries as well (minutes)")
    sizes = {2: 200, 7: 400, 100: 100, 1000: 20}
    if arguments.parse_args().large:
        sizes |= {100_000: 2, 1_000_000: 1}
    print(
        "| problem | n | cases | error of q | of the sum | of the ball | of the floor |\n|---|---|---|---|---|---|---|"
    )
    for which in ("worst_case", "project"):
        for n, cases in sizes.items():
            if which == "project" and n > 100_000:
                continue
            draw = np.random.default_rng(n)
            worst = [0.0] * 4
            for _ in range(cases):
                values, p = problem(draw, n)
                if which == "project":
                    values = p * (1 + values)
                large = n > 1000
                rho = 0.1 if large else 10.0 ** draw.uniform(-12, 6)
                floor = float(draw.choice([0.0, 0.2, 0.99]))
                worst = list(np.maximum(worst, errors(which, values, p, rho, floor)))
            print(f"| `{which}` | {n} | {cases} | " + " | ".join(f"{x:.1e}" for x in worst) + " |", flush=True)


if __name__ == "__main__":
    main()
