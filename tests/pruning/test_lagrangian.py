"""The Lagrangian penalty: its value, its gradients, and training to the target."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from drpruning.errors import ConfigError
from drpruning.pruning import MaskedModel, Target, lagrangian
from drpruning.pruning.sizes import expected_sparsity

from .conftest import CONFIGS, build


def test_penalty_is_the_formula():
    sparsity, multipliers = torch.tensor([0.2, 0.4]), torch.tensor([3.0, 10.0])
    value = lagrangian.penalty(sparsity, 0.5, multipliers)
    assert value.item() == pytest.approx(3.0 * -0.2 + 10.0 * (0.3**2 + 0.1**2) / 2)


def test_rows_that_miss_in_opposite_directions_are_penalised():
    assert lagrangian.penalty(torch.tensor([0.3, 0.7]), 0.5, torch.tensor([1.0, 10.0])).item() == pytest.approx(0.4)


def test_at_the_target_penalty_and_multiplier_gradients_are_zero():
    multipliers = torch.tensor([2.0, 10.0], requires_grad=True)
    value = lagrangian.penalty(torch.tensor(0.25), 0.25, multipliers)
    value.backward()
    assert value.item() == 0
    assert multipliers.grad.tolist() == [0.0, 0.0]


def test_scheduled_sparsity_rises_linearly_to_the_target():
    masked = MaskedModel(build("llama"), Target(layers=2, hidden=24, intermediate=10), warmup_steps=40)
    assert masked.scheduled_sparsity(0) == {"layer": 0.0, "intermediate": 0.0, "hidden": 0.0}
    assert masked.scheduled_sparsity(10) == {"layer": 0.125, "intermediate": 0.1875, "hidden": 0.0625}
    assert (
        masked.scheduled_sparsity(40)
        == masked.scheduled_sparsity(4000)
        == {"layer": 0.5, "intermediate": 0.75, "hidden": 0.25}
    )


def test_cycles_prune_equal_fractions_of_the_rest_with_rests_between():
    masked = MaskedModel(build("llama"), Target(layers=1), warmup_steps=10, cycles=2, cycle_steps=100)
    scheduled = [masked.scheduled_sparsity(step)["layer"] for step in (0, 5, 10, 99, 100, 105, 110, 1000)]
    assert scheduled == [0.0, 0.25, 0.5, 0.5, 0.5, 0.625, 0.75, 0.75]
    assert [masked.schedule.progress(step) for step in (0, 5, 10, 105, 110)] == [0, 0.25, 0.5, 0.75, 1]
    assert [step for step in range(500) if masked.schedule.rescoring_due(step)] == [100]
    assert masked.target_sparsity() == {"layer": 0.75}
    for cycles, steps in ((0, 100), (2, 5)):
        with pytest.raises(ConfigError, match="do not fit"):
            MaskedModel(build("llama"), Target(layers=2), warmup_steps=10, cycles=cycles, cycle_steps=steps)


@pytest.fixture
def rates_bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benches")
    return import_module("gate_learning_rates")


@pytest.mark.parametrize("seed", range(3))
def test_the_rates_of_a_stage_of_200_steps_meet_the_target(rates_bench, seed):
    """Train a tiny model on a structured text: every kind ends within 0.01 of its target."""
    missed = rates_bench.prune(200, seed, warmup=0.2).misses
    assert set(missed) == {"layer", "head", "intermediate", "hidden"}
    assert max(abs(miss) for miss in missed.values()) <= 0.01, missed


def test_depth_alone_meets_its_target(rates_bench):
    missed = rates_bench.prune(200, 0, warmup=0.2, target=Target(layers=3)).misses
    assert set(missed) == {"layer"}
    assert abs(missed["layer"]) <= 0.01


def test_training_meets_the_target(tokens):
    """Train a tiny model on one batch: every kind ends within 0.02 of its target after 150 steps."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIGS["llama"]())
    masked = MaskedModel(model, Target(layers=2, hidden=24, heads=2, intermediate=16), warmup_steps=75)
    groups = masked.parameter_groups()
    weights = torch.optim.AdamW(groups["weights"], lr=1e-3)
    masks = torch.optim.Adam(
        [
            {"params": groups["gates"], "lr": 0.1},
            {"params": groups["multipliers"], "lr": 0.05, "maximize": True},
        ]
    )
    generator = torch.Generator().manual_seed(7)
    masked.train()
    for step in range(150):
        masked.sample_masks(generator)
        (masked(tokens, labels=tokens).loss + masked.constraint(step)).backward()
        for optimizer in (weights, masks):
            optimizer.step()
            optimizer.zero_grad()
        masked.clamp_gates()
    scheduled = masked.scheduled_sparsity(150)
    assert scheduled == {"layer": 0.5, "head": 0.5, "intermediate": 0.6, "hidden": 0.25}
    assert expected_sparsity(masked) == pytest.approx(scheduled, abs=0.02)
