"""Deterministic gates: no noise, the scheduled size in every step, gradients for pruned units, exact extraction."""

import pytest
import torch

from drpruning.errors import ConfigError, StateError
from drpruning.pruning import MaskedModel, Target, hard_concrete
from drpruning.pruning.deterministic_gates import masks_at, temperature
from drpruning.pruning.importance import importance
from drpruning.pruning.masked_model import PER_BLOCK
from drpruning.pruning.sizes import evaluated_sizes, expected_sparsity
from drpruning.pruning.target import Protected

from .conftest import build

TARGET = Target(layers=3, hidden=24, heads=3, intermediate=27)


def deterministic(seed=0, **settings):
    return MaskedModel(build("llama", seed), TARGET, gates="deterministic", **settings).train()


def test_values_at_threshold_zero_are_the_median_of_hard_concrete_samples():
    """Check a row of pairs of opposite sign of which half is kept: its threshold is zero."""
    log_alpha = torch.tensor([-3.0, -1.0, -0.4, 0.4, 1.0, 3.0])
    noise = torch.rand(20_001, 6, generator=torch.Generator().manual_seed(2))
    median = hard_concrete.sample(log_alpha.expand_as(noise), noise).median(0).values
    values = masks_at(log_alpha, 0.5, hard_concrete.TEMPERATURE)
    # The median of n uniforms has standard deviation 1 / (2 sqrt(n)) = 0.0035; z changes by at most 1.8 per logit of u,
    # a logit by 4 per unit of u: 0.026, and five of them
    torch.testing.assert_close(values, median, atol=0.13, rtol=0)
    torch.testing.assert_close(values, hard_concrete.sample(log_alpha, torch.full((6,), 0.5)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.37, 0.9])
def test_the_mean_of_each_row_is_the_scheduled_size(progress, sparsity):
    log_alpha = 3 * torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    values = masks_at(log_alpha, sparsity, temperature(progress))
    # A threshold of about 1 is exact to 2^-24, a mask changes by at most 30 per unit of it: 2e-6 in the mean
    torch.testing.assert_close(values.mean(-1), torch.full((5,), 1 - sparsity), atol=1e-5, rtol=0)
    assert sparsity or (values == 1).all()


def test_the_gradient_compares_a_unit_with_those_near_the_threshold():
    """Compare with differences of the smooth masks at the first temperature, threshold included, in float64."""
    log_alpha = torch.tensor([2.0, 1.5, 0.3, -0.2, -1.0, -4.0], dtype=torch.float64, requires_grad=True)
    gain = torch.tensor([0.3, -1.0, 0.7, 0.2, -0.5, 2.0], dtype=torch.float64)
    (masks_at(log_alpha, 0.5, 0.01) * gain).sum().backward()
    assert (log_alpha.grad != 0).all()  # also of masks that are exactly zero or one
    assert log_alpha.grad[-1] > 0  # a pruned unit worth more than all others

    def smooth(gates, threshold):
        return (torch.sigmoid((gates - threshold) / hard_concrete.TEMPERATURE) * 1.2 - 0.1) @ gain

    with torch.no_grad():
        start = log_alpha.detach()
        threshold = _threshold_of_two_middle_gates(start)
        slope = torch.sigmoid((start - threshold) / hard_concrete.TEMPERATURE)
        share = slope * (1 - slope) / (slope * (1 - slope)).sum()
        for unit in range(6):
            moved = [start.clone(), start.clone()]
            moved[0][unit] += 1e-5
            moved[1][unit] -= 1e-5
            up, down = (smooth(gates, threshold + share @ (gates - start)) for gates in moved)
            assert ((up - down) / 2e-5).item() == pytest.approx(log_alpha.grad[unit].item(), rel=1e-6)


def _threshold_of_two_middle_gates(log_alpha):
    """Return the largest threshold that keeps the first three gates at temperature 0.01: the third mask is just one."""
    return log_alpha[2] - 0.01 * torch.log(torch.tensor(11.0, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_the_target_is_met_in_a_stage_of_twenty_steps_and_the_extraction_is_exact(seed, tokens):
    masked = deterministic(seed, warmup_steps=10)
    with masked.unmasked():
        unpruned = masked(tokens).logits
    masked.init_from_importance(importance(masked, [tokens], "taylor"))
    groups = masked.parameter_groups()
    optimizer = torch.optim.AdamW(
        [{"params": groups["weights"], "lr": 1e-3}, {"params": groups["gates"], "lr": 0.4}], weight_decay=0.0
    )
    for step in range(20):
        masked.sample_masks(step=step)
        output = masked(tokens, labels=tokens)
        if step == 0:
            assert torch.equal(output.logits, unpruned)
        scheduled = masked.scheduled_sparsity(step)
        blocks = masked.masks()["layer"] > 0  # a block with a mask of zero hides its heads and MLP units from the loss
        (output.loss + masked.constraint(step)).backward()
        for kind, gate in masked.gates.items():
            assert (gate.grad[blocks] if kind in PER_BLOCK else gate.grad).ne(0).all()
        optimizer.step()
        optimizer.zero_grad()
        masked.clamp_gates()
        assert expected_sparsity(masked) == pytest.approx(scheduled, abs=1e-5)
    assert expected_sparsity(masked) == pytest.approx(masked.target_sparsity(), abs=1e-5)
    masked.eval()
    assert evaluated_sizes(masked) == {kind: masked.target_size(kind) for kind in masked.gates}
    torch.testing.assert_close(masked.extract()(tokens).logits, masked(tokens).logits, atol=1e-5, rtol=1e-5)


def test_protected_units_have_masks_of_one_and_count_in_the_size():
    masked = deterministic(protected=Protected(hidden=[3, 5], intermediate={1: [0]}))
    masked.gates["hidden"].data[3] = -4.0
    masked.sample_masks(step=5)
    masks = masked.masks()
    assert masks["hidden"][[3, 5]].tolist() == [1.0, 1.0]
    assert masks["intermediate"][1, 0] == 1
    assert masks["hidden"].mean().item() == pytest.approx(24 / 32, abs=1e-5)


def test_wrong_settings_are_refused(tokens):
    with pytest.raises(StateError, match="need the step"):
        deterministic().sample_masks()
    with pytest.raises(ConfigError, match="soft mask values are those of hard-concrete gates"):
        deterministic(mask_values="soft")
    with pytest.raises(ConfigError, match="gates is 'sampled'; it can be hard_concrete or deterministic"):
        MaskedModel(build("llama"), TARGET, gates="sampled")
    assert not deterministic(skip_pruned_units=True).skip_pruned_units


def test_no_unit_is_pruned_before_the_first_step_also_without_a_warmup():
    masked = deterministic(warmup_steps=0)
    assert evaluated_sizes(masked) == {kind: gate.shape[-1] for kind, gate in masked.gates.items()}
    assert all((mask == 1).all() for mask in masked.masks().values())
    masked.sample_masks(step=0)
    assert evaluated_sizes(masked) == {kind: masked.target_size(kind) for kind in masked.gates}
