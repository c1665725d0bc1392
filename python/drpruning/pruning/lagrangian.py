"""The Lagrangian term that drives the expected size to the target, with one pair of multipliers for each mask kind.

    penalty = mean over rows of  linear * (s - t) + quadratic * (s - t)^2

s is the expected sparsity of a row (the fraction of its units that is pruned), t the scheduled sparsity of the step.
Weights and gates descend on loss + penalty. The multipliers ascend on it, so the penalty grows until the constraint is
satisfied. For heads and MLP units a row is a block, since the pruned model has the same number in each block.

Source: Wang, Wohlwend, Lei, "Structured Pruning of Large Language Models" (2020), section 3.2; per-row form as in
Sheared LLaMA (Xia et al., 2023), section 2.1. Averaging over rows keeps the multipliers' scale independent of depth.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from drpruning.errors import ConfigError


def penalty(sparsity: Tensor, scheduled: float, multipliers: Tensor) -> Tensor:
    """Return the Lagrangian term of one mask kind.

    Args:
        sparsity: Expected sparsity of each row, float32, 0-d or [rows].
        scheduled: The sparsity scheduled for this step, 0 to 1.
        multipliers: Linear and quadratic multiplier, float32 [2].

    Returns:
        A scalar, differentiable in both tensors.
    """
    miss = sparsity - scheduled
    linear, quadratic = multipliers.unbind()
    return linear * miss.mean() + quadratic * miss.square().mean()


@dataclass(frozen=True)
class SparsitySchedule:
    """Sparsity over the steps: one linear rise from 0 to the target, or several rises with rests between.

    Each of several rises prunes the same fraction of the units that are left, so with a final sparsity s the k-th of n
    ends at 1 - (1 - s)^(k / n). The sizes of all kinds fall geometrically, and so does the number of parameters in the
    blocks.

    Attributes:
        warmup_steps: Length of each rise; 0 reaches the full height at once.
        cycles: Number of rises.
        cycle_steps: Steps from the start of one rise to the start of the next; unused with one cycle.

    Raises:
        ConfigError: A number is negative, or a rise does not fit its cycle.

    Example:
        >>> [SparsitySchedule(100).at(0.5, step) for step in (0, 50, 100, 500)]
        [0.0, 0.25, 0.5, 0.5]
        >>> [SparsitySchedule(0).at(0.5, step) for step in (-1, 0)]
        [0.0, 0.5]
        >>> [SparsitySchedule(10, cycles=2, cycle_steps=50).at(0.75, step) for step in (5, 10, 49, 50, 55, 60, 500)]
        [0.25, 0.5, 0.5, 0.5, 0.625, 0.75, 0.75]
    """

    warmup_steps: int
    cycles: int = 1
    cycle_steps: int = 0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must be at least 0, got {self.warmup_steps}")
        if self.cycles < 1 or (self.cycles > 1 and self.cycle_steps < max(1, self.warmup_steps)):
            raise ConfigError(
                f"cycles={self.cycles}, cycle_steps={self.cycle_steps} do not fit warmup_steps={self.warmup_steps}",
                "Choose cycles of at least 1, and cycle_steps of at least warmup_steps.",
            )

    def at(self, final: float, step: int) -> float:
        """Return the sparsity scheduled for ``step`` when the schedule ends at ``final``; 0 before the first step."""
        completed, risen = self._position(step)
        before, after = (self.after(final, cycle) for cycle in (completed, completed + 1))
        return after if risen == 1 else before + (after - before) * risen

    def after(self, final: float, cycle: int) -> float:
        """Return the sparsity after ``cycle`` of the cycles when the schedule ends at ``final``."""
        return final if cycle == self.cycles else float(1 - (1 - final) ** (cycle / self.cycles))

    def progress(self, step: int) -> float:
        """Return the part of all rises that is completed at ``step``, 0 to 1."""
        completed, risen = self._position(step)
        return (completed + risen) / self.cycles

    def rescoring_due(self, step: int) -> bool:
        """Return whether a cycle other than the first starts at ``step``."""
        return self.cycles > 1 and step % self.cycle_steps == 0 and 0 < step // self.cycle_steps < self.cycles

    def _position(self, step: int) -> tuple[int, float]:
        """Return the completed cycles, and the part of the current rise that is completed."""
        if step < 0:
            return 0, 0.0
        completed = min(step // self.cycle_steps, self.cycles - 1) if self.cycles > 1 else 0
        since = step - completed * self.cycle_steps
        return completed, 1.0 if since >= self.warmup_steps else since / self.warmup_steps
