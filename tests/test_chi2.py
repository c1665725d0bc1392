"""The ball from Python: golden values, a NumPy twin, optimality, and what is refused."""

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drpruning import chi2
from drpruning.chi2 import Solution, project, worst_case
from drpruning.errors import WeightError

Vector = NDArray[np.float64]
SOLVERS = {"worst_case": worst_case, "project": project}
GOLDEN = json.loads((Path(__file__).parent / "golden" / "chi2.json").read_text())


def twin_of_worst_case(losses: Vector, p: Vector, rho: float, floor: float) -> Vector:
    """The worst case by sorting: try every top set of losses as the support until one fits."""
    radius = rho / (1 - floor) ** 2
    order = np.argsort(-losses, kind="stable")
    losses, sorted_p = losses[order], p[order]
    u = np.zeros_like(p)
    for k in range(1, p.size + 1):
        if k < p.size and losses[k] == losses[k - 1]:
            continue  # ties enter together
        share, mass = sorted_p[:k] / sorted_p[:k].sum(), sorted_p[:k].sum()
        deviation = losses[:k] - share @ losses[:k]
        deviation -= share @ deviation
        variance, room = share @ deviation**2, 2 * radius * mass - sorted_p[k:].sum()
        if losses[k - 1] == losses[0] and room >= 0:
            u[order[:k]] = share
            break
        if losses[k - 1] == losses[0] or room <= 0:
            continue
        t = deviation * np.sqrt(room / variance)
        next_t = -np.inf if k == p.size else t[0] + (losses[k] - losses[0]) * np.sqrt(room / variance)
        if t[-1] > -1 >= next_t or k == p.size:
            u[order[:k]] = share * (1 + t)
            break
    return floor * p + (1 - floor) * u


def twin_of_project(y: Vector, p: Vector, rho: float, floor: float) -> Vector:
    """The projection by bisection on the multiplier, with the threshold from a sort."""
    radius = rho / (1 - floor) ** 2
    z = (y - y.max() - floor * p) / (1 - floor)

    def mixture(multiplier: float) -> Vector:
        slope = p / (p + multiplier)
        order = np.argsort(-z, kind="stable")
        thresholds = (np.cumsum((slope * z)[order]) - 1) / np.cumsum(slope[order])
        inside = np.nonzero(z[order] > thresholds)[0][-1]
        return np.maximum(slope * (z - thresholds[inside]), 0)

    def divergence(u: Vector) -> float:
        return float(((u - p) ** 2 / p).sum() / 2)

    low, high = 0.0, 1e9
    if divergence(mixture(low)) > radius:
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if divergence(mixture(middle)) > radius else (low, middle)
        low = high
    return floor * p + (1 - floor) * mixture(low)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Vector, Vector, float, float]:
    n = draw(st.integers(1, 10))
    loss = st.one_of(st.floats(-2, 2), st.sampled_from([0.5, 2.0]))
    p = np.array(draw(st.lists(st.floats(0.01, 1), min_size=n, max_size=n)))
    losses = np.array(draw(st.lists(loss, min_size=n, max_size=n)))
    return losses, p / p.sum(), 10 ** draw(st.floats(-4, 2)), draw(st.sampled_from([0.0, 0.2, 0.9]))


def assert_optimal(found: Solution, gradient: Vector, p: Vector, rho: float, floor: float) -> None:
    """The Karush-Kuhn-Tucker conditions as the module states them."""
    q, mu = found.weights, found.floor_multipliers
    assert q.sum() == pytest.approx(1, abs=1e-13)
    assert (q >= floor * p - 1e-15).all()
    assert found.divergence <= rho * (1 + 1e-12) + 1e-15
    assert found.ball_multiplier >= 0
    assert (mu >= 0).all()
    assert found.ball_multiplier == 0 or found.divergence == pytest.approx(rho, rel=1e-10)
    assert np.abs(mu * (q - floor * p)).max() < 1e-12
    pull = found.ball_multiplier * (q - p) / p
    stationary = gradient - found.sum_multiplier - pull + mu
    assert np.abs(stationary).max() < 1e-11 * max(1, found.ball_multiplier, np.abs(pull).max())


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_values(case: dict[str, object]) -> None:
    found = SOLVERS[str(case["problem"])](case["values"], case["p"], case["rho"], case["floor"])  # type: ignore[arg-type]
    np.testing.assert_allclose(found.weights, case["weights"], rtol=0, atol=1e-14)
    assert found.divergence == pytest.approx(case["divergence"], rel=1e-13, abs=1e-15)


@given(problems())
@settings(deadline=None)
def test_worst_case_is_optimal_and_equals_its_twin(problem: tuple[Vector, Vector, float, float]) -> None:
    losses, p, rho, floor = problem
    found = worst_case(losses, p, rho, floor)
    assert_optimal(found, losses, p, rho, floor)
    # The optimal value is well-conditioned everywhere; the weights are not where losses nearly tie
    assert found.weights @ losses == pytest.approx(twin_of_worst_case(*problem) @ losses, abs=1e-9)


@given(problems())
@settings(deadline=None)
def test_project_is_optimal_and_equals_its_twin(problem: tuple[Vector, Vector, float, float]) -> None:
    y, p, rho, floor = problem
    found = project(y, p, rho, floor)
    assert_optimal(found, y - found.weights, p, rho, floor)
    np.testing.assert_allclose(found.weights, twin_of_project(*problem), rtol=0, atol=1e-9)


@given(problems(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_the_order_of_domains_does_not_matter(problem: tuple[Vector, Vector, float, float], seed: int) -> None:
    losses, p, rho, floor = problem
    order = np.random.default_rng(seed).permutation(p.size)
    for solver in SOLVERS.values():
        straight, shuffled = solver(losses, p, rho, floor), solver(losses[order], p[order], rho, floor)
        assert shuffled.weights @ losses[order] == pytest.approx(straight.weights @ losses, abs=1e-12)


@given(problems())
@settings(deadline=None)
def test_a_larger_ball_has_a_worse_worst_case(problem: tuple[Vector, Vector, float, float]) -> None:
    losses, p, rho, floor = problem
    small, large = (worst_case(losses, p, radius, floor).weights @ losses for radius in (rho, 2 * rho))
    assert p @ losses - 1e-12 <= small <= large + 1e-12


def test_scale_and_shift_of_the_losses_do_not_matter() -> None:
    losses, p = np.array([0.25, 0.5, 0.125, 0.375]), np.array([0.4, 0.3, 0.2, 0.1])
    weights = worst_case(losses, p, 0.1, 0.2).weights
    for other in (losses * 2.0**600, losses * 2.0**-600, losses + 2.0**20):
        np.testing.assert_allclose(worst_case(other, p, 0.1, 0.2).weights, weights, rtol=1e-14)


def test_status_says_which_constraint_decides() -> None:
    p = [0.5, 0.3, 0.2]
    assert worst_case([3, 2, 1], p, 0.01).status == "boundary"
    assert worst_case([3, 2, 1], p, np.inf).status == "face"
    assert worst_case([2, 2, 2], p, 0.01).status == "center"
    assert worst_case([3, 2, 1], p, 0).status == "center"
    assert worst_case([7], [1.0], 0.1).weights.tolist() == [1.0]
    assert project([0.45, 0.35, 0.2], p, 0.1).status == "interior"
    assert project([2, 0, 0], p, 0.1).status == "boundary"
    assert project([2, 0, 0], p, 9).status == "face"


def test_arrays_of_any_layout_and_type_are_read() -> None:
    p = np.array([0.5, 9, 0.3, 9, 0.2])[::2]
    np.testing.assert_array_equal(
        worst_case(np.array([1, 2, 3], dtype=np.int32), p, 0.1).weights,
        worst_case([1.0, 2.0, 3.0], [0.5, 0.3, 0.2], 0.1).weights,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, np.nan], [0.5, 0.5], 0.1), "loss 1 is NaN"),
        (([1, np.inf], [0.5, 0.5], 0.1), "loss 1 is inf"),
        (([1, 2, 3], [0.5, 0.5], 0.1), "3 values and 2 reference weights"),
        (([], [], 0.1), "at least 1"),
        (([1, 2], [1.5, -0.5], 0.1), "reference weight 1 is -0.5"),
        (([1, 2], [0.5, 0.6], 0.1), "sum to 1.1"),
        (([1, 2], [0.5, 0.5], -1), "rho is -1"),
        (([1, 2], [0.5, 0.5], np.nan), "rho is NaN"),
        (([1, 2], [0.5, 0.5], 0.1, 1.0), "floor is 1"),
        (([[1, 2]], [0.5, 0.5], 0.1), "one-dimensional"),
        ((["a", "b"], [0.5, 0.5], 0.1), "list of numbers"),
    ],
)
def test_unusable_input_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(WeightError, match=message):
        worst_case(*arguments)  # type: ignore[arg-type]


def test_docstring_examples() -> None:
    assert doctest.testmod(chi2).failed == 0
