"""The schedule: where it starts, where it ends, and that it is continuous between."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.config import ContinueConfig, PruneConfig, TrainingConfig
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.learning_rates import max_adam_step
from drpruning.train.distributed.fsdp import clip_grad_norm
from drpruning.train.optimizers.build import (
    group_parameters,
    learning_rate,
    learning_rates,
    make_optimizer,
    max_gate_step,
    set_learning_rates,
)

Schedule = Literal["cosine", "wsd"]


def stage(steps: int, warmup: float, final: float, schedule: Schedule = "cosine") -> ContinueConfig:
    return ContinueConfig(
        steps=steps,
        batch_size=1,
        learning_rate=2.0,
        warmup_fraction=warmup,
        min_lr_ratio=final,
        eval_every=1,
        lr_schedule=schedule,
        decay_fraction=0.3 if schedule == "wsd" else None,
    )


def test_by_hand() -> None:
    settings = stage(10, 0.2, 0.5)
    rates = [learning_rate(settings, step) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(2.0 * 0.75)  # half-way down the cosine
    assert rates[-1] > 1.0
    assert learning_rate(settings, 10) == pytest.approx(1.0)


def test_a_wsd_schedule_by_hand() -> None:
    rates = [learning_rate(stage(10, 0.2, 0.5, "wsd"), step) for step in range(11)]
    assert rates == pytest.approx([1, 2, 2, 2, 2, 2, 2, 2, 2 - 1 / 3, 2 - 2 / 3, 1])


def test_a_decay_longer_than_what_the_warmup_leaves_is_refused() -> None:
    with pytest.raises(ValidationError, match="sum to more than 1"):
        stage(10, 0.8, 0.5, "wsd")


SCHEDULES = st.sampled_from(["cosine", "wsd"])


@given(st.integers(1, 500), st.floats(0, 0.7), st.floats(0, 1), SCHEDULES)
def test_it_rises_then_falls_and_stays_in_range(steps: int, warmup: float, final: float, schedule: Schedule) -> None:
    settings = stage(steps, warmup, final, schedule)
    rates = [learning_rate(settings, step) for step in range(steps)]
    rising = round(warmup * steps)
    assert all(a <= b for a, b in pairwise(rates[:rising]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[rising:]))
    assert all(0 < rate <= 2.0 + 1e-12 or final == 0 for rate in rates)


@given(st.integers(1, 2000), st.floats(0, 0.7), st.floats(0, 1), st.integers(1, 10**6), SCHEDULES)
def test_the_schedule_for_the_law_has_the_rate_of_the_next_step(
    steps: int, warmup: float, final: float, tokens: int, schedule: Schedule
) -> None:
    settings = stage(steps, warmup, final, schedule)
    schedule = learning_rates(settings, tokens)
    interpolated = np.interp(tokens * np.arange(steps), schedule.tokens, schedule.rates)
    np.testing.assert_allclose(interpolated, [learning_rate(settings, step) for step in range(steps)], atol=1e-4)
    assert schedule.tokens[-1] == steps * tokens
    assert len(schedule.tokens) <= 259


def masked_stage(**settings: object) -> tuple[PruneConfig, MaskedModel, torch.optim.Optimizer]:
    body = {
        "steps": 10,
        "batch_size": 1,
        "learning_rate": 2.0,
        "warmup_fraction": 0.2,
        "min_lr_ratio": 0.5,
        "eval_every": 1,
        "gate_learning_rate": 1.0,
        "multiplier_learning_rate": 0.25,
        "target": {"hidden": 8},
    }
    stage = PruneConfig.model_validate({**body, **settings})
    config = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    masked = MaskedModel(LlamaForCausalLM(config), Target(hidden=8))
    return stage, masked, make_optimizer(masked, stage, TrainingConfig())


@pytest.mark.parametrize("schedule_gates", [False, True])
def test_gates_and_multipliers_follow_the_schedule_only_if_set(schedule_gates: bool) -> None:
    stage, _, optimizer = masked_stage(schedule_gates=schedule_gates)
    for step in range(10):
        rate = set_learning_rates(optimizer, stage, step)
        assert rate == learning_rate(stage, step)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        factor = rate / 2.0 if schedule_gates else 1.0
        assert rates == {"weights": rate, "gates": factor, "multipliers": 0.25 * factor}
        betas = TrainingConfig().betas
        assert max_gate_step(optimizer) == max_adam_step(factor, betas)


def test_a_one_shot_cut_moves_neither_weights_nor_gates() -> None:
    stage, _, optimizer = masked_stage(steps=1, gate_init="taylor", gate_learning_rate="auto")
    assert set_learning_rates(optimizer, stage, 0) == 0
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"weights": 0, "gates": 0, "multipliers": 0.25}


def test_clipping_of_all_groups_together_scales_every_gradient_by_one_norm() -> None:
    _, _, optimizer = masked_stage()
    generator = torch.Generator().manual_seed(0)
    weights, others = group_parameters(optimizer, "weights"), group_parameters(optimizer, "gates", "multipliers")
    before = []
    for parameter in [*weights, *others]:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        before.append(parameter.grad.clone())
    of_weights, of_all = (
        torch.cat([each.flatten() for each in part]).double().norm() for part in (before[: len(weights)], before)
    )
    norm = clip_grad_norm(weights, 1.0, along=others)
    assert norm.item() == pytest.approx(of_weights.item(), rel=1e-5)  # a float32 sum of some thousand squares
    for parameter, gradient in zip([*weights, *others], before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient / of_all.float(), rtol=1e-5, atol=0)
    clip_grad_norm(weights, 1e-3)
    for parameter, gradient in zip(others, before[len(weights) :], strict=True):
        torch.testing.assert_close(parameter.grad, gradient / of_all.float(), rtol=1e-5, atol=0)
