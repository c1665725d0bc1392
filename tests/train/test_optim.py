"""The schedule: where it starts, where it ends, and that it is continuous between."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.config import ContinueConfig
from drpruning.train.optim import learning_rate, learning_rates


def stage(steps: int, warmup: float, final: float) -> ContinueConfig:
    return ContinueConfig(
        steps=steps, batch_size=1, learning_rate=2.0, warmup=warmup, final_learning_rate=final, evaluate_every=1
    )


def test_by_hand() -> None:
    settings = stage(10, 0.2, 0.5)
    rates = [learning_rate(settings, step) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(2.0 * 0.75)  # half-way down the cosine
    assert rates[-1] > 1.0
    assert learning_rate(settings, 10) == pytest.approx(1.0)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_it_rises_then_falls_and_stays_in_range(steps: int, warmup: float, final: float) -> None:
    settings = stage(steps, warmup, final)
    rates = [learning_rate(settings, step) for step in range(steps)]
    rising = round(warmup * steps)
    assert all(a <= b for a, b in pairwise(rates[:rising]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[rising:]))
    assert all(0 < rate <= 2.0 + 1e-12 or final == 0 for rate in rates)


@given(st.integers(1, 2000), st.floats(0, 1), st.floats(0, 1), st.integers(1, 10**6))
def test_the_law_is_told_the_rate_of_the_next_step(steps: int, warmup: float, final: float, tokens: int) -> None:
    settings = stage(steps, warmup, final)
    schedule = learning_rates(settings, tokens)
    told = np.interp(tokens * np.arange(steps), schedule.tokens, schedule.rates)
    np.testing.assert_allclose(told, [learning_rate(settings, step) for step in range(steps)], atol=1e-4)
    assert schedule.tokens[-1] == steps * tokens
    assert len(schedule.tokens) <= 259
