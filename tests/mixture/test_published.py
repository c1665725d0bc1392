"""The public code's update: the numbers it gives, and how far they are from the worst case."""

import numpy as np
import pytest
from numpy.typing import NDArray

from drpruning.chi2 import worst_case
from drpruning.errors import WeightError
from drpruning.mixture.strategies.published import published_update

Vector = NDArray[np.float64]

# The 1.3B recipe: common crawl, GitHub, books, Stack Exchange, Wikipedia, arXiv, C4
RATIO = np.array([0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15])
REFERENCE = [1.9643, 0.7459, 2.1393, 1.6117, 1.7590, 1.4449, 2.1251]
RHO = 0.1

# Excess losses; distance to the worst case without floor and clamp, with the floor alone, as the class is set by
# default; the divergence then. The distances are those of the public code itself, run on the same numbers in torch.
TABLE = [
    ([0.35, 0.12, 0.30, 0.25, 0.42, 0.18, 0.33], 4.4e-5, 3.9e-4, 3.8e-2, 0.0625),
    ([2.1, 1.6, 1.9, 1.8, 2.4, 1.7, 2.0], 2.3e-5, 1.7e-4, 3.6e-2, 0.0651),
    ([0.031, 0.012, 0.044, 0.020, 0.058, 0.015, 0.037], 3.4e-6, 2.6e-4, 2.4e-2, 0.0721),
    ([0.30, 0.05, 0.10, 0.08, 0.12, 0.06, 0.15], 3.8e-5, 1.7e-4, 4.5e-2, 0.0622),
    ([0.02, -0.05, 0.01, -0.01, 0.06, -0.03, 0.03], 3.8e-5, 4.5e-4, 2.5e-2, 0.0713),
    ([-0.02, -0.05, -0.01, -0.03, -0.04, -0.03, -0.02], 5.8e-2, 8.6e-2, 9.6e-2, 0.0623),
    ([0.10, 0.45, 0.10, 0.12, 0.11, 0.10, 0.10], 1.4e-5, 1.4e-5, 1.4e-5, 0.1000),
]


def divergence(q: Vector) -> float:
    return float(0.5 * ((q - RATIO) ** 2 / RATIO).sum())


@pytest.mark.parametrize(("excess", "bare", "floored", "default", "reached"), TABLE)
def test_it_is_as_far_from_the_worst_case_as_the_public_code(
    excess: list[float], bare: float, floored: float, default: float, reached: float
) -> None:
    for floor, clamp, distance in ((0.0, False, bare), (0.2, False, floored), (0.2, True, default)):
        found = published_update(excess, RATIO, RHO, floor=floor, clamp=clamp, reference_loss=REFERENCE)
        exact = worst_case(excess, RATIO, RHO, floor).weights
        # Losses less references in float32 are not quite the excess: the bisection may stop one halving apart.
        assert np.abs(found - exact).max() == pytest.approx(distance, rel=0.05, abs=2e-6)
        assert found.sum() == pytest.approx(1, abs=1e-6)
    assert divergence(found) == pytest.approx(reached, abs=1e-4)


def test_the_worked_example() -> None:
    found = published_update(TABLE[0][0], RATIO, RHO)
    np.testing.assert_allclose(found, [0.71367, 0.01898, 0.01898, 0.01898, 0.10416, 0.01898, 0.10623], atol=1e-5)
    exact = worst_case(TABLE[0][0], RATIO, RHO, 0.2)
    assert exact.divergence == pytest.approx(RHO, abs=1e-15)
    assert divergence(found) < 0.65 * RHO


def test_the_clamp_is_an_absolute_share() -> None:
    found = published_update(TABLE[3][0], RATIO, RHO)
    assert found.min() == pytest.approx(RATIO.min() / (1 + 0.0545), abs=1e-4)
    assert len(np.unique(found)) == 3  # five of seven domains end at the same share


def test_equal_losses_leave_the_ratio() -> None:
    np.testing.assert_allclose(published_update([0.2] * 7, RATIO, RHO), RATIO, atol=1e-6)
    np.testing.assert_allclose(published_update([0.0] * 7, RATIO, RHO), RATIO, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (([-0.1, -0.2], [0.5, 0.5], 0.1), {}, "reference_loss is missing"),
        (([-0.1, -0.2], [0.5, 0.5], 0.1), {"reference_loss": [1.0]}, "excess_loss has 2 entries, reference_loss 1"),
        (([-2.1, -2.2], [0.5, 0.5], 0.1), {"reference_loss": [1.0, 1.0]}, "all losses are negative"),
        (([0.1, np.nan], [0.5, 0.5], 0.1), {}, "finite"),
        (([0.1, 0.2], [0.5, 0.6], 0.1), {}, "sum to 1"),
        (([0.1, 0.2], [1.0, 0.0], 0.1), {}, "positive"),
        (([0.1, 0.2], [1.0], 0.1), {}, "excess_loss has 2 entries, reference_ratio 1"),
        (([0.1, 0.2], [0.5, 0.5], 0.0), {}, "rho is 0"),
        (([0.1, 0.2], [0.5, 0.5], 0.1), {"floor": 1.0}, "floor is 1"),
        ((["a"], [1.0], 0.1), {}, "list of numbers"),
        (([[0.1]], [1.0], 0.1), {}, "one-dimensional"),
    ],
)
def test_unusable_input_is_refused(arguments: tuple[object, ...], more: dict[str, object], message: str) -> None:
    with pytest.raises(WeightError, match=message):
        published_update(*arguments, **more)  # type: ignore[arg-type]
