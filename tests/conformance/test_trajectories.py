"""Whole runs of DRPruning's public update, 200 of 30 evaluations: weights and ratio after each.

Only :func:`step` calls our implementation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from drpruning.mixture import DRPruning, Observation, State
from tests.conformance.conftest import golden
from tests.golden import ancestor_inputs as inputs

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A strategy with the public code's settings, its state, and its evaluations so far."""

    strategy: DRPruning
    state: State
    evaluations: int = 0

    @property
    def ratio(self) -> Vector:
        return np.array(self.state["reference_ratio"])


def start(case: inputs.Trajectory) -> Run:
    # The trajectories begin at the first evaluation, and their references are fixed: no wait and no predictions
    strategy = DRPruning.published(
        rho=case.rho, update_after_fraction=0.0, predict_after_fraction=1.0, collect_after_fraction=1.0
    )
    names = [f"d{number}" for number in range(len(case.proportion))]
    total = sum(case.proportion)
    ratio = {name: share / total for name, share in zip(names, case.proportion, strict=True)}
    state = strategy.init(names, ratio, reference_loss=dict(zip(names, case.reference_loss, strict=True)))
    return Run(strategy, state)


def step(run: Run, losses: list[float]) -> tuple[Vector, Run]:
    """Run one evaluation; return the new weights, and the run with its new ratio."""
    evaluations = run.evaluations + 1
    observation = Observation(
        step=evaluations * inputs.EVERY,
        tokens=evaluations * inputs.EVERY,
        final_tokens=inputs.STEPS,
        params=1.0,
        losses=dict(zip(run.state["domains"], losses, strict=True)),
    )
    state, update = run.strategy.update(run.state, observation)
    return np.array(list(update.weights.values())), replace(run, state=state, evaluations=evaluations)


# Seven digits are stored. Both sides round in float32 at the same places; sums of up to 14 terms may be taken in
# another order, and an error of the ratio decays by a tenth each time: 14 * 6e-8 / 0.1.
TOLERANCE = 1e-5


def test_the_inputs_are_those_of_the_golden_file() -> None:
    assert len(golden()["trajectories"]["ends"]) == inputs.TRAJECTORIES
    sizes = {len(end["weights"]) for end in golden()["trajectories"]["ends"]}
    assert sizes == {2, 3, 7, 8, 12}


@pytest.mark.parametrize("index", range(inputs.STORED))
def test_every_evaluation(index: int) -> None:
    case = inputs.trajectory(index)
    run = start(case)
    for losses, (weights, ratio) in zip(case.losses, golden()["trajectories"]["stored"][index], strict=True):
        ours, run = step(run, losses)
        np.testing.assert_allclose(ours, weights, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(run.ratio, ratio, rtol=0, atol=TOLERANCE)


def test_the_ends_of_all() -> None:
    for index, end in enumerate(golden()["trajectories"]["ends"]):
        case = inputs.trajectory(index)
        run = start(case)
        for losses in case.losses:
            weights, run = step(run, losses)
        np.testing.assert_allclose(weights, end["weights"], rtol=0, atol=TOLERANCE, err_msg=f"trajectory {index}")
        np.testing.assert_allclose(run.ratio, end["ratio"], rtol=0, atol=TOLERANCE, err_msg=f"trajectory {index}")


def test_what_the_public_rule_promises() -> None:
    """Check that no ratio is below half its initial value or the smallest initial one, before the final division."""
    for index, end in enumerate(golden()["trajectories"]["ends"]):
        initial = np.array(inputs.trajectory(index).proportion)
        ratio = np.array(end["ratio"])
        assert ratio.sum() == pytest.approx(1, abs=1e-6)
        assert (ratio >= 0.85 * np.maximum(initial / 2, initial.min())).all()
        assert (ratio <= 1.15 * np.minimum(initial * 2, initial.max())).all()
