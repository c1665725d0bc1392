"""The law as the paper's public code fits it, for reproducing published runs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drpruning.errors import WeightError
from drpruning.scaling.fit import HUBER, SAME_SIZE

Vector = NDArray[np.float64]

# The starts, and how many of the best fits are averaged: DRO_server.py of hexuandeng/DRPruning at ac442bb
_LOG_A, _LOG_E, _BETA, _ALPHA = (0.0, 10.0, 20.0), (0.0, 1.0), (0.0, 0.5, 1.0), (0.0, -0.5)
_AVERAGED = 3
_SEARCH: Any = {"maxiter": 60, "ftol": 1e-14, "gtol": 1e-9}
_FINISH: Any = {"maxiter": 500, "ftol": 1e-14, "gtol": 1e-9}
_NEWEST = 64
"""Points that are kept: the public code forgets one of the oldest 32 at random once it has more."""


def predict_published(
    params: ArrayLike, tokens: ArrayLike, losses: ArrayLike, *, final_params: float, final_tokens: float
) -> float:
    """Predict a domain's loss at the end of a stage as the public code of DRPruning does.

    Minimises the mean Huber loss (1e-3) of ``A P^-alpha T^-beta + E - loss`` from 18 starts (36 where ``P`` varies), in
    ``log A`` and ``log E``, so that both are positive; exponents are free. The prediction is the mean of those of the
    three best fits, each at most the lowest loss seen and at least zero. There is no test whether the points identify a
    law, and no band. :func:`drpruning.fit_scaling_law` differs in all of this.

    Three differences remain. The public code's L-BFGS computes in float32, here in float64. While pruning it has the
    expected sparsity in place of ``P``. Of more than 64 points it forgets old ones at random, here the
    newest 64 are used.

    Args:
        params: Parameters in use at each point, ``[n]``.
        tokens: Tokens of this domain trained on at each point, ``[n]``, positive.
        losses: Held-out loss at each point, nats per token, ``[n]``.
        final_params: Parameters in use at the end.
        final_tokens: Tokens of this domain at the end; the public code extrapolates them from the tokens so far.

    Raises:
        WeightError: The arguments differ in length, or are not positive and finite.

    Example:
        >>> T = np.arange(1, 21) * 1e6
        >>> loss = 2.0 + 30 * T**-0.25
        >>> round(predict_published([1e8] * 20, T, loss, final_params=1e8, final_tokens=1e8), 3)  # the law's is 2.3
        2.3
    """
    from scipy.optimize import minimize  # noqa: PLC0415 - only published runs need it

    P, T, y = (np.asarray(values, dtype=np.float64)[-_NEWEST:] for values in (params, tokens, losses))
    if y.ndim != 1 or y.size == 0 or P.shape != y.shape or T.shape != y.shape:
        raise WeightError(f"params, tokens and losses have shapes {P.shape}, {T.shape} and {y.shape}; want one [n]")
    ends = np.array([final_params, final_tokens])
    if not all(np.isfinite(values).all() and (values > 0).all() for values in (P, T, ends)) or not np.isfinite(y).all():
        raise WeightError("params and tokens must be positive and finite, and losses finite")
    x, t = np.log(P), np.log(T)
    learns_alpha = float(np.ptp(x)) > SAME_SIZE

    def objective(theta: Vector) -> tuple[float, Vector]:
        log_a, log_e, beta, alpha = theta
        power = np.exp(np.minimum(log_a - beta * t - alpha * x, 700.0))
        low = math.exp(min(log_e, 700.0))
        residual = power + low - y
        size = np.abs(residual)
        value = np.where(size <= HUBER, 0.5 * size**2, HUBER * (size - 0.5 * HUBER)).mean()
        slope = np.clip(residual, -HUBER, HUBER) / y.size
        gradient = [slope @ power, slope.sum() * low, -slope @ (power * t), -slope @ (power * x) * learns_alpha]
        return float(value) / HUBER, np.array(gradient) / HUBER  # of order one, where the stopping rules look

    def fit(start: Vector, options: Any) -> Any:
        return minimize(objective, start, jac=True, method="L-BFGS-B", options=options)

    starts = itertools.product(_LOG_A, _LOG_E, _BETA, _ALPHA if learns_alpha else (0.0,))
    with np.errstate(over="ignore"):  # some starts are far off; the line search comes back
        fits = [fit(np.array(start), _SEARCH) for start in starts]
    fits = sorted((found for found in fits if np.isfinite(found.fun)), key=lambda found: float(found.fun))
    predictions = []
    for found in fits[:_AVERAGED]:
        with np.errstate(over="ignore"):
            log_a, log_e, beta, alpha = fit(found.x, _FINISH).x
        power = math.exp(min(log_a - beta * math.log(final_tokens) - alpha * math.log(final_params), 700.0))
        predictions.append(max(0.0, min(power + math.exp(min(log_e, 700.0)), float(y.min()))))
    return float(np.mean(predictions)) if predictions else float(y.min())
