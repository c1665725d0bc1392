"""Moments in 8 bits: codes of a map with more values near zero, and a scale for each block of a row.

The map is the dynamic one of Dettmers et al. (2022), "8-bit Optimizers via Block-wise Quantization": as the exponent
falls from 1 to 1e-6, bits move from the fraction to the exponent. Blocks run along the last dimension, so a matrix that
is sharded by rows has the same codes and scales as a whole one.

The square root of the second moment is quantized. It spans half the decades, so an entry whose gradients are small
compared with those of its block does not become zero, by which Adam would divide.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 128
"""Numbers that share a scale: it divides the widths of all shipped target shapes, and costs 1/32 byte a number."""


class QuantizationMap(NamedTuple):
    """The values of the 256 codes.

    Attributes:
        values: float32 [256], ascending.
        midpoints: Midpoints of neighbours, float32 [255].
    """

    values: Tensor
    midpoints: Tensor


@lru_cache(maxsize=8)
def dynamic_map(signed: bool, device: torch.device) -> QuantizationMap:
    """Return the map: 256 numbers from -1 or 0 to 1.

    Args:
        signed: Whether the map has negative numbers.
        device: Device of the tensors.
    """
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent * (1 if signed else 2) + 1)
        steps = 10.0 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2
        values += [steps, -steps] if signed else [steps]
    known = torch.cat(values).sort().values
    return QuantizationMap(known.to(device), ((known[:-1] + known[1:]) / 2).to(device))


def quantize(value: Tensor, code: QuantizationMap) -> tuple[Tensor, Tensor]:
    """Return the codes of the nearest values of a map.

    Args:
        value: float32 [R, C].
        code: The map, from :func:`dynamic_map`.

    Returns:
        uint8 [R, C], and the largest magnitude of each block, float32 [R, blocks].
    """
    columns = value.shape[1]
    parts = _in_blocks(value)
    scales = parts.abs().amax(-1)
    codes = torch.bucketize(parts / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None], code.midpoints)
    return codes.to(torch.uint8).flatten(1)[:, :columns], scales


def dequantize(codes: Tensor, scales: Tensor, code: QuantizationMap) -> Tensor:
    """Return the values of codes, float32 [R, C]."""
    return (code.values[_in_blocks(codes).int()] * scales[..., None]).flatten(1)[:, : codes.shape[1]]


def _in_blocks(matrix: Tensor) -> Tensor:
    """Return a view [R, blocks, BLOCK], of a copy with zeros at the end of rows where the last block is not full."""
    rows, columns = matrix.shape
    missing = -columns % BLOCK
    return (functional.pad(matrix, (0, missing)) if missing else matrix).view(rows, -1, BLOCK)


def num_blocks(columns: int) -> int:
    """Return the number of blocks in a row."""
    return -(-columns // BLOCK)
