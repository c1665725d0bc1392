"""Standard errors and intervals: known values, and coverage on data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from drpruning.intervals import (
    FEWEST_DEGREES,
    MOST_GROUPS,
    Array,
    Difference,
    DomainResamples,
    GroupSupport,
    ResampledRatios,
    few_groups,
    paired_difference,
    ratio_standard_error,
    student_half_width,
    sum_by_group,
)


def test_a_difference_has_its_interval() -> None:
    clear, unclear = Difference(-0.5, 0.1), Difference(-0.1, 0.1)
    assert (clear.low, clear.high) == pytest.approx((-0.696, -0.304), abs=1e-5)
    assert clear.excludes_zero
    assert not unclear.excludes_zero
    assert not Difference(-0.5, math.nan).excludes_zero


def test_a_bootstrap_over_three_seeds_would_not_cover() -> None:
    """Show why seeds need Student's t: the range of three pairs, the widest bootstrap interval, covers 75%."""
    pairs = np.random.default_rng(3).normal(size=(20_000, 3))
    assert np.mean((pairs.min(axis=1) < 0) & (pairs.max(axis=1) > 0)) == pytest.approx(0.75, abs=0.01)


def over_documents(
    values: Array, groups: NDArray[np.int64] | None = None, weights: Array | None = None
) -> ResampledRatios:
    """Resample the mean of one domain."""
    resamples = DomainResamples(np.ones_like(values) if weights is None else weights, groups, np.random.default_rng(0))
    return ResampledRatios.of([(resamples, values[None], np.ones(1))])


def test_seeds_alone_give_student_s_interval() -> None:
    same = over_documents(np.zeros(10))
    near, far = (paired_difference(np.array([-1, 0, 1]) * size, same) for size in (0.01, 0.1))
    assert near.high == pytest.approx(student_half_width([-0.01, 0, 0.01]))
    assert far.high == pytest.approx(10 * near.high)
    assert (near.pairs, near.degrees) == (3, pytest.approx(2))


def test_the_variances_of_seeds_and_documents_add() -> None:
    documents = over_documents(np.random.default_rng(1).normal(size=100))
    both = paired_difference(np.array([-0.1, 0, 0.1]), documents)
    assert both.standard_error**2 == pytest.approx(0.01 / 3 + documents.variances[0])
    seeds = student_half_width([-0.1, 0, 0.1])
    assert both.half_width == pytest.approx(math.hypot(seeds, documents.difference().half_width))
    assert 2 < both.degrees < documents.degrees


def test_the_error_over_groups_is_that_of_their_sums() -> None:
    generator = np.random.default_rng(2)
    groups = generator.integers(0, 12, 60)
    values, weights = generator.normal(size=60), generator.integers(5, 50, 60)
    sums = sum_by_group(values, groups), sum_by_group(weights, groups).astype(np.int64)
    whole = ratio_standard_error(values, weights, groups)
    assert whole == pytest.approx(ratio_standard_error(*sums))
    found = over_documents(values, groups, weights)
    assert found.values[0] == pytest.approx(values.sum() / weights.sum())
    assert found.difference().standard_error == pytest.approx(whole)
    assert found.support.groups == len(np.unique(groups))
    repeated = ratio_standard_error(np.tile(values, 4), np.tile(weights, 4), np.tile(np.arange(60), 4))
    assert repeated == pytest.approx(ratio_standard_error(values, weights))


def test_resamples_have_the_errors_of_their_documents() -> None:
    """Compare with each resample written out as documents; the factor n / (n - 1) is the same."""
    generator = np.random.default_rng(3)
    values, weights = generator.normal(size=8), generator.integers(5, 50, 8)
    resamples = DomainResamples(weights, None, generator, resamples=5)
    variances, _ = resamples.variances(values[None], np.ones((6, 1)))
    for counts, ratio, variance in zip(resamples.counts, resamples.ratios(values[None])[:, 0], variances, strict=True):
        drawn = np.repeat(np.arange(8), counts.astype(int))
        assert ratio == pytest.approx(values[drawn].sum() / weights[drawn].sum())
        assert variance == pytest.approx(ratio_standard_error(values[drawn], weights[drawn]) ** 2)


def test_one_heavy_group_widens_the_interval_up_to_a_limit() -> None:
    even = np.random.default_rng(4).normal(size=30)
    heavy = np.append(even, 40.0)
    assert over_documents(even).difference().degrees == pytest.approx(29, abs=6)
    found = over_documents(heavy).difference()
    assert found.degrees == FEWEST_DEGREES
    assert found.support is not None
    assert found.support.largest > 0.8


def test_a_single_group_has_no_interval() -> None:
    found = over_documents(np.array([1.0])).difference()
    assert math.isnan(found.half_width)
    assert not found.excludes_zero


def test_the_p_value_agrees_with_the_interval() -> None:
    for degrees in (2.0, 7.5, math.inf):
        edge = Difference(1.0, 1.0, degrees).half_width
        assert Difference(edge, 1.0, degrees).p_value == pytest.approx(0.05)
        assert Difference(-edge, 1.0, degrees).p_value == pytest.approx(0.05)
    assert Difference(0.0, 0.0).p_value == 1.0


def test_more_groups_than_are_resampled_are_pooled() -> None:
    values = np.random.default_rng(5).normal(size=4 * MOST_GROUPS)
    pooled = sum_by_group(values, None)
    assert pooled.shape == (MOST_GROUPS,)
    assert pooled.sum() == pytest.approx(values.sum())
    assert ratio_standard_error(values, np.ones(len(values), dtype=np.int64)) == pytest.approx(1 / 63.2, rel=0.1)


def test_the_error_of_a_ratio_covers_it() -> None:
    """Draw 400 samples of 30 documents: the 95% interval misses the truth in about 20 (binomial, 4 sigma: below 40)."""
    generator = np.random.default_rng(11)
    missed = 0
    for _ in range(400):
        tokens = generator.integers(20, 200, 30)
        nats = tokens * (3.0 + generator.normal(0, 0.3, 30))
        missed += abs(nats.sum() / tokens.sum() - 3.0) > 1.96 * ratio_standard_error(nats, tokens)
    assert 5 < missed < 40
    assert math.isnan(ratio_standard_error(np.array([1.0]), np.array([3])))


def test_few_groups_are_named() -> None:
    heavy = Difference(-1.0, 0.1, support=GroupSupport(1, 12, 0.75))
    many = Difference(-1.0, 0.1, support=GroupSupport(0, 80, 0.75))
    reason = few_groups([many, heavy], ["web", "code"], mean=False)
    assert reason == "12 groups of documents in code, one with 75% of the variance"
    assert few_groups([heavy], ["web", "code"], mean=True) == ""
    assert few_groups([many], ["web", "code"], mean=False) == ""
