"""The floating point operations of a stage, counted step by step; :mod:`drpruning.flops` has the formulas."""

from __future__ import annotations

from drpruning.config import RunConfig
from drpruning.flops import FORWARD, TRAINING, FlopCounts
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.model_flops import (
    importance_flops_per_token,
    importance_tokens,
    products_per_token,
    repair_flops_per_token,
    repair_tokens,
)
from drpruning.pruning.sizes import computed_products, evaluated_shape
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
        products = products_per_token(masked.model.config, evaluated_shape(masked), length)
    return FlopCounts(evaluation=tokens * FORWARD * products)


def importance_flops(config: RunConfig, masked: MaskedModel) -> FlopCounts:
    """Return the operations that score the units of a recipe's prune stage once.

    At the start of the stage nothing is masked. At the start of a cycle the gates are deterministic, which compute
    masked units too.
    """
    sizes, target = masked.source.sizes(), masked.target.sizes()
    length, measure = config.data.seq_len, config.pruning.gate_init
    per_token = importance_flops_per_token(masked.model.config, sizes, target, length, measure)
    return FlopCounts(importance=importance_tokens(config) * per_token)


def repair_flops(config: RunConfig, masked: MaskedModel) -> FlopCounts:
    """Return the operations of the repair of a model of the target's shape, extracted from an unpruned one."""
    tokens = repair_tokens(config)
    if not tokens:
        return FlopCounts()
    source = masked.model.config
    whole, target = Target.of(source).sizes(), masked.target.sizes()
    return FlopCounts(repair=tokens * repair_flops_per_token(source, whole, target, config.data.seq_len))
