"""The price of missing the target size, one pair of multipliers for each kind of mask.

    penalty = mean over rows of  linear * (s - t) + quadratic * (s - t)^2

s is the expected sparsity of a row (the fraction of its units removed), t the sparsity wanted at this step. Weights
and gates descend on loss + penalty; the multipliers ascend on it, so that the price rises for as long as the target
is missed. Rows are the blocks for heads and MLP units, since the pruned model has the same number in each.

Source: Wang, Wohlwend, Lei, "Structured Pruning of Large Language Models" (2020), section 3.2; per-row form as in
Sheared LLaMA (Xia et al., 2023), section 2.1. Averaging over rows keeps the multipliers' scale independent of depth.
"""

from __future__ import annotations

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


def warmed(final: float, step: int, warmup_steps: int) -> float:
    """The sparsity wanted at ``step``: rises linearly from 0 to ``final`` over ``warmup_steps``, then stays.

    Example:
        >>> [warmed(0.5, step, 100) for step in (0, 50, 100, 500)]
        [0.0, 0.25, 0.5, 0.5]
        >>> warmed(0.5, 0, 0)
        0.5
    """
    return final if step >= warmup_steps else final * step / warmup_steps
