"""Bounds: the nearest mixture within them, epochs as shares, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from drpruning.errors import ConfigError
from drpruning.mixture import Bounds, Constant, Observation, ShearedLoading

DOMAINS = ["web", "code", "books"]
RATIO = {"web": 0.7, "code": 0.2, "books": 0.1}


def observe(tokens: int = 0, **changes: Any) -> Observation:
    facts: dict[str, Any] = {
        "step": 0,
        "tokens": tokens,
        "params": 1.0,
        "losses": {},
        "final_tokens": 1000,
        "domain_tokens": {"web": 500, "code": 200, "books": 100, "more": 7},
        "consumed": {"web": 0, "code": 0, "books": 0, "more": 0},
    }
    return Observation(**facts | changes)


def test_what_no_bound_touches_keeps_its_proportions() -> None:
    # web to 0.4; the 0.6 left are shared 2 : 1
    assert Bounds(max_share={"web": 0.4}).nearest([0.7, 0.2, 0.1], DOMAINS) == pytest.approx([0.4, 0.4, 0.2])
    # books to 0.25; the 0.75 left are shared 7 : 2
    bounded = Bounds(min_share={"books": 0.25}).nearest([0.7, 0.2, 0.1], DOMAINS)
    assert bounded == pytest.approx([0.75 * 7 / 9, 0.75 * 2 / 9, 0.25])


def test_a_mixture_within_the_bounds_is_left_to_the_bit() -> None:
    mixture = np.array([0.7, 0.2, 0.1]) / 3 * 3
    bounded = Bounds(min_share=0.05, max_share=0.9, max_epochs=10).nearest(mixture, DOMAINS, observe())
    assert bounded.tolist() == mixture.tolist()


def test_domains_without_weight_come_last() -> None:
    bounds = Bounds(max_share=0.5)
    assert bounds.nearest([1.0, 0.0, 0.0], DOMAINS, ratio=[0.1, 0.6, 0.3]) == pytest.approx([0.5, 1 / 3, 1 / 6])
    assert bounds.nearest([0.8, 0.2, 0.0], DOMAINS) == pytest.approx([0.5, 0.5, 0.0])
    assert bounds.nearest([1.0, 0.0, 0.0], DOMAINS) == pytest.approx([0.5, 0.25, 0.25])
    assert Bounds(min_share=0.1).nearest([1.0, 0.0, 0.0], DOMAINS) == pytest.approx([0.8, 0.1, 0.1])


shares = st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=3)


@given(shares, shares, shares, st.integers(0, 2))
@settings(deadline=None, max_examples=60)
def test_the_bounded_mixture_is_nearest_in_relative_entropy(
    raw: list[float], lows: list[float], highs: list[float], zero: int
) -> None:
    w = np.array(raw) / sum(raw)
    low = 0.9 * np.array(lows) / (3 * max(lows))
    high = np.maximum(low, np.array(highs))
    high[zero] = 1.0
    bounds = Bounds(min_share=dict(zip(DOMAINS, low, strict=True)), max_share=dict(zip(DOMAINS, high, strict=True)))
    q = bounds.nearest(w, DOMAINS)
    assert (q >= low - 1e-12).all()
    assert (q <= high + 1e-12).all()
    assert q.sum() == pytest.approx(1, abs=1e-14)

    def distance(x: np.ndarray[Any, Any]) -> float:
        return float((x * np.log(x / w)).sum())

    found = minimize(
        distance,
        np.clip(q * 0.9 + 0.1 / 3, low, high),
        jac=lambda x: np.log(x / w) + 1,
        bounds=list(zip(low, high, strict=True)),
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 300},
    )
    if abs(found.x.sum() - 1) < 1e-9:
        assert distance(q) <= distance(found.x) + 1e-8


@given(shares, st.floats(0.34, 1.0), st.floats(0.0, 0.33))
@settings(deadline=None, max_examples=60)
def test_bounding_twice_is_bounding_once(raw: list[float], high: float, low: float) -> None:
    bounds = Bounds(min_share=low, max_share=high)
    once = bounds.nearest(np.array(raw) / sum(raw), DOMAINS)
    assert bounds.nearest(once, DOMAINS) == pytest.approx(once.tolist(), abs=1e-14)


def test_epochs_become_shares_of_what_is_left() -> None:
    bounds = Bounds(max_epochs={"books": 2.0})
    assert bounds.limits(DOMAINS, observe())[1].tolist() == [1.0, 1.0, 0.2]
    later = observe(600, consumed={"web": 0, "code": 0, "books": 160})
    assert bounds.limits(DOMAINS, later)[1].tolist() == [1.0, 1.0, 0.1]
    over = observe(600, consumed={"web": 0, "code": 0, "books": 230})
    assert bounds.limits(DOMAINS, over)[1].tolist() == [1.0, 1.0, 0.0]
    assert bounds.limits(DOMAINS, observe(1000))[1].tolist() == [1.0, 1.0, 1.0]


def test_an_overdrawn_domain_does_not_stop_a_run() -> None:
    # 1.25 epochs of 800 tokens are just the 1,000 of the stage; whole rows took a little too much of books
    bounds = Bounds(max_epochs=1.25)
    late = observe(990, consumed={"web": 617, "code": 246, "books": 127})
    mixture = bounds.nearest([0.1, 0.1, 0.8], DOMAINS, late)
    assert mixture == pytest.approx([0.6, 0.4, 0.0])
    # Other weights used the tokens that max_share for web needs: the nearest thing to a mixture is taken
    bounds = Bounds(max_epochs=1.5, max_share={"web": 0.55})
    late = observe(990, consumed={"web": 540, "code": 300, "books": 150})
    assert bounds.nearest([0.1, 0.1, 0.8], DOMAINS, late).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (Bounds(max_share=0.3), "max_share sum to 0.9 over all domains; expected at least 1"),
        (Bounds(min_share=0.4), "min_share sums to 1.2 over all domains; expected at most 1"),
        (Bounds(min_share={"web": 0.5}, max_share=0.4), 'domain "web" must have at least 0.5'),
        (Bounds(max_share={"maths": 0.4}), 'max_share names domain "maths"'),
    ],
)
def test_shares_that_leave_no_mixture_are_refused_at_the_start(bounds: Bounds, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Constant(bounds=bounds).init(DOMAINS, RATIO)


@pytest.mark.parametrize(
    ("bounds", "observation", "message"),
    [
        (Bounds(max_epochs=1.0), observe(), "max_epochs sum to 0.8 over all domains"),
        (Bounds(max_epochs={"books": 1.0}, min_share=0.2), observe(), 'domain "books" must have at least 0.2'),
        (Bounds(max_epochs=1.0), observe(domain_tokens=None), "has no numbers of tokens"),
        (Bounds(max_epochs=1.0), observe(consumed=None), "has no numbers of tokens"),
        (Bounds(max_epochs=1.0), observe(final_tokens=None), "has no numbers of tokens"),
        (Bounds(max_epochs=2.0), observe(consumed={"web": 1}), 'lacks domain "code"'),
    ],
)
def test_epochs_that_cannot_be_kept_are_refused(bounds: Bounds, observation: Observation, message: str) -> None:
    strategy = ShearedLoading(bounds=bounds)
    state = strategy.init(DOMAINS, RATIO)
    with pytest.raises(ConfigError, match=message):
        strategy.update(state, observation)


@pytest.mark.parametrize(
    "limits",
    [{"min_share": -0.1}, {"max_share": 1.1}, {"max_share": math.nan}, {"max_epochs": 0.0}, {"max_epochs": math.inf}],
)
def test_bounds_out_of_range_are_refused(limits: dict[str, float]) -> None:
    name = next(iter(limits))
    with pytest.raises(ConfigError, match=f"^{name}: expected"):
        Bounds(**limits)
    with pytest.raises(ConfigError, match=f"^{name} of domain web: expected"):
        Bounds(**{name: {"web": limits[name]}})
