"""The optimizer and its schedule: weights, gates and multipliers as three groups of one AdamW."""

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
from drpruning.train.optimizer import NarrowAdamW, narrow

CORNERS = 257
"""Of a cosine told to the law: straight lines between them are within 1e-5 of it."""


def make_optimizer(model: nn.Module, stage: StageConfig, training: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW over the groups a stage trains; makes the model's weights narrow if the recipe keeps them so.

    The weights follow the stage's schedule and decay (matrices only). Under masks come the gates, and the Lagrange
    multipliers, which climb instead of descending (``maximize``); neither decays. Their rates are constant unless
    ``prune.schedule_gates`` is true. In the public code of Sheared LLaMA and DRPruning they follow the schedule:
    Composer's scheduler multiplies the rates of all groups.
    """
    plain = training.weights == training.moments == "float32"
    lows: dict[nn.Parameter, torch.Tensor] = {}
    if training.weights != "float32":
        inner = model.model if isinstance(model, MaskedModel) else model
        lows = narrow(inner, keep_low=training.weights == "bfloat16+low16")
    if isinstance(model, MaskedModel):
        assert isinstance(stage, PruneConfig)
        parts, rates = model.parameter_groups(), rates_of_masks(stage)
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
    return NarrowAdamW(groups, moments=training.moments, lows=lows, betas=training.betas)


def rates_of_masks(stage: PruneConfig) -> MaskRates:
    """Return the highest rates of gates and multipliers in a stage."""
    gates, multipliers, auto = stage.mask_learning_rate, stage.multiplier_learning_rate, mask_rates(stage.steps)
    return MaskRates(
        gates=auto.gates if gates == "auto" else gates,
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
    """Rate of the weights at ``step`` (from 0): linear warm-up, then a cosine down to the final rate.

    With ``schedule: wsd`` (warm-up, stable, decay; Hu et al. 2024) it stays at the top, and falls in a straight line in
    the last part of the stage.

    Example:
        >>> from drpruning.config import ContinueConfig
        >>> stage = ContinueConfig(steps=100, batch_size=1, learning_rate=1.0, warmup=0.1, evaluate_every=1)
        >>> [round(learning_rate(stage, step), 3) for step in (0, 9, 10, 55, 99)]
        [0.1, 1.0, 1.0, 0.55, 0.1]
        >>> stage = stage.model_copy(update={"schedule": "wsd"})
        >>> [round(learning_rate(stage, step), 3) for step in (0, 9, 10, 80, 90, 99)]
        [0.1, 1.0, 1.0, 1.0, 0.55, 0.145]
    """
    rising = round(stage.warmup * stage.steps)
    if step < rising:
        return stage.learning_rate * (step + 1) / rising
    falling = falling_from(stage)
    progress = max(0, step - falling) / max(1, stage.steps - falling)
    low = stage.final_learning_rate
    height = 1 - progress if stage.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * progress))
    return stage.learning_rate * (low + (1 - low) * height)


def falling_from(stage: StageConfig) -> int:
    """The last step at the highest rate: the end of the warm-up, or in ``wsd`` the start of the decay."""
    rising = round(stage.warmup * stage.steps)
    return max(rising, stage.steps - round(stage.falling * stage.steps)) if stage.schedule == "wsd" else rising


def learning_rates(stage: StageConfig, tokens_per_step: int) -> LearningRates:
    """The whole schedule of a stage over its tokens, as the law takes it: at each place the rate of the next step."""
    rising = round(stage.warmup * stage.steps)
    corners = np.linspace(falling_from(stage), stage.steps, 2 if stage.schedule == "wsd" else CORNERS)
    steps = np.unique(np.rint([0, max(rising - 1, 0), rising, *corners])).astype(int)
    return LearningRates(steps * tokens_per_step, [learning_rate(stage, step) for step in steps.tolist()])


def set_learning_rates(optimizer: torch.optim.Optimizer, stage: StageConfig, step: int) -> float:
    """Set the rate of each group at ``step`` (from 0); return that of the weights."""
    rate = learning_rate(stage, step)
    rates = {"weights": rate}
    if isinstance(stage, PruneConfig):
        factor = rate / stage.learning_rate if stage.schedule_gates else 1.0
        highest = rates_of_masks(stage)
        rates |= {"gates": factor * highest.gates, "multipliers": factor * highest.multipliers}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
    return rate


def parameters_of(optimizer: torch.optim.Optimizer, *names: str) -> list[nn.Parameter]:
    """Return the parameters of the groups of these names: ``weights``, ``gates``, ``multipliers``."""
    return [item for group in optimizer.param_groups if group["name"] in names for item in group["params"]]


def reach_of_gates(optimizer: torch.optim.Optimizer) -> float | None:
    """Return the farthest that a step at the present rates moves a gate's log-alpha; None where there is no bound."""
    (gates,) = (group for group in optimizer.param_groups if group["name"] == "gates")
    return max_adam_step(gates["lr"], gates["betas"])
