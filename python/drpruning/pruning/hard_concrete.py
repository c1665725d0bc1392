"""The hard-concrete distribution: masks that are exactly 0 or 1 with positive probability and differentiable between.

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
"""Range of log-alpha, +-4.605: a unit is active with probability 0.047 to 0.998. From about 16 on, the gradient is
exactly zero in float32. Source: ``constrain_parameters`` in ``l0_module.py`` of LLM-Shearing and of DRPruning."""
SOFT_FACTOR = 0.8
_NOISE_MARGIN = 1e-6  # keeps log u and log(1 - u) finite; a draw falls outside with probability 2e-6


def sample(log_alpha: Tensor, noise: Tensor) -> Tensor:
    """Return mask values for the given uniform noise, differentiable in ``log_alpha``.

    Where a value is clamped to 0 or 1 the gradient is exactly zero, at the boundary too.

    Args:
        log_alpha: Locations, float32, any shape.
        noise: Uniform on [0, 1), same shape.

    Returns:
        Values in [0, 1], same shape and dtype.
    """
    noise = noise.clamp(_NOISE_MARGIN, 1 - _NOISE_MARGIN)
    squashed = torch.sigmoid((noise.log() - (-noise).log1p() + log_alpha) / TEMPERATURE)
    return functional.hardtanh(squashed * (HIGH - LOW) + LOW, 0.0, 1.0)


def probability_active(log_alpha: Tensor) -> Tensor:
    """Return the probability that a mask is not zero: equation 12, the expected L0 norm of one gate.

    Example:
        >>> probability_active(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.4010, 0.8318, 0.9734])
    """
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def soft_value(log_alpha: Tensor) -> Tensor:
    """Return the deterministic mask of a kept unit in the public code: sigmoid(0.8 log_alpha / TEMPERATURE).

    The value is positive for any log-alpha: a log-alpha below :data:`LOWEST` counts as :data:`LOWEST`.

    Source: ``_deterministic_z`` in ``l0_module.py`` of LLM-Shearing and of DRPruning; the factor is its
    ``magical_number``. Equation 13 of Louizos et al. has another value.

    Example:
        >>> soft_value(torch.tensor([-200.0, 0.0, 4.0]))
        tensor([0.0040, 0.5000, 0.9918])
    """
    return torch.sigmoid(SOFT_FACTOR / TEMPERATURE * log_alpha.clamp(min=LOWEST))


def keep_top(log_alpha: Tensor, count: int) -> Tensor:
    """Return a mask of the ``count`` largest gates of each row; among equal gates the first are kept.

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
