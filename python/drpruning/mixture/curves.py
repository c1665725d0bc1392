"""The loss curves of a stage in the state of a strategy, and the scaling law of each.

A curve has at most :data:`MOST_POINTS` points, however many evaluations a stage has. A point of the state is
``[tokens, parameters, losses, evaluations]``: the mean of that number of consecutive evaluations. When there would be
more points, neighbours are merged in pairs, so almost all points are means of the same number of evaluations: they
remain evenly spaced and equally noisy, as the fit and its noise estimate assume. Newer evaluations are merged like a
binary counter; the last few points are means of fewer, and the last one is the newest evaluation itself or contains it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.mixture.observation import Observation, State
from drpruning.mixture.settings import setting
from drpruning.mixture.state_schema import Entry, ListOf, is_count, is_list, is_losses, is_number
from drpruning.mixture.strategy import nullable
from drpruning.scaling import LawStatus, LearningRates, ScalingLaw, fit_scaling_law
from drpruning.scaling.published import predict_published

Vector = NDArray[np.float64]

TINY = float(np.finfo(np.float64).tiny)

collect_after = partial(
    setting,
    description="Fraction of the stage after which losses are collected for the scaling law. If the length of the "
    "stage is unknown, all losses are collected.",
    ge=0.0,
    le=1.0,
)
needed_points = partial(setting, description="Number of losses that a fit of the scaling law needs.", ge=4)


MOST_POINTS = 512
"""Twice the evaluations of a long stage. A fit to it takes some milliseconds, and a state of ten domains 100 kB."""


def is_point(value: Any, state: State) -> bool:
    """Return whether ``value`` is a point of a state: see the module; consumed tokens by domain may follow."""
    if not (is_list(value, length=4) or is_list(value, length=5)):
        return False
    tokens, params, losses, evaluations, *rest = value
    return (
        is_number(tokens, TINY)
        and is_number(params, TINY)
        and is_losses(losses, state)
        and is_count(evaluations, 1)
        and all(
            is_list(used, length=len(state["domains"])) and all(each is None or is_number(each, TINY) for each in used)
            for used in rest
        )
    )


CURVES = {
    "points": ListOf(
        Entry("[tokens > 0, parameters > 0, {n} losses or null, evaluations >= 1]", is_point), most=MOST_POINTS
    )
}
"""The entries of a state that :func:`no_curves` creates."""


def no_curves() -> dict[str, Any]:
    """Return the entries of a state that store curves, at the start of a stage."""
    return {"points": []}


def remember(
    state: State, observation: Observation, losses: Vector, collect_after_fraction: float, *, consumed: bool = False
) -> None:
    """Add the losses to the curves, once the fraction ``collect_after_fraction`` of the stage is over.

    With ``consumed`` each point has the tokens of each domain as well, if the observation has them; these curves forget
    the oldest points instead of merging them, as the public code does. In a stage of unknown length (no
    ``final_tokens``) all losses are added.
    """
    tokens, final_tokens = observation.tokens, observation.final_tokens
    if tokens > 0 and (not final_tokens or tokens / final_tokens >= collect_after_fraction):
        point: list[Any] = [tokens, float(observation.params), nullable(losses), 1]
        points = state["points"]
        points.append(point)
        if consumed:
            used = observation.consumed or {}
            point.append([float(used.get(domain, 0)) or None for domain in state["domains"]])
            state["points"] = points[-MOST_POINTS:]
        else:
            merge_points(points, MOST_POINTS)


def merge_points(points: list[list[Any]], most: int) -> None:
    """Merge points after one was added, in place, so that there are at most ``most``, at least 4; see the module."""
    size = points[0][3]
    while len(points) > 1 and points[-2][3] == points[-1][3] < size:
        points[-2:] = [mean_point(*points[-2:])]
    if len(points) > most:
        whole = sum(point[3] == size for point in points)
        pairs = max(1, whole // 2)
        points[: 2 * pairs] = [mean_point(*points[2 * k : 2 * k + 2]) for k in range(pairs)]


def mean_point(first: list[Any], second: list[Any]) -> list[Any]:
    """Return the mean of two points, weighted by their evaluations; a loss that one of them lacks is the other's."""
    evaluations = first[3] + second[3]
    share: float = second[3] / evaluations

    def mean(low: float, high: float) -> float:
        return low + share * (high - low)

    losses = [
        high if low is None else low if high is None else mean(low, high)
        for low, high in zip(first[2], second[2], strict=True)
    ]
    return [mean(first[0], second[0]), mean(first[1], second[1]), losses, evaluations]


def fit_laws(state: State, min_points: int, learning_rates: LearningRates | None) -> list[ScalingLaw | None]:
    """Fit a law to the curve of each domain, with the learning rates of the stage if they are known.

    None for a domain that has too few losses or whose points identify no law.
    """
    laws: list[ScalingLaw | None] = []
    for d in range(len(state["domains"])):
        points = [(params, tokens, row[d]) for tokens, params, row, *_ in state["points"] if row[d] is not None]
        measured = sum(evaluations for _, _, row, evaluations, *_ in state["points"] if row[d] is not None)
        law = None
        if measured >= min_points:
            law = fit_scaling_law(*zip(*points, strict=True), learning_rates=learning_rates)
        laws.append(law if law is not None and law.status == LawStatus.IDENTIFIED else None)
    return laws


def predict_published_losses(state: State, min_points: int, final_params: float, progress: float) -> Vector:
    """Return the losses at the end of the stage as the public code predicts them, ``[n]``; NaN with too few points.

    The law runs over a domain's own tokens where the points have them, else over those of the stage. Its tokens at the
    end are those so far divided by ``progress``, the fraction of the stage that is over.
    """
    predicted = np.full(len(state["domains"]), np.nan)
    for d in range(predicted.size):
        points = []
        for tokens, params, losses, _, *rest in state["points"]:
            own = rest[0][d] if rest and rest[0][d] is not None else tokens
            if losses[d] is not None:
                points.append((params, own, losses[d]))
        if len(points) >= min_points:
            final = points[-1][1] / progress
            predicted[d] = predict_published(*zip(*points, strict=True), final_params=final_params, final_tokens=final)
    return predicted
