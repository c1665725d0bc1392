"""The description of an architecture: the path of each weight in a model, and the axis of each dimension.

A decoder has a residual stream of width ``hidden``. Every block reads it through norms and writes to it. One
:class:`Part` describes each module of a block by its axes. Masking and extraction need no more: a matrix whose rows are
on ``hidden`` writes to the stream unless a norm follows, a vector is a norm, and extraction selects indices along each
axis. Axes are in torch's order: ``(out, in)`` for a projection.

This file loads no torch: shapes can be planned and counted without loading a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from drpruning.errors import ConfigError

Axis = Literal[
    "vocab",
    "hidden",
    "query",
    "key_value",
    "query_key_value",
    "query_head",
    "key_value_head",
    "head_dim",
    "intermediate",
    "gate_up",
    "expert",
    "shared_intermediate",
    "one",
]
"""``query`` has heads * head_dim entries, ``key_value`` kv_heads * head_dim. ``query_key_value`` is a fused projection
that stores, for each key/value head in turn, its query heads, its key and its value. ``query_head`` and
``key_value_head`` have an entry for each head, ``one`` has one, the others as many as their name. ``gate_up`` is a
fused projection that stores, for each MLP unit in turn, its gate and its up projection. In a mixture of experts
``intermediate`` is the width of each expert, ``shared_intermediate`` that of the MLP that every token passes, which is
not pruned."""

Dimension = Axis | tuple[Axis, ...]
"""The axis of a dimension, or the axes that are concatenated along it: ``("query", "key_value", "key_value")``."""

HiddenRule = Literal["any", "multiple of heads", "heads times head_dim"]
"""Widths that the model class supports: any, multiples of the query heads, or exactly their number times their width.
The last is that of classes that compute ``head_dim`` as hidden size / heads."""


@dataclass(frozen=True)
class Part:
    """One module with a weight.

    Attributes:
        name: Its path inside the block, or inside the model.
        axes: The axis of each dimension of its weight. The weights of all experts are stacked along a first axis
            ``expert``.
        bias: Whether it has a bias (along the first dimension), or the config field that decides it. Stacked biases are
            named ``WEIGHT_bias``, with an axis ``expert`` and that of the outputs.
        writes: Whether its output is added to the residual stream. By default a matrix with rows on ``hidden`` does.
            Where a norm follows the matrix (Gemma 2, OLMo 2), the norm writes and the matrix does not.
        when: A config field and its value in models that have the module; None: all have it.
        weight: Name of the weight in the module.
        transposed: Whether the stacked matrices are stored as ``(in, out)``.
    """

    name: str
    axes: tuple[Dimension, ...]
    bias: bool | str = False
    writes: bool | None = None
    when: tuple[str, Any] | None = None
    weight: str = "weight"
    transposed: bool = False

    @property
    def is_norm(self) -> bool:
        """Whether it is a norm: over one axis, or over the width of a head with a gain for each head."""
        return self.axes[-1] == "head_dim" or self.axes in (("hidden",), ("query",), ("key_value",))

    @property
    def is_stacked(self) -> bool:
        """Whether it stacks the matrices of all experts."""
        return len(self.axes) == 3

    @property
    def is_router(self) -> bool:
        """Whether its outputs are the logits of the experts."""
        return self.axes == ("expert", "hidden")

    @property
    def matrix_axes(self) -> tuple[Dimension, ...]:
        """The axes ``(out, in)`` of one expert's matrix, or of the weight where it is not stacked."""
        axes = self.axes[1:] if self.is_stacked else self.axes
        return axes[::-1] if self.transposed else axes

    @property
    def bias_name(self) -> str:
        """The name of the bias in the module."""
        return f"{self.weight}_bias" if self.is_stacked else "bias"

    @property
    def bias_axes(self) -> tuple[Dimension, ...]:
        """The axis of each dimension of the bias."""
        return (self.axes[0], self.matrix_axes[0]) if self.is_stacked else self.axes[:1]

    @property
    def writes_to_stream(self) -> bool:
        """``writes``, or its default."""
        return (self.matrix_axes[0] == "hidden" and not self.is_norm) if self.writes is None else self.writes


@dataclass(frozen=True)
class Norm:
    """How the norms of a model compute.

    Attributes:
        kind: ``rms`` divides by the root of the mean square; ``layer`` subtracts the mean before.
        offset: Added to the stored weight: 1 where it is stored as the difference from one (Gemma).
        float32_gain: Whether the product with the gain is computed in float32, before the cast to the input's dtype.
    """

    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0
    float32_gain: bool = False


@dataclass(frozen=True)
class Routing:
    """How the routers of a mixture of experts compute the weights of a token's experts from their logits.

    Attributes:
        softmax: ``all``: over all experts, before the choice of the ``num_experts_per_tok`` largest. ``chosen``: over
            the logits of the chosen ones, in their dtype; the weights sum to one, and the other settings have no
            effect.
        normalise: Whether the weights of a token's experts are divided by their sum, or the config field that decides
            it.
        float32_weights: Whether the weights stay in float32; else they have the dtype of the logits.
    """

    softmax: Literal["all", "chosen"] = "all"
    normalise: bool | str = True
    float32_weights: bool = False


@dataclass(frozen=True)
class ArchitectureSpec:
    """The layout of a model class of transformers.

    Attributes:
        block: The modules of one decoder block.
        norm: How its norms compute.
        hidden: Widths that its config class or modules support.
        skip_heads: Whether its attention takes the number of heads from the shape of its queries. If not, pruned heads
            are computed in training.
        scale_embedding: Whether the model multiplies embeddings by the root of its hidden size (Gemma). Extraction
            divides the difference out of the embedding, and out of the last norm where the output layer is tied.
        block_lists: Config fields with an entry for each block.
        defaults: Values of config fields that a ``config.json`` may leave out, where they are not false.
        refused: Config fields that must be false or absent, each with the reason and the nearest valid choice.
        required: Config fields that must have a value, each with the value and the reason.
        routing: How its routers compute, if its MLPs are experts.
        size_fields: Config fields of sizes of :class:`drpruning.pruning.Target` under other names than Llama's.
        blocks: Path of the list of decoder blocks.
        embedding: The token embedding.
        final_norm: The norm after the last block.
        output: The output projection; its weight is the embedding's when they are tied.
    """

    block: tuple[Part, ...]
    norm: Norm = Norm()
    hidden: HiddenRule = "any"
    skip_heads: bool = True
    scale_embedding: bool = False
    block_lists: tuple[str, ...] = ("layer_types",)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    required: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    routing: Routing | None = None
    size_fields: Mapping[str, str] = field(default_factory=dict)
    blocks: str = "model.layers"
    embedding: Part = Part("model.embed_tokens", ("vocab", "hidden"))
    final_norm: Part = Part("model.norm", ("hidden",))
    output: Part = Part("lm_head", ("vocab", "hidden"))

    def __post_init__(self) -> None:
        names = [(part.name, part.weight) for part in self.block]
        if repeated := sorted({name for name, weight in names if names.count((name, weight)) > 1}):
            raise ConfigError(f"an architecture describes {repeated[0]!r} twice", "Describe each weight once.")
        for part in self.block:
            if part.writes_to_stream and part.matrix_axes[0] != "hidden":
                raise ConfigError(
                    f"{part.name!r} writes to the residual stream, but its first axis is {part.matrix_axes[0]!r}",
                    "A part with writes=True has the first axis hidden.",
                )
        if not any(part.writes_to_stream for part in self.block):
            raise ConfigError(
                "no part of the block writes to the residual stream",
                "Set writes=True for the norms that follow attention and MLP.",
            )


CountT = TypeVar("CountT")


def entries(dimension: Dimension, along: Mapping[Axis, CountT]) -> CountT:
    """Return the number of entries along a dimension, the sum of its axes' numbers if it has several.

    Example:
        >>> entries("hidden", {"hidden": 4}), entries(("query", "key_value"), {"query": 6, "key_value": 2})
        (4, 8)
    """
    if isinstance(dimension, str):
        return along[dimension]
    first, *others = (along[axis] for axis in dimension)
    for number in others:
        first = first + number  # type: ignore[operator] # int, float or a tensor
    return first
