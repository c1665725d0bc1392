"""float32 numbers as bfloat16 and a 16-bit residual, or as bfloat16 alone, rounded stochastically.

The first 16 bits of a float32 number are a bfloat16 number. Bit patterns of floats of the same sign are ordered as
integers, so rounding is integer arithmetic on the bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 1 << 15
UPPER = -(1 << 16)  # mask of the upper 16 bits


def split_float32(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest bfloat16 numbers, and the residuals in units of the lower 16 bits.

    Ties are rounded away from zero rather than to even: with ties-to-even the residual can be +32,768, which overflows
    int16. Here it is -32,768 to 32,767.

    Args:
        value: float32, finite.

    Returns:
        bfloat16 and int16 of the same shape. :func:`join_float32` restores ``value`` bit for bit.

    Example:
        >>> high, low = split_float32(torch.tensor([1.0, 1.0001, -3.1415927]))
        >>> high.tolist(), low.tolist()
        ([1.0, 1.0, -3.140625], [0, 839, 4059])
        >>> join_float32(high, low).tolist() == torch.tensor([1.0, 1.0001, -3.1415927]).tolist()
        True
    """
    bits = value.view(torch.int32)
    upper = (bits + HALF) >> 16
    low = bits - (upper << 16)
    return upper.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def join_float32(high: Tensor, low: Tensor) -> Tensor:
    """Return the float32 numbers of the halves from :func:`split_float32`."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)).view(torch.float32)


def stochastic_round(value: Tensor, noise: Tensor) -> Tensor:
    """Return one of the two bfloat16 numbers around ``value`` at random, with mean ``value``.

    A number that bfloat16 represents is returned unchanged. An update far below the spacing of bfloat16 numbers, which
    rounding to nearest would always lose, is applied with a probability proportional to its size.

    Args:
        value: float32, finite.
        noise: int32 of the same shape, uniform from 0 to 65,535, from :func:`random_bits`.

    Returns:
        bfloat16, of the same shape.
    """
    bits = (value.view(torch.int32) + noise) & UPPER
    return bits.view(torch.float32).to(torch.bfloat16)  # exact: the lower half is zero


def random_bits(shape: torch.Size, key: Tensor) -> Tensor:
    """Return 32 random bits for each number of a tensor: a hash of its index and the key, without a generator state.

    A kernel computes the bits where it uses them, without memory traffic. The hash is the 32-bit finalizer of Wellons'
    hash prospector with the constants 0x21f0aaad and 0x735a2d97: a bijection, in which each bit of the argument flips
    each bit of the result with probability 0.5 within 1e-3.

    Args:
        shape: Of the result; at most 2^31 numbers.
        key: int32 scalar on the device of the result.

    Returns:
        int32, any of the 2^32 patterns.
    """
    bits = torch.arange(shape.numel(), dtype=torch.int32, device=key.device).view(shape) ^ key
    bits = bits ^ ((bits >> 16) & 0xFFFF)  # a logical shift, made of an arithmetic one
    bits = bits * 0x21F0AAAD  # wraps
    bits = bits ^ ((bits >> 15) & 0x1FFFF)
    bits = bits * 0x735A2D97
    return bits ^ ((bits >> 15) & 0x1FFFF)
