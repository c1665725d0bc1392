"""The ball from Python: golden values, a NumPy reference, optimality, and what is refused."""

import doctest
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cvxpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from drpruning import chi2
from drpruning.chi2 import Solution, project, subtract_noise, worst_case
from drpruning.errors import WeightError

Vector = NDArray[np.float64]
SOLVERS = {"worst_case": worst_case, "project": project}
GOLDEN = json.loads((Path(__file__).parent / "golden" / "chi2.json").read_text())


def reference_worst_case(losses: Vector, p: Vector, rho: float, floor: float) -> Vector:
    """Solve the worst case by sorting: try every top set of losses as the support until one fits."""
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


def reference_project(y: Vector, p: Vector, rho: float, floor: float) -> Vector:
    """Solve the projection by bisection on the multiplier, with the threshold from a sort."""
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
    # No differences whose squares vanish: the reference does not scale.
    loss = st.one_of(st.floats(-2, 2).map(lambda x: round(x, 9)), st.sampled_from([0.5, 2.0]))
    p = np.array(draw(st.lists(st.floats(0.01, 1), min_size=n, max_size=n)))
    losses = np.array(draw(st.lists(loss, min_size=n, max_size=n)))
    return losses, p / p.sum(), 10 ** draw(st.floats(-4, 2)), draw(st.sampled_from([0.0, 0.2, 0.9]))


def assert_optimal(found: Solution, gradient: Vector, p: Vector, rho: float, floor: float) -> None:
    """Assert the Karush-Kuhn-Tucker conditions of the module."""
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
def test_worst_case_is_optimal_and_equals_the_reference(problem: tuple[Vector, Vector, float, float]) -> None:
    losses, p, rho, floor = problem
    found = worst_case(losses, p, rho, floor)
    assert_optimal(found, losses, p, rho, floor)
    # The optimal value is well-conditioned everywhere; the weights are not where losses nearly tie
    assert found.weights @ losses == pytest.approx(reference_worst_case(*problem) @ losses, abs=1e-9)


@given(problems())
@settings(deadline=None)
def test_project_is_optimal_and_equals_the_reference(problem: tuple[Vector, Vector, float, float]) -> None:
    y, p, rho, floor = problem
    found = project(y, p, rho, floor)
    assert_optimal(found, y - found.weights, p, rho, floor)
    np.testing.assert_allclose(found.weights, reference_project(*problem), rtol=0, atol=1e-9)


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


def test_losses_of_very_different_size_stay_in_the_ball() -> None:
    """Squares of the first two vanish on the scale of the third, which is dropped."""
    found = worst_case([0, 1, -1e200], [0.89, 0.01, 0.1], 0.1)
    assert found.status == "boundary"
    assert found.divergence == pytest.approx(0.1, rel=1e-12)
    np.testing.assert_allclose(found.weights, worst_case([0, 1, -9], [0.89, 0.01, 0.1], 0.1).weights, rtol=1e-12)


def test_subnormal_reference_weights_are_refused() -> None:
    for solver in SOLVERS.values():
        with pytest.raises(WeightError, match=r"p\[0\] is 5e-324"):
            solver([5.1e-4, -7.5e-4, -1.5e-3], [5e-324, 0.9999999941301017, 1.9549788552629487e-12], 4.7e149)


def test_a_status_is_an_enum_and_its_name() -> None:
    found = worst_case([3, 2, 1], [0.5, 0.3, 0.2], 0.01)
    assert found.status is chi2.Status.BOUNDARY
    assert str(found.status) == "boundary"


def test_the_status_is_the_constraint_that_decides() -> None:
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
        (([1, np.nan], [0.5, 0.5], 0.1), r"excess_loss\[1\] is NaN"),
        (([1, np.inf], [0.5, 0.5], 0.1), r"excess_loss\[1\] is inf"),
        (([1, 2, 3], [0.5, 0.5], 0.1), "p has length 2; expected 3"),
        (([], [], 0.1), "at least 1"),
        (([1, 2], [1.5, -0.5], 0.1), r"p\[1\] is -0.5"),
        (([1, 2], [0.5, 0.6], 0.1), "p sums to 1.1"),
        (([1, 2], [0.5, 0.5], -1), "rho is -1"),
        (([1, 2], [0.5, 0.5], np.nan), "rho is NaN"),
        (([1, 2], [0.5, 0.5], 0.1, 1.0), "floor is 1"),
        (([[1, 2]], [0.5, 0.5], 0.1), "one-dimensional"),
        ((["a", "b"], [0.5, 0.5], 0.1), "excess_loss must be numbers"),
        (([[1], [1, 2]], [0.5, 0.5], 0.1), "rows of one length"),
        (([1, 2], [0.5, 0.5], 0.1, -0.1), "floor is -0.1"),
        (([1, 2], [0.5, 0.5], 0.1, np.nan), "floor is NaN"),
        (([1, 2], [1.0, 0.0], 0.1), r"p\[1\] is 0"),
        (([1, 2], [1.0, np.nan], 0.1), r"p\[1\] is NaN"),
    ],
)
def test_unusable_input_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(WeightError, match=message):
        worst_case(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("problem", ["worst_case", "project"])
@pytest.mark.parametrize("n", [100, 7000])  # the second is bracketed with a sample
def test_one_wrong_entry_among_many_is_named(problem: str, n: int) -> None:
    for wrong in (np.nan, np.inf, -np.inf):
        values, p = np.linspace(0, 1, n) / n, np.full(n, 1 / n)
        values[n // 3] = wrong
        with pytest.raises(WeightError, match=rf"\[{n // 3}\] is"):
            SOLVERS[problem](values, p, 0.1)
    for wrong in (np.nan, -1e-9, 0.0):
        values, p = np.linspace(0, 1, n) / n, np.full(n, 1 / n)
        p[n // 3] = wrong
        with pytest.raises(WeightError, match=rf"p\[{n // 3}\] is"):
            SOLVERS[problem](values, p, 0.1)


def test_a_point_that_is_no_mixture_at_all_is_refused() -> None:
    with pytest.raises(WeightError, match="within 1e6 of each other"):
        project([1e7, 0.0], [0.5, 0.5], 0.1)


def interior_point(problem: str, values: Vector, p: Vector, rho: float, floor: float) -> Vector:
    """Clarabel, a conic interior-point solver, on the stated problem."""
    q = cvxpy.Variable(p.size)
    ball = cvxpy.sum_squares(cvxpy.multiply(1 / np.sqrt(p), q - p)) <= 2 * rho
    objective = cvxpy.Maximize(values @ q) if problem == "worst_case" else cvxpy.Minimize(cvxpy.sum_squares(q - values))
    cvxpy.Problem(objective, [q >= floor * p, cvxpy.sum(q) == 1, ball]).solve(solver=cvxpy.CLARABEL)
    return np.asarray(q.value)


@pytest.mark.parametrize("problem", ["worst_case", "project"])
@pytest.mark.parametrize("seed", range(6))
def test_an_independent_convex_solver_agrees(problem: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    p = draw.dirichlet(np.full(7, 2.0))
    values = draw.normal(size=7) if problem == "worst_case" else p + 0.3 * draw.normal(size=7)
    rho, floor = [0.01, 0.1, 1.0][seed % 3], [0.0, 0.2][seed % 2]
    found = SOLVERS[problem](values, p, rho, floor).weights
    other = interior_point(problem, values, p, rho, floor)
    # At its default settings it is good to about 1e-5 in q, where the objective is flat.
    np.testing.assert_allclose(found, other, rtol=0, atol=1e-4)
    if problem == "worst_case":
        assert found @ values == pytest.approx(other @ values, abs=1e-7)
    else:
        assert ((found - values) ** 2).sum() == pytest.approx(((other - values) ** 2).sum(), abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rho", [1e-9, 0.1, 30.0])
def test_a_bracket_from_a_sample_changes_nothing(seed: int, rho: float) -> None:
    """Beyond 6144 entries the threshold is bracketed: sorted, periodic and heavy-tailed losses against the sort."""
    draw, n = np.random.default_rng(seed), 8_000
    p = draw.dirichlet(np.full(n, 0.3)) + 1e-12
    p /= p.sum()
    losses = [
        np.sort(draw.normal(size=n)),
        np.arange(n) % 8 + 1e-3 * draw.normal(size=n),
        draw.pareto(0.5, size=n),
        np.where(np.arange(n) == 1_234, 1.0, 1e-9 * draw.normal(size=n)),
    ][seed]
    found = worst_case(losses, p, rho, 0.1)
    np.testing.assert_allclose(found.weights, reference_worst_case(losses, p, rho, 0.1), rtol=0, atol=1e-12)
    assert found.weights.sum() == pytest.approx(1, abs=1e-12)
    assert found.divergence <= rho * (1 + 1e-12)


def test_losses_that_tie_by_the_thousand() -> None:
    n = 10_000
    losses, p = np.arange(n) % 3 / 1.0, np.full(n, 1 / n)
    found = worst_case(losses, p, 0.1)
    assert len(np.unique(found.weights[losses == 2])) == 1
    assert found.divergence == pytest.approx(0.1, abs=1e-14)
    everything = worst_case(losses, p, 5.0)
    assert everything.status == "face"
    np.testing.assert_allclose(everything.weights, np.where(losses == 2, 1 / (losses == 2).sum(), 0), rtol=1e-13)


@given(problems(), st.integers(1, 4))
@settings(deadline=None)
def test_many_rows_are_as_many_calls(problem: tuple[Vector, Vector, float, float], rows: int) -> None:
    values, p, rho, floor = problem
    table = np.stack([np.roll(values, k) for k in range(rows)])
    mixtures = np.stack([np.roll(p, k) for k in range(rows)])
    radii = rho * np.arange(1, rows + 1)
    for many, one in ((chi2.worst_case_many, worst_case), (chi2.project_many, project)):
        found = many(table, mixtures, radii, floor)
        assert len(found) == rows
        for k in range(rows):
            single = one(table[k], mixtures[k], radii[k], floor)
            for field in Solution.__slots__:
                np.testing.assert_array_equal(getattr(found[k], field), getattr(single, field))
        shared = many(table, p, rho)
        np.testing.assert_array_equal(shared.weights[-1], one(table[-1], p, rho).weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [0.5, 0.5], 0.1), "two-dimensional"),
        (([[1.0, 2.0]], [0.5, 0.3, 0.2], 0.1), "expected p of shape \\(2,\\) or \\(1, 2\\)"),
        (([[1.0, 2.0]], [0.5, 0.5], [0.1, 0.2]), "one for each of 1 rows"),
        (([[1.0, 2.0], [1.0, np.nan]], [0.5, 0.5], 0.1), r"row 1: excess_loss\[1\] is NaN"),
        (([[1.0, 2.0], [1.0, 2.0]], [0.5, 0.5], [0.1, -1]), "row 1: rho is -1"),
        (([[], []], [], 0.1), "at least 1"),
    ],
)
def test_unusable_rows_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(WeightError, match=message):
        chi2.worst_case_many(*arguments)  # type: ignore[arg-type]


def test_no_rows_give_no_solutions() -> None:
    assert len(chi2.worst_case_many(np.empty((0, 2)), [0.5, 0.5], 0.1)) == 0


@pytest.mark.parametrize("n", [7, 2500])  # with the GIL, and without it
def test_threads_get_the_solutions_of_one_thread(n: int) -> None:
    generator = np.random.default_rng(n)
    p, losses = generator.dirichlet(np.ones(n)), generator.normal(size=(20, n))

    def solve(_: int) -> list[bytes]:
        found = [solver(row, p, rho=0.1) for row in losses for solver in (worst_case, project)]
        return [solution.weights.tobytes() for solution in found]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(solve, range(4)))
    assert all(result == solve(0) for result in results)


def test_docstring_examples() -> None:
    assert doctest.testmod(chi2).failed == 0


# ---- noise


def objective_with_noise(q: Vector, losses: Vector, p: Vector, rho: float, noise: Vector) -> float:
    """Evaluate the formula of docs/ball.md."""
    mean = p @ losses
    v = mean + np.sign(losses - mean) * np.maximum(0, np.abs(losses - mean) - noise)
    tau = noise / 4 / np.sqrt(2 * rho * (1 - p) / p)
    return float(q @ v - 0.5 * (tau * p * (q / p - 1) ** 2).sum())


@given(problems(), st.floats(1e-4, 3.0), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_with_noise_it_is_optimal(problem: tuple[Vector, Vector, float, float], size: float, seed: int) -> None:
    losses, p, rho, floor = problem
    noise = size * np.random.default_rng(seed).uniform(0, 1, p.size)
    found = worst_case(losses, p, rho, floor, noise=noise)
    if p.size == 1:
        assert found.weights.tolist() == [1.0]
        return
    shrunk, penalties = subtract_noise(losses, p, rho, noise)
    assert found.penalties is not None
    assert found.penalties.tolist() == penalties.tolist()
    if found.status != "center":
        assert_optimal(found, shrunk - penalties * (found.weights / p - 1), p, rho, floor)
    value = objective_with_noise(found.weights, losses, p, rho, noise)
    for other in (p, worst_case(losses, p, rho, floor).weights, worst_case(shrunk, p, rho, floor).weights):
        # Both are sums of terms of at most the size of the losses (4) and of tau D
        size_of_terms = 4 + penalties.max() * (1 + rho)
        assert value >= objective_with_noise(other, losses, p, rho, noise) - 1e-11 * size_of_terms


def test_differences_of_rounding_move_nothing() -> None:
    """Let two domains fall by the same 0.2: without noise the last bit decides, and one gets nearly everything."""
    excess, p = [2.1 - 2.3, 1.4 - 1.6], [0.8, 0.2]
    assert worst_case(excess, p, 0.1).weights[0] > 0.95
    assert worst_case(excess, p, 0.1, noise=1e-6).weights.tolist() == p


def test_noise_moves_little_and_a_clear_signal_as_before() -> None:
    """Seven domains, errors of 0.04, two of which count: pure noise, and one rare domain 0.3 above the others."""
    p = np.array([0.67, 0.15, 0.045, 0.045, 0.045, 0.025, 0.02])
    draw = np.random.default_rng(1).normal(0, 0.04, (200, 7))  # a fixed seed: no chance is left to the test
    clear = np.array([0, 0, 0, 0, 0, 0, 0.3])

    def moved(noise: float, signal: Vector) -> Vector:
        return np.array([worst_case(signal + each, p, 0.1, 0.2, noise=noise).weights - p for each in draw])

    pure, damped = (np.abs(moved(noise, np.zeros(7))).sum(1).mean() for noise in (0.0, 0.08))
    assert damped < pure / 4
    before, after = (moved(noise, clear)[:, 6] for noise in (0.0, 0.08))
    assert after.mean() > before.mean()
    assert after.std() < before.std() / 4


def test_a_domain_alone_answers_in_proportion_beyond_its_noise() -> None:
    """Test a rare domain, so that the mean does not move: a quarter of its noise above the threshold it gains all."""
    p, noise, rho = np.array([0.999, 0.001]), 0.08, 0.05
    allowed = np.sqrt(2 * rho * 0.999 / 0.001)
    for part in (0.0, 0.25, 0.5, 0.75, 1.0, 3.0):
        excess = np.array([0.0, noise + part * noise / 4])
        found = worst_case(excess, p, rho, noise=[0.0, noise])
        gain = (found.weights[1] / p[1] - 1) / allowed
        # The mean is off by 0.001 of the excess, which is 4 (1 + part / 4) parts of the ramp
        assert gain == pytest.approx(min(part, 1.0), abs=0.001 * (4 + part) + 1e-9)


@pytest.mark.parametrize("noise", [-0.1, np.nan, np.inf, [0.1, 0.2, 0.3], "much"])
def test_noise_that_is_none_is_refused(noise: object) -> None:
    with pytest.raises(WeightError, match="noise"):
        worst_case([0.1, 0.5], [0.5, 0.5], 0.1, noise=noise)  # type: ignore[arg-type]


def test_noise_without_a_radius_or_without_bounds() -> None:
    assert worst_case([0.1, 0.5], [0.5, 0.5], 0.0, noise=0.1).weights.tolist() == [0.5, 0.5]
    assert worst_case([0.1, 0.5], [0.5, 0.5], np.inf, noise=0.1).weights.tolist() == [0.0, 1.0]
    assert worst_case([0.3], [1.0], 0.1, noise=0.1).weights.tolist() == [1.0]
