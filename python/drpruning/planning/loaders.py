"""What those who load a pruned model ask of its shape.

Each rule was read in the loader's own code: vLLM's asserts in ``model_executor/models/llama.py`` and the division of
its parallel linear layers; llama.cpp's fallbacks in ``llama-quant.cpp``. transformers is not described but asked: its
configuration is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from drpruning.planning.model_shape import transformers_config
from drpruning.pruning.architectures import head_dim_of, weights_of
from drpruning.pruning.target import entries_along

SUPER_BLOCK = 256
"""Weights in a block of llama.cpp's K-quants (``QK_K``)."""
BLOCK = 32
"""Weights in a block of the types that llama.cpp falls back to."""
K_QUANT_BITS, FALLBACK_BITS, F16_BITS = 4.5, 5.5, 16.0
"""Bits per weight of Q4_K, of Q5_0 which takes its place, and of F16 where not even that fits."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One size that a loader does not take.

    Attributes:
        field: Its name, as in :class:`drpruning.pruning.Target`.
        got: What it is.
        allowed: What would do, in words.
    """

    field: str
    got: int
    allowed: str

    def __str__(self) -> str:
        return f"{self.field} is {self.got}, must be {self.allowed}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one loader makes of a shape.

    Attributes:
        loader: Its name.
        outcome: ``loads``, ``loads larger`` (K-quants fall back to larger types), or ``refuses``.
        problems: What it does not take; none where it loads.
        note: More about the outcome; may be empty.
    """

    loader: str
    outcome: Literal["loads", "loads larger", "refuses"]
    problems: tuple[Problem, ...] = ()
    note: str = ""


def pruning(source: Mapping[str, int], sizes: Mapping[str, int]) -> Verdict:
    """Whether masks can lead from the source to this shape."""
    problems = [
        Problem(field=name, got=size, allowed=f"between 1 and the source's {source[name]}")
        for name, size in sizes.items()
        if not 1 <= size <= source[name]
    ]
    group = source["heads"] // source["kv_heads"]
    if not problems and sizes["heads"] != sizes["kv_heads"] * group:
        shared = f"{group} for each of the {sizes['kv_heads']} key/value heads, as in the source"
        problems.append(Problem(field="heads", got=sizes["heads"], allowed=shared))
    return _verdict("drpruning", problems)


def transformers(source: Any, sizes: Mapping[str, int]) -> Verdict:
    """Builds the configuration of the pruned model with transformers, and checks what only a forward pass would find.

    Args:
        source: Configuration of the large model: of transformers, or a :class:`drpruning.planning.ModelShape`.
        sizes: The shape, complete.
    """
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415 - takes seconds to load

    head_dim = head_dim_of(source)
    problems = []
    if sizes["heads"] % sizes["kv_heads"]:
        multiple = f"a multiple of kv_heads {sizes['kv_heads']}"
        problems.append(Problem(field="heads", got=sizes["heads"], allowed=multiple))
    if head_dim % 2:
        problems.append(Problem(field="head_dim", got=head_dim, allowed="even, for the rotary embedding"))
    try:
        transformers_config(source, sizes)
    except (ValueError, StrictDataclassError) as error:
        said = str(error).strip().splitlines()[-1].strip()
        if sizes["hidden"] % sizes["heads"] == 0:
            return Verdict(loader="transformers", outcome="refuses", problems=tuple(problems), note=said)
        multiple = f"a multiple of heads {sizes['heads']} for this class"
        problems.append(Problem(field="hidden", got=sizes["hidden"], allowed=multiple))
    return _verdict("transformers", problems)


def vllm(sizes: Mapping[str, int], tensor_parallel: int) -> Verdict:
    """Heads and intermediate are split over ``tensor_parallel`` GPUs; too few key/value heads are repeated instead."""
    problems = [
        Problem(field=name, got=sizes[name], allowed=f"a multiple of the {tensor_parallel} GPUs")
        for name in ("heads", "intermediate")
        if sizes[name] % tensor_parallel
    ]
    kv_heads = sizes["kv_heads"]
    if kv_heads % tensor_parallel and tensor_parallel % kv_heads:
        allowed = f"a multiple or a divisor of the {tensor_parallel} GPUs"
        problems.append(Problem(field="kv_heads", got=kv_heads, allowed=allowed))
    return _verdict(f"vLLM, {tensor_parallel} GPU{'s' if tensor_parallel > 1 else ''}", problems)


def llama_cpp(source: Any, sizes: Mapping[str, int]) -> Verdict:
    """llama.cpp loads any of these shapes; rows that are no multiple of 256 weights get larger types than K-quants."""
    head_dim = head_dim_of(source)
    problems = [
        Problem(field=name, got=sizes[name], allowed=f"a multiple of {SUPER_BLOCK // unit} for K-quants")
        for name, unit in (("hidden", 1), ("heads", math.gcd(head_dim, SUPER_BLOCK)), ("intermediate", 1))
        if sizes[name] * unit % SUPER_BLOCK
    ]
    if not problems:
        return _verdict("llama.cpp, K-quants", [])
    along = entries_along(source, sizes)
    weights, bits = 0, 0.0
    for weight in weights_of(source, num_blocks=1):
        if len(weight.axes) == 2:
            times = 1 if weight.block is None else sizes["layers"]
            count = times * along[weight.axes[0]] * along[weight.axes[1]]
            weights += count
            bits += count * _bits(along[weight.axes[1]])
    return Verdict(
        loader="llama.cpp, K-quants",
        outcome="loads larger",
        problems=tuple(problems),
        note=f"Q4_K: {bits / weights:.2f} instead of {K_QUANT_BITS:.2f} bits per weight",
    )


def _bits(columns: int) -> float:
    """Bits per weight of a matrix in Q4_K, whose rows have this many weights."""
    if columns % SUPER_BLOCK == 0:
        return K_QUANT_BITS
    return FALLBACK_BITS if columns % BLOCK == 0 else F16_BITS


def _verdict(loader: str, problems: list[Problem]) -> Verdict:
    return Verdict(loader=loader, outcome="refuses" if problems else "loads", problems=tuple(problems))
