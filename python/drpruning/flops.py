"""The two sides of the model FLOPs utilisation (MFU): operations of a training step, and a device's peak."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from drpruning.pruning import architectures

if TYPE_CHECKING:
    import torch

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


def flops_per_token(config: Any, sizes: Mapping[str, float], length: int) -> float:
    """Return the floating point operations of training for a token: forward 2 for each weight in a product, backward 4.

    The embedding is a look-up and counts nothing; the output layer counts, tied or not. Attention is causal: half of
    the square of scores counts (as in Dao et al. 2022; PaLM's formula counts all of it). Norms, activations, masks and
    the recomputation of activation checkpointing count nothing.

    Args:
        config: transformers configuration of the model: vocabulary and width of a head.
        sizes: Shape by the names of :class:`drpruning.pruning.Target`; fractions are expected sizes under masks.
        length: Tokens in a row.

    Example:
        >>> from transformers import LlamaConfig
        >>> llama2_7b = dict(layers=32, hidden=4096, heads=32, kv_heads=32, intermediate=11008)
        >>> round(flops_per_token(LlamaConfig(), llama2_7b, 4096) / 1e9, 1)
        42.9
    """
    head_dim = architectures.head_dim_of(config)
    attention = 2 * sizes["hidden"] * head_dim * (sizes["heads"] + sizes["kv_heads"])  # query and output; key and value
    feed_forward = architectures.num_mlp_matrices(config) * sizes["hidden"] * sizes["intermediate"]
    weights = sizes["layers"] * (attention + feed_forward) + sizes["hidden"] * config.vocab_size
    scores = sizes["layers"] * sizes["heads"] * head_dim * length  # two products over length / 2 tokens on average
    return float(6 * (weights + scores))


def flops_of_weights(weights: float, layers: int, width: int, length: int) -> float:
    """Return the same from counts: weights in products, blocks, query heads times their width, and tokens in a row.

    Example:
        >>> flops_of_weights(1000, 2, 8, 16)
        7536.0
    """
    return float(6 * (weights + layers * width * length))


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
