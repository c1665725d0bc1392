"""The loss curves of a stage as strategies remember them, and the law of each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.reweight.observation import Observation, State
from drpruning.reweight.state import nullable
from drpruning.scaling import LearningRates, ScalingLaw, fit_scaling_law

Vector = NDArray[np.float64]


def no_curves() -> dict[str, Any]:
    """The part of a state that remembers curves, at the start of a stage."""
    return {"points": []}


def remember(state: State, observation: Observation, losses: Vector, collect_after: float) -> None:
    """Adds the losses to the curves, once the fraction ``collect_after`` of the stage is over.

    A stage that does not say how long it is (no ``final_tokens``) counts as far enough from its first token on.
    """
    tokens, final_tokens = observation.tokens, observation.final_tokens
    if tokens > 0 and (not final_tokens or tokens / final_tokens >= collect_after):
        state["points"].append([tokens, float(observation.params), nullable(losses)])


def fit_laws(state: State, min_points: int, learning_rates: LearningRates | None) -> list[ScalingLaw | None]:
    """The law of each domain, told the learning rates of the stage where they are known.

    None for a domain that has too few points or whose points identify no law.
    """
    laws: list[ScalingLaw | None] = []
    for d in range(len(state["domains"])):
        points = [(params, tokens, row[d]) for tokens, params, row in state["points"] if row[d] is not None]
        law = None
        if len(points) >= min_points:
            law = fit_scaling_law(*zip(*points, strict=True), learning_rates=learning_rates)
        laws.append(law if law is not None and law.status == "identified" else None)
    return laws
