"""Size accounting of a masked model: expected and evaluated sizes, sparsity and number of parameters.

Gates are taken as independent. A size is the number of active units in a row; sparsity is the fraction of units that
is pruned. Kinds that the target does not change have no gates and do not appear.

Expected values are those of sampled masks: also at the start a mask is zero now and then. An evaluation samples no
masks. Its size falls from the whole model at the initial gates to the target where the expected sparsity meets it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drpruning.flops import block_products
from drpruning.pruning.architecture_spec import Axis, entries
from drpruning.pruning.architectures import (
    experts_per_token,
    head_dim_of,
    num_mlp_matrices,
    routing_entries,
    weights_of,
)
from drpruning.pruning.masked_model import KINDS, MaskedModel
from drpruning.pruning.target import axis_sizes, parameters_of

HEAD_AXES: tuple[Axis, ...] = ("query", "key_value", "query_key_value", "query_head", "key_value_head")
"""Axes with the same number of entries for each key/value head."""


def expected_sparsity(masked: MaskedModel) -> dict[str, float]:
    """Return, by kind, the expected sparsity over all rows; waits for the device."""
    return dict(zip(masked.gates, masked.expected_sparsity().tolist(), strict=True))


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
        length: Tokens in a row, see :func:`drpruning.pruning.model_flops.products_per_token`.
    """
    sizes, active, config = masked.source.sizes(), masked.applied.active, masked.model.config
    head_dim, mlp_matrices = head_dim_of(config), num_mlp_matrices(config)
    num_experts, routing = experts_per_token(config) or 1, routing_entries(config, sizes.get("experts", 0))
    hidden = sizes["hidden"] if active.hidden is None else len(active.hidden)
    total = hidden * config.vocab_size
    for block in set(range(sizes["layers"])) - active.skipped_blocks:
        units = active.in_block(block)
        total += block_products(
            hidden,
            query=len(units["query"]) if "query" in units else sizes["heads"] * head_dim,
            key_value=len(units["key_value"]) if "key_value" in units else sizes["kv_heads"] * head_dim,
            intermediate=num_experts
            * (len(units["intermediate"]) if "intermediate" in units else sizes["intermediate"]),
            routing=routing,
            mlp_matrices=mlp_matrices,
            length=length,
        )
    return float(total)


def evaluated_sizes(masked: MaskedModel) -> dict[str, int]:
    """Return, by kind, the units of a row that an evaluation during training keeps; waits for the device.

    With hard masks ``source - (source - target) * progress``, where the progress is the part of the way that the
    expected sparsity has gone from that of the initial gates to that of the target, 0 to 1. So the first evaluation
    measures the source model, and an evaluation at the target the model that :meth:`MaskedModel.extract` returns. A
    target that prunes no more than the initial gates in expectation is evaluated from the start.

    With soft masks :func:`expected_sizes`, as the public code does.
    """
    if masked.mask_values == "soft":
        return expected_sizes(masked)
    initial, target = masked.initial_sparsity.tolist(), masked.target_sparsity()
    sizes = {}
    for (kind, sparsity), start in zip(expected_sparsity(masked).items(), initial, strict=True):
        units, kept = masked.gates[kind].shape[-1], masked.target_size(kind)
        way = target[kind] - start
        progress = min(1.0, max(0.0, (sparsity - start) / way)) if way > 0 else 1.0
        sizes[kind] = units - round((units - kept) * progress)
    return sizes


def evaluated_shape(masked: MaskedModel) -> dict[str, int]:
    """Return the shape of the model that an evaluation measures, by the names of :class:`drpruning.pruning.Target`."""
    source = masked.source.sizes()
    sizes = source | {KINDS[kind]: size for kind, size in evaluated_sizes(masked).items()}
    return sizes | {"heads": sizes["kv_heads"] * (source["heads"] // source["kv_heads"])}


def evaluated_parameters(masked: MaskedModel) -> float:
    """Return the parameters of the model that an evaluation measures; with soft masks :func:`expected_parameters`."""
    if masked.mask_values == "soft":
        return expected_parameters(masked)
    return float(parameters_of(masked.model.config, evaluated_shape(masked)))


@torch.no_grad()
def expected_parameters(masked: MaskedModel) -> float:
    """Return the expected number of parameters of active units."""
    active = masked.expected_active()
    sizes, config, device = masked.source.sizes(), masked.model.config, masked.model.device
    heads = active["head"].sum(-1) if "head" in active else torch.tensor(float(sizes["kv_heads"]), device=device)
    along: dict[Axis, Tensor | float] = {axis: float(n) for axis, n in axis_sizes(config, masked.source).items()}
    if "hidden" in active:
        along["hidden"] = active["hidden"].sum()
    for axis in HEAD_AXES:
        along[axis] = heads * (along[axis] / sizes["kv_heads"])
    if "expert" in active:
        along["expert"] = active["expert"].sum(-1)
    if "intermediate" in active:
        units = active["intermediate"].sum(-1)
        if units.ndim > 1:  # the mean over experts, weighted by their probabilities: the product is that of each expert
            weights = active.get("expert", torch.ones_like(units))
            units = (weights * units).sum(-1) / weights.sum(-1).clamp(min=torch.finfo(units.dtype).tiny)
        along["intermediate"], along["gate_up"] = units, 2 * units
    blocks = active.get("layer", torch.ones(sizes["layers"], device=device))
    total = torch.zeros((), dtype=torch.float64, device=device)
    for weight in weights_of(config, num_blocks=1):
        count = math.prod(entries(axis, along) for axis in weight.axes)
        total += count if weight.block is None else (blocks * count).sum()
    return total.item()
