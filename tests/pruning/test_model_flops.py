"""The formulas against the products that torch counts, for every kind of pass that is charged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.config import DistillConfig, MeasuresConfig
from drpruning.export.repair import repair
from drpruning.flops import FORWARD, TRAINING, FlopCounts
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.importance import Measures, importance
from drpruning.pruning.model_flops import (
    importance_flops_per_token,
    importance_tokens,
    products_per_token,
    repair_flops_per_token,
)
from drpruning.pruning.sizes import computed_products, evaluated_sizes
from drpruning.recipes import load_recipe
from drpruning.train.distill import Distiller
from drpruning.train.flop_counting import importance_flops
from drpruning.train.losses import token_losses

CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, vocab_size=100, attn_implementation="eager",
)  # fmt: skip
LENGTH, ROWS = 16, 2
TOKENS = LENGTH * ROWS
BATCH = torch.arange(TOKENS).view(ROWS, LENGTH)
WIDTH = CONFIG.num_attention_heads * CONFIG.head_dim
SIZES = Target.of(CONFIG).sizes()


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG)


def masked_model(*, skip_pruned_units: bool) -> MaskedModel:
    target = Target(layers=2, hidden=32, heads=2, intermediate=48)
    return MaskedModel(small_model(), target, skip_pruned_units=skip_pruned_units)


def counted(run: Callable[[], object]) -> int:
    """Return the operations of torch's products in ``run``."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def other_half(width: int, layers: int = CONFIG.num_hidden_layers) -> int:
    """Return the products with later tokens, which torch counts and a causal model needs not: half of the square."""
    return TOKENS * layers * width * LENGTH


def forward() -> int:
    return round(TOKENS * FORWARD * products_per_token(CONFIG, SIZES, LENGTH)) + FORWARD * other_half(WIDTH)


def test_a_training_step_and_a_forward_pass_are_what_torch_counts() -> None:
    model = small_model()
    with torch.no_grad():
        assert counted(lambda: token_losses(model, BATCH)) == forward()
    step = counted(lambda: token_losses(model, BATCH).sum().backward())
    assert step == TRAINING // FORWARD * forward()


def test_a_masked_step_counts_the_units_that_are_computed() -> None:
    def step(masked: MaskedModel) -> int:
        torch.manual_seed(3)
        masked.sample_masks()
        return counted(lambda: token_losses(masked, BATCH).sum().backward())

    dense, sparse = masked_model(skip_pruned_units=False), masked_model(skip_pruned_units=True)
    assert step(dense) == TRAINING // FORWARD * forward()
    assert computed_products(dense, LENGTH) == products_per_token(CONFIG, SIZES, LENGTH)
    with torch.no_grad():
        for kind, gate in sparse.gates.items():
            spread = torch.linspace(-4, 4, gate.numel()).view_as(gate)
            gate.copy_(torch.tensor([4.0, -4.0, 4.0]) if kind == "layer" else spread)
    found, products = step(sparse), computed_products(sparse, LENGTH)
    active = sparse.applied.active
    assert active.skipped_blocks == {1}
    assert active.hidden is not None
    assert len(active.hidden) < CONFIG.hidden_size
    widths = [len(active.query[block]) for block in (0, 2)]
    assert products < 0.7 * products_per_token(CONFIG, SIZES, LENGTH)
    halves = sum(other_half(width, 1) for width in widths)
    assert found == TRAINING * (round(TOKENS * products) + halves)


@pytest.mark.parametrize("hidden_weight", [0.0, 1.0])
def test_a_teacher_adds_its_forward_pass(hidden_weight: float) -> None:
    student, teacher = small_model(), small_model().requires_grad_(False)
    distiller = Distiller(DistillConfig(hidden_weight=hidden_weight), teacher)
    step = counted(lambda: distiller.losses(student, BATCH).objective.sum().backward())
    assert step == (TRAINING // FORWARD + 1) * forward()


@pytest.mark.parametrize("measure", ["taylor", "activation"])
def test_importance_counts_the_gradients_of_masks_and_not_those_of_weights(measure: str) -> None:
    masked = masked_model(skip_pruned_units=True)
    found = counted(lambda: importance(masked, [BATCH], measure))  # type: ignore[arg-type]
    passes = TRAINING if measure == "taylor" else FORWARD
    ours = TOKENS * importance_flops_per_token(CONFIG, SIZES, masked.target.sizes(), LENGTH, measure)
    assert found == round(ours) + passes * other_half(WIDTH)


@pytest.mark.parametrize(
    "settings",
    [{"mask_values": "soft", "log_alpha_init": 0.0}, {"gates": "deterministic"}],
    ids=["soft", "deterministic without a warm-up"],
)
def test_importance_is_charged_for_all_units_that_it_multiplies(settings: dict[str, Any]) -> None:
    recipe = load_recipe("llama2-7b-to-1.3b", ["prune.gate_init=taylor", f"data.seq_len={LENGTH}"])
    masked = MaskedModel(small_model(), Target(layers=2, hidden=32, heads=2, intermediate=48), **settings)
    masks = None
    if masked.deterministic:  # the start of a cycle
        masked.sample_masks(step=0)
        masks = masked.deterministic_masks(evaluated_sizes(masked))
    found = counted(lambda: importance(masked, [BATCH], masks=masks))
    charged = importance_flops(recipe, masked).importance * TOKENS / importance_tokens(recipe)
    assert found == round(charged) + TRAINING * other_half(WIDTH)


@pytest.mark.parametrize("target", [{"hidden": 32}, {"layers": 2}, {"layers": 2, "hidden": 32}], ids=str)
def test_importance_takes_a_pass_for_each_measure_of_units_with_gates(target: dict[str, int]) -> None:
    masked = MaskedModel(small_model(), Target(**target))
    measures = MeasuresConfig(depth="activation", width="taylor")
    found = counted(lambda: importance(masked, [BATCH], Measures(measures.depth, measures.width)))
    ours = TOKENS * importance_flops_per_token(CONFIG, SIZES, masked.target.sizes(), LENGTH, measures)
    passes = FORWARD * ("layers" in target) + TRAINING * ("hidden" in target)
    assert found == round(ours) + passes * other_half(WIDTH)


def test_a_repair_counts_its_passes_and_its_regressions() -> None:
    masked = masked_model(skip_pruned_units=False)
    pruned, sizes = masked.extract(), masked.target.sizes()
    with masked.unmasked():
        found = counted(lambda: repair(masked.model, pruned, masked.kept_units(), [BATCH]))
    ours = TOKENS * repair_flops_per_token(CONFIG, SIZES, sizes, LENGTH)
    query, key_value, hidden, mlp = sizes["heads"] * 16, sizes["kv_heads"] * 16, sizes["hidden"], sizes["intermediate"]
    groups = 4  # of queries, keys and values; of the output of heads; of gate and up; of down
    small = (groups + 2) * sizes["layers"] * other_half(query, 1)
    solved = [(query + 2 * key_value, hidden), (hidden, query), (2 * mlp, hidden), (hidden, mlp)]  # outputs, inputs
    errors = sizes["layers"] * sum(outputs * inputs**2 for outputs, inputs in solved)
    assert found == round(ours) + FORWARD * (2 * other_half(WIDTH) + small + errors)


def test_evaluations_are_not_charged() -> None:
    counts = FlopCounts(training=1.0, probes=2.0, teacher=4.0, importance=8.0, repair=16.0, evaluation=32.0)
    assert counts.charged == 31
    assert (counts + counts).charged == 62
    assert FlopCounts.of({"teacher": 2.0, "of a later version": 1.0}) == FlopCounts(teacher=2.0)
