"""Floating point operations of models, by purpose, and peaks of devices: cost, and model FLOPs utilisation (MFU)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from drpruning.pruning import architectures

if TYPE_CHECKING:
    import torch

    from drpruning.config import MeasuresConfig, RunConfig

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""bfloat16 FLOP/s, dense, float32 accumulation, from data sheets; the longest key in a device's name counts."""

FORWARD, TRAINING = 2, 6
"""Operations for each weight in a product with a token: a product and a sum forward, and twice as many backward."""


@dataclass(frozen=True, kw_only=True)
class FlopCounts:
    """Floating point operations of a stage or a run, by purpose. All but ``evaluation`` are charged to the method.

    The counts are model FLOPs, by :func:`products_per_token` for every token of a row. Look-ups, norms, activations,
    softmaxes, losses, optimizer and the recomputation of activation checkpointing count nothing. Steps that were
    lost (before a rollback, or between the last checkpoint and a kill) are not counted; skipped steps are.

    Attributes:
        training: Training steps of the student, 6 for each weight: 2 forward, 4 backward. Under masks, the weights
            that the step multiplied: without the units that the sparse forward pass left out, with those that it
            computed although their mask is zero. A loss on residual streams adds no product.
        probes: The same, in the steps of a strategy's probes.
        teacher: Forward passes of the teacher, 2 for each weight.
        importance: Passes that score units before the prune stage; see :func:`importance_flops_per_token`.
        evaluation: Forward passes on held-out rows between the steps, of a masked model at its expected sizes. The
            measurements of finished models and their tasks are not counted.

    Example:
        >>> FlopCounts(training=6.0, teacher=2.0, evaluation=1.0).charged
        8.0
    """

    training: float = 0.0
    probes: float = 0.0
    teacher: float = 0.0
    importance: float = 0.0
    evaluation: float = 0.0

    @property
    def charged(self) -> float:
        """The sum of all parts but ``evaluation``."""
        return self.training + self.probes + self.teacher + self.importance

    def __add__(self, other: FlopCounts) -> FlopCounts:
        """Return the counts of both."""
        return FlopCounts(**{name: count + getattr(other, name) for name, count in asdict(self).items()})

    @classmethod
    def of(cls, counts: Mapping[str, float]) -> FlopCounts:
        """Return the counts of a record by part; parts of other versions are left out."""
        return cls(**{part.name: counts[part.name] for part in fields(cls) if part.name in counts})


def products_per_token(config: Any, sizes: Mapping[str, float], length: int) -> float:
    """Return the products (multiply-adds) of a token's forward pass; one is :data:`FORWARD` operations.

    The embedding is a look-up and counts nothing; the output layer counts, tied or not. Attention is causal: half of
    the square of scores counts (as in Dao et al. 2022; PaLM's formula counts all of it).

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
        intermediate=sizes["intermediate"],
        mlp_matrices=architectures.num_mlp_matrices(config),
        length=length,
    )
    return float(sizes["layers"] * block + sizes["hidden"] * config.vocab_size)


def block_products(
    hidden: float, *, query: float, key_value: float, intermediate: float, mlp_matrices: int, length: int
) -> float:
    """Return the products of a token in one block.

    Args:
        hidden: Width of the residual stream.
        query: Query heads times their width.
        key_value: Key/value heads times their width.
        intermediate: Width of the MLP.
        mlp_matrices: Matrices of the MLP: 3 with a gate, else 2.
        length: Tokens in a row; scores and values are two products with half of them, on average.
    """
    return hidden * (2 * (query + key_value) + mlp_matrices * intermediate) + query * length


def flops_per_token(config: Any, sizes: Mapping[str, float], length: int) -> float:
    """Return the operations of training for a token: :data:`TRAINING` for each of :func:`products_per_token`.

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
    config: Any, sizes: Mapping[str, float], length: int, gate_init: str | MeasuresConfig
) -> float:
    """Return the operations for a token that scores the units of an unmasked model, a pass for each measure.

    ``activation`` is a forward pass. ``taylor`` adds a backward pass to the masks: weights have no gradients, except
    the masked weights of the two projections that write to the residual stream, whose gradients become those of masks.
    So a weight counts 2 forward and 2 backward, 4 in these projections, and a product of attention 4 backward.

    Args:
        config: As of :func:`products_per_token`.
        sizes: As of :func:`products_per_token`.
        length: Tokens in a row.
        gate_init: ``taylor``, ``activation``, or the measures of blocks and of all other units.
    """
    if not isinstance(gate_init, str):
        return sum(
            importance_flops_per_token(config, sizes, length, each) for each in {gate_init.depth, gate_init.width}
        )
    products = products_per_token(config, sizes, length)
    if gate_init == "activation":
        return FORWARD * products
    query = sizes["heads"] * architectures.head_dim_of(config)
    written = sizes["layers"] * sizes["hidden"] * (query + sizes["intermediate"])
    scores = sizes["layers"] * query * length
    return float(2 * FORWARD * products + FORWARD * (written + scores))


def peak_flops(device: torch.device, dtype: str, given: float | None = None) -> float | None:
    """Return the peak FLOP/s of ``device``; None where it is unknown.

    Args:
        device: The device of the model.
        dtype: ``training.dtype``; the table is of bfloat16.
        given: ``training.peak_tflops``, which overrides the table.
    """
    if given is not None:
        return given * 1e12
    if device.type != "cuda" or dtype != "bfloat16":
        return None
    import torch  # noqa: PLC0415 - counting needs none of it, and it takes seconds to load

    return peak_of_gpu(torch.cuda.get_device_name(device))


def peak_of_gpu(name: str) -> float | None:
    """Return the bfloat16 FLOP/s of a GPU by its name in CUDA; None where the table lacks it.

    Example:
        >>> peak_of_gpu("NVIDIA H100 80GB HBM3"), peak_of_gpu("NVIDIA L40S"), peak_of_gpu("Voodoo 2")
        (989000000000000.0, 362000000000000.0, None)
    """
    words = f" {name.replace('-', ' ')} "
    known = [model for model in PEAKS if f" {model} " in words]
    return PEAKS[max(known, key=len)] if known else None
