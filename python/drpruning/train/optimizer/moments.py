"""Moments in 8 bits: codes of a map that is dense near zero, and a scale for each block of a row.

The map is the dynamic one of Dettmers et al. (2022), "8-bit Optimizers via Block-wise Quantization": as the exponent
falls from 1 to 1e-6, bits go over from the fraction to it. Blocks run along the last dimension, so that a matrix that
is sharded by rows has the same codes and scales as a whole one.

Of the second moment the square root is coded. It spans half the decades, so that an entry whose gradients are small
beside those of its block does not become zero, by which Adam would divide.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 128
"""Numbers that share a scale: divides the widths of all shipped target shapes; 1/32 byte a number for the scale."""


@lru_cache(maxsize=8)
def dynamic_map(signed: bool, device: torch.device) -> Tensor:
    """The 256 numbers that codes stand for, float32, ascending, from -1 or 0 to 1."""
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent * (1 if signed else 2) + 1)
        steps = 10.0 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2
        values += [steps, -steps] if signed else [steps]
    return torch.cat(values).sort().values.to(device)


def encode(value: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes of the nearest numbers of the map.

    Args:
        value: float32 [R, C].
        signed: Whether there are negative numbers.

    Returns:
        uint8 [R, C], and the largest magnitude of each block, float32 [R, blocks].
    """
    rows, columns = value.shape
    blocks = blocks_of(columns)
    parts = functional.pad(value, (0, blocks * BLOCK - columns)).view(rows, blocks, BLOCK)
    scales = parts.abs().amax(-1)
    known = dynamic_map(signed, value.device)
    middles = (known[:-1] + known[1:]) / 2
    codes = torch.bucketize(parts / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None], middles)
    return codes.to(torch.uint8).view(rows, -1)[:, :columns], scales


def decode(codes: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """The numbers that :func:`encode` came nearest to, float32 [R, C]."""
    known = dynamic_map(signed, codes.device)
    return known[codes.int()] * scales.repeat_interleave(BLOCK, dim=-1)[:, : codes.shape[1]]


def blocks_of(columns: int) -> int:
    """Blocks in a row."""
    return -(-columns // BLOCK)
