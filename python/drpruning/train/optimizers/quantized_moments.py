"""Moments in 8 bits: codes of a map that is dense near zero, and a scale for each block of a row.

The map is the dynamic one of Dettmers et al. (2022), "8-bit Optimizers via Block-wise Quantization": as the exponent
falls from 1 to 1e-6, bits go over from the fraction to it. Blocks run along the last dimension, so that a matrix that
is sharded by rows has the same codes and scales as a whole one.

Of the second moment the square root is coded. It spans half the decades, so that an entry whose gradients are small
beside those of its block does not become zero, by which Adam would divide.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 128
"""Numbers that share a scale: divides the widths of all shipped target shapes; 1/32 byte a number for the scale."""


class QuantizationMap(NamedTuple):
    """The numbers that codes stand for.

    Attributes:
        values: float32 [256], ascending.
        middles: Midpoints of neighbours, float32 [255].
    """

    values: Tensor
    middles: Tensor


@lru_cache(maxsize=8)
def dynamic_map(signed: bool, device: torch.device) -> QuantizationMap:
    """The map: 256 numbers from -1 or 0 to 1.

    Args:
        signed: Whether there are negative numbers.
        device: Of the tensors.
    """
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent * (1 if signed else 2) + 1)
        steps = 10.0 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2
        values += [steps, -steps] if signed else [steps]
    known = torch.cat(values).sort().values
    return QuantizationMap(known.to(device), ((known[:-1] + known[1:]) / 2).to(device))


def quantize(value: Tensor, code: QuantizationMap) -> tuple[Tensor, Tensor]:
    """Codes of the nearest numbers that a code can stand for.

    Args:
        value: float32 [R, C].
        code: Of :func:`dynamic_map`.

    Returns:
        uint8 [R, C], and the largest magnitude of each block, float32 [R, blocks].
    """
    columns = value.shape[1]
    parts = _in_blocks(value)
    scales = parts.abs().amax(-1)
    codes = torch.bucketize(parts / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None], code.middles)
    return codes.to(torch.uint8).flatten(1)[:, :columns], scales


def dequantize(codes: Tensor, scales: Tensor, code: QuantizationMap) -> Tensor:
    """The numbers that :func:`quantize` came nearest to, float32 [R, C]."""
    return (code.values[_in_blocks(codes).int()] * scales[..., None]).flatten(1)[:, : codes.shape[1]]


def _in_blocks(matrix: Tensor) -> Tensor:
    """A view [R, blocks, BLOCK], of a copy with zeros at the end of each row where the last block is not full."""
    rows, columns = matrix.shape
    missing = -columns % BLOCK
    return (functional.pad(matrix, (0, missing)) if missing else matrix).view(rows, -1, BLOCK)


def num_blocks(columns: int) -> int:
    """Blocks in a row."""
    return -(-columns // BLOCK)
