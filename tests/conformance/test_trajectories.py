"""Whole runs of DRPruning's public update, 200 of 30 evaluations: weights and ratio after each.

Only :func:`step` knows how ours computes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from drpruning.chi2_published import published_update
from tests.conformance.conftest import golden
from tests.golden import ancestor_inputs as inputs

Vector = NDArray[np.float64]
Single = NDArray[np.float32]

DELTA, MOVE_AFTER, FACTOR = np.float32(0.1), 0.2, np.float32(2)
"""How far the ratio follows, from which part of the stage on, and how far it may go: public code."""


@dataclass(frozen=True)
class Run:
    """What an update needs beyond the losses; ``ratio`` is that before it."""

    initial: Single
    reference_loss: Single
    rho: float
    ratio: Single
    evaluations: int = 0


def start(case: inputs.Trajectory) -> Run:
    initial = np.array(case.proportion, dtype=np.float32)
    return Run(initial, np.array(case.reference_loss, dtype=np.float32), case.rho, initial)


def step(run: Run, losses: list[float]) -> tuple[Vector, Run]:
    """One evaluation: the weights from now on, and the run with its new ratio.

    The excess is taken in float32, as there: where no mixture has the radius (two domains, mostly), the last bit of the
    largest excess decides whether the bisection ends at it, and with that whether the weights move at all.
    """
    excess = np.array(losses, dtype=np.float32) - run.reference_loss
    weights = published_update(excess, run.ratio, run.rho, reference_loss=run.reference_loss)
    run = replace(run, evaluations=run.evaluations + 1)
    if run.evaluations * inputs.EVERY < MOVE_AFTER * inputs.STEPS:
        return weights, run
    ratio = unit(DELTA * weights.astype(np.float32) + (1 - DELTA) * run.ratio)
    ratio = unit(np.clip(ratio, run.initial / FACTOR, run.initial * FACTOR))
    ratio = unit(np.clip(ratio, run.initial.min(), run.initial.max()))
    return weights, replace(run, ratio=ratio)


def unit(ratio: Single) -> Single:
    return np.asarray(ratio / ratio.sum())


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
    """No ratio below half its initial value or the least initial one, but for the last division by the sum."""
    for index, end in enumerate(golden()["trajectories"]["ends"]):
        initial = np.array(inputs.trajectory(index).proportion)
        ratio = np.array(end["ratio"])
        assert ratio.sum() == pytest.approx(1, abs=1e-6)
        assert (ratio >= 0.85 * np.maximum(initial / 2, initial.min())).all()
        assert (ratio <= 1.15 * np.minimum(initial * 2, initial.max())).all()
