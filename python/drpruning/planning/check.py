"""Whether a target can be pruned to and loaded, before days are spent on it; if not, the nearest shapes that can."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from drpruning.errors import ConfigError
from drpruning.planning import loaders
from drpruning.pruning.architectures import architecture_of, head_dim_of
from drpruning.pruning.target import Target, parameter_count, sizes_of

GRANULES = (loaders.SUPER_BLOCK, loaders.BLOCK, 8)
"""What the sizes of nearest shapes are multiples of: as K-quants want it; where the source has no such shape, less."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """A shape that everyone loads as it is.

    Attributes:
        target: The complete shape.
        parameters: Exactly as the export will have.
    """

    target: Target
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Check:
    """What came of checking one target.

    Attributes:
        sizes: The target, complete.
        verdicts: One for each loader.
        nearest: Shapes that all of them load as they are, the nearest first; empty where the target is one. Where the
            source has none, because K-quants do not suit it, those that all of them load.
    """

    sizes: dict[str, int]
    verdicts: tuple[loaders.Verdict, ...]
    nearest: tuple[Nearest, ...]

    @property
    def refused(self) -> tuple[loaders.Verdict, ...]:
        """Those that do not load it at all."""
        return tuple(verdict for verdict in self.verdicts if verdict.outcome == "refuses")


def check(source: Any, target: Target, *, tensor_parallel: int = 1, number: int = 3) -> Check:
    """Asks every loader about a target. Loads transformers, whose configuration of the target is really built.

    Args:
        source: Configuration of the large model: of transformers, or a :class:`drpruning.planning.ModelShape`.
        target: The shape, as a recipe has it: what is left out is kept.
        tensor_parallel: GPUs that vLLM will split the model over.
        number: Nearest shapes to name at most.

    Raises:
        ConfigError: The model is of a kind that cannot be pruned, or ``tensor_parallel`` is below 1.

    Example:
        >>> from drpruning.planning import read_shape
        >>> checked = check(read_shape("meta-llama/Llama-2-7b-hf"), Target(hidden=2048, heads=16, intermediate=5504))
        >>> [(verdict.loader, verdict.outcome) for verdict in checked.verdicts][-1]
        ('llama.cpp, K-quants', 'loads larger')
        >>> checked.nearest[0].target.intermediate
        5632
    """
    if tensor_parallel < 1:
        raise ConfigError(f"tensor_parallel must be at least 1, got {tensor_parallel}")
    whole = sizes_of(source)
    sizes = _complete(whole, target)
    verdicts = [loaders.pruning(whole, sizes)]
    if all(size > 0 for size in sizes.values()):
        verdicts += [
            loaders.transformers(source, sizes),
            loaders.vllm(sizes, tensor_parallel),
            loaders.llama_cpp(source, sizes),
        ]
    if all(verdict.outcome == "loads" for verdict in verdicts):
        return Check(sizes=sizes, verdicts=tuple(verdicts), nearest=())
    return Check(sizes=sizes, verdicts=tuple(verdicts), nearest=_nearest(source, whole, sizes, tensor_parallel, number))


def _complete(whole: dict[str, int], target: Target) -> dict[str, int]:
    """The target with what it leaves out; unlike :meth:`Target.resolve` it takes any numbers."""
    sizes = {**whole, **target.sizes()}
    group = whole["heads"] // whole["kv_heads"]
    if target.heads is not None and target.kv_heads is None:
        sizes["kv_heads"] = max(1, round(sizes["heads"] / group))
    if target.kv_heads is not None and target.heads is None:
        sizes["heads"] = sizes["kv_heads"] * group
    return sizes


def _nearest(
    source: Any, whole: dict[str, int], wanted: dict[str, int], tensor_parallel: int, number: int
) -> tuple[Nearest, ...]:
    """Shapes that all loaders take, by the sum of squares of the logarithms of what changes."""
    layers = min(max(1, wanted["layers"]), whole["layers"])
    for granule in GRANULES:
        found = sorted(_valid(source, whole, wanted, granule, tensor_parallel), key=lambda item: item[0])
        if found:
            targets = [Target(layers=layers, **sizes) for _, sizes in found[:number]]
            return tuple(Nearest(target=target, parameters=parameter_count(source, target)) for target in targets)
    return ()


def _valid(
    source: Any, whole: dict[str, int], wanted: dict[str, int], granule: int, tensor_parallel: int
) -> Iterator[tuple[float, dict[str, int]]]:
    """Valid widths, each with its distance from what is wanted."""
    group = whole["heads"] // whole["kv_heads"]
    heads_step = math.lcm(granule // math.gcd(head_dim_of(source), granule), tensor_parallel)
    step = math.lcm(granule, tensor_parallel)
    whole_heads = architecture_of(source).hidden_multiple_of_heads

    def far(name: str, size: int) -> float:
        return math.log(size / max(1, wanted[name])) ** 2

    feed_forward = sorted(range(step, whole["intermediate"] + 1, step), key=lambda size: far("intermediate", size))[:2]
    for kv_heads in range(1, whole["kv_heads"] + 1):
        heads = kv_heads * group
        if heads % heads_step or (kv_heads % tensor_parallel and tensor_parallel % kv_heads):
            continue
        for units in range(granule, whole["hidden"] + 1, granule):
            if whole_heads and units % heads:
                continue
            for width in feed_forward:
                distance = far("heads", heads) + far("hidden", units) + far("intermediate", width)
                yield distance, {"hidden": units, "heads": heads, "kv_heads": kv_heads, "intermediate": width}
