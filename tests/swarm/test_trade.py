"""The trade between mean and worst target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drpruning.report.figures.mixture_trade import draw_trade
from drpruning.swarm import Swarm, recommend, trade
from drpruning.swarm.trade import KLS, RHOS


@pytest.fixture(scope="module")
def swarm() -> Swarm:
    mixtures = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], 40)
    losses = [2.0, 1.0, 1.5] + np.array([0.2, 0.3, 0.9]) * (0.05 + mixtures) ** -0.3
    losses[0, 2] = np.nan
    return Swarm.of("abc", mixtures, "abc", losses)


def test_robustness_trades_the_mean_for_the_worst_target(swarm: Swarm, tmp_path: Path) -> None:
    prior = {"a": 0.6, "b": 0.3, "c": 0.1}
    found = recommend(swarm, prior=prior, reference_loss={"a": 2.2, "b": 1.3, "c": 2.5}, target_weights=prior, rho=0.1)
    drawn = trade(swarm, found)
    assert drawn.prior_weight is not None
    assert (drawn.robustness.values, drawn.prior_weight.values) == (RHOS, KLS)
    mean, worst = drawn.robustness.outcomes.T
    assert (np.diff(mean) > -1e-3).all()
    assert (np.diff(worst) < 1e-3).all()
    assert worst[0] - worst[-1] > 0.01  # rho matters here
    # a heavier prior draws the mixture to it
    distances = np.abs(drawn.prior_weight.mixtures - found.prior).sum(axis=1)
    assert (np.diff(distances) < 1e-3).all()
    assert distances[-1] < distances[0] / 2
    np.testing.assert_allclose(drawn.prior_weight.mixtures[0], found.mixture, atol=1e-3)
    excess = swarm.losses[1] - [2.2, 1.3, 2.5]
    np.testing.assert_allclose(drawn.runs[1], [excess @ [0.6, 0.3, 0.1], excess.max()])
    assert np.isnan(drawn.runs[0]).any()

    draw_trade(tmp_path / "trade.svg", drawn, excess=True, title="Predicted trade from 40 runs")
    text = (tmp_path / "trade.svg").read_text()
    assert "worst excess loss, nats per token" in text
    assert "Predicted trade from 40 runs" in text


def test_a_prior_without_a_domain_that_must_have_a_share_has_no_curve_of_kl(swarm: Swarm, tmp_path: Path) -> None:
    drawn = trade(swarm, recommend(swarm, prior={"a": 0.6, "b": 0.4, "c": 0.0}, min_share=0.05, resamples=2))
    assert drawn.prior_weight is None
    assert (drawn.robustness.mixtures >= 0.05 - 1e-9).all()
    draw_trade(tmp_path / "trade.svg", drawn, excess=False, title="Predicted trade")
    text = (tmp_path / "trade.svg").read_text()
    assert "robustness (rho)" in text
    assert "weight of the prior" not in text
