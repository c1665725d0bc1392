"""Writes chi2.json: the chi-square ball solved with 80 decimal digits, by bisection only.

Run ``python tests/golden/make_chi2.py`` to write the file again. Nothing here is shared with the package: the
worst case is a bisection on the threshold, the projection a bisection on the multiplier inside one on the sum.
"""

import json
import random
from decimal import Decimal, getcontext
from pathlib import Path

getcontext().prec = 80
HALVINGS = 300
Numbers = list[Decimal]


def divergence(q: Numbers, p: Numbers) -> Decimal:
    return sum(pi * (qi / pi - 1) ** 2 for qi, pi in zip(q, p, strict=True)) / 2


def worst_case(v: Numbers, p: Numbers, rho: Decimal) -> Numbers:
    best = max(v)
    mass = sum(pi for pi, vi in zip(p, v, strict=True) if vi == best)
    face = [pi / mass if vi == best else Decimal(0) for pi, vi in zip(p, v, strict=True)]
    if divergence(face, p) <= rho or rho == 0:
        return face if rho > 0 or mass == 1 else p
    spread = best - min(v)

    def mixture(below: Decimal) -> Numbers:
        raised = [pi * max(vi - best + below, Decimal(0)) for pi, vi in zip(p, v, strict=True)]
        return [r / sum(raised) for r in raised]

    # The threshold is `below` the best loss, on a logarithmic scale
    low, high = spread * Decimal(10) ** -30, spread * Decimal(10) ** 30
    for _ in range(HALVINGS):
        middle = (low * high).sqrt()
        low, high = (middle, high) if divergence(mixture(middle), p) > rho else (low, middle)
    return mixture(high)


def project(y: Numbers, p: Numbers, rho: Decimal) -> Numbers:
    if rho == 0:
        return p

    def mixture(multiplier: Decimal) -> Numbers:
        low, high = min(y) - 2 - multiplier, max(y)
        for _ in range(HALVINGS):
            nu = (low + high) / 2
            total = sum(pi * max(yi - nu, Decimal(0)) / (pi + multiplier) for yi, pi in zip(y, p, strict=True))
            low, high = (nu, high) if total > 1 else (low, nu)
        raised = [pi * max(yi - high, Decimal(0)) / (pi + multiplier) for yi, pi in zip(y, p, strict=True)]
        return [r / sum(raised) for r in raised]

    if divergence(mixture(Decimal(0)), p) <= rho:
        return mixture(Decimal(0))
    low, high = Decimal(10) ** -30, Decimal(10) ** 30
    for _ in range(HALVINGS):
        middle = (low * high).sqrt()
        low, high = (middle, high) if divergence(mixture(middle), p) > rho else (low, middle)
    return mixture(high)


def case(problem: str, values: list[float], p: list[float], rho: float, floor: float) -> dict[str, object]:
    v, exact_p, f = [Decimal(x) for x in values], [Decimal(x) for x in p], Decimal(floor)
    exact_p = [pi / sum(exact_p) for pi in exact_p]
    radius = Decimal(rho) / (1 - f) ** 2
    if problem == "worst_case":
        u = worst_case(v, exact_p, radius)
    else:
        u = project([(vi - f * pi) / (1 - f) for vi, pi in zip(v, exact_p, strict=True)], exact_p, radius)
    q = [f * pi + (1 - f) * ui for pi, ui in zip(exact_p, u, strict=True)]
    found = {"weights": [float(x) for x in q], "divergence": float(divergence(q, exact_p))}
    return {"problem": problem, "values": values, "p": p, "rho": rho, "floor": floor} | found


def main() -> None:
    llama = [0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15]
    excess = [0.35, 0.12, 0.30, 0.25, 0.42, 0.18, 0.33]
    cases = [
        case("worst_case", values, p, rho, floor)
        for values, p, rho, floor in [
            (excess, llama, 0.1, 0.2),
            (excess, llama, 0.1, 0.0),
            ([-x for x in excess], llama, 0.1, 0.2),
            (excess, llama, 1e-12, 0.0),
            (excess, llama, 0.0, 0.0),
            (excess, llama, 30.0, 0.2),
            ([0.2] * 7, llama, 0.1, 0.0),
            ([0.1, 0.5, 0.5, 0.2], [0.4, 0.1, 0.3, 0.2], 0.05, 0.0),
            ([0.1, 0.5, 0.5, 0.2], [0.4, 0.1, 0.3, 0.2], 1.0, 0.0),
            ([0.0, 1e-9, -1e-9, 1.0], [0.5, 0.25, 0.25 - 1e-9, 1e-9], 1e3, 0.0),
            ([1e9 + 1, 1e9 + 2, 1e9 + 2.5], [0.5, 0.3, 0.2], 0.1, 0.0),
            ([2e200, -1e200, 1e200], [0.2, 0.3, 0.5], 0.02, 0.5),
            ([3.0], [1.0], 0.1, 0.0),
        ]
    ]
    cases += [
        case("project", values, p, rho, floor)
        for values, p, rho, floor in [
            ([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1], llama, 0.1, 0.2),
            ([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1], llama, 10.0, 0.0),
            ([1.5, -0.5, 0.0], [0.5, 0.25, 0.25], 10.0, 0.2),
            ([1.5, -0.5, 0.0], [0.5, 0.25, 0.25], 0.05, 0.2),
            (excess, llama, 1e-12, 0.0),
            ([1e9 + 1, 1e9 + 2, 1e9 + 2.5], [0.5, 0.3, 0.2], 0.1, 0.1),
        ]
    ]
    draw = random.Random(4)
    for problem in ["worst_case"] * 12 + ["project"] * 8:
        p = [draw.expovariate(1.0) for _ in range(draw.randint(2, 9))]
        values = [draw.gauss(0, 1) for _ in p]
        floor, rho = draw.choice([0.0, 0.2, 0.9]), 10.0 ** draw.randint(-6, 1)
        cases.append(case(problem, values, [x / sum(p) for x in p], rho, floor))
    lines = ",\n".join(json.dumps(each) for each in cases)
    Path(__file__).with_name("chi2.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
