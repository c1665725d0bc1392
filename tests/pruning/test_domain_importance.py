"""Scores of several domains combine by the ratio, evenly, or for the worst case over the ball."""

from itertools import combinations

import numpy as np
import pytest
import torch

from drpruning import chi2
from drpruning.errors import ConfigError
from drpruning.pruning.domain_importance import combine

RATIO = {"common": 0.95, "rare": 0.05}
# Unit 0 has 90% of the importance of the rare domain, and none of the common one's.
SCORES = {
    "common": {"hidden": torch.tensor([0.0, 0.1, 0.2, 0.7])},
    "rare": {"hidden": torch.tensor([0.9, 0.1, 0.0, 0.0])},
}


def kept(combined, size=2):
    return sorted(combined.scores["hidden"].argsort()[-size:].tolist())


def test_the_worst_case_keeps_the_units_of_a_rare_domain():
    by_ratio = combine(SCORES, RATIO, {"hidden": 2}, "ratio", rho=0.5)
    assert kept(by_ratio) == [2, 3]
    assert by_ratio.losses == pytest.approx({"common": 0.1, "rare": 1.0})
    robust = combine(SCORES, RATIO, {"hidden": 2}, "worst_case", rho=0.5)
    assert kept(robust) == [0, 3]
    assert robust.losses == pytest.approx({"common": 0.3, "rare": 0.1})
    assert robust.worst == pytest.approx(0.3)  # the ball contains the mixture of the common domain alone
    assert kept(combine(SCORES, RATIO, {"hidden": 2}, "even")) == [0, 3]


def test_the_scale_of_a_domain_does_not_matter():
    scaled = {"common": SCORES["common"], "rare": {"hidden": 100 * SCORES["rare"]["hidden"]}}
    for combination in ("ratio", "even", "worst_case"):
        expected, found = (combine(each, RATIO, {"hidden": 2}, combination) for each in (SCORES, scaled))
        torch.testing.assert_close(found.scores["hidden"], expected.scores["hidden"])


@pytest.mark.parametrize("seed", range(6))
def test_the_certificate_holds_for_every_cut(seed):
    """Compare with all cuts of a row of 8 units: bound <= best <= found <= that of the ratio."""
    generator = np.random.default_rng(seed)
    domains = ["a", "b", "c"]
    shares = generator.dirichlet(np.full(8, 0.3), size=3)
    p, rho = generator.dirichlet(np.full(3, 2.0)), 0.3
    scores = {domain: {"hidden": torch.from_numpy(share)} for domain, share in zip(domains, shares, strict=True)}
    ratio = dict(zip(domains, p.tolist(), strict=True))
    found, by_ratio = (combine(scores, ratio, {"hidden": 3}, each, rho=rho) for each in ("worst_case", "ratio"))

    def worst(cut):
        losses = shares[:, list(cut)].sum(1)
        return float(chi2.worst_case(losses, p, rho).weights @ losses)

    best = min(worst(cut) for cut in combinations(range(8), 3))
    rounding = 8 * 2.0**-23  # scores in float32
    assert found.bound <= best + rounding
    assert best <= found.worst + rounding
    assert found.worst <= by_ratio.worst + rounding
    assert found.worst == pytest.approx(worst(set(range(8)) - set(kept(found, 5))))


def test_rows_and_protected_units_are_respected():
    scores = {"only": {"intermediate": torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]), "layer": torch.ones(2)}}
    protected = {"intermediate": torch.tensor([[True, False, False], [False, False, False]])}
    found = combine(scores, {"only": 1.0}, {"intermediate": 1, "layer": 0}, "worst_case", protected=protected)
    assert found.losses["only"] == pytest.approx((0.2 + 0.1) / 1.2)
    assert found.scores["intermediate"].shape == (2, 3)
    assert found.bound == pytest.approx(found.worst)


def test_wrong_scores_are_rejected():
    with pytest.raises(ConfigError, match="kind 'hidden' has a score that is negative or not finite"):
        combine({"only": {"hidden": torch.tensor([1.0, float("nan")])}}, {"only": 1.0}, {"hidden": 1}, "ratio")
    with pytest.raises(ConfigError, match="at least one domain"):
        combine({}, {}, {"hidden": 1}, "ratio")
