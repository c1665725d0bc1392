"""Compatibility of a target with the software that loads the pruned model; if it does not fit, the nearest that does.

Each rule was read in the loader's own code: vLLM's asserts and sizes in ``model_executor/models/*.py`` and the division
of its parallel linear layers; llama.cpp's graphs (:mod:`drpruning.export.gguf_graphs`) and the fallbacks in
``llama-quant.cpp``. For transformers no rule is written here: its
configuration of the target is built.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from drpruning.errors import ConfigError, install_command
from drpruning.export.gguf_graphs import GRAPHS, order_condition, unsupported_features
from drpruning.planning.model_shape import transformers_config
from drpruning.pruning.architecture_spec import entries
from drpruning.pruning.architectures import (
    experts_per_token,
    head_dim_of,
    hidden_fits,
    hidden_rule_of,
    shared_width_of,
    weights_of,
)
from drpruning.pruning.target import EXPERT_MULTIPLE, Target, entries_along, parameter_count, sizes_of

SUPER_BLOCK = 256
"""Weights in a block of llama.cpp's K-quants (``QK_K``)."""
BLOCK = 32
"""Weights in a block of the types that llama.cpp falls back to."""
K_QUANT_BITS, FALLBACK_BITS, F16_BITS = 4.5, 5.5, 16.0
"""Bits per weight of Q4_K, of Q5_0 which replaces it, and of F16 where Q5_0 does not fit either."""
SIZE_MULTIPLES = (SUPER_BLOCK, BLOCK, 8)
"""Multiples that sizes of nearest shapes are chosen from: first the one K-quants need, then smaller ones."""

VLLM_SQUARE = frozenset({"phi", "olmo2", "olmo3", "gpt_neox", "starcoder2", "cohere", "cohere2", "qwen2_moe"})
"""Types whose class in vLLM computes the width of a head as hidden size / heads."""


@dataclass(frozen=True, kw_only=True)
class SizeProblem:
    """A size that a loader does not accept.

    Attributes:
        field: Name of the size, see :class:`drpruning.pruning.Target`.
        got: Its value.
        allowed: The accepted values, in words.
    """

    field: str
    got: int
    allowed: str

    def __str__(self) -> str:
        return f"{self.field} is {self.got}, must be {self.allowed}"


@dataclass(frozen=True, kw_only=True)
class LoaderSupport:
    """The result of one loader for a shape.

    Attributes:
        loader: Its name.
        outcome: ``loads``, ``loads larger`` (K-quants fall back to larger types), ``refuses``, or ``not checked`` (the
            loader's own code is needed, and is not installed).
        problems: Sizes that it does not accept; none where it loads.
        note: More about the outcome; may be empty.
    """

    loader: str
    outcome: Literal["loads", "loads larger", "refuses", "not checked"]
    problems: tuple[SizeProblem, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class NearestShape:
    """A shape that all loaders accept.

    Attributes:
        target: The complete shape.
        parameters: Parameters of the exported model, exactly.
    """

    target: Target
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Compatibility:
    """The result of all loaders for one target.

    Attributes:
        sizes: The target, complete.
        loaders: One result for each loader.
        nearest: Shapes that all loaders load unchanged, the nearest first; empty if the target is one, or if a loader
            refuses the model whatever its sizes. If K-quants do not suit the source and it has no such shape: for a
            target that a loader refuses, shapes that all load; else none.
    """

    sizes: dict[str, int]
    loaders: tuple[LoaderSupport, ...]
    nearest: tuple[NearestShape, ...]

    @property
    def refused(self) -> tuple[LoaderSupport, ...]:
        """Loaders that do not load the target at all."""
        return tuple(support for support in self.loaders if support.outcome == "refuses")


def check_target(source: Any, target: Target, *, tensor_parallel: int = 1, number: int = 3) -> Compatibility:
    """Check a target against every loader. Loads transformers, which builds its configuration of the target.

    Args:
        source: Configuration of the large model: of transformers, or a :class:`drpruning.planning.ModelShape`.
        target: The shape as in a recipe: sizes of None are those of the source.
        tensor_parallel: GPUs that vLLM will split the model over.
        number: Largest number of nearest shapes.

    Raises:
        ConfigError: The model is of a type that cannot be pruned, or ``tensor_parallel`` is below 1.

    Example:
        >>> from drpruning.planning import read_shape
        >>> llama = read_shape("meta-llama/Llama-2-7b-hf")
        >>> checked = check_target(llama, Target(hidden=2048, heads=16, intermediate=5504))
        >>> [(support.loader, support.outcome) for support in checked.loaders][-1]
        ('llama.cpp, K-quants', 'loads larger')
        >>> checked.nearest[0].target.intermediate
        5632
    """
    if tensor_parallel < 1:
        raise ConfigError(f"tensor_parallel must be at least 1, got {tensor_parallel}")
    whole = sizes_of(source)
    sizes = _complete(whole, target)
    loaders = [check_pruning(whole, sizes, least_experts=experts_per_token(source) or 0)]
    if all(size > 0 for size in sizes.values()):
        loaders += [
            check_transformers(source, sizes),
            check_vllm(source, sizes, tensor_parallel),
            check_llama_cpp(source, sizes),
        ]
    accepted = all(support.outcome in ("loads", "not checked") for support in loaders)
    hopeless = any(support.outcome == "refuses" and not support.problems for support in loaders)
    refused = any(support.outcome == "refuses" for support in loaders)
    multiples = SIZE_MULTIPLES if refused else SIZE_MULTIPLES[:1]  # the target is such a shape already
    nearest = () if accepted or hopeless else _nearest(source, whole, sizes, tensor_parallel, multiples, number)
    return Compatibility(sizes=sizes, loaders=tuple(loaders), nearest=nearest)


def _complete(whole: dict[str, int], target: Target) -> dict[str, int]:
    """Fill in the sizes of None; unlike :meth:`Target.resolve` this accepts any numbers."""
    sizes = {**whole, **target.sizes()}
    group = whole["heads"] // whole["kv_heads"]
    if target.heads is not None and target.kv_heads is None:
        sizes["kv_heads"] = max(1, round(sizes["heads"] / group))
    if target.kv_heads is not None and target.heads is None:
        sizes["heads"] = sizes["kv_heads"] * group
    return sizes


# ---- one check for each loader


def check_pruning(source: Mapping[str, int], sizes: Mapping[str, int], *, least_experts: int = 0) -> LoaderSupport:
    """Check that masks can lead from the source to this shape.

    Args:
        source: Sizes of the large model.
        sizes: The shape, complete.
        least_experts: Experts that a token is routed to.
    """
    problems = [
        SizeProblem(field=name, got=size, allowed=f"between 1 and the source's {source[name]}")
        for name, size in sizes.items()
        if not 1 <= size <= source[name]
    ]
    if sizes.get("experts", 0) < least_experts and not any(problem.field == "experts" for problem in problems):
        allowed = f"at least the {least_experts} experts of each token"
        problems.append(SizeProblem(field="experts", got=sizes["experts"], allowed=allowed))
    problems += [
        SizeProblem(field=name, got=sizes[name], allowed=f"a multiple of {EXPERT_MULTIPLE} in a mixture of experts")
        for name in ("hidden", "intermediate")
        if least_experts and sizes[name] % EXPERT_MULTIPLE and sizes[name] != source[name]
    ]
    group = source["heads"] // source["kv_heads"]
    if not problems and sizes["heads"] != sizes["kv_heads"] * group:
        shared = f"{group} for each of the {sizes['kv_heads']} key/value heads, as in the source"
        problems.append(SizeProblem(field="heads", got=sizes["heads"], allowed=shared))
    return _support("drpruning", problems)


def check_transformers(source: Any, sizes: Mapping[str, int]) -> LoaderSupport:
    """Build the configuration of the pruned model with transformers, and check what only a forward pass would find.

    Args:
        source: Configuration of the large model: of transformers, or a :class:`drpruning.planning.ModelShape`.
        sizes: The shape, complete.
    """
    head_dim = head_dim_of(source)
    problems = []
    if sizes["heads"] % sizes["kv_heads"]:
        multiple = f"a multiple of kv_heads {sizes['kv_heads']}"
        problems.append(SizeProblem(field="heads", got=sizes["heads"], allowed=multiple))
    if head_dim % 2:
        problems.append(SizeProblem(field="head_dim", got=head_dim, allowed="even, for the rotary embedding"))
    exact = hidden_rule_of(source) == "heads times head_dim"
    if exact and not hidden_fits(source, sizes["hidden"], sizes["heads"]):
        allowed = f"heads {sizes['heads']} times head_dim {head_dim} for this class"
        problems.append(SizeProblem(field="hidden", got=sizes["hidden"], allowed=allowed))
        return _support("transformers", problems)
    if find_spec("transformers") is None:
        if problems:
            return _support("transformers", problems)
        note = f"not installed: {install_command('transformers')}"
        return LoaderSupport(loader="transformers", outcome="not checked", note=note)
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415 - takes seconds to load

    try:
        transformers_config(source, sizes)
    except (ValueError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        if sizes["hidden"] % sizes["heads"] == 0:
            return LoaderSupport(loader="transformers", outcome="refuses", problems=tuple(problems), note=reason)
        multiple = f"a multiple of heads {sizes['heads']} for this class"
        problems.append(SizeProblem(field="hidden", got=sizes["hidden"], allowed=multiple))
    return _support("transformers", problems)


def check_vllm(source: Any, sizes: Mapping[str, int], tensor_parallel: int) -> LoaderSupport:
    """Check that vLLM's class has such a model, and that ``tensor_parallel`` GPUs divide it.

    vLLM repeats key/value heads where there are fewer than GPUs, and pads the vocabulary.

    Args:
        source: Configuration of the large model: of transformers, or a :class:`drpruning.planning.ModelShape`.
        sizes: The shape, complete.
        tensor_parallel: GPUs.
    """
    gpus = f"the {tensor_parallel} GPUs"
    problems = [
        SizeProblem(field=name, got=sizes[name], allowed=f"a multiple of {gpus}")
        for name in ("heads", "intermediate")
        if sizes[name] % tensor_parallel
    ]
    kv_heads = sizes["kv_heads"]
    if kv_heads % tensor_parallel and tensor_parallel % kv_heads:
        problems.append(SizeProblem(field="kv_heads", got=kv_heads, allowed=f"a multiple or a divisor of {gpus}"))
    if "experts" in sizes and sizes["experts"] < tensor_parallel:
        problems.append(SizeProblem(field="experts", got=sizes["experts"], allowed=f"at least {gpus}"))
    if (shared := shared_width_of(source)) % tensor_parallel:
        problems.append(SizeProblem(field="the shared expert", got=shared, allowed=f"a multiple of {gpus}"))
    if source.model_type in VLLM_SQUARE:
        problems += _not_square(source, sizes)
    if source.model_type == "phi" and sizes["intermediate"] != 4 * sizes["hidden"]:
        allowed = f"4 times hidden {sizes['hidden']}"
        problems.append(SizeProblem(field="intermediate", got=sizes["intermediate"], allowed=allowed))
    return _support(f"vLLM, {tensor_parallel} GPU{'s' if tensor_parallel > 1 else ''}", problems)


def _not_square(source: Any, sizes: Mapping[str, int]) -> list[SizeProblem]:
    """Return the problem of a class that computes head_dim as hidden / heads, if the width is another."""
    head_dim = head_dim_of(source)
    if sizes["hidden"] == sizes["heads"] * head_dim:
        return []
    allowed = f"heads {sizes['heads']} times head_dim {head_dim}"
    return [SizeProblem(field="hidden", got=sizes["hidden"], allowed=allowed)]


def check_llama_cpp(source: Any, sizes: Mapping[str, int]) -> LoaderSupport:
    """Check that a graph of llama.cpp computes the model, and that its rows suit K-quants, else larger types are used.

    Args:
        source: Configuration of the large model: of transformers, or a :class:`drpruning.planning.ModelShape`.
        sizes: The shape, complete.
    """
    loader, graph, head_dim = "llama.cpp, K-quants", GRAPHS.get(source.model_type), head_dim_of(source)
    if graph is None:
        note = f"`drpruning export gguf` does not convert models of type {source.model_type!r}"
        return LoaderSupport(loader=loader, outcome="not checked", note=note)
    features = "; ".join(unsupported_features(_PrunedConfig(source, sizes["layers"]), graph))
    if features or (graph.square and _not_square(source, sizes)):
        problems = _not_square(source, sizes) if graph.square else []
        return LoaderSupport(loader=loader, outcome="refuses", problems=tuple(problems), note=features)
    condition = order_condition(graph, source) if sizes["layers"] < source.num_hidden_layers else ""
    problems = [
        SizeProblem(field=name, got=sizes[name], allowed=f"a multiple of {SUPER_BLOCK // unit} for K-quants")
        for name, unit in (("hidden", 1), ("heads", math.gcd(head_dim, SUPER_BLOCK)), ("intermediate", 1))
        if sizes[name] * unit % SUPER_BLOCK
    ]
    if not problems:
        return LoaderSupport(loader=loader, outcome="loads", note=condition)
    along = entries_along(source, sizes)
    weights, bits = 0, 0.0
    for weight in weights_of(source, num_blocks=1):
        if len(weight.axes) > 1:
            times = 1 if weight.block is None else sizes["layers"]
            columns = entries(weight.axes[-1], along)
            count = times * math.prod(entries(axis, along) for axis in weight.axes)
            weights += count
            bits += count * _bits(columns)
    return LoaderSupport(
        loader=loader,
        outcome="loads larger",
        problems=tuple(problems),
        note="; ".join(
            filter(None, [f"Q4_K: {bits / weights:.2f} instead of {K_QUANT_BITS:.2f} bits per weight", condition])
        ),
    )


class _PrunedConfig:
    """The configuration of the large model with another number of blocks."""

    def __init__(self, source: Any, blocks: int) -> None:
        self._source, self.num_hidden_layers = source, blocks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


def _bits(columns: int) -> float:
    """Return bits per weight in Q4_K of a matrix whose rows have ``columns`` weights."""
    if columns % SUPER_BLOCK == 0:
        return K_QUANT_BITS
    return FALLBACK_BITS if columns % BLOCK == 0 else F16_BITS


def _support(loader: str, problems: list[SizeProblem]) -> LoaderSupport:
    return LoaderSupport(loader=loader, outcome="refuses" if problems else "loads", problems=tuple(problems))


# ---- nearest shapes


def _nearest(
    source: Any,
    whole: dict[str, int],
    requested: dict[str, int],
    tensor_parallel: int,
    multiples: tuple[int, ...],
    number: int,
) -> tuple[NearestShape, ...]:
    """Return shapes that all loaders accept, by the sum of squares of the logarithms of the changes."""
    others = {"layers": min(max(1, requested["layers"]), whole["layers"])}
    if "experts" in whole:
        least = max(experts_per_token(source) or 1, tensor_parallel)
        others["experts"] = min(max(least, requested["experts"]), whole["experts"])
    for multiple in multiples:
        widths = sorted(_valid_widths(source, whole, requested, multiple, tensor_parallel), key=lambda item: item[0])
        if widths:
            targets = [Target(**others, **sizes) for _, sizes in widths[:number]]
            return tuple(NearestShape(target=target, parameters=parameter_count(source, target)) for target in targets)
    return ()


def _valid_widths(
    source: Any, whole: dict[str, int], requested: dict[str, int], multiple: int, tensor_parallel: int
) -> Iterator[tuple[float, dict[str, int]]]:
    """Yield valid widths, each after its distance from the requested ones."""
    group = whole["heads"] // whole["kv_heads"]
    graph = GRAPHS.get(source.model_type)
    square = source.model_type in VLLM_SQUARE or (graph is not None and graph.square)
    heads_step = math.lcm(multiple // math.gcd(head_dim_of(source), multiple), tensor_parallel)
    step = math.lcm(multiple, tensor_parallel)

    def distance(name: str, size: int) -> float:
        return math.log(size / max(1, requested[name])) ** 2

    nearest_first = sorted(
        range(step, whole["intermediate"] + 1, step), key=lambda size: distance("intermediate", size)
    )
    for kv_heads in range(1, whole["kv_heads"] + 1):
        heads = kv_heads * group
        if heads % heads_step or (kv_heads % tensor_parallel and tensor_parallel % kv_heads):
            continue
        for units in range(multiple, whole["hidden"] + 1, multiple):
            if not hidden_fits(source, units, heads) or (square and units != heads * head_dim_of(source)):
                continue
            for width in [4 * units] if source.model_type == "phi" else nearest_first[:2]:
                total = distance("heads", heads) + distance("hidden", units) + distance("intermediate", width)
                yield total, {"hidden": units, "heads": heads, "kv_heads": kv_heads, "intermediate": width}
