"""The schedule: where it starts, where it ends, and that it is continuous between."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from drpruning.config import ContinueConfig
from drpruning.train.optim import learning_rate, learning_rates

Schedule = Literal["cosine", "wsd"]


def stage(steps: int, warmup: float, final: float, schedule: Schedule = "cosine") -> ContinueConfig:
    return ContinueConfig(
        steps=steps,
        batch_size=1,
        learning_rate=2.0,
        warmup=warmup,
        final_learning_rate=final,
        evaluate_every=1,
        schedule=schedule,
        decay=0.3 if schedule == "wsd" else None,
    )


def test_by_hand() -> None:
    settings = stage(10, 0.2, 0.5)
    rates = [learning_rate(settings, step) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(2.0 * 0.75)  # half-way down the cosine
    assert rates[-1] > 1.0
    assert learning_rate(settings, 10) == pytest.approx(1.0)


def test_a_wsd_schedule_by_hand() -> None:
    rates = [learning_rate(stage(10, 0.2, 0.5, "wsd"), step) for step in range(11)]
    assert rates == pytest.approx([1, 2, 2, 2, 2, 2, 2, 2, 2 - 1 / 3, 2 - 2 / 3, 1])


def test_a_decay_longer_than_what_the_warmup_leaves_is_refused() -> None:
    with pytest.raises(ValidationError, match="more than the whole stage"):
        stage(10, 0.8, 0.5, "wsd")


SCHEDULES = st.sampled_from(["cosine", "wsd"])


@given(st.integers(1, 500), st.floats(0, 0.7), st.floats(0, 1), SCHEDULES)
def test_it_rises_then_falls_and_stays_in_range(steps: int, warmup: float, final: float, schedule: Schedule) -> None:
    settings = stage(steps, warmup, final, schedule)
    rates = [learning_rate(settings, step) for step in range(steps)]
    rising = round(warmup * steps)
    assert all(a <= b for a, b in pairwise(rates[:rising]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[rising:]))
    assert all(0 < rate <= 2.0 + 1e-12 or final == 0 for rate in rates)


@given(st.integers(1, 2000), st.floats(0, 0.7), st.floats(0, 1), st.integers(1, 10**6), SCHEDULES)
def test_the_law_is_told_the_rate_of_the_next_step(
    steps: int, warmup: float, final: float, tokens: int, schedule: Schedule
) -> None:
    settings = stage(steps, warmup, final, schedule)
    schedule = learning_rates(settings, tokens)
    told = np.interp(tokens * np.arange(steps), schedule.tokens, schedule.rates)
    np.testing.assert_allclose(told, [learning_rate(settings, step) for step in range(steps)], atol=1e-4)
    assert schedule.tokens[-1] == steps * tokens
    assert len(schedule.tokens) <= 259
