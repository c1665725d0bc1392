"""Proposed swarms: caps, coverage, reproducibility."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drpruning.errors import ConfigError, WeightError
from drpruning.swarm import propose, round_shares

PRIOR = {"web": 0.8, "code": 0.15, "math": 0.05}


def test_mixtures_keep_the_caps_and_reach_far_from_the_prior() -> None:
    tokens = {"web": 8e9, "code": 1e9, "math": 2e8}
    design = propose(PRIOR, 64, domain_tokens=tokens, run_tokens=2e9, max_epochs=4)
    assert design.mixtures.shape == (64, 3)
    np.testing.assert_allclose(design.mixtures.sum(axis=1), 1, rtol=1e-12)
    assert design.mixtures.min() >= 0
    np.testing.assert_allclose(design.mixtures[0], list(PRIOR.values()))
    np.testing.assert_allclose(design.mixtures[1], 1 / 3)
    cap = 4 * 2e8 / 2e9
    assert design.mixtures[:, 2].max() <= cap + 1e-9
    assert design.mixtures[:, 2].max() == pytest.approx(cap)  # some runs repeat the rare domain as often as allowed
    assert design.mixtures[:, 0].min() < 0.2
    assert design.subsample == 1


def test_caps_are_those_of_the_run_that_the_mixture_is_for() -> None:
    tokens = {"web": 8e9, "code": 1e9, "math": 2e8}
    design = propose(PRIOR, 16, domain_tokens=tokens, run_tokens=1e8, target_tokens=4e9, max_epochs=2)
    assert design.mixtures[:, 2].max() <= 2 * 2e8 / 4e9 + 1e-9
    assert design.subsample == pytest.approx(1e8 / 4e9)


def test_mixtures_keep_the_shares_allowed() -> None:
    design = propose(PRIOR, 32, min_share={"code": 0.3}, max_share={"web": 1 / 3}, seed=2)
    np.testing.assert_allclose(design.mixtures.sum(axis=1), 1, rtol=1e-12)
    assert design.mixtures[:, 1].min() >= 0.3 - 1e-12
    assert design.mixtures[:, 0].max() <= 1 / 3 + 1e-12
    assert len(np.unique(design.mixtures[:, 1].round(6))) > 16  # the draws do not gather at the bound
    both = propose(PRIOR, 8, domain_tokens=dict.fromkeys(PRIOR, 1e9), run_tokens=8e9, max_share={"web": 0.2})
    assert both.mixtures[:, 0].max() <= 0.2 + 1e-12
    assert both.mixtures[:, 1:].max() <= 0.5 + 1e-12


def test_rounded_shares_keep_their_bounds() -> None:
    high = {"web": 0.3333337, "code": 0.3333337, "math": 1.0}
    rounded = propose(PRIOR, 32, max_share=high).rounded().mixtures
    assert (rounded <= list(high.values())).all()
    np.testing.assert_allclose(rounded.sum(axis=1), 1, rtol=1e-15)
    np.testing.assert_array_equal(rounded, rounded.round(6))
    shares = {"a": 0.2000004, "b": 0.2000004, "c": 0.5999992}
    low = {"a": 0.2000004, "b": 0.0, "c": 0.0}
    assert round_shares(shares, low) == {"a": 0.200001, "b": 0.2, "c": 0.599999}
    # a recipe needs positive shares
    assert round_shares({"a": 1.0, "b": 0.0}, high={"a": 1.0, "b": 0.0}) == {"a": 0.999999, "b": 0.000001}


def test_a_uniform_prior_is_proposed_once() -> None:
    design = propose(dict.fromkeys("abc", 1 / 3), 8).rounded()
    assert len(np.unique(design.mixtures, axis=0)) == 8


def test_the_seed_determines_the_design() -> None:
    first, second, third = (propose(PRIOR, 8, seed=seed).mixtures for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": {"web": 1.0}}, "at least two positive shares"),
        ({"prior": {"web": 0.9, "code": 0.2}}, "sum to 1"),
        ({"runs": 1}, "runs is 1"),
        ({"domain_tokens": {"web": 1e9}, "run_tokens": 1e9}, "lacks"),
        ({"domain_tokens": dict.fromkeys(PRIOR, 1e9)}, "tokens of a run are None"),
        ({"domain_tokens": dict.fromkeys(PRIOR, 1e6), "run_tokens": 1e9}, "have text for 0.012 of a run"),
        ({"max_share": {"wbe": 0.3}}, 'max_share names domain "wbe"'),
        ({"max_share": 0.3}, "sum to 0.9 over all domains"),
        ({"max_share": 0.3, "min_share": {"web": 0.5}}, '"web" must have at least 0.5'),
        ({"domain_tokens": dict.fromkeys(PRIOR, 1e9), "run_tokens": 8e9, "max_share": {"web": 0, "code": 0.4}}, "sum"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((WeightError, ConfigError), match=message):
        propose(**{"prior": PRIOR, "runs": 8} | arguments)
