"""The loss curves of a stage in the state of a strategy, and the scaling law of each."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.mixture.observation import Observation, State
from drpruning.mixture.settings import setting
from drpruning.mixture.strategy import nullable
from drpruning.scaling import LawStatus, LearningRates, ScalingLaw, fit_scaling_law
from drpruning.scaling.published import predict_published

Vector = NDArray[np.float64]

collect_after = partial(
    setting,
    description="Fraction of the stage after which losses are collected for the scaling law. If the length of the "
    "stage is unknown, all losses are collected.",
    ge=0.0,
    le=1.0,
)
needed_points = partial(setting, description="Number of losses that a fit of the scaling law needs.", ge=4)


def no_curves() -> dict[str, Any]:
    """Return the entries of a state that store curves, at the start of a stage."""
    return {"points": []}


def remember(
    state: State, observation: Observation, losses: Vector, collect_after_fraction: float, *, consumed: bool = False
) -> None:
    """Add the losses to the curves, once the fraction ``collect_after_fraction`` of the stage is over.

    With ``consumed`` each point has the tokens of each domain as well, if the observation has them. In a stage of
    unknown length (no ``final_tokens``) all losses are added.
    """
    tokens, final_tokens = observation.tokens, observation.final_tokens
    if tokens > 0 and (not final_tokens or tokens / final_tokens >= collect_after_fraction):
        point: list[Any] = [tokens, float(observation.params), nullable(losses)]
        if consumed:
            used = observation.consumed or {}
            point.append([float(used.get(domain, 0)) or None for domain in state["domains"]])
        state["points"].append(point)


def fit_laws(state: State, min_points: int, learning_rates: LearningRates | None) -> list[ScalingLaw | None]:
    """Fit a law to the curve of each domain, with the learning rates of the stage if they are known.

    None for a domain that has too few points or whose points identify no law.
    """
    laws: list[ScalingLaw | None] = []
    for d in range(len(state["domains"])):
        points = [(params, tokens, row[d]) for tokens, params, row, *_ in state["points"] if row[d] is not None]
        law = None
        if len(points) >= min_points:
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
        for tokens, params, losses, *rest in state["points"]:
            own = rest[0][d] if rest and rest[0][d] is not None else tokens
            if losses[d] is not None:
                points.append((params, own, losses[d]))
        if len(points) >= min_points:
            final = points[-1][1] / progress
            predicted[d] = predict_published(*zip(*points, strict=True), final_params=final_params, final_tokens=final)
    return predicted
