"""Size accounting of a masked model: its expected sizes, sparsity and number of parameters.

Gates are taken as independent. A size is the number of active units in a row; sparsity is the fraction of units that
is pruned. Kinds that the target does not change have no gates and do not appear.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drpruning.flops import block_products
from drpruning.pruning import hard_concrete
from drpruning.pruning.architectures import Axis, head_dim_of, weights_of
from drpruning.pruning.masked_model import MaskedModel
from drpruning.pruning.target import axis_sizes


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


def computed_products(masked: MaskedModel, length: int) -> float:
    """Return the products of a token in a forward pass with the masks that are applied now.

    Pruned units are left out where the pass leaves them out; with ``skip_pruned_units=False`` all weights are
    multiplied, whatever the masks. Does not wait for the device: the host has the shapes.

    Args:
        masked: The model.
        length: Tokens in a row, see :func:`drpruning.flops.products_per_token`.
    """
    sizes, active, config = masked.source.sizes(), masked.applied.active, masked.model.config
    head_dim = head_dim_of(config)
    hidden = sizes["hidden"] if active.hidden is None else len(active.hidden)
    total = hidden * config.vocab_size
    for block in set(range(sizes["layers"])) - active.skipped_blocks:
        units = active.in_block(block)
        total += block_products(
            hidden,
            query=len(units["query"]) if "query" in units else sizes["heads"] * head_dim,
            key_value=len(units["key_value"]) if "key_value" in units else sizes["kv_heads"] * head_dim,
            intermediate=len(units["intermediate"]) if "intermediate" in units else sizes["intermediate"],
            length=length,
        )
    return float(total)


@torch.no_grad()
def expected_parameters(masked: MaskedModel) -> float:
    """Return the expected number of parameters of active units."""
    active = {kind: hard_concrete.probability_active(gate) for kind, gate in masked.log_alpha().items()}
    sizes, config, device = masked.source.sizes(), masked.model.config, masked.model.device
    head_dim = head_dim_of(config)
    heads = active["head"].sum(-1) if "head" in active else torch.tensor(float(sizes["kv_heads"]), device=device)
    along: dict[Axis, Tensor | float] = {axis: float(n) for axis, n in axis_sizes(config, masked.source).items()}
    if "hidden" in active:
        along["hidden"] = active["hidden"].sum()
    along["key_value"] = heads * head_dim
    along["query"] = heads * head_dim * (sizes["heads"] // sizes["kv_heads"])
    if "intermediate" in active:
        along["intermediate"] = active["intermediate"].sum(-1)
    blocks = active.get("layer", torch.ones(sizes["layers"], device=device))
    total = torch.zeros((), dtype=torch.float64, device=device)
    for weight in weights_of(config, num_blocks=1):
        count = math.prod(along[axis] for axis in weight.axes)
        total += count if weight.block is None else (blocks * count).sum()
    return total.item()
