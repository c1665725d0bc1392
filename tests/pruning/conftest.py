"""Tiny models of every supported architecture, with weights large enough that a wrong index shows."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

torch.set_num_threads(1)

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SHAPE, "num_attention_heads": 8}
SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "llama-tied": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama-grouped": lambda: LlamaConfig(**GROUPED),
    "llama-biases": lambda: LlamaConfig(**GROUPED, head_dim=6, attention_bias=True, mlp_bias=True),
    "llama-rope-scaling": lambda: LlamaConfig(
        **SHAPE,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "mistral": lambda: MistralConfig(**GROUPED, head_dim=6, sliding_window=5),
    "qwen2": lambda: Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen2-sliding": lambda: Qwen2Config(**GROUPED, **SLIDING),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=6, attention_bias=True, tie_word_embeddings=True),
}


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """Return a model with random weights, gains and biases, in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model.eval()


@pytest.fixture(params=list(CONFIGS))
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(5))
