"""Accelerators, and the time that training and decoding take on them.

Training time is an assumption about utilisation, with a source. Decoding time is a roofline (Williams et al. 2009): an
operation takes as long as its memory traffic or its arithmetic, whichever is longer. Decoding one token reads every
weight once, except the embedding, of which it reads one row, and the whole key/value cache of each sequence. The sum
over both is a lower bound: launches, sampling and communication come on top.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drpruning.errors import ConfigError, did_you_mean
from drpruning.flops import PEAKS, FlopCounts
from drpruning.pruning.architectures import experts_per_token, head_dim_of

if TYPE_CHECKING:
    from drpruning.config import RunConfig

UTILISATION = 0.40
"""Fraction of the bfloat16 peak with causal attention: llm-foundry publishes 40 to 46% for 1B to 7B on H100. The same
is assumed of the float32 peak."""
RECOMPUTATION = {"none": 1.0, "selective": 1.1, "full": 4 / 3}
"""Work of a step relative to its useful work, by ``training.activation_checkpointing``. ``full`` adds a forward pass to
the three that a step is. ``selective`` keeps products and attention; the rest is a tenth of a step (torchtitan's and
llm-foundry's published steps, roughly)."""


@dataclass(frozen=True)
class Accelerator:
    """One accelerator.

    Attributes:
        name: Its common name.
        memory: Bytes that a process can allocate, rounded down to a tenth of a GiB.
        bandwidth: Bytes/s of its memory.
        peak: FLOP/s in bfloat16, dense.
        float32_peak: FLOP/s in float32 outside of the tensor cores, which torch does not use for it by default (TF32).
    """

    name: str
    memory: float
    bandwidth: float
    peak: float
    float32_peak: float


def _accelerator(
    name: str, gib: float, gigabytes_per_second: float, float32: float, peak_of: str | None = None
) -> Accelerator:
    return Accelerator(name, gib * 2**30, gigabytes_per_second * 1e9, PEAKS[peak_of or name], float32 * 1e12)


ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        _accelerator("B200", 178.3, 7700, 75),
        _accelerator("H200", 139.8, 4800, 67),
        _accelerator("H100", 79.1, 3350, 67),
        _accelerator("A100", 79.1, 2039, 19.5),
        _accelerator("A100-40", 39.4, 1555, 19.5, "A100"),
        _accelerator("L40S", 44.4, 864, 91.6),
        _accelerator("RTX4090", 23.5, 1008, 82.6, "RTX 4090"),
        _accelerator("L4", 22.0, 300, 30.3),
    )
}
"""SXM forms of H100, H200 and A100 (80 GB). Bandwidths and peaks from data sheets; memory as torch reports it."""


def find_accelerator(name: str) -> Accelerator:
    """Return an accelerator by name, in any case and punctuation.

    Raises:
        ConfigError: The name is not in :data:`ACCELERATORS`.

    Example:
        >>> find_accelerator("h100").bandwidth / 1e12
        3.35
    """
    by_name = {_normalise(known): accelerator for known, accelerator in ACCELERATORS.items()}
    if _normalise(name) not in by_name:
        raise ConfigError(
            f"unknown accelerator {name!r}; expected one of {', '.join(ACCELERATORS)}",
            did_you_mean(name.upper(), ACCELERATORS) or "Choose the one that is most similar to yours.",
        )
    return by_name[_normalise(name)]


def _normalise(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold().removeprefix("nvidia"))


def utilisation(config: RunConfig | None) -> float:
    """Return the fraction of the peak that is useful work in steps without a teacher; recomputation is not."""
    return UTILISATION / RECOMPUTATION["none" if config is None else config.training.activation_checkpointing]


def step_seconds(config: RunConfig | None, flops: FlopCounts, rate: float) -> float:
    """Return the seconds of training steps and the passes before them.

    Args:
        config: The recipe, for its recomputation; None: without any.
        flops: The operations; those of the student are done at :func:`utilisation`, all others at :data:`UTILISATION`.
        rate: Peak in FLOP/s.
    """
    passes = flops.teacher + flops.importance + flops.repair
    return (flops.training / utilisation(config) + passes / UTILISATION) / rate


def accelerator_peak(config: RunConfig, accelerator: Accelerator) -> float:
    """Return the peak in FLOP/s in the recipe's ``training.dtype``; ``training.peak_tflops`` overrides it."""
    if config.training.peak_tflops is not None:
        return 1e12 * config.training.peak_tflops
    return accelerator.peak if config.training.dtype == "bfloat16" else accelerator.float32_peak


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The use of the small model that decoding time is computed for.

    Attributes:
        accelerator: The accelerator.
        batch: Sequences that are decoded together.
        context: Tokens of each sequence in the cache.
        weight_bytes: Bytes per weight: 2 for bfloat16.
        cache_bytes: Bytes per entry of the cache.
    """

    accelerator: Accelerator
    batch: int = 1
    context: int = 4096
    weight_bytes: float = 2.0
    cache_bytes: float = 2.0


def cache_bytes_per_token(config: Any, sizes: Mapping[str, int], bytes_per_entry: float = 2.0) -> float:
    """Return bytes of key/value cache for each token: a key and a value per key/value head and layer.

    Args:
        config: Configuration of the source, for its head_dim.
        sizes: Shape by the names of :class:`drpruning.pruning.Target`.
        bytes_per_entry: 2 for bfloat16.

    Example:
        >>> from drpruning.planning import read_shape
        >>> cache_bytes_per_token(read_shape("meta-llama/Llama-3.1-8B"), dict(layers=32, kv_heads=8))
        131072.0
    """
    return 2.0 * sizes["layers"] * sizes["kv_heads"] * head_dim_of(config) * bytes_per_entry


def decode_seconds(
    config: Any, sizes: Mapping[str, int], parameters: int, serving: Serving, *, active: int | None = None
) -> float:
    """Return a lower bound of the seconds for the next token of each sequence.

    In a mixture of experts a token passes the active parameters. A batch reads each expert that a token of it is routed
    to: of E experts with k for each token, E (1 - (1 - k / E)^batch) in expectation if the routing is even.

    Args:
        config: Configuration of the source: vocabulary, head_dim, tied embeddings.
        sizes: Shape by the names of :class:`drpruning.pruning.Target`.
        parameters: Parameters of that shape.
        serving: The use of the model.
        active: Parameters that a token passes; all by default.

    Example:
        >>> from drpruning.planning import read_shape
        >>> llama = read_shape("meta-llama/Llama-2-7b-hf")
        >>> sizes = dict(layers=32, hidden=4096, heads=32, kv_heads=32, intermediate=11008)
        >>> h100 = Serving(accelerator=find_accelerator("H100"))
        >>> round(1e3 * decode_seconds(llama, sizes, 6738415616, h100), 2)
        4.59
    """
    accelerator = serving.accelerator
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * sizes["hidden"]
    weights = (parameters if active is None else active) - embedding
    read: float = weights
    if active is not None and active < parameters:
        share = (experts_per_token(config) or 1) / sizes["experts"]
        read += (parameters - active) * (1 - (1 - share) ** (serving.batch - 1))
    weight_reads = read * serving.weight_bytes / accelerator.bandwidth
    products = 2.0 * weights * serving.batch / accelerator.peak
    cached = serving.batch * serving.context
    cache_reads = cached * cache_bytes_per_token(config, sizes, serving.cache_bytes) / accelerator.bandwidth
    attention = 4.0 * cached * sizes["layers"] * sizes["heads"] * head_dim_of(config) / accelerator.peak
    return max(weight_reads, products) + max(cache_reads, attention)
