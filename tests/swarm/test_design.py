"""Proposed swarms: caps, coverage, reproducibility."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from drpruning.errors import WeightError
from drpruning.swarm import propose

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
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightError, match=message):
        propose(**{"prior": PRIOR, "runs": 8} | arguments)
