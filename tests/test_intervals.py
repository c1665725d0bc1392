"""Standard errors and intervals: known values, and coverage on data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from drpruning.intervals import Difference, mean_difference, paired_difference, ratio_standard_error


def test_a_difference_has_its_interval() -> None:
    clear, unclear = Difference(-0.5, 0.1), Difference(-0.1, 0.1)
    assert (clear.low, clear.high) == pytest.approx((-0.696, -0.304))
    assert clear.excludes_zero
    assert not unclear.excludes_zero
    assert not Difference(-0.5, math.nan).excludes_zero


def test_variances_of_independent_differences_add() -> None:
    mean = mean_difference([Difference(1.0, 0.3), Difference(3.0, 0.4)])
    assert (mean.value, mean.standard_error) == pytest.approx((2.0, 0.25))


def test_a_bootstrap_over_three_seeds_would_not_cover() -> None:
    """Show why seeds need Student's t: the range of three pairs, the widest bootstrap interval, covers 75%."""
    pairs = np.random.default_rng(3).normal(size=(20_000, 3))
    assert np.mean((pairs.min(axis=1) < 0) & (pairs.max(axis=1) > 0)) == pytest.approx(0.75, abs=0.01)


def test_more_spread_makes_a_wider_interval() -> None:
    drawn = np.zeros((10, 3))
    near, far = (paired_difference(np.array([-1, 0, 1]) * size, drawn) for size in (0.01, 0.1))
    assert far.high == pytest.approx(10 * near.high)
    assert paired_difference(np.array([-0.01, 0, 0.01]), drawn + np.arange(10)[:, None]).high > near.high


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
