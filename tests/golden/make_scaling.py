"""Writes scaling.json: curves and their best laws, found by scipy from many starts, without our code.

Run it again only when the problem changes: `python tests/golden/make_scaling.py`.
"""

import json
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

HUBER = 1e-3
BOUNDS = [(None, None), (0, 1), (0, 3), (0, 3)]


def best(x: np.ndarray, t: np.ndarray, y: np.ndarray, learn_alpha: bool, draw: np.random.Generator) -> list[float]:
    """`[u, w, alpha, beta, F]` of rust/core/src/scaling.rs."""

    def objective(theta: np.ndarray) -> float:
        u, w, alpha, beta = np.clip(theta, [-np.inf, 0, 0, 0], [np.inf, 1, 3, 3])
        r = np.abs(u + np.log1p(w * np.expm1(-alpha * learn_alpha * (x - x.min()) - beta * (t - t.min()))) - y)
        return float(np.where(r <= HUBER, r * r / 2, HUBER * (r - HUBER / 2)).sum())

    found = []
    for _ in range(60):
        start = np.array([y.max(), draw.uniform(0.1, 1), draw.uniform(0, 1) * learn_alpha, draw.uniform(0.02, 1.5)])
        fit = minimize(objective, start, method="Nelder-Mead", bounds=BOUNDS, options={"maxiter": 4000, "fatol": 1e-18})
        found.append(fit)
    fit = min(found, key=lambda fit: float(fit.fun))
    for _ in range(6):
        fit = minimize(
            objective,
            fit.x,
            method="Nelder-Mead",
            bounds=BOUNDS,
            options={"maxiter": 9000, "xatol": 1e-14, "fatol": 1e-20},
        )
    u, w, alpha, beta = fit.x
    return [float(v) for v in (u, w, alpha * learn_alpha, beta, fit.fun)]


def main() -> None:
    draw = np.random.default_rng(20)
    cases = []
    for points, beta, E, noise, learn_alpha in [
        (8, 0.3, 1.5, 3e-3, False),
        (12, 0.5, 0.0, 1e-2, False),
        (24, 0.2, 2.0, 5e-4, False),
        (40, 0.8, 1.0, 5e-3, False),
        (20, 0.4, 1.0, 2e-3, True),
        (30, 0.25, 1.5, 5e-3, True),
    ]:
        t = np.log(np.arange(1.0, points + 1))
        x = np.log(np.linspace(1.0, 0.5, points)) if learn_alpha else np.zeros(points)
        y = np.log(np.exp(-0.3 * x - beta * t) + E) + noise * draw.normal(size=points)
        x, t, y = (values.round(6) for values in (x, t, y))
        law = best(x, t, y, learn_alpha, draw)
        cases.append({"x": x.tolist(), "t": t.tolist(), "y": y.tolist(), "learn_alpha": learn_alpha, "law": law})
    path = Path(__file__).with_name("scaling.json")
    path.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
