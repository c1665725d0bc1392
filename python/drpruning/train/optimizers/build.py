"""The optimizer of a stage and its learning rates: weights, gates and multipliers in one AdamW."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from drpruning.config import PruneConfig, StageConfig, TrainingConfig
from drpruning.pruning import MaskedModel
from drpruning.pruning.learning_rates import MaskRates, mask_rates, max_adam_step
from drpruning.scaling import LearningRates
from drpruning.train.optimizers import LowPrecisionAdamW, to_low_precision

CORNERS = 257
"""Points of a cosine in the schedule passed to the scaling law: linear interpolation is within 1e-5 of it."""


def make_optimizer(model: nn.Module, stage: StageConfig, training: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW over the groups of a stage; convert the weights to the recipe's format.

    The weights follow the stage's schedule; matrices have weight decay. A masked model adds the gates and the Lagrange
    multipliers, which ascend (``maximize``), both without decay. Their rates are constant unless
    ``prune.schedule_gates`` is true. In the public code of Sheared LLaMA and DRPruning they follow the schedule, since
    Composer's scheduler multiplies the rates of all groups.
    """
    plain = training.weight_format == training.optimizer_state_format == "float32"
    lows: dict[nn.Parameter, torch.Tensor] = {}
    if training.weight_format != "float32":
        inner = model.model if isinstance(model, MaskedModel) else model
        lows = to_low_precision(inner, keep_low=training.weight_format == "bfloat16+low16")
    if isinstance(model, MaskedModel):
        assert isinstance(stage, PruneConfig)
        parts, rates = model.parameter_groups(), max_mask_rates(stage)
        exact = {} if plain else {"exact": True}
        groups = [
            *_weight_groups(parts["weights"], stage, training),
            {"params": parts["gates"], "name": "gates", "lr": rates.gates, **exact},
            {
                "params": parts["multipliers"],
                "name": "multipliers",
                "lr": rates.multipliers,
                "maximize": True,
                **exact,
            },
        ]
    else:
        groups = _weight_groups(model.parameters(), stage, training)
    if plain:
        return torch.optim.AdamW(groups, betas=training.betas, weight_decay=0.0, fused=True)
    return LowPrecisionAdamW(groups, moments=training.optimizer_state_format, lows=lows, betas=training.betas)


def max_mask_rates(stage: PruneConfig) -> MaskRates:
    """Return the highest rates of gates and multipliers in a stage."""
    gates, multipliers = stage.gate_learning_rate, stage.multiplier_learning_rate
    auto = mask_rates(stage.steps, deterministic=stage.gates == "deterministic")
    auto_gates = 0.0 if stage.one_shot else auto.gates  # a step would reorder gates of similar importance
    return MaskRates(
        gates=auto_gates if gates == "auto" else gates,
        multipliers=auto.multipliers if multipliers == "auto" else multipliers,
    )


def _weight_groups(
    parameters: Iterable[nn.Parameter], stage: StageConfig, training: TrainingConfig
) -> list[dict[str, Any]]:
    weights = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in weights if parameter.ndim > 1]
    vectors = [parameter for parameter in weights if parameter.ndim <= 1]
    return [
        {"params": matrices, "name": "weights", "lr": stage.learning_rate, "weight_decay": training.weight_decay},
        {"params": vectors, "name": "weights", "lr": stage.learning_rate},
    ]


def learning_rate(stage: StageConfig, step: int) -> float:
    """Return the rate of the weights at ``step`` (from 0): linear warm-up, then a cosine down to the final rate.

    With ``schedule: wsd`` (warm-up, stable, decay; Hu et al. 2024) the rate is constant after the warm-up and decays
    linearly in the last part of the stage.

    Example:
        >>> from drpruning.config import ContinueConfig
        >>> stage = ContinueConfig(steps=100, batch_size=1, learning_rate=1.0, warmup_fraction=0.1, eval_every=1)
        >>> [round(learning_rate(stage, step), 3) for step in (0, 9, 10, 55, 99)]
        [0.1, 1.0, 1.0, 0.55, 0.1]
        >>> stage = stage.model_copy(update={"lr_schedule": "wsd"})
        >>> [round(learning_rate(stage, step), 3) for step in (0, 9, 10, 80, 90, 99)]
        [0.1, 1.0, 1.0, 1.0, 0.55, 0.145]
    """
    rising = round(stage.warmup_fraction * stage.steps)
    if step < rising:
        return stage.learning_rate * (step + 1) / rising
    falling = decay_start(stage)
    progress = max(0, step - falling) / max(1, stage.steps - falling)
    low = stage.min_lr_ratio
    height = 1 - progress if stage.lr_schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * progress))
    return stage.learning_rate * (low + (1 - low) * height)


def decay_start(stage: StageConfig) -> int:
    """Return the last step at the highest rate: the end of the warm-up, or in ``wsd`` the start of the decay."""
    rising = round(stage.warmup_fraction * stage.steps)
    if stage.lr_schedule == "cosine":
        return rising
    return max(rising, stage.steps - round(stage.wsd_decay_fraction * stage.steps))


def learning_rates(stage: StageConfig, tokens_per_step: int) -> LearningRates:
    """Return the schedule of a whole stage over its tokens, for the scaling law: at each point the next step's rate."""
    rising = round(stage.warmup_fraction * stage.steps)
    corners = np.linspace(decay_start(stage), stage.steps, 2 if stage.lr_schedule == "wsd" else CORNERS)
    steps = np.unique(np.rint([0, max(rising - 1, 0), rising, *corners])).astype(int)
    return LearningRates(steps * tokens_per_step, [learning_rate(stage, step) for step in steps.tolist()])


def set_learning_rates(optimizer: torch.optim.Optimizer, stage: StageConfig, step: int) -> float:
    """Set the rate of each group at ``step`` (from 0); return that of the weights, 0 in a one-shot cut."""
    one_shot = isinstance(stage, PruneConfig) and stage.one_shot
    rate = 0.0 if one_shot else learning_rate(stage, step)
    rates = {"weights": rate}
    if isinstance(stage, PruneConfig):
        factor = rate / stage.learning_rate if stage.schedule_gates else 1.0
        highest = max_mask_rates(stage)
        rates |= {"gates": factor * highest.gates, "multipliers": factor * highest.multipliers}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
    return rate


def group_parameters(optimizer: torch.optim.Optimizer, *names: str) -> list[nn.Parameter]:
    """Return the parameters of the groups of these names: ``weights``, ``gates``, ``multipliers``."""
    return [item for group in optimizer.param_groups if group["name"] in names for item in group["params"]]


def max_gate_step(optimizer: torch.optim.Optimizer) -> float | None:
    """Return the largest change of a gate's log-alpha in one step at the current rates; None without a bound."""
    (gates,) = (group for group in optimizer.param_groups if group["name"] == "gates")
    return max_adam_step(gates["lr"], gates["betas"])
