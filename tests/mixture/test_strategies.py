"""The strategies: numbers worked by hand, and what holds for all of them whatever is measured."""

import inspect
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from drpruning.chi2 import worst_case
from drpruning.errors import ConfigError, StateError, WeightError
from drpruning.mixture import (
    ADO,
    ODM,
    STRATEGIES,
    Aioli,
    Bounds,
    ChiSquareDRO,
    Constant,
    CVaR,
    DoReMi,
    DRPruning,
    GroupDRO,
    Schedule,
    ShearedLoading,
    Strategy,
    worst_fraction,
)
from drpruning.mixture.settings import FRACTION, documented, setting
from drpruning.mixture.strategies.published import published_update
from drpruning.scaling import LearningRates
from tests.mixture.observed import DOMAINS, FINAL, RATIO, curve_table, losses, observe, run

PLANNED = Schedule.of([(100, {"web": 0.2, "code": 0.3, "books": 0.5}), (600, {"web": 0.5, "code": 0.5, "books": 0.0})])
ALL: list[Strategy] = [
    Constant(),
    PLANNED,
    ShearedLoading(),
    GroupDRO(),
    CVaR(),
    ChiSquareDRO(),
    DRPruning(min_points=6),
    ADO(min_points=6),
    DoReMi(),
    ODM(),
    Aioli(sweeps=1, probe_steps=70, round_fraction=0.2),
]
PUBLISHED = ChiSquareDRO(solver="published")
LIMITS = Bounds(min_share={"web": 0.1}, max_share={"code": 0.4}, max_epochs={"books": 2.0})
ADAPTIVE = [strategy for strategy in ALL if strategy.name not in ("constant", "schedule", "ado", "odm", "aioli")]
"""Those whose next weights depend on the next held-out losses."""


def described() -> None:
    """Return nothing.

    The second paragraph.
    """


@pytest.mark.parametrize("docstring", [described.__doc__, inspect.cleandoc(described.__doc__ or "")])
def test_a_docstring_lists_the_settings_with_and_without_the_indentation_of_the_source(docstring: str) -> None:
    """Check both forms: from Python 3.13 on, the compiler removes the indentation."""

    @dataclass
    class Rule:
        __doc__ = docstring
        share: float = setting(0.5, "A share.", **FRACTION)

    listed = "Return nothing.\n\nThe second paragraph.\n\nAttributes:\n    share: A share."
    assert inspect.getdoc(documented(Rule)) == listed


def test_names_lead_to_strategies() -> None:
    assert [strategy.name for strategy in ALL] == list(STRATEGIES)
    assert all(cls.name == name for name, cls in STRATEGIES.items())


def test_constant_stays() -> None:
    strategy = Constant()
    state = strategy.init(DOMAINS, RATIO, reference_loss={"code": 1.0})
    _, (update,) = run(strategy, state, [observe(losses(9, 2, 1))])
    assert update.weights == pytest.approx(RATIO)
    assert update.excess_loss == {"code": 1.0}
    assert (update.status, update.divergence) == ("constant", 0.0)


def test_sheared_loading_by_hand() -> None:
    # w exp(eta max(0, excess)): 0.7 e^0.5, 0.2 e^1, 0.1 e^0 (its loss is below its reference)
    strategy = ShearedLoading(eta=1.0, smoothing=0.01)
    state = strategy.init(DOMAINS, RATIO, reference_loss=losses(2.0, 1.0, 3.0))
    _, (update,) = run(strategy, state, [observe(losses(2.5, 2.0, 2.5))])
    raised = np.array([0.7 * math.exp(0.5), 0.2 * math.e, 0.1])
    expected = 0.99 * raised / raised.sum() + 0.01 / 3
    assert list(update.weights.values()) == pytest.approx(expected.tolist(), rel=1e-14)
    assert update.excess_loss == losses(0.5, 1.0, -0.5)
    assert update.status == "exponentiated"


def test_sheared_loading_without_references_measures_against_the_first_losses() -> None:
    strategy = ShearedLoading(smoothing=0.0)
    state = strategy.init(DOMAINS, RATIO)
    _, (first, second) = run(strategy, state, [observe(losses(2, 1, 3)), observe(losses(1.9, 1.5, 3))])
    assert first.weights == pytest.approx(RATIO)
    assert second.reference_loss == losses(2, 1, 3)
    assert second.weights["code"] / second.weights["web"] == pytest.approx(0.2 / 0.7 * math.exp(0.5))


def test_group_dro_by_hand() -> None:
    # Without references the losses themselves: 0.7 e^(0.1 * 2.5), 0.2 e^(0.1 * 2), 0.1 e^(0.1 * 2.5)
    strategy = GroupDRO(eta=0.1, smoothing=0.0)
    _, (update,) = run(strategy, strategy.init(DOMAINS, RATIO), [observe(losses(2.5, 2.0, 2.5))])
    raised = np.array([0.7 * math.exp(0.25), 0.2 * math.exp(0.2), 0.1 * math.exp(0.25)])
    assert list(update.weights.values()) == pytest.approx((raised / raised.sum()).tolist(), rel=1e-14)
    assert (update.reference_loss, update.excess_loss) == (None, None)
    # With references the excess, negative ones too: 0.5, 1.0, -0.5
    state = strategy.init(DOMAINS, RATIO, reference_loss=losses(2.0, 1.0, 3.0))
    _, (update,) = run(strategy, state, [observe(losses(2.5, 2.0, 2.5))])
    raised = np.array([0.7 * math.exp(0.05), 0.2 * math.exp(0.1), 0.1 * math.exp(-0.05)])
    assert list(update.weights.values()) == pytest.approx((raised / raised.sum()).tolist(), rel=1e-14)


def test_a_domain_without_a_reference_among_others_is_measured_against_its_first_loss() -> None:
    for strategy in (GroupDRO(), CVaR(), ChiSquareDRO()):
        state = strategy.init(DOMAINS, RATIO, reference_loss={"web": 2.0, "code": 1.0})
        _, (_, second) = run(strategy, state, [observe(losses(2, 1, 3)), observe(losses(2.1, 1.2, 2.8))])
        assert second.reference_loss == losses(2, 1, 3)
        assert second.excess_loss == pytest.approx(losses(0.1, 0.2, -0.2))


def test_cvar_by_hand() -> None:
    # Caps at half: 1.4, 0.4, 0.2; code is worst and filled, then books, then web takes the 0.4 that is left
    strategy = CVaR(alpha=0.5, floor=0.0)
    state = strategy.init(DOMAINS, RATIO, reference_loss=losses(2.0, 1.0, 3.0))
    _, (update,) = run(strategy, state, [observe(losses(2.1, 2.0, 3.2))])
    assert update.weights == pytest.approx(losses(0.4, 0.4, 0.2))
    assert update.status == "worst_fraction"
    # With a floor of a half: 0.35 + 0.05 of what is left for web, the others at their caps again
    _, (update,) = run(CVaR(alpha=0.5, floor=0.5), state, [observe(losses(2.1, 2.0, 3.2))])
    assert update.weights == pytest.approx(losses(0.4, 0.4, 0.2))
    _, (update,) = run(CVaR(alpha=0.1, floor=0.5), state, [observe(losses(2.1, 2.0, 3.2))])
    assert update.weights == pytest.approx(losses(0.35, 0.6, 0.05))
    for wrong in ([0.1], [0.1, math.nan], [[0.1, 0.2]]):
        with pytest.raises(WeightError, match="a finite loss for each share"):
            worst_fraction(wrong, [0.5, 0.5], 0.5)


@given(
    st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    st.floats(0.05, 1.0),
    st.floats(0.0, 1.0),
)
@settings(deadline=None, max_examples=40)
def test_the_worst_fraction_is_the_optimum_of_its_linear_program(
    excess: list[float], raw: list[float], alpha: float, floor: float
) -> None:
    p = np.array(raw) / sum(raw)
    q = worst_fraction(excess, p, alpha, floor)
    assert (q >= floor * p - 1e-12).all()
    assert (q <= p / alpha + 1e-12).all()
    bounds = list(zip(floor * p, p / alpha, strict=True))
    best = linprog(-np.array(excess), A_eq=np.ones((1, 4)), b_eq=[1.0], bounds=bounds)
    assert q @ excess == pytest.approx(-best.fun, abs=1e-6)  # HiGHS calls costs within 1e-7 of each other equal


def test_chi_square_is_the_worst_case_in_a_ball_that_stays() -> None:
    strategy = ChiSquareDRO(rho=0.05, floor=0.1)
    state = strategy.init(DOMAINS, RATIO, reference_loss=losses(2.0, 1.0, 3.0))
    expected = worst_case([0.1, 0.6, 0.2], list(RATIO.values()), 0.05, 0.1).weights
    _, updates = run(strategy, state, [observe(losses(2.1, 1.6, 3.2), tokens=1000 * k) for k in range(3)])
    for update in updates:
        assert list(update.weights.values()) == pytest.approx(expected.tolist())
        assert (update.status, update.divergence) == ("boundary", pytest.approx(0.05))
        assert update.reference_ratio == pytest.approx(RATIO)


@pytest.mark.parametrize("cls", [ChiSquareDRO, DRPruning])
def test_the_published_update_is_a_setting(cls: Any) -> None:
    reference, measured = losses(2.0, 1.0, 3.0), losses(2.1, 1.6, 3.2)
    strategy = cls(rho=0.05, floor=0.1, solver="published")
    _, (update,) = run(strategy, strategy.init(DOMAINS, RATIO, reference_loss=reference), [observe(measured, 1000)])
    excess = [measured[domain] - reference[domain] for domain in DOMAINS]
    expected = published_update(excess, list(RATIO.values()), 0.05, floor=0.1)
    assert list(update.weights.values()) == pytest.approx(expected.tolist(), abs=1e-7)
    assert update.status == "published"
    exact = worst_case(excess, list(RATIO.values()), 0.05, 0.1).weights
    assert list(update.weights.values()) != pytest.approx(exact.tolist(), abs=1e-3)
    with pytest.raises(ConfigError, match="solver: expected exact or published, got 'bisection'"):
        cls(solver="bisection")
    for rho in (0.0, math.inf):
        with pytest.raises(ConfigError, match="expected a positive, finite number"):
            cls(solver="published", rho=rho)


def test_doremi_counts_only_what_was_measured() -> None:
    strategy = DoReMi()
    state = strategy.init(DOMAINS, RATIO, reference_loss=losses(2.0, 1.0, 3.0))
    _, updates = run(strategy, state, [observe({}), observe(losses(3, 1, 3)), observe({}), observe(losses(2, 2, 3))])
    assert [update.status for update in updates] == ["unchanged", "exponentiated", "unchanged", "exponentiated"]
    assert updates[0].average_weights == pytest.approx(RATIO)
    assert updates[2].average_weights == updates[1].weights
    mean = {domain: (updates[1].weights[domain] + updates[3].weights[domain]) / 2 for domain in DOMAINS}
    assert updates[3].average_weights == pytest.approx(mean)


def test_exponents_do_not_overflow() -> None:
    for strategy in (GroupDRO(eta=1e3), ShearedLoading(eta=1e3), DoReMi(eta=1e3)):
        state = strategy.init(DOMAINS, RATIO, reference_loss=losses(0, 0, 0))
        _, updates = run(strategy, state, [observe(losses(9e5, 1.0, 2.0)), observe(losses(1.0, 9e5, 2.0))])
        assert updates[0].weights["web"] > 0.999
        assert updates[1].weights["code"] > 0.999


def test_ado_measures_the_speed_of_learning_without_the_decay() -> None:
    schedule = LearningRates.cosine(FINAL, floor=0.0)
    straight = curve_table(25)
    bent = [
        replace(
            each,
            losses={d: x * float(schedule.bend(each.tokens)) for d, x in each.losses.items()},
            learning_rates=schedule,
        )
        for each in straight
    ]
    strategy = ADO()
    _, updates = run(strategy, strategy.init(DOMAINS, RATIO), bent)
    _, expected = run(strategy, strategy.init(DOMAINS, RATIO), straight)
    assert updates[-1].status == "learning_speed"
    assert updates[-1].weights == pytest.approx(expected[-1].weights, abs=1e-4)
    assert updates[-1].weights != pytest.approx(RATIO, abs=1e-2)


def simulate(strategy: Strategy, evaluations: int = 40) -> dict[str, float]:
    """Three domains that obey the law in their own tokens; returns each one's final loss less its irreducible loss."""
    state, tokens = strategy.init(DOMAINS, RATIO, reference_loss=losses(2, 1, 3)), np.full(3, 500.0)
    for k in range(1, evaluations + 1):
        tokens += FINAL / evaluations * np.array(state["weights"])
        found = np.array([2.0, 1.0, 3.0]) + np.array([4.0, 4.0, 12.0]) * tokens**-0.25
        state, _ = strategy.update(state, observe(losses(*found.tolist()), FINAL * k // evaluations))
    return losses(*(found - [2.0, 1.0, 3.0]).tolist())


def test_robust_mixing_helps_the_domain_that_lags() -> None:
    # "books" has the largest coefficient and the smallest share
    constant = simulate(Constant())
    fixed = simulate(DRPruning(delta=0.0, predict_after_fraction=1.0))
    moving = simulate(DRPruning(delta=0.2, ratio_bound=4.0))
    assert max(constant, key=constant.get) == "books"  # type: ignore[arg-type]
    assert fixed["books"] < constant["books"] - 0.15
    assert moving["books"] < fixed["books"] - 0.1
    assert moving["web"] < constant["web"] + 0.1


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_a_saved_state_has_the_same_future(strategy: Strategy) -> None:
    table = curve_table(10)
    state, straight = run(strategy, strategy.init(DOMAINS, RATIO), table)
    resumed, kept = strategy.init(DOMAINS, RATIO), []
    for observation in table:
        resumed, update = strategy.update(json.loads(json.dumps(resumed, allow_nan=False)), observation)
        kept.append(update)
    assert kept == straight
    assert resumed == state


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_update_leaves_the_old_state_alone(strategy: Strategy) -> None:
    state = strategy.init(DOMAINS, RATIO)
    for observation in curve_table(8):
        before = json.dumps(state)
        after, _ = strategy.update(state, observation)
        assert json.dumps(state) == before
        state = after


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("strategy", ADAPTIVE, ids=lambda s: s.name)
def test_a_domain_without_a_loss_keeps_its_weight(strategy: Strategy, bad: float | None) -> None:
    state = strategy.init(DOMAINS, RATIO, reference_loss=losses(2, 1, 3))
    state, (before,) = run(strategy, state, [observe(losses(2.3, 1.5, 3.1))])
    measured = losses(2.3, 1.5, 3.5)
    if bad is None:
        del measured["code"]
    else:
        measured["code"] = bad
    state, (after,) = run(strategy, state, [observe(measured)])
    assert after.status == "incomplete"
    assert after.weights["code"] == pytest.approx(before.weights["code"])
    assert after.weights["books"] > before.weights["books"]
    assert sum(after.weights.values()) == pytest.approx(1)
    assert "code" not in (after.excess_loss or {})
    _, (held,) = run(strategy, state, [observe({})])
    assert held.status == "unchanged"
    assert held.weights == after.weights


any_loss = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(0.1, 9), st.sampled_from([2.0, 3.0]))
any_row = st.dictionaries(st.sampled_from(DOMAINS), any_loss)


@pytest.mark.parametrize("bounds", [Bounds(), LIMITS], ids=["unbounded", "bounded"])
@pytest.mark.parametrize(
    "strategy",
    [*ALL, PUBLISHED, ODM.published(), Aioli(cumulative=True)],
    ids=lambda s: "-".join([s.name, *(str(getattr(s, name, "")) for name in ("solver", "policy", "cumulative"))]),
)
@given(table=st.lists(any_row, min_size=1, max_size=9), cut=st.integers(0, 8), given_reference=st.booleans())
@settings(deadline=None, max_examples=15)
def test_weights_are_a_mixture_whatever_is_measured_and_a_resume_changes_nothing(
    strategy: Any, bounds: Bounds, table: list[dict[str, float]], cut: int, given_reference: bool
) -> None:
    strategy = replace(strategy, bounds=bounds)
    reference = {"web": 2.0, "code": 1.0} if given_reference else None
    state = strategy.init(DOMAINS, RATIO, reference_loss=reference)
    for k, row in enumerate(table):
        if k == cut:
            state = json.loads(json.dumps(strategy.next_stage(state), allow_nan=False))
        observation = observe(row, 8000 * (k + 1), training_losses=row)
        again, same = strategy.update(json.loads(json.dumps(state, allow_nan=False)), observation)
        state, update = strategy.update(state, observation)
        assert (again, same) == (state, update)
        for mixture in (update.weights, update.reference_ratio, update.average_weights or RATIO):
            assert all(math.isfinite(weight) and weight >= 0 for weight in mixture.values())
            assert sum(mixture.values()) == pytest.approx(1, abs=1e-12)
        if bounds:
            low, high = bounds.limits(DOMAINS, observation)
            weights = np.array(list(update.weights.values()))
            assert (weights >= low - 1e-12).all()
            assert (weights <= high + 1e-12).all()


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_the_order_of_the_domains_does_not_matter(strategy: Strategy) -> None:
    _, straight = run(strategy, strategy.init(DOMAINS, RATIO), curve_table(9))
    _, turned = run(strategy, strategy.init(DOMAINS[::-1], RATIO), curve_table(9))
    for one, other in zip(straight, turned, strict=True):
        assert one.weights == pytest.approx(other.weights, abs=1e-9)


@pytest.mark.parametrize("strategy", [ODM(), ODM.published()], ids=lambda s: s.policy)
def test_odm_accepts_any_finite_training_losses_and_domains_without_one(strategy: ODM) -> None:
    state = strategy.init(DOMAINS, RATIO)
    for found in ({"web": -745.0}, {"code": 9e5}, {"books": -9e5, "web": math.nan}, {"web": 1e-300}):
        state, update = strategy.update(state, observe({}, training_losses=found))
        assert update.status == "bandit"
        assert sum(update.weights.values()) == pytest.approx(1)
        assert min(update.weights.values()) > 0
    before = update.weights
    for nothing in ({}, {"web": math.nan, "code": math.inf}, None):
        state, update = strategy.update(state, observe(losses(2, 1, 3), training_losses=nothing))
        assert (update.status, update.weights) == ("unchanged", before)


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: s.name)
def test_a_single_domain_has_the_whole_mixture(strategy: Strategy) -> None:
    if isinstance(strategy, Schedule):
        strategy = Schedule.of([(0, {"web": 1.0})])
    state = strategy.init(["web"], {"web": 1.0})
    for tokens in range(5000, FINAL, 5000):
        seen = observe({"web": 2 + 9 * tokens**-0.4}, tokens, training_losses={"web": 2.0})
        state, update = strategy.update(state, seen)
        assert update.weights == {"web": 1.0}
        assert strategy.probe_end(state) is None


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        ({"web": 0.7, "code": 0.3}, '"books" is missing'),
        (RATIO | {"maths": 0.1}, 'domain "maths"'),
        (RATIO | {"books": 0.0}, 'reference ratio of domain "books" is 0.0'),
        (RATIO | {"books": math.nan}, "is nan"),
        (RATIO | {"books": 0.2}, "sums to 1.1"),
    ],
)
def test_a_ratio_that_is_none_is_refused(ratio: dict[str, float], message: str) -> None:
    for cls in STRATEGIES.values():
        with pytest.raises(WeightError, match=message):
            cls().init(DOMAINS, ratio)


def test_other_mistakes_are_named() -> None:
    strategy = DRPruning()
    state = strategy.init(DOMAINS, RATIO)
    with pytest.raises(WeightError, match='loss names domain "maths"'):
        strategy.update(state, observe({"maths": 1.0}))
    with pytest.raises(WeightError, match='reference loss of domain "web" is inf'):
        strategy.init(DOMAINS, RATIO, reference_loss={"web": math.inf})
    with pytest.raises(WeightError, match="different names"):
        strategy.init(["web", "web"], {"web": 1.0})
    with pytest.raises(ConfigError, match="final_tokens"):
        strategy.update(state, replace(observe(losses(1, 1, 1)), final_tokens=None))
    with pytest.raises(StateError, match="'drpruning'"):
        ShearedLoading().update(state, observe(losses(1, 1, 1)))
    with pytest.raises(StateError, match="version"):
        strategy.update(state | {"version": 0}, observe(losses(1, 1, 1)))
