"""Shapes for a budget: of parameters, memory in use, key/value cache per token, time per decoded token.

Many shapes meet a budget, and most of them make poor models. Two conventions of the literature rank them:

- Width is reduced evenly: hidden, heads, intermediate and experts keep about the same fraction, as in every shape of
  Sheared LLaMA (Xia et al. 2023) and DRPruning (Deng et al. 2024), whose models have no experts.
- Depth is reduced less than width (Muralidharan et al. 2024 prefer to prune width up to 15B). In the papers' three
  shapes of Llama-2-7B the kept fraction of the depth is that of the width to the power 0, 0.21 and 0.42;
  :data:`DEPTH_EXPONENT` is the mean.

The result has the best shape of each depth. This ranking is a heuristic: compare the first few in short runs.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from drpruning.errors import ConfigError
from drpruning.planning.accelerators import Serving, cache_bytes_per_token, decode_seconds
from drpruning.pruning.architecture_spec import entries
from drpruning.pruning.architectures import experts_per_token, hidden_fits, weights_of
from drpruning.pruning.target import EXPERT_MULTIPLE, Target, entries_along, parameters_of, sizes_of

DEPTH_EXPONENT = 0.21
NOMINAL = 0.05
"""A budget of parameters is a nominal size: shapes within this fraction of it count. "1.3B" has 1.345B parameters."""
SHORTFALL = 10.0
"""Weight of an unused budget relative to an uneven shape: 3% unused count as much as one width 11% off the others."""
DEPTHS = 8
"""Depths tried are multiples of this fraction of the source's, from a quarter on."""
SIZE_MULTIPLES = (256, 128, 64, 32, 16, 8)
"""Multiples for hidden and intermediate: llama.cpp's K-quants need 256 (``docs/planning.md``)."""
MIN_VALUES = 6
"""Number of values that a size must be able to take; a narrow source gets a smaller multiple."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits for the small model; None is no limit.

    Attributes:
        parameters: Nominal size: met within :data:`NOMINAL`, above or below; with other limits also further below.
        memory_bytes: Most bytes for the weights and the key/value cache of all sequences.
        cache_bytes: Largest key/value cache per token, in bytes.
        decode_seconds: Longest time for one token of each sequence.
    """

    parameters: float | None = None
    memory_bytes: float | None = None
    cache_bytes: float | None = None
    decode_seconds: float | None = None

    def __post_init__(self) -> None:
        limits = {name: value for name, value in vars(self).items() if value is not None}
        if not limits:
            raise ConfigError(
                "the budget is empty", "Set parameters, bytes of memory or of cache per token, or time per token."
            )
        for name, value in limits.items():
            if not 0 < value < math.inf:
                raise ConfigError(f"budget {name} must be above 0 and finite, got {value}")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A shape and its costs.

    Attributes:
        target: The complete shape.
        parameters: Parameters of the exported model, exactly.
        active_parameters: Those that a token passes; fewer only in a mixture of experts.
        memory_bytes: Bytes of the weights and of the key/value cache of all sequences.
        cache_bytes: Bytes of key/value cache per token.
        decode_seconds: Roofline for one token of each sequence, in seconds.
        distance: From an evenly reduced shape that uses the whole budget; the smallest is first.
    """

    target: Target
    parameters: int
    active_parameters: int
    memory_bytes: float
    cache_bytes: float
    decode_seconds: float
    distance: float = 0.0


def search_shapes(
    source: Any,
    budget: Budget,
    serving: Serving,
    *,
    round_to: int | None = None,
    tensor_parallel: int = 1,
    number: int = 5,
) -> list[Candidate]:
    """Return shapes that meet a budget, best first, one for each depth.

    Args:
        source: Configuration of the large model: of transformers, or a :class:`drpruning.planning.ModelShape`.
        budget: Limits for the small model.
        serving: Use of the small model, for the time of a token.
        round_to: Hidden and intermediate are multiples of it; by default 256, or less for a narrow source.
        tensor_parallel: GPUs that vLLM will split the model over: heads and intermediate must divide.
        number: Largest number of shapes.

    Raises:
        ConfigError: No shape meets the budget; names the nearest.

    Example:
        >>> from drpruning.planning import Serving, find_accelerator, read_shape
        >>> llama, h100 = read_shape("meta-llama/Llama-2-7b-hf"), find_accelerator("H100")
        >>> best = search_shapes(llama, Budget(parameters=1.3e9), Serving(accelerator=h100))[0]
        >>> best.target, best.parameters
        (Target(layers=28, hidden=1792, heads=16, kv_heads=16, intermediate=5120), 1296535296)
    """
    sizes, costs = sizes_of(source), ShapeCosts(source, serving)
    whole = costs(sizes)
    best: dict[int, Candidate] = {}
    nearest: Candidate | None = None
    for shape, widths in _shapes(source, sizes, round_to, tensor_parallel):
        for candidate in _best_widths(shape, widths, costs, whole, budget):
            if nearest is None or _miss(candidate, budget) < _miss(nearest, budget):
                nearest = candidate
            if _miss(candidate, budget) > 0:
                continue
            distance = min(_distances(candidate, whole, budget))
            before = best.get(shape["layers"])
            if before is None or distance < before.distance:
                best[shape["layers"]] = replace(candidate, distance=distance)
    if not best:
        raise _none_meets(budget, whole, nearest, tensor_parallel)
    return sorted(best.values(), key=lambda candidate: candidate.distance)[:number]


class ShapeCosts:
    """Costs of shapes of one source; the count is that of :func:`drpruning.pruning.parameter_count`, but faster."""

    def __init__(self, source: Any, serving: Serving) -> None:
        self.source, self.serving = source, serving
        weights = list(weights_of(source, num_blocks=1))
        self._block = [weight.axes for weight in weights if weight.block is not None]
        self._outside = [weight.axes for weight in weights if weight.block is None]

    def __call__(self, sizes: Mapping[str, int]) -> Candidate:
        """Return the shape of these sizes with its costs."""
        along = entries_along(self.source, sizes)
        block, outside = (
            sum(math.prod(entries(axis, along) for axis in axes) for axes in part)
            for part in (self._block, self._outside)
        )
        parameters = outside + sizes["layers"] * block
        active, serving = parameters, self.serving
        if "experts" in sizes:
            active = parameters_of(self.source, sizes, active=True)
        cache = cache_bytes_per_token(self.source, sizes, serving.cache_bytes)
        return Candidate(
            target=Target(**sizes),
            parameters=parameters,
            active_parameters=active,
            memory_bytes=parameters * serving.weight_bytes + serving.batch * serving.context * cache,
            cache_bytes=cache,
            decode_seconds=decode_seconds(self.source, sizes, parameters, serving, active=active),
        )


def costs_in_words(candidate: Candidate) -> str:
    """Describe in one line what a shape costs in use."""
    active = "" if candidate.target.experts is None else f" ({candidate.active_parameters:,} active)"
    return (
        f"{candidate.parameters:,} parameters{active}, {candidate.memory_bytes / 2**30:.4g} GiB in use, "
        f"{candidate.cache_bytes:,.0f} bytes of cache per token, {1e3 * candidate.decode_seconds:.3g} ms per token"
    )


def default_multiple(size: int) -> int:
    """Return the number whose multiples sizes between 1 and ``size`` take by default.

    Example:
        >>> default_multiple(4096), default_multiple(576)
        (256, 64)
    """
    return next((multiple for multiple in SIZE_MULTIPLES if size >= MIN_VALUES * multiple), 1)


def _shapes(
    source: Any, sizes: dict[str, int], round_to: int | None, tensor_parallel: int
) -> Iterator[tuple[dict[str, int], list[int]]]:
    """Yield every shape without its intermediate, and the values of intermediate, ascending."""
    layers = sizes["layers"]
    depths = sorted({max(1, round(layers * part / DEPTHS)) for part in range(2, DEPTHS + 1)})
    group = sizes["heads"] // sizes["kv_heads"]
    groups = [
        kv_heads
        for kv_heads in range(1, sizes["kv_heads"] + 1)
        if kv_heads * group % tensor_parallel == 0
        and (kv_heads % tensor_parallel == 0 or tensor_parallel % kv_heads == 0)
    ]
    least = EXPERT_MULTIPLE if "experts" in sizes else 1
    hidden = _multiples(sizes["hidden"], round_to, least)
    widths = [width for width in _multiples(sizes["intermediate"], round_to, least) if width % tensor_parallel == 0]
    experts = _numbers_of_experts(source, sizes)
    for depth in depths:
        for kv_heads in groups:
            for units in hidden:
                if hidden_fits(source, units, kv_heads * group):
                    shape = {"layers": depth, "hidden": units, "heads": kv_heads * group, "kv_heads": kv_heads}
                    for others in experts:
                        yield {**shape, **others}, widths


def _numbers_of_experts(source: Any, sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Return quarters of the source's experts, at least as many as a token is routed to; nothing without experts."""
    least = experts_per_token(source)
    if least is None:
        return [{}]
    return [
        {"experts": number} for number in sorted({max(least, sizes["experts"] * part // 4) for part in range(1, 5)})
    ]


def _multiples(size: int, round_to: int | None, least: int) -> list[int]:
    """Return the values of a size that is ``size`` in the source, multiples of ``least``; ``size`` itself is one."""
    multiple = math.lcm(round_to or default_multiple(size), least)
    return sorted({*range(multiple, size + 1, multiple), size})


def _best_widths(
    shape: dict[str, int], widths: list[int], costs: ShapeCosts, whole: Candidate, budget: Budget
) -> list[Candidate]:
    """Return the width nearest to an even reduction by the use of each limit; without one that fits, the nearest.

    Every cost grows with intermediate, so the widths that meet the budget are neighbours. Among them the distance by
    the use of one limit falls, then rises: it is convex in the logarithm of the width where the limit is nearly used.
    """
    if not widths:
        return []

    @cache
    def at(index: int) -> Candidate:
        return costs(shape | {"intermediate": widths[index]})

    end = bisect_left(range(len(widths)), True, key=lambda index: _log_overrun(at(index), budget) > 0)
    start = bisect_left(range(end), True, key=lambda index: _miss(at(index), budget) == 0)
    if start == end:
        return [at(max(0, end - 1))]

    def rises(index: int, limit: int) -> bool:
        here, further = (_distances(at(each), whole, budget)[limit] for each in (index, index + 1))
        return further >= here

    return [
        at(start + bisect_left(range(start, end - 1), True, key=partial(rises, limit=limit)))
        for limit in range(len(_distances(at(start), whole, budget)))
    ]


def _log_overrun(candidate: Candidate, budget: Budget) -> float:
    """Return the largest logarithm of cost / limit; at most 0 if all limits are met."""
    limits: list[tuple[float, float | None]] = [
        (candidate.parameters, None if budget.parameters is None else budget.parameters * (1 + NOMINAL)),
        (candidate.memory_bytes, budget.memory_bytes),
        (candidate.cache_bytes, budget.cache_bytes),
        (candidate.decode_seconds, budget.decode_seconds),
    ]
    return max(math.log(got / limit) for got, limit in limits if limit is not None)


def _miss(candidate: Candidate, budget: Budget) -> float:
    """Return the distance from the budget: over a limit or under the nominal size; 0 if the budget is met."""
    short = 0.0
    if (
        budget.parameters is not None
        and (budget.memory_bytes, budget.cache_bytes, budget.decode_seconds) == (None,) * 3
    ):
        short = math.log(budget.parameters * (1 - NOMINAL) / candidate.parameters)
    return max(0.0, _log_overrun(candidate, budget), short)


def _distances(candidate: Candidate, whole: Candidate, budget: Budget) -> list[float]:
    """Return for each limit the sum of squares of logarithms: widths around their mean, depth, unused part of it."""
    sizes, source = candidate.target.sizes(), whole.target.sizes()
    kept = {name: math.log(size / source[name]) for name, size in sizes.items()}
    widths = [kept[name] for name in ("hidden", "kv_heads", "intermediate", "experts") if name in kept]
    mean = sum(widths) / len(widths)
    uneven = sum((width - mean) ** 2 for width in widths) + (kept["layers"] - DEPTH_EXPONENT * mean) ** 2
    used: list[tuple[float, float | None]] = [
        (candidate.parameters, budget.parameters),
        (candidate.memory_bytes, budget.memory_bytes),
        (candidate.decode_seconds, budget.decode_seconds),
    ]
    if all(limit is None for _, limit in used):
        used.append((candidate.parameters, whole.parameters))  # the cache is the only limit: keep the rest
    return [uneven + SHORTFALL * math.log(got / limit) ** 2 for got, limit in used if limit is not None]


def _none_meets(budget: Budget, whole: Candidate, nearest: Candidate | None, tensor_parallel: int) -> ConfigError:
    requested = ", ".join(
        f"{name} {value:,.{digits}}"
        for name, value, digits in (
            ("parameters", budget.parameters, "0f"),
            ("GiB in use", None if budget.memory_bytes is None else budget.memory_bytes / 2**30, "4g"),
            ("bytes of cache per token", budget.cache_bytes, "0f"),
            ("ms per token", None if budget.decode_seconds is None else 1e3 * budget.decode_seconds, "4g"),
        )
        if value is not None
    )
    split = f" whose heads and intermediate divide by {tensor_parallel}" if tensor_parallel > 1 else ""
    if nearest is None:
        return ConfigError(f"the source has no shape{split}", "Split over fewer GPUs.")
    sizes = ", ".join(f"{name} {size}" for name, size in nearest.target.sizes().items())
    others = (budget.memory_bytes, budget.cache_bytes, budget.decode_seconds)
    if others == (None, None, None) and budget.parameters is not None and budget.parameters > whole.parameters:
        return ConfigError(
            f"{budget.parameters:,.0f} parameters are more than the source's {whole.parameters:,}; "
            "a target can only be smaller",
            f"Give fewer. The largest shape: {sizes}, with {costs_in_words(nearest)}.",
        )
    return ConfigError(
        f"no shape{split} of the source ({costs_in_words(whole)}) meets {requested}",
        f"Nearest: {sizes}, with {costs_in_words(nearest)}.",
    )
