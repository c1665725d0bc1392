"""Learning-rate schedules in words and from what was seen: where their corners are, and what is not a schedule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning import LearningRates, parse_learning_rates
from drpruning.errors import ConfigError, WeightError


def rate(schedule: LearningRates, tokens: float) -> float:
    return float(np.interp(tokens, schedule.tokens, schedule.rates))


@pytest.mark.parametrize(
    ("text", "end", "corners"),
    [
        ("constant", None, {0: 1, 1e12: 1}),
        ("constant:warmup=1k", None, {0: 0, 500: 0.5, 1000: 1, 1e12: 1}),
        ("cosine", 1e6, {0: 1, 5e5: 0.55, 1e6: 0.1}),
        (" cosine:warmup=2%, final=0.2 ", 1e6, {0: 0, 1e4: 0.5, 2e4: 1, 51e4: 0.6, 1e6: 0.2, 2e6: 0.2}),
        ("cosine:end=1M", 5e5, {5e5: 0.55, 1e6: 0.1}),
        ("linear", 100, {0: 1, 50: 0.5, 100: 0}),
        ("linear:warmup=20,final=50%", 100, {10: 0.5, 20: 1, 60: 0.75, 100: 0.5}),
        ("wsd", 100, {0: 1, 90: 1, 95: 0.5, 100: 0}),
        ("wsd:warmup=10%,decay=40,final=10%", 100, {5: 0.5, 10: 1, 60: 1, 80: 0.55, 100: 0.1}),
        ("wsd:warmup=90%,decay=10%", 1.1e9, {0: 0, 0.99e9: 1, 1.1e9: 0}),
        ("wsd:warmup=60,decay=40", 100, {30: 0.5, 60: 1, 80: 0.5}),
    ],
)
def test_what_a_description_means(text: str, end: float | None, corners: dict[float, float]) -> None:
    schedule = parse_learning_rates(text, end)
    assert {tokens: rate(schedule, tokens) for tokens in corners} == pytest.approx(corners, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "end", "message"),
    [
        ("cosin", 1.0, "there is no shape 'cosin'; there are constant, cosine, linear, wsd\nDid you mean cosine?"),
        ("", 1.0, "there is no shape ''"),
        ("cosine:warmpu=1", 1.0, "'warmpu=1' is not a setting of cosine; its settings are warmup, final, end\nDid you"),
        ("cosine:warmup", 1.0, "'warmup' is not a setting"),
        ("constant:end=3", 1.0, "'end=3' is not a setting of constant"),
        ("cosine:peak=3e-4", 1.0, "only rates relative to the peak matter"),
        ("cosine", None, "whose end is not known\nAdd it: end=20B"),
        ("constant:warmup=2%", None, "warmup '2%' is a part of the training, whose end is not known"),
        ("cosine:warmup=soon", 1.0, "warmup 'soon' is not a number of tokens or a percentage"),
        ("cosine:end=0", 1.0, "end '0' is not"),
        ("cosine:end=50%", 1.0, "end '50%' is not"),
        ("cosine:final=2", 1.0, "final '2' is not a part of the peak"),
        ("cosine:warmup=100%", 1e3, "warmup 1000 and decay 0 do not fit into 1000"),
        ("wsd:warmup=20%,decay=90%", 1e3, "warmup 200 and decay 900 do not fit into 1000"),
    ],
)
def test_what_is_no_description(text: str, end: float | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_learning_rates(text, end)
    assert message in str(caught.value)


def test_measured_rates_are_the_past_and_the_schedule_continues_from_them() -> None:
    schedule = LearningRates([0, 10, 100], [0, 1, 0]).following([40, 50, 60], [3.0, np.nan, 2.0])
    assert rate(schedule, 40) == 3.0
    assert rate(schedule, 50) == 2.5  # unknown: between its neighbours
    assert rate(schedule, 10) == pytest.approx(3.0 / (60 / 90))  # before: scaled to meet the first
    assert rate(schedule, 80) == pytest.approx(1.0)  # after: scaled to meet the last, half of the way to the end
    assert rate(schedule, 100) == 0.0
    assert schedule.warm == 10


def test_nothing_seen_changes_nothing() -> None:
    schedule = LearningRates.cosine(100)
    for tokens, rates in (([], []), ([1.0], [np.nan]), ([0.0], [0.0])):
        assert schedule.following(tokens, rates) is schedule
    with pytest.raises(WeightError, match=r"shapes \(2,\) and \(1,\)"):
        schedule.following([1.0, 2.0], [1.0])


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=6, unique=True).map(sorted),
    st.data(),
    st.sampled_from(["constant", "cosine:warmup=10%", "linear", "wsd:warmup=1%,decay=50%"]),
)
def test_whatever_was_seen_the_result_is_a_schedule_that_holds_it(
    tokens: list[int], data: st.DataObject, text: str
) -> None:
    rates = data.draw(st.lists(st.floats(0, 1e-2), min_size=len(tokens), max_size=len(tokens)))
    schedule = parse_learning_rates(text, 800).following(tokens, rates)
    if max(rates) > 0:
        assert [rate(schedule, place) for place in tokens] == rates
    assert (np.diff(schedule.tokens) > 0).all()
