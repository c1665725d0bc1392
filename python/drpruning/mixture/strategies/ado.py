"""Adaptive data optimisation: the share of a domain follows the learning speed of its scaling law."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from drpruning.mixture.bounds import UNBOUNDED, Bounds
from drpruning.mixture.curves import CURVES, collect_after, fit_laws, needed_points, no_curves, remember
from drpruning.mixture.observation import Observation, State, UpdateStatus
from drpruning.mixture.settings import FRACTION, documented, setting
from drpruning.mixture.state_schema import MIXTURE, STEPS, Entries
from drpruning.mixture.strategy import Decision, Evaluation, RuleStrategy

Vector = NDArray[np.float64]


@documented
@dataclass(frozen=True, kw_only=True)
class ADO(RuleStrategy):
    """Adaptive data optimisation (Jiang et al. 2024, algorithm 1), with the constants of its public code.

    Each domain has a law of its held-out loss over the tokens ``n`` of the stage, ``L(n) = A n^-beta + E``, and
    with it a learning speed ``-dL/dn = beta (L(n) - E) / n``. With the prior ``mu`` (the reference ratio) and the
    credit ``h`` (how much of the recent data came from the domain), the preference is ::

        rho_d  ~  mu_d h_d^credit_power beta_d (L_d(n) - E_d) / n        made at least min_preference, and to sum to one
        w      =  inertia mean + (1 - inertia) rho                      mean: of rho over the steps so far

    A fast learner is sampled more *if* its own data is what it learns from: that is the credit. In contrast to the
    robust strategies, a domain that does not improve loses its share.

    What is simplified: laws are fitted to held-out losses (the paper: smoothed training losses) with this package's
    fit, after every evaluation; ``rho`` does not change until the next one, so that mean and credit, which the paper
    moves every step, move here by the steps in between, in closed form. Exponents are not raised to at least 0.05.

    Until there is a law, the weights stay, and the mean counts these steps with the weights they had. A domain without
    a law (too few points, a curve that does not fall, as while units are pruned), or whose loss is missing, NaN or
    infinite, keeps its share in ``rho``; the others divide the rest. Reference losses only appear as excess loss in the
    updates.
    """

    name: ClassVar[str] = "ado"
    state_entries: ClassVar[Entries] = {**CURVES, "credit": MIXTURE, "mean": MIXTURE, "step": STEPS}
    credit_power: float = setting(0.5, "Exponent of the share of recent data in a domain's learning speed.", **FRACTION)
    credit_decay: float = setting(0.9, "Factor by which the credit of a step decays in the next step.", **FRACTION)
    inertia: float = setting(0.9, "Weight of the mean over time in the mixture.", **FRACTION)
    min_preference: float = setting(0.01, "Smallest preference of a domain.", **FRACTION)
    collect_after_fraction: float = collect_after(0.02)
    min_points: int = needed_points(10)
    bounds: Bounds = UNBOUNDED

    def stage_state(self, state: State) -> State:
        """Return empty curves and an empty mean; the credit stays."""
        return no_curves() | {
            "credit": state.get("credit", list(state["weights"])),
            "mean": list(state["weights"]),
            "step": 0,
        }

    def rule(self, evaluation: Evaluation) -> Decision:
        """Return the mean of the preferences, with the newest one."""
        state, observation, losses = evaluation.state, evaluation.observation, evaluation.losses
        reference = evaluation.given_reference
        remember(state, observation, losses, self.collect_after_fraction)
        weights, mean = evaluation.weights, np.array(state["mean"])
        elapsed = max(0, observation.step - state["step"])
        state["step"] += elapsed
        kept = self.credit_decay**elapsed
        credit = kept * np.array(state["credit"]) + (1 - kept) * weights
        state["credit"] = credit.tolist()

        speed = self._speed(state, observation)
        known = evaluation.known & np.isfinite(speed)
        preferred = evaluation.ratio * credit**self.credit_power * speed
        with np.errstate(over="ignore"):
            total = preferred[known].sum()
        if 0 < total < math.inf:
            rho = weights.copy()
            rho[known] = weights[known].sum() * at_least(preferred[known] / total, self.min_preference)
            rho /= rho.sum()
            chosen = self.inertia * mean + (1 - self.inertia) * rho
            status = UpdateStatus.LEARNING_SPEED if known.all() else UpdateStatus.INCOMPLETE
        else:
            rho = chosen = weights
            status = UpdateStatus.WAITING if evaluation.known.any() else UpdateStatus.UNCHANGED
        if state["step"]:
            state["mean"] = (mean + elapsed / state["step"] * (rho - mean)).tolist()
        return Decision(status, reference, chosen)

    def _speed(self, state: State, observation: Observation) -> Vector:
        """Return ``beta (L(n) - E)`` of each domain, nats; NaN where there is no law. The ``1 / n`` is common to all.

        With learning rates ``L(n)`` is the loss without their bend: what a falling rate adds to the speed is in no
        proportion to what the domain's data adds.
        """
        speed = np.full(len(state["domains"]), np.nan)
        rates, tokens = observation.learning_rates, observation.tokens
        bend = 1.0 if rates is None else float(rates.bend(tokens))
        for d, law in enumerate(fit_laws(state, self.min_points, rates)):
            if law is not None and tokens > 0:
                speed[d] = law.beta * max(0.0, law.predict(observation.params, tokens)[0] / bend - law.E)
        return speed


def at_least(mixture: Vector, least: float) -> Vector:
    """Return the mixture with each share raised to ``least``, divided by its sum (``clip_min_probability``).

    Example:
        >>> at_least(np.array([0.995, 0.005]), 0.01).round(6).tolist()
        [0.99005, 0.00995]
    """
    raised = np.maximum(mixture, least)
    return np.asarray(raised / raised.sum())
