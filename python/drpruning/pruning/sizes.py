"""Size accounting of a masked model: its expected sizes, sparsity and number of parameters.

Gates are taken as independent. A size is the number of active units in a row; sparsity is the fraction of units that
is pruned. Kinds that the target does not change have no gates and do not appear.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drpruning.pruning import hard_concrete
from drpruning.pruning.architecture_spec import Axis, entries
from drpruning.pruning.architectures import weights_of
from drpruning.pruning.masked_model import MaskedModel
from drpruning.pruning.target import axis_sizes

HEAD_AXES: tuple[Axis, ...] = ("query", "key_value", "query_key_value", "query_head", "key_value_head")
"""Axes with the same number of entries for each key/value head."""


def expected_sparsity(masked: MaskedModel) -> dict[str, float]:
    """Return, by kind, the expected sparsity over all rows; waits for the device."""
    return dict(zip(masked.gates, expected_sparsity_tensor(masked).tolist(), strict=True))


@torch.no_grad()
def expected_sparsity_tensor(masked: MaskedModel) -> Tensor:
    """Return the values of :func:`expected_sparsity` on the device: float32 [kinds], in the order of ``gates``."""
    values = [1 - hard_concrete.probability_active(gate).mean() for gate in masked.log_alpha().values()]
    return torch.stack(values) if values else torch.empty(0)


def expected_sizes(masked: MaskedModel) -> dict[str, int]:
    """Return, by kind, the expected number of active units in a row, rounded and at least the target's."""
    sizes = {}
    for kind, sparsity in expected_sparsity(masked).items():
        units = masked.gates[kind].shape[-1]
        sizes[kind] = max(masked.target_size(kind), round(units * (1 - sparsity)))
    return sizes


@torch.no_grad()
def expected_parameters(masked: MaskedModel) -> float:
    """Return the expected number of parameters of active units."""
    active = {kind: hard_concrete.probability_active(gate) for kind, gate in masked.log_alpha().items()}
    sizes, config, device = masked.source.sizes(), masked.model.config, masked.model.device
    heads = active["head"].sum(-1) if "head" in active else torch.tensor(float(sizes["kv_heads"]), device=device)
    along: dict[Axis, Tensor | float] = {axis: float(n) for axis, n in axis_sizes(config, masked.source).items()}
    if "hidden" in active:
        along["hidden"] = active["hidden"].sum()
    for axis in HEAD_AXES:
        along[axis] = heads * (along[axis] / sizes["kv_heads"])
    if "intermediate" in active:
        along["intermediate"] = active["intermediate"].sum(-1)
    blocks = active.get("layer", torch.ones(sizes["layers"], device=device))
    total = torch.zeros((), dtype=torch.float64, device=device)
    for weight in weights_of(config, num_blocks=1):
        count = math.prod(entries(axis, along) for axis in weight.axes)
        total += count if weight.block is None else (blocks * count).sum()
    return total.item()
