"""Supported architectures, by ``config.model_type``, and the weights of a model of one of them.

An entry is data (:mod:`drpruning.pruning.architecture_spec`); :func:`register_architecture` adds one at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from drpruning.errors import ConfigError
from drpruning.pruning.architecture_spec import ArchitectureSpec, Axis, Dimension, HiddenRule, Norm, Part, Routing

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def _attention(
    bias: bool | str = False, output_bias: bool | str | None = None, *, writes: bool | None = None
) -> tuple[Part, ...]:
    """Return the projections of attention under Llama's names; ``output_bias`` is ``bias`` by default."""
    return (
        Part("self_attn.q_proj", ("query", "hidden"), bias),
        Part("self_attn.k_proj", ("key_value", "hidden"), bias),
        Part("self_attn.v_proj", ("key_value", "hidden"), bias),
        Part("self_attn.o_proj", ("hidden", "query"), bias if output_bias is None else output_bias, writes),
    )


def _mlp(bias: bool | str = False, *, gated: bool = True, writes: bool | None = None) -> tuple[Part, ...]:
    """Return the projections of an MLP under Llama's names."""
    return (
        *((Part("mlp.gate_proj", ("intermediate", "hidden"), bias),) if gated else ()),
        Part("mlp.up_proj", ("intermediate", "hidden"), bias),
        Part("mlp.down_proj", ("hidden", "intermediate"), bias, writes),
    )


def _norms(*names: str, bias: bool = False, writes: bool | None = None) -> tuple[Part, ...]:
    """Return norms of the residual stream; with ``writes`` those that follow attention and MLP."""
    return tuple(Part(name, ("hidden",), bias, writes) for name in names)


def _head_norms(query: str = "q_norm", key: str = "k_norm") -> tuple[Part, ...]:
    """Return norms of each query and each key, with one gain for all heads."""
    return Part(f"self_attn.{query}", ("head_dim",)), Part(f"self_attn.{key}", ("head_dim",))


_BEFORE = _norms("input_layernorm", "post_attention_layernorm")
_BEFORE_WITH_BIAS = _norms("input_layernorm", "post_attention_layernorm", bias=True)
_AFTER = _norms("post_attention_layernorm", "post_feedforward_layernorm", writes=True)
_FUSED_MLP = (
    Part("mlp.gate_up_proj", (("intermediate", "intermediate"), "hidden")),
    Part("mlp.down_proj", ("hidden", "intermediate")),
)
_EXPERTS = (
    Part("mlp.gate", ("expert", "hidden")),
    Part("mlp.experts", ("expert", ("intermediate", "intermediate"), "hidden"), weight="gate_up_proj"),
    Part("mlp.experts", ("expert", "hidden", "intermediate"), weight="down_proj"),
)
_SHARED_EXPERT = (
    Part("mlp.shared_expert.gate_proj", ("shared_intermediate", "hidden")),
    Part("mlp.shared_expert.up_proj", ("shared_intermediate", "hidden")),
    Part("mlp.shared_expert.down_proj", ("hidden", "shared_intermediate")),
    Part("mlp.shared_expert_gate", ("one", "hidden")),
)
_DENSE_BLOCKS = "some of its blocks have a dense MLP, and all blocks of a pruned model have one shape"
_QWEN_MOE: dict[str, Any] = {
    "routing": Routing(normalise="norm_topk_prob"),
    "refused": {"mlp_only_layers": _DENSE_BLOCKS},
    "required": {"decoder_sparse_step": (1, _DENSE_BLOCKS)},
    "size_fields": {"intermediate": "moe_intermediate_size", "experts": "num_experts"},
}
_GEMMA = ArchitectureSpec(
    (*_attention("attention_bias"), *_mlp(), *_BEFORE),
    norm=Norm(offset=1.0, float32_gain=True),
    scale_embedding=True,
    defaults={"tie_word_embeddings": True, "head_dim": 256},
    refused={"use_bidirectional_attention": "attention to later tokens is not that of a decoder"},
)
_GEMMA2 = replace(
    _GEMMA,
    block=(
        *_attention("attention_bias", writes=False),
        *_mlp(writes=False),
        *_norms("input_layernorm", "pre_feedforward_layernorm"),
        *_AFTER,
    ),
    hidden="multiple of heads",
)
_OLMO2 = ArchitectureSpec(
    (
        *_attention("attention_bias", writes=False),
        *_mlp(writes=False),
        Part("self_attn.q_norm", ("query",)),
        Part("self_attn.k_norm", ("key_value",)),
        *_AFTER,
    ),
    norm=Norm(float32_gain=True),
)
_COHERE = ArchitectureSpec(
    (
        *_attention("attention_bias"),
        *_mlp(),
        Part("self_attn.q_norm", ("query_head", "head_dim"), when=("use_qk_norm", True)),
        Part("self_attn.k_norm", ("key_value_head", "head_dim"), when=("use_qk_norm", True)),
        *_norms("input_layernorm"),
    ),
    norm=Norm("layer", float32_gain=True),
    defaults={"tie_word_embeddings": True},
)

ARCHITECTURES: dict[str, ArchitectureSpec] = {
    "llama": ArchitectureSpec(
        (*_attention("attention_bias"), *_mlp("mlp_bias"), *_BEFORE),
        hidden="multiple of heads",
    ),
    "mistral": ArchitectureSpec((*_attention(), *_mlp(), *_BEFORE)),
    "qwen2": ArchitectureSpec((*_attention(True, False), *_mlp(), *_BEFORE)),
    "qwen3": ArchitectureSpec((*_attention("attention_bias"), *_mlp(), *_BEFORE, *_head_norms())),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, block=(*_GEMMA2.block, *_head_norms())),
    "phi3": ArchitectureSpec(
        (
            Part("self_attn.qkv_proj", (("query", "key_value", "key_value"), "hidden")),
            Part("self_attn.o_proj", ("hidden", "query")),
            *_FUSED_MLP,
            *_BEFORE,
        ),
        skip_heads=False,
    ),
    "phi": ArchitectureSpec(
        (
            *_attention(True)[:3],
            Part("self_attn.dense", ("hidden", "query"), True),
            Part("mlp.fc1", ("intermediate", "hidden"), True),
            Part("mlp.fc2", ("hidden", "intermediate"), True),
            *_norms("input_layernorm", bias=True),
        ),
        norm=Norm("layer"),
        refused={"qk_layernorm": "the width of its norms is hidden size / heads; Phi-2 has qk_layernorm=false"},
        final_norm=Part("model.final_layernorm", ("hidden",), True),
        output=Part("lm_head", ("vocab", "hidden"), True),
    ),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "gpt_neox": ArchitectureSpec(
        (
            Part("attention.query_key_value", ("query_key_value", "hidden"), "attention_bias"),
            Part("attention.dense", ("hidden", "query"), "attention_bias"),
            Part("mlp.dense_h_to_4h", ("intermediate", "hidden"), True),
            Part("mlp.dense_4h_to_h", ("hidden", "intermediate"), True),
            *_BEFORE_WITH_BIAS,
        ),
        norm=Norm("layer"),
        hidden="heads times head_dim",
        defaults={"attention_bias": True},
        blocks="gpt_neox.layers",
        embedding=Part("gpt_neox.embed_in", ("vocab", "hidden")),
        final_norm=Part("gpt_neox.final_layer_norm", ("hidden",), True),
    ),
    "granite": ArchitectureSpec((*_attention("attention_bias"), *_mlp("mlp_bias"), *_BEFORE)),
    "smollm3": ArchitectureSpec(
        (*_attention("attention_bias"), *_mlp("mlp_bias"), *_BEFORE),
        block_lists=("layer_types", "no_rope_layers"),
        defaults={"tie_word_embeddings": True},
    ),
    "stablelm": ArchitectureSpec(
        (
            *_attention("use_qkv_bias", False),
            *_mlp(),
            Part("input_layernorm", ("hidden",), True),
            Part("post_attention_layernorm", ("hidden",), True, when=("use_parallel_residual", False)),
        ),
        norm=Norm("layer"),
        hidden="heads times head_dim",
        skip_heads=False,
        refused={"qk_layernorm": "the norm of each head is a module; models with qk_layernorm=false can be masked"},
        final_norm=Part("model.norm", ("hidden",), True),
    ),
    "starcoder2": ArchitectureSpec(
        (
            *_attention("use_bias"),
            Part("mlp.c_fc", ("intermediate", "hidden"), "use_bias"),
            Part("mlp.c_proj", ("hidden", "intermediate"), "use_bias"),
            *_BEFORE_WITH_BIAS,
        ),
        norm=Norm("layer"),
        defaults={"use_bias": True, "tie_word_embeddings": True},
        final_norm=Part("model.norm", ("hidden",), True),
    ),
    "cohere": _COHERE,
    "cohere2": replace(_COHERE, block=tuple(part for part in _COHERE.block if part.when is None)),
    "glm": ArchitectureSpec(
        (*_attention("attention_bias", False), *_FUSED_MLP, *_BEFORE),
        defaults={"attention_bias": True, "head_dim": 128},
    ),
    "glm4": ArchitectureSpec(
        (
            *_attention("attention_bias", False, writes=False),
            _FUSED_MLP[0],
            replace(_FUSED_MLP[1], writes=False),
            *_BEFORE,
            *_norms("post_self_attn_layernorm", "post_mlp_layernorm", writes=True),
        ),
        defaults={"attention_bias": True, "head_dim": 128},
    ),
    "nemotron": ArchitectureSpec(
        (*_attention("attention_bias"), *_mlp("mlp_bias", gated=False), *_BEFORE_WITH_BIAS),
        norm=Norm("layer", offset=1.0),
        final_norm=Part("model.norm", ("hidden",), True),
    ),
    "ministral": ArchitectureSpec((*_attention(), *_mlp(), *_BEFORE)),
    "ministral3": ArchitectureSpec((*_attention(), *_mlp(), *_BEFORE), defaults={"head_dim": 128}),
    "apertus": ArchitectureSpec(
        (
            *_attention("attention_bias"),
            *_mlp(gated=False),
            Part("mlp.act_fn", ("one",), when=("hidden_act", "xielu"), weight="alpha_p"),
            Part("mlp.act_fn", ("one",), when=("hidden_act", "xielu"), weight="alpha_n"),
            *_norms("attention_layernorm", "feedforward_layernorm"),
            *_head_norms(),
        ),
        defaults={"hidden_act": "xielu"},
    ),
    "seed_oss": ArchitectureSpec(
        (*_attention("attention_bias", "attention_out_bias"), *_mlp("mlp_bias"), *_BEFORE),
        defaults={"attention_bias": True, "head_dim": 128},
    ),
    "hunyuan_v1_dense": ArchitectureSpec(
        (*_attention("attention_bias"), *_mlp(), *_BEFORE, *_head_norms("query_layernorm", "key_layernorm"))
    ),
    "ernie4_5": ArchitectureSpec(
        (*_attention("use_bias"), *_mlp("use_bias"), *_BEFORE),
        defaults={"tie_word_embeddings": True, "head_dim": 128},
    ),
    "exaone4": ArchitectureSpec(
        (*_attention(writes=False), *_mlp(writes=False), *_head_norms(), *_AFTER),
    ),
    "arcee": ArchitectureSpec(
        (*_attention("attention_bias"), *_mlp("mlp_bias", gated=False), *_BEFORE),
        hidden="multiple of heads",
    ),
    "helium": ArchitectureSpec(
        (*_attention("attention_bias", False), *_mlp("mlp_bias"), *_BEFORE),
        norm=Norm(float32_gain=True),
        hidden="heads times head_dim",
        defaults={"head_dim": 128},
    ),
    "mixtral": ArchitectureSpec(
        (*_attention(), *_EXPERTS, *_BEFORE),
        routing=Routing(float32_weights=True),
        size_fields={"experts": "num_local_experts"},
    ),
    "qwen2_moe": ArchitectureSpec(
        (*_attention("qkv_bias", False), *_EXPERTS, *_SHARED_EXPERT, *_BEFORE),
        defaults={"qkv_bias": True},
        **_QWEN_MOE,
    ),
    "qwen3_moe": ArchitectureSpec(
        (*_attention("attention_bias"), *_EXPERTS, *_BEFORE, *_head_norms()),
        **_QWEN_MOE,
    ),
    "olmoe": ArchitectureSpec(
        (
            *_attention("attention_bias"),
            *_EXPERTS,
            Part("self_attn.q_norm", ("query",)),
            Part("self_attn.k_norm", ("key_value",)),
            *_BEFORE,
        ),
        hidden="heads times head_dim",
        routing=Routing(normalise="norm_topk_prob"),
        size_fields={"experts": "num_experts"},
    ),
    "gpt_oss": ArchitectureSpec(
        (
            *_attention("attention_bias"),
            Part("self_attn", ("query_head",), weight="sinks"),
            Part("mlp.router", ("expert", "hidden"), True),
            Part("mlp.experts", ("expert", "hidden", "gate_up"), True, weight="gate_up_proj", transposed=True),
            Part("mlp.experts", ("expert", "intermediate", "hidden"), True, weight="down_proj", transposed=True),
            *_BEFORE,
        ),
        norm=Norm(float32_gain=True),
        defaults={"attention_bias": True, "head_dim": 64},
        routing=Routing(softmax="chosen"),
        size_fields={"experts": "num_local_experts"},
    ),
}
"""By ``config.model_type``; docs/architectures.md describes how to add one."""


def register_architecture(model_type: str, spec: ArchitectureSpec, *, replace: bool = False) -> None:
    """Describe a model class of transformers, so that masks, extraction, counts and plans support it.

    ``drpruning plan verify`` (:func:`drpruning.pruning.verification.verify_architecture`) checks a description on a
    tiny model of the class.

    Args:
        model_type: ``config.model_type`` of the class.
        spec: The description.
        replace: Replace a description that exists.

    Raises:
        ConfigError: The type has a description, and ``replace`` is false.

    Example:
        >>> llama_like = ARCHITECTURES["llama"]
        >>> register_architecture("llama", llama_like)
        Traceback (most recent call last):
        drpruning.errors.ConfigError: architecture 'llama' has a description already
        Pass replace=True to replace it.
        >>> register_architecture("llama", llama_like, replace=True)
    """
    if model_type in ARCHITECTURES and not replace:
        raise ConfigError(f"architecture {model_type!r} has a description already", "Pass replace=True to replace it.")
    ARCHITECTURES[model_type] = spec


@dataclass(frozen=True)
class Weight:
    """One parameter of a model.

    Attributes:
        name: Its full name.
        axes: The axis of each dimension.
        block: The block it belongs to, if any.
        part: The module it belongs to.
        is_bias: Whether it is the bias of the module.
    """

    name: str
    axes: tuple[Dimension, ...]
    block: int | None
    part: Part
    is_bias: bool = False


SIZE_FIELDS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "intermediate": "intermediate_size",
}
"""The config field of each size of :class:`drpruning.pruning.Target`, where the architecture names no other."""

EXPERT_FIELDS = ("num_experts", "num_local_experts")
"""Names of the number of experts; some classes of transformers read the one and write the other."""

FEATURES = {
    "num_local_experts": "mixture of experts",
    "num_experts": "mixture of experts",
    "n_routed_experts": "mixture of experts",
    "kv_lora_rank": "multi-head latent attention",
    "text_config": "several modalities",
}
"""Features that no spec can describe yet, by the config field that indicates them."""

NEAREST = {
    "gemma3": "gemma3_text, its text model",
    "gemma3n": "gemma3_text",
    "gemma4": "gemma3_text",
    "mistral3": "ministral3, its text model",
    "olmo": "olmo2",
    "gpt2": "gpt_neox",
    "gptj": "gpt_neox",
    "falcon": "gpt_neox",
    "phimoe": "mixtral",
    "granitemoe": "mixtral",
    "ernie4_5_moe": "ernie4_5",
    "glm4_moe": "glm4",
    "hunyuan_v1_moe": "hunyuan_v1_dense",
    "llama4": "llama",
    "deepseek_v2": "llama",
    "deepseek_v3": "llama",
}
"""The supported type nearest to some that are not supported."""


def _has(config: PreTrainedConfig, field: str) -> bool:
    return getattr(config, field, None) is not None


def architecture_of(config: PreTrainedConfig) -> ArchitectureSpec:
    """Return the spec for ``config``.

    Raises:
        ConfigError: The model type has no spec, the model has a feature that the spec does not describe, or it is
            quantised.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        named = next((f" ({what}: config.{field})" for field, what in FEATURES.items() if _has(config, field)), "")
        nearest = f"; the nearest is {NEAREST[kind]}" if kind in NEAREST else ""
        raise ConfigError(
            f"cannot mask a model of type {kind!r}{named}{nearest}; supported types: {', '.join(ARCHITECTURES)}",
            "Choose a base model of a supported type, or describe this one: docs/architectures.md.",
        )
    if quantization := getattr(config, "quantization_config", None):
        raise _quantised(quantization)
    architecture = ARCHITECTURES[kind]
    for field, reason in architecture.refused.items():
        if getattr(config, field, None):
            raise ConfigError(
                f"cannot mask this model of type {kind!r}: config.{field} is {getattr(config, field)!r}; {reason}",
                f"Choose a model of type {kind!r} without {field}.",
            )
    for field, (value, reason) in architecture.required.items():
        if (got := getattr(config, field, None)) not in (None, value):
            raise ConfigError(
                f"cannot mask this model of type {kind!r}: config.{field} is {got!r}, expected {value!r}; {reason}",
                f"Choose a model of type {kind!r} with {field}={value!r}.",
            )
    return architecture


def _quantised(quantization: Any) -> ConfigError:
    """Return the error for a checkpoint with quantised weights; that of GPT-OSS exists in no other form."""
    fields = quantization if isinstance(quantization, dict) else vars(quantization)
    method = str(getattr(fields.get("quant_method"), "value", fields.get("quant_method", "an unknown method")))
    advice = "Load the original checkpoint in bfloat16 or float32."
    if method == "mxfp4":
        advice = (
            'Convert it first: AutoModelForCausalLM.from_pretrained(MODEL, dtype="bfloat16", quantization_config='
            "Mxfp4Config(dequantize=True)).save_pretrained(FOLDER)."
        )
    return ConfigError(
        f"cannot mask a quantised model (config.quantization_config: {method}); weights must be floating point", advice
    )


def parts_of(config: PreTrainedConfig) -> tuple[Part, ...]:
    """Return the modules of a block that a model of ``config`` has.

    Raises:
        ConfigError: The architecture is not supported.
    """
    architecture = architecture_of(config)

    def exists(part: Part) -> bool:
        return part.when is None or _field(config, architecture, part.when[0]) == part.when[1]

    return tuple(part for part in architecture.block if exists(part))


def projections_of(config: PreTrainedConfig) -> list[list[Part]]:
    """Return the matrices of a block in the order of the forward pass; those of a group read the same inputs."""
    groups: list[list[Part]] = []
    for part in parts_of(config):
        if len(part.axes) != 2 or part.is_norm:
            continue
        if groups and part.axes[1] == groups[-1][0].axes[1]:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def weights_of(config: PreTrainedConfig, num_blocks: int | None = None) -> Iterator[Weight]:
    """Yield every parameter that a model of ``config`` has, in no particular order; a tied output once.

    Args:
        config: The model's configuration.
        num_blocks: Decoder blocks to list instead of the config's own number.

    Raises:
        ConfigError: The architecture is not supported.
    """
    architecture = architecture_of(config)

    def of_part(part: Part, path: str, block: int | None = None) -> Iterator[Weight]:
        if not (part is architecture.output and config.tie_word_embeddings):
            yield Weight(f"{path}.{part.weight}", part.axes, block, part)
        if part.bias is True or (isinstance(part.bias, str) and _field(config, architecture, part.bias)):
            yield Weight(f"{path}.{part.bias_name}", part.bias_axes, block, part, is_bias=True)

    for part in (architecture.embedding, architecture.final_norm, architecture.output):
        yield from of_part(part, part.name)
    parts = parts_of(config)
    for block in range(config.num_hidden_layers if num_blocks is None else num_blocks):
        for part in parts:
            yield from of_part(part, f"{architecture.blocks}.{block}.{part.name}", block)


def head_dim_of(config: PreTrainedConfig) -> int:
    """Return the width of an attention head: the config's ``head_dim``, else hidden / heads as in transformers."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def num_mlp_matrices(config: PreTrainedConfig) -> int:
    """Return the number of matrices with hidden * intermediate entries in a block: three if its MLP has a gate."""
    dimensions = [dimension for part in parts_of(config) if len(part.axes) > 1 for dimension in part.axes]
    axes = [axis for dimension in dimensions for axis in ([dimension] if isinstance(dimension, str) else dimension)]
    return axes.count("intermediate") + 2 * axes.count("gate_up")


def experts_per_token(config: PreTrainedConfig) -> int | None:
    """Return the number of experts that each token is routed to; None where the MLPs are no experts."""
    return None if architecture_of(config).routing is None else int(config.num_experts_per_tok)


def shared_width_of(config: PreTrainedConfig) -> int:
    """Return the width of the MLP that every token passes besides its experts; 0 where there is none."""
    shared = any("shared_intermediate" in part.axes for part in architecture_of(config).block)
    return int(config.shared_expert_intermediate_size) if shared else 0


def routing_entries(config: PreTrainedConfig, experts: float) -> float:
    """Return the weights that multiply each hidden unit of each token in a block besides attention and its experts.

    These are the router's rows and the shared expert with its gate; 0 where the MLPs are no experts.
    """
    shared = shared_width_of(config)
    return 0 if experts_per_token(config) is None else experts + (3 * shared + 1 if shared else 0)


def normalises_weights(config: PreTrainedConfig, routing: Routing) -> bool:
    """Return whether routers divide the weights of a token's experts by their sum."""
    if isinstance(routing.normalise, bool):
        return routing.normalise
    return bool(_field(config, architecture_of(config), routing.normalise))


def size_field(config: PreTrainedConfig, size: str) -> str:
    """Return the config field of a size of :class:`drpruning.pruning.Target`.

    Example:
        >>> from transformers import LlamaConfig, Qwen3MoeConfig
        >>> size_field(LlamaConfig(), "intermediate"), size_field(Qwen3MoeConfig(), "intermediate")
        ('intermediate_size', 'moe_intermediate_size')
    """
    return {**SIZE_FIELDS, **architecture_of(config).size_fields}[size]


def hidden_rule_of(config: PreTrainedConfig) -> HiddenRule:
    """Return which widths a model of ``config`` can be pruned to.

    Phi-3's configuration computes the number of its rotary factors from hidden size / heads.
    """
    rule = architecture_of(config).hidden
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if config.model_type == "phi3" and rope.get("short_factor"):
        return "heads times head_dim"
    return rule


def hidden_fits(config: PreTrainedConfig, hidden: int, heads: int) -> bool:
    """Return whether the model class supports this width with this number of query heads."""
    rule = hidden_rule_of(config)
    if rule == "heads times head_dim":
        return hidden == heads * head_dim_of(config)
    return rule == "any" or hidden % heads == 0


def _field(config: PreTrainedConfig, architecture: ArchitectureSpec, name: str) -> Any:
    found = getattr(config, name, None)
    return architecture.defaults.get(name, False) if found is None else found


__all__ = [
    "ARCHITECTURES",
    "ArchitectureSpec",
    "Axis",
    "Dimension",
    "Norm",
    "Part",
    "Routing",
    "Weight",
    "architecture_of",
    "experts_per_token",
    "head_dim_of",
    "hidden_fits",
    "hidden_rule_of",
    "num_mlp_matrices",
    "parts_of",
    "register_architecture",
    "size_field",
    "weights_of",
]
