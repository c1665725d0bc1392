"""Aioli: probes measure how training on each domain changes the loss of every domain, and the weights follow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import ConfigError
from drpruning.mixture.bounds import UNBOUNDED, Bounds
from drpruning.mixture.observation import Observation, State, UpdateStatus
from drpruning.mixture.settings import FRACTION, documented, setting
from drpruning.mixture.state_schema import (
    COUNT,
    MIXTURE,
    STEPS,
    Entries,
    Entry,
    ListOf,
    is_count,
    is_list,
    is_losses,
    is_number,
    is_vector,
)
from drpruning.mixture.strategies.exponentiated import step_size
from drpruning.mixture.strategy import Decision, Evaluation, RuleStrategy, nullable, vector

Vector = NDArray[np.float64]

count = partial(setting, ge=1)


MOST_PROBES = 10_000
"""Of a round."""


def is_matrix(value: Any, state: State) -> bool:
    """Return whether ``value`` has a row of numbers for each domain."""
    return is_list(value, length=len(state["domains"])) and all(is_vector(row, state) for row in value)


def is_falls(value: Any, state: State) -> bool:
    """Return whether ``value`` has a number or null for each domain."""
    return is_list(value, length=len(state["domains"])) and all(fall is None or is_number(fall) for fall in value)


@documented
@dataclass(frozen=True, kw_only=True)
class Aioli(RuleStrategy):
    """Aioli (Chen et al. 2024, algorithm 1): exponentiated weights on a measured interaction matrix.

    The mixing law is linear, ``L_i(next) = L_i - sum_j A_ij w_j``: entry ``A_ij`` is the fall of the loss of domain i
    by training on domain j. A round is ::

        LearnParams     `sweeps` times, for each domain j in random order: train `probe_steps` steps on the mixture with
                        the share `probe_share` for j and equal shares for the others; measure all losses
        A      =        the least-squares solution of  (falls of the losses) = (mixtures) A^T
        A     <-        (A - min(A, 0)) / sum of all entries
        A_ema <-        (1 - ema) A + ema A_ema
        w_j    ~        exp(eta sum_i A_ema_ij)     until the next round

    Probes are ordinary training steps of the run, followed by an evaluation each; the status of their updates is
    ``probing``. A round starts at the first evaluation after ``round_fraction`` of the stage since the start of the
    round before, unless the stage ends within its probes.

    The weights approach the even mixture for small ``eta``, not the reference ratio: the paper minimises the plain mean
    of the losses, and as its matrix sums to one, no weight exceeds ``exp(eta)`` times another. With ``cumulative`` the
    exponentials multiply the weights of the round before, as in the public code (HazyResearch/aioli at a236112) without
    ``--ema``; set ``ema=0`` too. The defaults are those of its script for seven domains, but for ``probe_steps`` (10
    there) and ``round_fraction`` (0.005 there, in stages of 40,000 steps).

    A domain whose loss is missing at an end of a probe has no part in that equation, and one without any equation none
    in the sum over i. Reference losses only appear as excess loss in the updates. A stage starts without a matrix.
    """

    name: ClassVar[str] = "aioli"
    state_entries: ClassVar[Entries] = {
        "mixture": MIXTURE,
        "round": COUNT,
        "next_round": STEPS,
        "matrix": Entry(
            "{n} rows of {n} numbers, or null", lambda value, state: value is None or is_matrix(value, state)
        ),
        "order": Entry(
            "a list of numbers of domains",
            lambda value, state: is_list(value) and all(is_count(d) and d < len(state["domains"]) for d in value),
        ),
        "probe_end": Entry("an integer >= 0, or null", lambda value, _: value is None or is_count(value)),
        "losses": Entry(
            "{n} losses or null; none without a probe",
            lambda value, state: is_losses(value, state) if state["probe_end"] is not None else value == [],
        ),
        "mixtures": ListOf(MIXTURE, most=MOST_PROBES),
        "falls": ListOf(Entry("{n} numbers or null", is_falls), most=MOST_PROBES),
    }
    eta: float = step_size(1.0)
    ema: float = setting(0.1, "Weight of earlier rounds in the interaction matrix.", ge=0.0, lt=1.0)
    cumulative: bool = setting(
        False, "Whether the exponentials multiply the weights of the round before, instead of the even mixture."
    )
    round_fraction: float = setting(
        0.1, "Fraction of the stage between the starts of two rounds of probes.", **FRACTION
    )
    sweeps: int = count(2, "Probes of each domain in a round.")
    probe_steps: int = count(4, "Optimizer steps of a probe.")
    probe_share: float = setting(0.75, "Share of the probed domain in the mixture of its probe.", gt=0.0, le=1.0)
    bounds: Bounds = UNBOUNDED

    def stage_state(self, state: State) -> State:
        """Return a state without a matrix and without a probe; a probe in progress ends with its round."""
        weights = state["weights"] if state.get("probe_end") is None else state["mixture"]
        return {
            "weights": list(weights),
            "mixture": list(weights),  # in use before the round in progress
            "round": 0,
            "next_round": 0.0,
            "matrix": None,
            "order": [],  # the domains to probe, in this round
            "probe_end": None,
            "losses": [],  # at the start of the probe
            "mixtures": [],
            "falls": [],
        }

    def probe_end(self, state: State) -> int | None:
        """See :meth:`Strategy.probe_end`."""
        end: int | None = state["probe_end"]
        return end

    def round_steps(self, num_domains: int) -> int:
        """Return the steps of the probes of a round; with a single domain there are none."""
        return num_domains * self.sweeps * self.probe_steps if num_domains > 1 else 0

    def max_probes(self, num_domains: int, steps: int) -> int:
        """Return the largest number of probes in a stage; an evaluation follows each."""
        rounds = steps // max(1, self.round_steps(num_domains))
        if self.round_fraction > 0:
            rounds = min(rounds, math.ceil(1 / self.round_fraction))
        return rounds * self.sweeps * num_domains if num_domains > 1 else 0

    def rule(self, evaluation: Evaluation) -> Decision:
        """End the probe, if it is at its end, and start the next one or return the mixture of the round.

        Raises:
            ConfigError: ``observation.final_tokens`` is missing, so rounds have no place in the stage.
        """
        state, observation, reference = evaluation.state, evaluation.observation, evaluation.given_reference
        if not observation.final_tokens:
            raise ConfigError(
                "aioli divides the stage into rounds, and the observation has no final_tokens",
                "Pass final_tokens=<tokens of the whole stage> in every Observation.",
            )
        if not evaluation.known.any():
            return Decision(UpdateStatus.UNCHANGED, reference)
        if state["probe_end"] is None:
            progress = observation.tokens / observation.final_tokens
            if progress < state["next_round"] or not self._has_room(len(state["domains"]), observation):
                return Decision(
                    UpdateStatus.WAITING if state["matrix"] is None else UpdateStatus.INTERACTION, reference
                )
            state["next_round"] = progress + self.round_fraction
            state["round"] += 1
            state["mixture"] = list(state["weights"])
            state["order"] = self._order(state)
        elif observation.step < state["probe_end"]:
            return Decision(UpdateStatus.PROBING, reference)
        else:
            fall = nullable(vector(state["losses"]) - evaluation.losses)
            state["falls"], state["mixtures"] = [*state["falls"], fall], [*state["mixtures"], list(state["weights"])]
        if state["order"]:
            probed, *state["order"] = state["order"]
            state["losses"], state["probe_end"] = nullable(evaluation.losses), observation.step + self.probe_steps
            return Decision(UpdateStatus.PROBING, reference, self.probe_mixture(probed, len(state["domains"])))
        return Decision(UpdateStatus.INTERACTION, reference, self._end_round(state))

    def probe_mixture(self, probed: int, num_domains: int) -> Vector:
        """Return the mixture of the probe of a domain, ``[n]``, ``n`` at least 2."""
        mixture = np.full(num_domains, (1 - self.probe_share) / (num_domains - 1))
        mixture[probed] = self.probe_share
        return mixture

    def _has_room(self, num_domains: int, observation: Observation) -> bool:
        """Return whether there are several domains, and steps of the stage remain after the probes of a round."""
        if num_domains == 1 or not observation.tokens:
            return num_domains > 1
        left = (observation.final_tokens or 0) - observation.tokens
        return self.round_steps(num_domains) * observation.tokens < left * observation.step

    def _order(self, state: State) -> list[int]:
        """Return the domains to probe in this round: in each sweep another order, whatever the order of the domains."""
        by_name = sorted(range(len(state["domains"])), key=lambda number: state["domains"][number])
        rng = np.random.default_rng(state["round"])
        return [by_name[place] for _ in range(self.sweeps) for place in rng.permutation(len(by_name)).tolist()]

    def _end_round(self, state: State) -> Vector:
        """Compute the matrix from the probes and return the mixture until the next round, ``[n]``."""
        falls, mixtures = np.array([vector(row) for row in state["falls"]]), np.array(state["mixtures"])
        state["falls"], state["mixtures"], state["losses"], state["probe_end"] = [], [], [], None
        found = interaction_matrix(mixtures, falls)
        measured = np.isfinite(found).all(axis=1)
        if not measured.any():
            return np.array(state["mixture"])
        matrix = np.zeros_like(found)
        matrix[measured] = normalized(found[measured])
        if state["matrix"] is not None:
            matrix = (1 - self.ema) * matrix + self.ema * np.array(state["matrix"])
        first = state["matrix"] is None
        state["matrix"] = matrix.tolist()
        steps = self.eta * matrix.sum(axis=0)
        shares = np.exp(steps - steps.max())
        if self.cumulative and not first:
            shares *= np.array(state["mixture"])
        return np.asarray(shares / shares.sum())


def interaction_matrix(mixtures: Vector, falls: Vector) -> Vector:
    """Return the matrix ``A`` with ``falls[k, i] = sum_j A[i, j] mixtures[k, j]`` in least squares.

    Args:
        mixtures: Shares of each probe, ``[k, n]``.
        falls: Fall of each domain's loss in each probe, nats per token, ``[k, n]``; NaN where it is not known.

    Returns:
        ``[n, n]``, the smallest solution where there are several; a row is NaN if no fall of its domain is known.

    Example:
        >>> mixtures = np.array([[0.75, 0.25], [0.25, 0.75]])
        >>> falls = np.array([[0.25, 0.15], [0.15, 0.25]])
        >>> interaction_matrix(mixtures, falls).round(6).tolist()
        [[0.3, 0.1], [0.1, 0.3]]
    """
    matrix = np.full((falls.shape[1], mixtures.shape[1]), np.nan)
    for row, fall in zip(matrix, falls.T, strict=True):
        known = np.isfinite(fall)
        if known.any():
            row[:] = np.linalg.lstsq(mixtures[known], fall[known])[0]
    return matrix


def normalized(matrix: Vector) -> Vector:
    """Return the matrix with its smallest entry raised to zero, if that is negative, and all entries summing to one."""
    raised = matrix - min(float(matrix.min()), 0.0)
    total = float(raised.sum())
    return raised / total if total > 0 else np.full_like(raised, 1 / raised.size)
