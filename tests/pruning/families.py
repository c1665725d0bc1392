"""Configurations of every supported architecture with the features that its models differ by."""

from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedConfig

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.1, 2.2, 2.3],
    "partial_rotary_factor": 1.0,
}
PARTIAL_LONGROPE = {
    **LONGROPE,
    "short_factor": [1.0, 1.1],
    "long_factor": [2.0, 2.1],
    "partial_rotary_factor": 0.5,
}
SMALL: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-rope-scaling": ("llama", {**GROUPED, "rope_parameters": LLAMA3}),
    "gemma": ("gemma", {"attention_bias": True}),
    "gemma2": ("gemma2", {}),  # soft caps, local and global layers, groups
    "gemma3": ("gemma3_text", {"final_logit_softcapping": 20.0}),
    "phi2": ("phi", {}),
    "phi3": ("phi3", {}),
    "phi3-longrope": ("phi3", {**SMALL, "rope_parameters": LONGROPE}),
    "phi4-mini": ("phi3", {**GROUPED, "rope_parameters": PARTIAL_LONGROPE}),
    "olmo2": ("olmo2", {**GROUPED, "attention_bias": True}),
    "olmo3": ("olmo3", {"rope_parameters": {"full_attention": YARN}}),
    "pythia": ("gpt_neox", {}),
    "gpt-neox-sequential": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    "granite": (
        "granite",
        {
            **GROUPED,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.3,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": ("smollm3", {}),  # layers without rotary embeddings, groups
    "smollm3-sliding": ("smollm3", {"use_sliding_window": True, "sliding_window": 8, "mlp_bias": True}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {**GROUPED, "use_parallel_residual": True}),
    "starcoder2": ("starcoder2", {"sliding_window": 8}),
    "command-r-plus": ("cohere", {"use_qk_norm": True, **GROUPED, "logit_scale": 0.5}),
    "cohere": ("cohere", {"attention_bias": True}),
    "cohere2": ("cohere2", {}),
    "glm": ("glm", {}),
    "glm4": ("glm4", {}),
    "nemotron": ("nemotron", {**GROUPED, "mlp_bias": True}),
    "ministral": ("ministral", {"layer_types": ["sliding_attention", "full_attention"] * 16}),
    "ministral3": ("ministral3", {}),
    "apertus": ("apertus", {}),
    "apertus-silu": ("apertus", {"hidden_act": "silu", "attention_bias": True}),
    "seed_oss": ("seed_oss", {"attention_out_bias": True}),
    "hunyuan": ("hunyuan_v1_dense", {}),
    "ernie4_5": ("ernie4_5", {"use_bias": True}),
    "exaone4": ("exaone4", {}),
    "exaone4-global": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 32}),
    "arcee": ("arcee", {}),
    "helium": ("helium", {"mlp_bias": True}),
    "mixtral": ("mixtral", {"sliding_window": 8}),
    "qwen2_moe": ("qwen2_moe", {}),  # shared expert, weights that do not sum to one
    "qwen3_moe": ("qwen3_moe", {**GROUPED, "norm_topk_prob": True, "attention_bias": True}),
    "olmoe": ("olmoe", {"clip_qkv": 1.5}),
    "gpt_oss": ("gpt_oss", {"swiglu_limit": 0.5}),  # limits that the tiny model reaches
}
"""By name, the model type and the fields that differ from the defaults of its class."""


def family_config(name: str) -> PreTrainedConfig:
    """Return the configuration of a family; skip the test if the installed transformers lacks its class."""
    model_type, fields = FAMILIES[name]
    try:
        return AutoConfig.for_model(model_type, **fields)
    except ValueError:
        pytest.skip(f"this transformers has no model of type {model_type!r}")
