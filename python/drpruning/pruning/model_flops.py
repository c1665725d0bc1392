"""Model FLOPs of a token: training, importance and repair of an architecture, from its configuration and sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from drpruning.flops import FORWARD, TRAINING, block_products
from drpruning.pruning import architectures
from drpruning.pruning.architecture_spec import entries
from drpruning.pruning.target import entries_along

if TYPE_CHECKING:
    from drpruning.config import MeasuresConfig, RunConfig


def products_per_token(config: Any, sizes: Mapping[str, float], length: int) -> float:
    """Return the products (multiply-adds) of a token's forward pass; one is :data:`drpruning.flops.FORWARD` operations.

    The embedding is a look-up and counts nothing; the output layer counts, tied or not. Attention is causal: half of
    the square of scores counts (as in Dao et al. 2022; PaLM's formula counts all of it). In a mixture of experts a
    token multiplies the experts that it is routed to, the router and the shared expert.

    Args:
        config: transformers configuration of the model: vocabulary and width of a head.
        sizes: Shape by the names of :class:`drpruning.pruning.Target`; fractions are expected sizes under masks.
        length: Tokens in a row.
    """
    head_dim = architectures.head_dim_of(config)
    block = block_products(
        sizes["hidden"],
        query=sizes["heads"] * head_dim,
        key_value=sizes["kv_heads"] * head_dim,
        intermediate=sizes["intermediate"] * (architectures.experts_per_token(config) or 1),
        mlp_matrices=architectures.num_mlp_matrices(config),
        routing=architectures.routing_entries(config, sizes.get("experts", 0)),
        length=length,
    )
    return float(sizes["layers"] * block + sizes["hidden"] * config.vocab_size)


def flops_per_token(config: Any, sizes: Mapping[str, float], length: int) -> float:
    """Return the operations of training for a token, :data:`drpruning.flops.TRAINING` for each product.

    Example:
        >>> from transformers import LlamaConfig
        >>> llama2_7b = dict(layers=32, hidden=4096, heads=32, kv_heads=32, intermediate=11008)
        >>> round(flops_per_token(LlamaConfig(), llama2_7b, 4096) / 1e9, 1)
        42.9
    """
    return TRAINING * products_per_token(config, sizes, length)


def num_calibration_batches(config: RunConfig, share: float = 1.0) -> int:
    """Return the number of micro-batches in a share of the calibration's tokens, rounded up."""
    batch = (config.training.micro_batch_size or config.pruning.batch_size) * config.data.seq_len
    return math.ceil(share * config.pruning.calibration.tokens / batch)


def importance_tokens(config: RunConfig) -> int:
    """Return the tokens on which a recipe's prune stage scores the units, in whole batches; 0 if it scores none."""
    if config.prune is None or config.prune.gate_init == "uniform":
        return 0
    combined = config.prune.calibration.combine is not None
    shares = list(config.calibration_shares.values()) if combined else [1.0]
    rows = config.training.micro_batch_size or config.prune.batch_size
    return sum(num_calibration_batches(config, share) for share in shares) * rows * config.data.seq_len


def importance_flops_per_token(
    config: Any,
    sizes: Mapping[str, float],
    target: Mapping[str, float],
    length: int,
    gate_init: str | MeasuresConfig,
) -> float:
    """Return the operations for a token that scores the units with a gate, a pass over all units for each measure.

    ``activation`` is a forward pass. ``taylor`` adds a backward pass to the masks: weights have no gradients, except
    the masked weights of the two projections that write to the residual stream, whose gradients become those of masks.
    So a weight counts 2 forward and 2 backward, 4 in these projections, and a product of attention 4 backward.

    Args:
        config: As of :func:`products_per_token`.
        sizes: Shape of the large model, as of :func:`products_per_token`.
        target: Shape to prune to: a size that it does not change has no gates, and no pass if no other has its measure.
        length: Tokens in a row.
        gate_init: ``taylor``, ``activation``, or the measures of blocks and of all other units.
    """
    if not isinstance(gate_init, str):
        pruned = [name for name, size in sizes.items() if target[name] < size]
        measures = {gate_init.depth if name == "layers" else gate_init.width for name in pruned}
        return sum(importance_flops_per_token(config, sizes, target, length, each) for each in measures)
    products = products_per_token(config, sizes, length)
    if gate_init == "activation":
        return FORWARD * products
    query = sizes["heads"] * architectures.head_dim_of(config)
    width = sizes["intermediate"] * (architectures.experts_per_token(config) or 1)
    width += architectures.shared_width_of(config)
    written = sizes["layers"] * sizes["hidden"] * (query + width)
    scores = sizes["layers"] * query * length
    return float(2 * FORWARD * products + FORWARD * (written + scores))


def repair_tokens(config: RunConfig) -> int:
    """Return the tokens on which a recipe repairs the extracted model, in whole batches; 0 without a repair."""
    if config.prune is None or config.prune.repair is None:
        return 0
    rows = config.training.micro_batch_size or config.prune.batch_size
    return num_calibration_batches(config) * rows * config.data.seq_len


def repair_flops_per_token(config: Any, source: Mapping[str, float], target: Mapping[str, float], length: int) -> float:
    """Return the operations for a token of a repair, :func:`drpruning.export.repair.repair`.

    The large model runs once, and each of its blocks once more. The small one runs once, and each of its blocks once
    for each group of projections with the same inputs, and once more. Of each group the products of the inputs with
    each other and with the errors of the outputs count; solving the equations does not.

    Args:
        config: transformers configuration of the large model.
        source: Its shape, as of :func:`products_per_token`.
        target: Shape of the small model.
        length: Tokens in a row.
    """
    large, small = products_per_token(config, source, length), products_per_token(config, target, length)
    axes = entries_along(config, {name: int(units) for name, units in target.items()})
    groups = architectures.projections_of(config)
    regression = 0
    for group in groups:
        inputs = entries(group[0].axes[1], axes) + 1  # and one that is always 1
        regression += inputs * (inputs + sum(entries(part.axes[0], axes) for part in group))
    large_blocks = large - source["hidden"] * config.vocab_size
    small_blocks = small - target["hidden"] * config.vocab_size
    products = large + large_blocks + small + (len(groups) + 1) * small_blocks + target["layers"] * regression
    return float(FORWARD * products)
