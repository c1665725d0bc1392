"""Supported architectures: the path of each weight in a model, and the axis of each dimension.

A decoder of the Llama family has a residual stream of width ``hidden``. Every block reads it through two norms and
writes to it through two projections. One :class:`Part` describes each module of a block by its axes. Masking and
extraction need no more: a matrix whose rows are on ``hidden`` writes to the stream, a vector on ``hidden`` is a norm of
the stream, and extraction selects indices along each axis. Axes are in torch's order: ``(out, in)`` for a projection.

This file loads no torch: shapes can be planned and counted without loading a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from drpruning.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Axis = Literal["vocab", "hidden", "query", "key_value", "head_dim", "intermediate"]
"""``query`` has heads * head_dim entries, ``key_value`` kv_heads * head_dim, the others as many as their name."""


@dataclass(frozen=True)
class Part:
    """One module with a weight.

    Attributes:
        name: Its path inside the block, or inside the model.
        axes: The axis of each dimension of its weight.
        bias: Whether it has a bias (on the first axis), or the config field that decides it.
    """

    name: str
    axes: tuple[Axis, ...]
    bias: bool | str = False


@dataclass(frozen=True)
class ArchitectureSpec:
    """The layout of a model class of transformers.

    Attributes:
        block: The modules of one decoder block.
        hidden_multiple_of_heads: Whether its config class rejects a width that is no multiple of the query heads.
        blocks: Path of the list of decoder blocks.
        embedding: Path of the token embedding.
        final_norm: Path of the norm after the last block.
        output: Path of the output projection; its weight is the embedding's when they are tied.
    """

    block: tuple[Part, ...]
    hidden_multiple_of_heads: bool = False
    blocks: str = "model.layers"
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    output: str = "lm_head"


def _block(
    *,
    attention_bias: bool | str = False,
    output_bias: bool | str = False,
    mlp_bias: bool | str = False,
    head_norms: bool = False,
) -> tuple[Part, ...]:
    """Return the parts of a block of the Llama family: attention and a gated MLP, each after a norm."""
    norms = (Part("self_attn.q_norm", ("head_dim",)), Part("self_attn.k_norm", ("head_dim",)))
    return (
        Part("self_attn.q_proj", ("query", "hidden"), attention_bias),
        Part("self_attn.k_proj", ("key_value", "hidden"), attention_bias),
        Part("self_attn.v_proj", ("key_value", "hidden"), attention_bias),
        Part("self_attn.o_proj", ("hidden", "query"), output_bias),
        Part("mlp.gate_proj", ("intermediate", "hidden"), mlp_bias),
        Part("mlp.up_proj", ("intermediate", "hidden"), mlp_bias),
        Part("mlp.down_proj", ("hidden", "intermediate"), mlp_bias),
        Part("input_layernorm", ("hidden",)),
        Part("post_attention_layernorm", ("hidden",)),
        *(norms if head_norms else ()),
    )


ARCHITECTURES: dict[str, ArchitectureSpec] = {
    "llama": ArchitectureSpec(
        _block(attention_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
        hidden_multiple_of_heads=True,
    ),
    "mistral": ArchitectureSpec(_block()),
    "qwen2": ArchitectureSpec(_block(attention_bias=True)),
    "qwen3": ArchitectureSpec(_block(attention_bias="attention_bias", output_bias="attention_bias", head_norms=True)),
}
"""By ``config.model_type``. A new one needs its entry here and its name in the parity tests: docs/architectures.md."""


@dataclass(frozen=True)
class Weight:
    """One parameter of a model: its full name, the axis of each dimension, and the block it belongs to, if any."""

    name: str
    axes: tuple[Axis, ...]
    block: int | None = None


FEATURES = {
    "num_local_experts": "mixture of experts",
    "num_experts": "mixture of experts",
    "n_routed_experts": "mixture of experts",
    "kv_lora_rank": "multi-head latent attention",
    "final_logit_softcapping": "soft-capped logits",
}
"""Features that no spec can describe yet, by the config field that indicates them."""


def _has(config: PreTrainedConfig, field: str) -> bool:
    return getattr(config, field, None) is not None


def architecture_of(config: PreTrainedConfig) -> ArchitectureSpec:
    """Return the spec for ``config``.

    Raises:
        ConfigError: The model type has no spec, or the model is quantised.
    """
    supported = ", ".join(ARCHITECTURES)
    if config.model_type not in ARCHITECTURES:
        named = next((f" ({what}: config.{field})" for field, what in FEATURES.items() if _has(config, field)), "")
        raise ConfigError(
            f"cannot mask a model of type {config.model_type!r}{named}; supported types: {supported}",
            "Choose a base model of a supported type, or add its spec to drpruning/pruning/architectures.py.",
        )
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            "cannot mask a quantised model (config.quantization_config is set); weights must be floating point",
            "Load the original checkpoint in bfloat16 or float32.",
        )
    return ARCHITECTURES[config.model_type]


def weights_of(config: PreTrainedConfig, num_blocks: int | None = None) -> Iterator[Weight]:
    """Yield every parameter that a model of ``config`` has, in no particular order; a tied output once.

    Args:
        config: The model's configuration.
        num_blocks: Decoder blocks to list instead of the config's own number.

    Raises:
        ConfigError: The architecture is not supported.
    """
    architecture = architecture_of(config)
    yield Weight(f"{architecture.embedding}.weight", ("vocab", "hidden"))
    yield Weight(f"{architecture.final_norm}.weight", ("hidden",))
    if not config.tie_word_embeddings:
        yield Weight(f"{architecture.output}.weight", ("vocab", "hidden"))
    for block in range(config.num_hidden_layers if num_blocks is None else num_blocks):
        for part in architecture.block:
            path = f"{architecture.blocks}.{block}.{part.name}"
            yield Weight(f"{path}.weight", part.axes, block)
            if part.bias is True or (isinstance(part.bias, str) and getattr(config, part.bias)):
                yield Weight(f"{path}.bias", part.axes[:1], block)


def head_dim_of(config: PreTrainedConfig) -> int:
    """Return the width of an attention head: the config's ``head_dim``, else hidden / heads as in transformers."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
