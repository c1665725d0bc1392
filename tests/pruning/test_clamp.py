"""Clamped gates stay where they have a gradient, and reach the target at a rate of 1.0."""

import math

import pytest
import torch
from torch.nn import functional

from drpruning.errors import ConfigError
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.hard_concrete import HIGH, HIGHEST, LOW, LOWEST, TEMPERATURE
from drpruning.pruning.learning_rates import mask_rates, max_adam_step
from drpruning.pruning.sizes import expected_sizes, expected_sparsity
from drpruning.pruning.target import Protected

from .conftest import build

TARGET = Target(layers=3, hidden=24, intermediate=27)
BETAS = (0.9, 0.95)


def optimizer_of(masked, rate, multiplier_rate, weights=()):
    groups = masked.parameter_groups()
    return torch.optim.AdamW(
        [
            {"params": groups["gates"], "lr": rate},
            {"params": groups["multipliers"], "lr": multiplier_rate, "maximize": True},
            *({"params": list(weights), "lr": 1e-2} for _ in range(bool(weights))),
        ],
        betas=BETAS,
        weight_decay=0.0,
        fused=True,
    )


def in_range(masked):
    return all(gate.min() >= LOWEST - 1e-6 and gate.max() <= HIGHEST + 1e-6 for gate in masked.gates.values())


@pytest.mark.parametrize("start", [20.0, 4.605])
@pytest.mark.parametrize("rates", [(1.0, 1.0), (mask_rates(2000).gates, mask_rates(2000).multipliers)])
def test_gates_that_start_without_a_float32_gradient_reach_the_target(start, rates):
    """Train on the constraint alone: without the clamp gates never moved from 20, and the multiplier diverged."""
    masked = MaskedModel(build("llama"), Target(intermediate=27))
    with torch.no_grad():
        masked.gates["intermediate"].fill_(start)
    optimizer = optimizer_of(masked, *rates)
    for step in range(2000):
        optimizer.zero_grad()
        masked.constraint(step).backward()
        optimizer.step()
        masked.clamp_gates()
    target = masked.target_sparsity()["intermediate"]
    assert expected_sparsity(masked)["intermediate"] == pytest.approx(target, abs=0.01)
    assert masked.multipliers["intermediate"][0].abs() < 30  # it was -2,000 without the clamp


class TinyNet(torch.nn.Module):
    """Adds two numbers modulo 12: logits of the sum, in the shape of the masked model, fast enough for many steps.

    Without its blocks it cannot add, so pruned units increase the loss.
    """

    def __init__(self, blocks=4, hidden=32, intermediate=40, modulus=12):
        super().__init__()

        def weight(*shape):
            return torch.nn.Parameter(torch.randn(shape) / shape[-2] ** 0.5)

        self.embedding = weight(2, modulus, hidden)
        self.inward, self.outward = weight(blocks, hidden, intermediate), weight(blocks, intermediate, hidden)
        self.output = weight(hidden, modulus)
        self.pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))

    def loss(self, masks):
        first, second = self.pairs.unbind(1)
        x = (self.embedding[0, first] + self.embedding[1, second]) * masks["hidden"]
        for inward, outward, layer, units in zip(
            self.inward, self.outward, masks["layer"], masks["intermediate"], strict=True
        ):
            x = x + layer * masks["hidden"] * ((torch.tanh(x @ inward) * units) @ outward)
        return functional.cross_entropy(x @ self.output, (first + second) % len(self.embedding[0]))


@pytest.mark.parametrize("seed", range(2))
def test_the_rates_of_the_papers_meet_every_target_without_loss_at_extraction(seed):
    """Run 3,200 steps with both rates 1.0 and a warm-up of 640 steps, as in the recipes of the 7B models."""
    torch.manual_seed(seed)
    masked = MaskedModel(build("llama", seed), TARGET, warmup_steps=640).train()
    net = TinyNet()
    optimizer = optimizer_of(masked, 1.0, 1.0, net.parameters())
    generator = torch.Generator().manual_seed(seed)
    for step in range(3200):
        masked.sample_masks(generator)
        (net.loss(masked.masks()) + masked.constraint(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        masked.clamp_gates()
    assert expected_sparsity(masked) == pytest.approx(masked.target_sparsity(), abs=0.01)
    assert in_range(masked)
    with torch.no_grad():
        extracted = net.loss(masked.deterministic_masks())
        expected = net.loss(masked.deterministic_masks(expected_sizes(masked)))
        assert extracted - expected <= 0.02
        assert extracted - torch.stack([net.loss(_sampled(masked, generator)) for _ in range(20)]).mean() <= 0.02


def _sampled(masked, generator):
    masked.sample_masks(generator)
    return masked.masks()


def test_gates_start_in_range_and_a_spread_start_keeps_the_order_of_the_scores():
    masked = MaskedModel(build("llama"), TARGET, log_alpha_init=30.0)
    assert all((gate == torch.tensor(HIGHEST)).all() for gate in masked.gates.values())
    scores = {"hidden": torch.rand(32, generator=torch.Generator().manual_seed(0))}
    for spread in (1.0, 100.0):
        masked.init_from_importance(scores, spread)
        assert in_range(masked)
        assert torch.equal(masked.gates["hidden"].argsort(), scores["hidden"].argsort())


@pytest.mark.parametrize(
    ("target", "protected"),
    [
        (Target(intermediate=1), Protected()),
        (Target(hidden=2), Protected(hidden=[3])),
        (Target(layers=2), Protected(layers=[0, -1])),
    ],
)
def test_clamped_gates_attain_the_target_sparsity_for_few_kept_units(target, protected):
    """Place pruned units at the lower end and kept ones at probability 1/2: more sparsity would prune those too."""
    masked = MaskedModel(build("mistral"), target, protected=protected)
    for kind, gate in masked.gates.items():
        kept = masked.deterministic_masks()[kind] == 1
        gate.data = torch.where(kept, TEMPERATURE * math.log(-LOW / HIGH), LOWEST)
    assert expected_sparsity(masked) == pytest.approx(masked.target_sparsity(), abs=1e-6)  # float32 means


def test_a_stage_whose_kept_units_are_all_protected_converges():
    """Check the multiplier, which diverged: clamped gates of the other two blocks cannot reach a mean of 1/2."""
    masked = MaskedModel(build("llama"), Target(layers=2), protected=Protected(layers=[0, -1]))
    optimizer = optimizer_of(masked, 0.1, 0.05)
    for step in range(1000):
        optimizer.zero_grad()
        masked.constraint(step).backward()
        optimizer.step()
        masked.clamp_gates()
    assert expected_sparsity(masked) == pytest.approx(masked.target_sparsity(), abs=0.001)
    assert masked.multipliers["layer"][0].abs() < 1


def test_initial_noise_comes_from_the_generator_and_is_clamped():
    def gate(mean, std, seed):
        generator = torch.Generator().manual_seed(seed)
        start = {"log_alpha_init": mean, "log_alpha_init_noise": std, "generator": generator}
        return MaskedModel(build("llama"), TARGET, **start).gates["intermediate"].detach()

    assert torch.equal(gate(2.0, 0.01, 1), gate(2.0, 0.01, 1))
    assert not torch.equal(gate(2.0, 0.01, 1), gate(2.0, 0.01, 2))
    # 160 numbers: mean and standard deviation are within 5 standard errors; that of the latter is sigma / sqrt(2 n)
    assert gate(2.0, 0.01, 1).mean() == pytest.approx(2.0, abs=5 * 0.01 / 160**0.5)
    assert gate(2.0, 0.01, 1).std() == pytest.approx(0.01, rel=5 / 320**0.5)
    assert (gate(5.0, 0.01, 1) == torch.tensor(HIGHEST)).all()  # as in the public code
    with pytest.raises(ConfigError, match="log_alpha_init_noise must be at least 0"):
        gate(2.0, -1.0, 1)
    with pytest.raises(ConfigError, match="mask_values is 'firm'; it can be hard or soft"):
        MaskedModel(build("llama"), TARGET, mask_values="firm")


def test_the_clamp_keeps_protected_units_active():
    masked = MaskedModel(build("llama"), TARGET, protected=Protected(layers=[0])).train()
    for gate in masked.gates.values():
        gate.data.fill_(-50)
    masked.clamp_gates()
    assert in_range(masked)
    masked.sample_masks()
    assert masked.masks()["layer"][0] == 1
    assert masked.deterministic_masks()["layer"][0] == 1


@pytest.mark.parametrize("rate", [0.1, 1.0, 4.0])
def test_a_clamped_step_is_never_longer_than_the_bound_of_adam(rate):
    """Start at random values and at both ends of the range, with gradients of either sign and any size."""
    masked = MaskedModel(build("llama"), Target(intermediate=27))
    generator = torch.Generator().manual_seed(1)
    gate = masked.gates["intermediate"]
    with torch.no_grad():
        gate.uniform_(2 * LOWEST, 2 * HIGHEST, generator=generator).clamp_(LOWEST, HIGHEST)
    optimizer = optimizer_of(masked, rate, 1.0)
    bound, ends = max_adam_step(rate, BETAS), 0
    for _ in range(100):
        before = gate.detach().clone()
        size = torch.exp(5 * torch.randn(gate.shape, generator=generator))
        gate.grad = size * torch.randn(gate.shape, generator=generator)
        optimizer.step()
        masked.clamp_gates()
        assert (gate - before).abs().max() <= bound * (1 + 1e-6) + 1e-6  # rounding of log-alpha in float32
        ends += int((gate.abs() >= HIGHEST - 1e-6).sum())
    assert ends > 0


def test_no_unit_is_missed_at_a_rate_that_moves_gates_from_end_to_end():
    masked = MaskedModel(build("llama"), TARGET, warmup_steps=5).train()
    optimizer = optimizer_of(masked, 4.0, 1.0)
    noise = torch.Generator().manual_seed(7)
    for step in range(60):
        generator, next_generator = torch.Generator().manual_seed(step), torch.Generator().manual_seed(step + 1)
        masked.sample_masks(generator, next_generator=next_generator, max_gate_step=max_adam_step(4.0, BETAS))
        assert masked.num_missed_units() == 0
        for gate in masked.gates.values():
            gate.grad = torch.randn(gate.shape, generator=noise)
        optimizer.step()
        masked.clamp_gates()
