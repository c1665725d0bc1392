"""The hard-concrete distribution: gates that are exactly 0 or 1 with positive probability, and have gradients between.

A uniform u is squashed around the gate's location log-alpha, stretched beyond [0, 1], and clamped back:

    s = sigmoid((log u - log(1 - u) + log_alpha) / TEMPERATURE)
    z = clamp(s * (HIGH - LOW) + LOW, 0, 1)

Source: Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization" (2018), equations 10-12;
the constants are those of their section 4 and of Sheared LLaMA.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LOW, HIGH = -0.1, 1.1
TEMPERATURE = 2 / 3
LOWEST, HIGHEST = math.log(1e-2), math.log(1e2)
"""Range of log-alpha, +-4.605: a gate is open with probability 0.047 to 0.998. From about 16 on, its gradient is
exactly zero in float32. Source: ``constrain_parameters`` in ``l0_module.py`` of LLM-Shearing and of DRPruning."""
_NOISE_MARGIN = 1e-6  # keeps log u and log(1 - u) finite; the chance that a draw falls outside is 2e-6


def sample(log_alpha: Tensor, noise: Tensor) -> Tensor:
    """Gate values for given uniform noise, differentiable in ``log_alpha``.

    Where a value is clamped to 0 or 1 the gradient is exactly zero, at the boundary too.

    Args:
        log_alpha: Locations, float32, any shape.
        noise: Uniform on [0, 1), same shape.

    Returns:
        Values in [0, 1], same shape and type.
    """
    noise = noise.clamp(_NOISE_MARGIN, 1 - _NOISE_MARGIN)
    squashed = torch.sigmoid((noise.log() - (-noise).log1p() + log_alpha) / TEMPERATURE)
    return functional.hardtanh(squashed * (HIGH - LOW) + LOW, 0.0, 1.0)


def probability_open(log_alpha: Tensor) -> Tensor:
    """Probability that a gate is not zero: equation 12, the expected L0 norm of one gate.

    Example:
        >>> probability_open(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.4010, 0.8318, 0.9734])
    """
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def deterministic_value(log_alpha: Tensor) -> Tensor:
    """The value that stands for a gate when nothing is sampled: equation 13."""
    return functional.hardtanh(torch.sigmoid(log_alpha) * (HIGH - LOW) + LOW, 0.0, 1.0)


def keep_top(log_alpha: Tensor, count: int) -> Tensor:
    """One where a gate is among the ``count`` largest of its row, else zero; among equals the first are kept.

    Args:
        log_alpha: Locations, float32 [units] or [rows, units].
        count: Units to keep in each row.

    Returns:
        0 and 1, float32, same shape, with exactly ``count`` ones in a row.

    Example:
        >>> keep_top(torch.tensor([0.5, 3.0, 0.5, -1.0]), 2)
        tensor([1., 1., 0., 0.])
    """
    order = torch.argsort(log_alpha.detach(), dim=-1, descending=True, stable=True)
    return torch.zeros_like(log_alpha).scatter(-1, order[..., :count], 1.0).detach()
