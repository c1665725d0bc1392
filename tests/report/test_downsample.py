"""Bins: bounded, exact while short, and true to mean, least and largest when long."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from drpruning.report.read.downsample import MOST_COLUMNS, Bins, numbers

LOSS = ["loss"]


def rows(values: list[float]) -> list[list[object]]:
    return [[value] for value in values]


def test_every_row_is_kept_while_there_is_room() -> None:
    bins = Bins(most=8)
    bins.add([1, 2, 5], LOSS, rows([1.0, math.nan, 3.0]))
    assert bins.width == 1
    np.testing.assert_array_equal(bins.mean("loss"), [1.0, math.nan, 3.0])
    np.testing.assert_array_equal(bins.mean("other"), [math.nan] * 3)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(2, 20), st.integers(1, 50))
def test_groups_are_as_if_made_at_once(values: list[float], most: int, block: int) -> None:
    bins = Bins(most=most)
    for start in range(0, len(values), block):
        part = values[start : start + block]
        bins.add(list(range(start, start + len(part))), LOSS, rows(part))
    assert len(bins) <= most
    groups = [values[at : at + bins.width] for at in range(0, len(values), bins.width)]
    np.testing.assert_allclose(bins.mean("loss"), [np.mean(each) for each in groups], rtol=1e-9, atol=1e-6)
    np.testing.assert_array_equal(bins.low("loss"), [min(each) for each in groups])
    np.testing.assert_array_equal(bins.high("loss"), [max(each) for each in groups])


def test_one_bad_step_in_a_million_still_shows() -> None:
    bins = Bins(most=100)
    for start in range(0, 1_000_000, 100_000):
        loss = np.full(100_000, 2.0)
        loss[77] = 9.0 if start == 500_000 else 2.0
        bins.add(range(start, start + 100_000), LOSS, loss[:, None].tolist())
    assert len(bins) <= 100
    assert bins.high("loss").max() == 9.0
    assert (bins.high("loss") > 2).sum() == 1


def test_steps_taken_again_replace_the_earlier_ones() -> None:
    bins = Bins()
    bins.add([1, 2, 3, 4], LOSS, rows([1.0, 2.0, 3.0, 4.0]))
    bins.add([3, 4, 5], LOSS, rows([30.0, 40.0, 50.0]))
    np.testing.assert_array_equal(bins.mean("loss"), [1.0, 2.0, 30.0, 40.0, 50.0])
    bins.add([6, 2], LOSS, rows([60.0, 20.0]))
    np.testing.assert_array_equal(bins.mean("loss"), [1.0, 20.0])


def test_a_column_may_come_late_and_columns_are_bounded() -> None:
    bins = Bins()
    bins.add([1], LOSS, rows([1.0]))
    bins.add([2], ["norm", "loss"], [[5.0, 2.0]])
    np.testing.assert_array_equal(bins.mean("norm"), [math.nan, 5.0])
    np.testing.assert_array_equal(bins.mean("loss"), [1.0, 2.0])
    names = [f"domain {at}" for at in range(2 * MOST_COLUMNS)]
    bins.add([3], [*names, "loss"], [[*map(float, range(2 * MOST_COLUMNS)), 3.0]])
    assert len(bins.names) == MOST_COLUMNS
    assert (bins.mean("loss")[-1], bins.mean("domain 7")[-1]) == (3.0, 7.0)


def test_what_is_no_number_is_not_counted() -> None:
    given_ = [1, 2.5, None, "low", [1], {}, 10**400, math.inf, -math.inf, 1e300, True]
    expected = [1.0, 2.5] + [math.nan] * 9
    np.testing.assert_array_equal(numbers([given_], 11), [expected])
