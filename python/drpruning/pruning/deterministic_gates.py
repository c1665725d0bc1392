"""Deterministic gates: masks without sampling noise, whose mean in each row is exactly the scheduled size.

A row of gates log_alpha has one threshold m and, at temperature T, the masks

    z = clamp(sigmoid((log_alpha - m) / T) (HIGH - LOW) + LOW, 0, 1),      m solves  mean(z) = 1 - sparsity.

At T = 2/3 and m = 0, z is the hard-concrete variable at the noise 1/2, which is its median (Louizos, Welling, Kingma
2018, equation 13). The threshold takes the place of the Lagrangian: the constraint holds in every step, in a stage of
any length. As in Sanh, Wolf, Rush, "Movement Pruning" (2020), section 4, a gate competes with those of its row for a
place above the threshold.

The temperature falls with the schedule, so that at the target nearly all masks are 0 or 1 and the extraction changes
little. The backward pass differentiates the sigmoid at the initial temperature and neither of the clamps
(straight-through): the gate of a unit with a mask of zero has a gradient, so the unit can return. With s the sigmoid
and w = s (1 - s) normalised over the row, implicit differentiation of m gives

    dloss/dlog_alpha_i = (HIGH - LOW) / T s_i (1 - s_i) (g_i - sum of w_j g_j),      g = dloss/dz:

a gate rises if its unit is worth more than those near the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from drpruning.pruning.hard_concrete import HIGH, LOW, TEMPERATURE

LOWEST_TEMPERATURE = 0.01
"""At the target: masks between 0 and 1 belong to gates within 0.024 of the threshold; a step moves a gate further."""
_FAR = 100.0  # beyond any gate that can be pruned
_BISECTIONS = 40  # of [-100, 100]: below the rounding error of float32


def temperature(progress: float) -> float:
    """Return the temperature after a part of the way to the target, 0 to 1: a geometric fall.

    Example:
        >>> [round(temperature(progress), 4) for progress in (0.0, 0.5, 1.0)]
        [0.6667, 0.0816, 0.01]
    """
    return float(TEMPERATURE * (LOWEST_TEMPERATURE / TEMPERATURE) ** progress)


def masks_at(log_alpha: Tensor, sparsity: float, temperature: float) -> Tensor:
    """Return masks whose mean in each row is ``1 - sparsity``; does not wait for the device.

    Args:
        log_alpha: Gates, float32 [units] or [rows, units], below 100; units with a larger value have a mask of one.
        sparsity: 0 to 1; at 0 all masks are exactly one.
        temperature: Of the masks' values; their gradient has that of :data:`.hard_concrete.TEMPERATURE`.

    Returns:
        Values in [0, 1], same shape, differentiable in ``log_alpha``, see the module's docstring.

    Example:
        >>> masks_at(torch.tensor([3.0, 1.0, 2.0, 0.0]), sparsity=0.375, temperature=0.01)
        tensor([1.0000, 0.5000, 1.0000, 0.0000])
    """
    threshold = _threshold(log_alpha.detach(), sparsity, temperature)
    with torch.no_grad():
        smooth = torch.sigmoid((log_alpha - threshold) / TEMPERATURE)
        slope = smooth * (1 - smooth)
        share = slope / slope.sum(-1, keepdim=True).clamp(min=torch.finfo(slope.dtype).tiny)
    moving = threshold + (share * (log_alpha - log_alpha.detach())).sum(-1, keepdim=True)
    surrogate = torch.sigmoid((log_alpha - moving) / TEMPERATURE) * (HIGH - LOW) + LOW
    return surrogate + (_values(log_alpha.detach(), threshold, temperature) - surrogate).detach()


def _values(log_alpha: Tensor, threshold: Tensor, temperature: float) -> Tensor:
    stretched = torch.sigmoid((log_alpha - threshold) / temperature) * (HIGH - LOW) + LOW
    return functional.hardtanh(stretched, 0.0, 1.0)


def _threshold(log_alpha: Tensor, sparsity: float, temperature: float) -> Tensor:
    """Return the largest threshold of each row, [..., 1], at which the masks prune at most ``sparsity``.

    The sum is over what each mask lacks to one: at a sparsity of zero no rounding hides a mask below one.
    """
    low = torch.full_like(log_alpha[..., :1], -_FAR)
    high = -low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = (1 - _values(log_alpha, middle, temperature)).mean(-1, keepdim=True) <= sparsity
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low
