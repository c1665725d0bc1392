"""The floating point operations of a stage, counted step by step; :mod:`drpruning.flops` has the formulas."""

from __future__ import annotations

from drpruning.config import RunConfig
from drpruning.flops import (
    FORWARD,
    TRAINING,
    FlopCounts,
    calibration_tokens,
    importance_flops_per_token,
    products_per_token,
)
from drpruning.pruning import MaskedModel
from drpruning.pruning.masked_model import KINDS
from drpruning.pruning.sizes import computed_products, expected_sizes
from drpruning.train.state import StageState


def step_flops(stage: StageState) -> FlopCounts:
    """Return the operations of the step whose forward pass was the last one, over all ranks."""
    length, tokens = stage.sampler.seq_len, stage.tokens_per_step
    products = stage.products if stage.masked is None else computed_products(stage.masked, length)
    student = tokens * TRAINING * products
    probing = stage.strategy.probe_end(stage.strategy_state) is not None
    return FlopCounts(
        training=0.0 if probing else student,
        probes=student if probing else 0.0,
        teacher=tokens * FORWARD * stage.teacher_products,
    )


def evaluation_flops(stage: StageState, tokens: int) -> FlopCounts:
    """Return the operations of the stage's evaluation on ``tokens`` held-out tokens."""
    length, masked = stage.sampler.seq_len, stage.masked
    products = stage.products
    if masked is not None and masked.skip_pruned_units:
        products = products_per_token(masked.model.config, _evaluated_sizes(masked), length)
    return FlopCounts(evaluation=tokens * FORWARD * products)


def calibration_flops(config: RunConfig, masked: MaskedModel) -> FlopCounts:
    """Return the operations that score the units of a model before the first step of a recipe's prune stage."""
    length, measure = config.data.seq_len, config.pruning.gate_init
    per_token = importance_flops_per_token(masked.model.config, masked.source.sizes(), length, measure)
    return FlopCounts(importance=calibration_tokens(config) * per_token)


def _evaluated_sizes(masked: MaskedModel) -> dict[str, float]:
    """Return the expected sizes, at which a masked model is evaluated, by the names of its shape."""
    sizes: dict[str, float] = dict(masked.source.sizes())
    for kind, size in expected_sizes(masked).items():
        sizes[KINDS[kind]] = size
    sizes["heads"] = sizes["kv_heads"] * masked.source.sizes()["heads"] / masked.source.sizes()["kv_heads"]
    return sizes
