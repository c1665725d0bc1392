"""The law as the paper's public code fits it, for reproducing published runs. Needs torch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from drpruning.errors import WeightError
from drpruning.scaling.fit import HUBER, SAME_SIZE

# Starts, iterations and the number of fits that are averaged: DRO_server.py of hexuandeng/DRPruning at ac442bb
_LOG_A, _LOG_E, _BETA, _ALPHA = (0.0, 10.0, 20.0), (0.0, 1.0), (0.0, 0.5, 1.0), (0.0, -0.5)
_SEARCH, _FINISH = 10, 25  # calls of L-BFGS, each of up to 20 iterations
_AVERAGED = 3
_NEWEST = 64  # points that are kept


def predict_published(
    params: ArrayLike, tokens: ArrayLike, losses: ArrayLike, *, final_params: float, final_tokens: float
) -> float:
    """Predict a domain's loss at the end of a stage as the public code of DRPruning does.

    Minimises the mean Huber loss (1e-3) of ``A P^-alpha T^-beta + E - loss`` over ``log A``, ``log E`` and the
    exponents by torch's L-BFGS in float32 from 18 starts (36 where ``P`` varies by more than 1%). The prediction is the
    mean of those of the three best fits, each at most the lowest loss seen and at least zero. There is no band, and no
    test whether the points identify a law.

    The fits do not converge: they have no line search and compute in float32. The answer differs from that of an exact
    fit by up to 0.2 nats on points without noise, and it can differ between processors.
    :func:`drpruning.fit_scaling_law` is the fit to use; this one exists for comparison with published runs.

    Two differences remain. While pruning the public code has the expected sparsity in place of ``P``. Of more than 64
    points it forgets old ones at random, here the newest 64 are used.

    Args:
        params: Parameters in use at each point, ``[n]``.
        tokens: Tokens of this domain trained on at each point, ``[n]``, positive.
        losses: Held-out loss at each point, nats per token, ``[n]``.
        final_params: Parameters in use at the end.
        final_tokens: Tokens of this domain at the end; the public code extrapolates them from the tokens so far.

    Raises:
        WeightError: The arguments differ in length, or are not positive and finite.
    """
    import torch  # noqa: PLC0415 - the package's small install has no torch

    P, T, y = (np.asarray(values, dtype=np.float64)[-_NEWEST:] for values in (params, tokens, losses))
    if y.ndim != 1 or y.size == 0 or P.shape != y.shape or T.shape != y.shape:
        raise WeightError(f"params, tokens and losses have shapes {P.shape}, {T.shape} and {y.shape}; expected one [n]")
    ends = np.array([final_tokens, final_params])
    if not all(np.isfinite(values).all() and (values > 0).all() for values in (P, T, ends)) or not np.isfinite(y).all():
        raise WeightError("params and tokens must be positive and finite, and losses finite")
    learns_alpha = float(np.ptp(np.log(P))) > SAME_SIZE
    rows = [T, P] if learns_alpha else [T]
    logs = torch.tensor(np.array(rows), dtype=torch.float32).log()
    final = torch.tensor(ends[: len(rows), None], dtype=torch.float32).log()
    target = torch.tensor(y, dtype=torch.float32)
    huber = torch.nn.HuberLoss(delta=HUBER)

    def law(theta: Any, at: Any) -> Any:
        return torch.exp(theta[0] - (theta[2:, None] * at).sum(0)) + torch.exp(theta[1])

    def fit(start: tuple[float, ...], calls: int) -> tuple[float, Any]:
        """Return the objective before the last step, as the public code does, and the parameters."""
        theta = torch.tensor(start, dtype=torch.float32, requires_grad=True)
        optimizer = torch.optim.LBFGS([theta], lr=1, max_iter=20)

        def closure() -> Any:
            optimizer.zero_grad()
            objective = huber(law(theta, logs), target)
            objective.backward()
            return objective

        for _ in range(calls):
            objective = optimizer.step(closure)
        return float(objective.detach()), theta.detach()

    starts = list(itertools.product(_LOG_A, _LOG_E, _BETA, *([_ALPHA] if learns_alpha else [])))
    with torch.enable_grad():
        found = [(fit(start, _SEARCH)[0], number) for number, start in enumerate(starts)]
        ranked = sorted(each for each in found if not math.isnan(each[0]))
        best = [fit(starts[number], _FINISH)[1] for _, number in ranked[:_AVERAGED]]
    lowest = float(target.min())
    values = [max(min(float(law(theta, final)), lowest), 0.0) for theta in best if not bool(theta.isnan().any())]
    return float(np.mean(values)) if values else lowest
