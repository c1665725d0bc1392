"""The distribution against its own definition: frequencies, bounds, gradients."""

import math

import pytest
import torch

from drpruning.pruning import hard_concrete


@pytest.mark.parametrize("log_alpha", [-3.0, -1.0, 0.0, 1.0, 2.0, 4.0])
def test_probability_active_matches_frequency(log_alpha):
    draws = 200_000
    noise = torch.rand(draws, generator=torch.Generator().manual_seed(1))
    gate = torch.tensor(log_alpha)
    frequency = (hard_concrete.sample(gate.expand(draws), noise) != 0).float().mean().item()
    probability = hard_concrete.probability_active(gate).item()
    assert abs(frequency - probability) < 4 * math.sqrt(probability * (1 - probability) / draws)


def test_values_stay_in_the_unit_interval_and_reach_both_ends():
    noise = torch.tensor([0.0, 1e-9, 0.5, 1 - 2**-24])
    values = hard_concrete.sample(torch.zeros(4), noise)
    assert values.tolist() == [0.0, 0.0, 0.5, 1.0]


def test_a_clamped_gate_has_exactly_zero_gradient():
    gate = torch.linspace(-6, 6, 500).requires_grad_()
    values = hard_concrete.sample(gate, torch.rand(500, generator=torch.Generator().manual_seed(2)))
    values.sum().backward()
    clamped = (values == 0) | (values == 1)
    assert 50 < clamped.sum() < 450
    assert (gate.grad[clamped] == 0).all()
    assert (gate.grad[~clamped] > 0).all()


def test_keep_top_keeps_exactly_so_many_even_among_equals():
    equal = torch.zeros(3, 7)
    assert torch.equal(hard_concrete.keep_top(equal, 4), torch.tensor([[1.0] * 4 + [0.0] * 3] * 3))
    scores = torch.randn(5, 30, generator=torch.Generator().manual_seed(3))
    kept = hard_concrete.keep_top(scores, 11)
    assert (kept.sum(-1) == 11).all()
    assert (scores.masked_fill(kept == 0, math.inf).amin(-1) > scores.masked_fill(kept == 1, -math.inf).amax(-1)).all()
