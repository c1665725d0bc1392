"""The price of missing the target size, one pair of multipliers for each kind of mask.

    penalty = mean over rows of  linear * (s - t) + quadratic * (s - t)^2

s is the expected sparsity of a row (the fraction of its units removed), t the sparsity wanted at this step. Weights
and gates descend on loss + penalty; the multipliers ascend on it, so that the price rises for as long as the target
is missed. Rows are the blocks for heads and MLP units, since the pruned model has the same number in each.

Source: Wang, Wohlwend, Lei, "Structured Pruning of Large Language Models" (2020), section 3.2; per-row form as in
Sheared LLaMA (Xia et al., 2023), section 2.1. Averaging over rows keeps the multipliers' scale independent of depth.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


def penalty(sparsity: Tensor, wanted: float, multipliers: Tensor) -> Tensor:
    """The Lagrangian term of one kind of mask.

    Args:
        sparsity: Expected sparsity of each row, float32, 0-d or [rows].
        wanted: The sparsity wanted now, 0 to 1.
        multipliers: Linear and quadratic multiplier, float32 [2].

    Returns:
        A scalar, differentiable in both tensors.
    """
    miss = sparsity - wanted
    linear, quadratic = multipliers.unbind()
    return linear * miss.mean() + quadratic * miss.square().mean()


@dataclass(frozen=True)
class Rise:
    """How the wanted sparsity gets from 0 to the target: in one straight rise, or in several with rests between.

    Attributes:
        warmup_steps: Length of each rise; 0 jumps.
        cycles: Rises, all of the same height.
        cycle_steps: Steps from the start of one to the start of the next; of no account with one cycle.

    Example:
        >>> [Rise(100).wanted(0.5, step) for step in (0, 50, 100, 500)]
        [0.0, 0.25, 0.5, 0.5]
        >>> Rise(0).wanted(0.5, 0)
        0.5
        >>> [Rise(10, cycles=2, cycle_steps=50).wanted(0.5, step) for step in (5, 10, 49, 50, 55, 60, 500)]
        [0.125, 0.25, 0.25, 0.25, 0.375, 0.5, 0.5]
    """

    warmup_steps: int
    cycles: int = 1
    cycle_steps: int = 0

    def wanted(self, final: float, step: int) -> float:
        """The sparsity wanted at ``step`` on the way to ``final``."""
        done = min(step // self.cycle_steps, self.cycles - 1) if self.cycles > 1 else 0
        since = step - done * self.cycle_steps
        risen = final if since >= self.warmup_steps else final * since / self.warmup_steps
        return (final * done + risen) / self.cycles
