"""The backtest: laws of the literature in their own setting, and the constants of the law from stored predictions."""

import sys
from pathlib import Path

import numpy as np
import pytest

from drpruning.scaling import LearningRates, law

sys.path.append(str(Path(__file__).parents[2] / "benches" / "scaling_backtest"))

import annealing_laws
import constants
import literature
import predictions
from annealing_laws import MultiPower, Steps, Tissue


@pytest.mark.parametrize("name", ["Tissue et al. (2024)", "Luo et al. (2025)"])
def test_laws_of_the_literature_are_as_good_as_published(name: str) -> None:
    error, explained = literature.errors(name)
    assert error < literature.REPORTED[0]
    assert explained > literature.REPORTED[1]


@pytest.mark.parametrize("form", [Tissue(), MultiPower()])
def test_gradients_of_the_annealing_laws(form: Tissue | MultiPower) -> None:
    at = Steps.of(LearningRates.cosine(3000, warmup=100), np.linspace(200, 3000, 12))
    theta, step = np.append(np.log([2.5, 0.6, 0.5]), form.starts[-1]), 1e-6
    value, slope = annealing_laws._loss(form, theta, at, 7.0)
    for k in range(theta.size):
        moved = theta.copy()
        moved[k] += step
        # The error of a one-sided difference is half the second derivative times the step, here below 1e-5
        assert (annealing_laws._loss(form, moved, at, 7.0)[0] - value) / step == pytest.approx(slope[:, k], abs=1e-5)


def test_areas_and_drops_of_a_step_schedule() -> None:
    at = Steps.of(LearningRates([0, 100, 500, 500.001], [0, 2.0, 2.0, 0.5]), np.array([100.0, 500.0, 900.0]))
    assert at.area == pytest.approx([50, 450, 550], abs=1e-2)
    assert at.drop.sum() == pytest.approx(0.75)
    assert at.since[:, -1] == pytest.approx([0, 0, 400], abs=1e-2)
    assert at.area_since[:, -1] == pytest.approx([0, 0, 100], abs=1e-2)


def test_the_constants_of_the_law_are_those_of_the_training_half() -> None:
    found = predictions.read(Path(predictions.__file__).with_name("predictions.csv.gz"))
    fitted = constants.fit(found.where(found["held_out"] == 0))
    assert fitted.decay == pytest.approx(law.DECAY_AHEAD)
    assert fitted.drift == pytest.approx(law.DRIFT, abs=5e-4)
    scheduled = predictions.column_of_law(0.035)
    known = found.where((found["held_out"] == 0) & (found["known"] == 1))
    drift = constants.drift(known, known[scheduled], constants.halves(known, scheduled))
    assert drift == pytest.approx(law.DRIFT_ANNEALED, abs=5e-4)
