"""float32 numbers as a bfloat16 number and what is left: both halves, or only the upper one, rounded at random.

A float32 number is the bits of a bfloat16 number followed by 16 more. Read as integers, next to each other are numbers
of the same sign that are next to each other in size, so rounding is integer arithmetic on the bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 1 << 15
UPPER = -(1 << 16)  # mask of the upper 16 bits


def split_float32(value: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bfloat16 numbers, and the distances to ``value`` in steps of the lower 16 bits.

    Ties go away from zero. That is what makes the distance fit 16 bits: it is -32,768 to 32,767, while rounding ties to
    even, as a cast does, would need +32,768 as well, which wraps and puts the number one step of bfloat16 off.

    Args:
        value: float32, finite.

    Returns:
        bfloat16, and int16, of the same shape. :func:`join_float32` gives ``value`` back, bit for bit.

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
    """The float32 numbers that :func:`split_float32` took apart."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)).view(torch.float32)


def stochastic_round(value: Tensor, noise: Tensor) -> Tensor:
    """One of the two bfloat16 numbers around ``value``, the nearer one more often: its mean is ``value``.

    A number that bfloat16 can hold stays as it is. An update far below the distance of bfloat16 numbers, which nearest
    rounding would lose every time, is made once in so many steps.

    Args:
        value: float32, finite.
        noise: int32 of the same shape, uniform from 0 to 65,535, from :func:`random_bits`.

    Returns:
        bfloat16, of the same shape.
    """
    bits = (value.view(torch.int32) + noise) & UPPER
    return bits.view(torch.float32).to(torch.bfloat16)  # exact: the lower half is zero


def random_bits(shape: torch.Size, key: Tensor) -> Tensor:
    """32 random bits for each number of a tensor: a hash of its place and the key, which no state has to be kept for.

    A kernel computes them where it needs them, so they take no memory traffic. The hash is the 32-bit finalizer of
    Wellons' hash prospector with the constants 0x21f0aaad and 0x735a2d97: a bijection, each bit of the argument flips
    each bit of the result with probability 0.5, off by 1e-3 at most.

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
