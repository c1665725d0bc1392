"""How much of a card's peak a stage reaches: an assumption with a source, not a measurement of this package."""

from __future__ import annotations

from drpruning.config import RunConfig
from drpruning.planning.cards import Card

UTILISATION = 0.40
"""Share of the bfloat16 peak with causal attention: llm-foundry publishes 40 to 46% for 1B to 7B on H100. The same is
taken of the float32 peak."""
COMPUTED = {"none": 1.0, "selective": 1.1, "full": 4 / 3}
"""Work of a step to its useful work: full recomputing adds a forward pass to the three that a step is. Selective keeps
products and attention; the rest is a tenth of a step (torchtitan's and llm-foundry's published steps, roughly)."""
DISTILLING = 4 / 3
"""The teacher's forward pass beside the three of a step; at most, since a pruned student's step is smaller."""


def utilisation(config: RunConfig, stage: str) -> float:
    """Share of the peak that is useful work in a stage's steps: less what is computed twice or by a teacher."""
    distils = getattr(config.stage(stage), "distill", None) is not None
    return UTILISATION / COMPUTED[config.training.activation_checkpointing] / (DISTILLING if distils else 1)


def peak(config: RunConfig, card: Card) -> float:
    """FLOP/s that a card can do at most in the recipe's ``training.dtype``, or what the recipe says."""
    if config.training.peak_tflops is not None:
        return 1e12 * config.training.peak_tflops
    return card.peak if config.training.dtype == "bfloat16" else card.float32_peak
