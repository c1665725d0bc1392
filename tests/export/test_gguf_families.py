"""llama.cpp computes the logits of transformers from the GGUF file of every type that it has a graph for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drpruning.errors import ConfigError
from drpruning.export.gguf import write_gguf
from drpruning.export.gguf_graphs import GELU, GRAPHS, context_of, graph_of, period_of
from drpruning.pruning.architectures import ARCHITECTURES
from drpruning.pruning.verification import VOCABULARY, TinyModels, tiny_config
from tests.pruning.families import FAMILIES, LONGROPE, PARTIAL_LONGROPE, YARN, family_config

from .llama_cpp import log_probabilities
from .test_gguf import tokenizer

gguf = pytest.importorskip("gguf")

PROMPT = [3, 7, 11, 2, 50, 9, 31, 4]
LONG = {"max_position_embeddings": 512, "original_max_position_embeddings": 256}
YARN_ROPE = {**YARN, "original_max_position_embeddings": VOCABULARY // 2}
BLOCKS_OF_SMOLLM3: dict[str, Any] = {
    "num_hidden_layers": 5,
    "no_rope_layers": [1, 1, 1, 0, 1],
    "layer_types": ["full_attention"] * 5,
}
LOCAL_AND_GLOBAL = ("sliding_attention", "full_attention")

COMPUTED: dict[str, dict[str, Any]] = {
    "llama-rope-scaling": {},
    "llama-rope-scaling, yarn": {"rope_parameters": {**YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 0.7}},
    "gemma": {"attention_bias": False, "tie_word_embeddings": True},
    "gemma2": {"tie_word_embeddings": True},
    "gemma3": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    },
    "phi2": {"tie_word_embeddings": True},
    "phi3": {},
    "phi3-longrope": {**LONG, "rope_parameters": LONGROPE},
    "phi4-mini": {**LONG, "rope_parameters": PARTIAL_LONGROPE},
    "olmo2": {"hidden_size": 64, "attention_bias": False},
    "olmo3": {
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": YARN_ROPE,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "pythia": {},
    "gpt-neox-sequential": {"attention_bias": True, "tie_word_embeddings": True},
    "granite": {},
    "smollm3": BLOCKS_OF_SMOLLM3,
    "stablelm": {},
    "stablelm-parallel": {"tie_word_embeddings": True},
    "starcoder2": {"hidden_size": 64},
    "cohere": {"attention_bias": False, "tie_word_embeddings": True},
    "cohere2": {"tie_word_embeddings": True},
    "glm": {"hidden_size": 64},
    "glm4": {"attention_bias": True},
    "nemotron": {"hidden_size": 64, "tie_word_embeddings": True},
    "ministral": {},
    "ministral3": {},
    "apertus": {},
    "seed_oss": {"attention_out_bias": False},
    "hunyuan": {},
    "ernie4_5": {"use_bias": False, "tie_word_embeddings": True},
    "exaone4-global": {},
    "arcee": {},
    "helium": {},
    "mixtral": {},
    "qwen2_moe": {"tie_word_embeddings": True},
    "qwen3_moe": {"attention_bias": False},
    "olmoe": {"clip_qkv": None},
}
"""Families (before a comma), with the fields in which a tiny model has to differ for llama.cpp to compute it."""
REFUSED = {
    "gemma": "attention_bias is True",
    "gemma2": "output layer",
    "command-r-plus": "hidden size is 32",
    "cohere": "attention_bias is True",
    "gpt-neox-sequential": "attention_bias is False",
    "smollm3": "blocks without rotation",
    "olmo2": "attention_bias is True",
    "olmo3": "rope_theta 500000.0, expected 10000.0",
    "apertus-silu": "activation is 'silu', expected 'xielu'",
    "seed_oss": "attention_out_bias is True",
    "ernie4_5": "use_bias is True",
    "exaone4": "sliding_window is 5, expected None",
    "olmoe": "clip_qkv is 1.5",
    "qwen3_moe": "attention_bias is True",
    "glm": "hidden size is 32, expected heads times head_dim, 64",
}


def config_of(name: str, **changes: Any) -> Any:
    """Return the tiny configuration of a family with other fields."""
    config = tiny_config(family_config(name.split(",", maxsplit=1)[0]), tied=False)
    return type(config).from_dict({**config.to_dict(), **changes})


def test_every_type_has_a_family_that_is_computed() -> None:
    in_other_file = {"mistral", "qwen2", "qwen3"}
    assert {FAMILIES[name.split(",")[0]][0] for name in COMPUTED} | in_other_file == GRAPHS.keys()
    assert GRAPHS.keys() <= ARCHITECTURES.keys()


@pytest.mark.parametrize("name", COMPUTED)
def test_llama_cpp_computes_the_same_logits(name: str, tmp_path: Path) -> None:
    config = config_of(name, **COMPUTED[name])
    model = TinyModels(config).stock()
    model.save_pretrained(tmp_path / "model")
    tokenizer(VOCABULARY).save_pretrained(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "float32")
    context = context_of(config, graph_of(config))
    prompt = PROMPT[: min(len(PROMPT), context - 3)]
    tokens, got = log_probabilities(tmp_path / "model.gguf", prompt, 4, VOCABULARY)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    # float32 sums of at most 64 terms; a GELU from a table in float16 has errors of 2**-11
    bound = 2e-2 if GRAPHS[config.model_type].activations == GELU else 1e-4
    np.testing.assert_allclose(got, logits.log_softmax(-1).numpy(), rtol=0, atol=bound)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_no_graph_computes_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"does not compute this model of type .*{REFUSED[name]}"):
        graph_of(config_of(name, tie_word_embeddings=name != "gemma2"))


def test_yarn_between_fractions_of_dimensions_is_an_error() -> None:
    with pytest.raises(ConfigError, match="YaRN has truncate=False"):
        graph_of(config_of("llama-rope-scaling", rope_parameters={**YARN_ROPE, "truncate": False}))
    with pytest.raises(ConfigError, match="models of type 'gpt_oss' are not converted"):
        graph_of(config_of("gpt_oss"))


def test_blocks_without_a_period_need_a_graph_that_rotates_all_alike() -> None:
    scattered = {"num_hidden_layers": 3, "layer_types": [LOCAL_AND_GLOBAL[at] for at in (1, 0, 1)]}
    gemma2 = config_of("gemma2", tie_word_embeddings=True, **scattered)
    assert period_of([False, True, False]) is None
    assert context_of(gemma2, graph_of(gemma2)) == gemma2.sliding_window
    with pytest.raises(ConfigError, match="blocks with local attention are not periodic"):
        graph_of(config_of("gemma3", **scattered))
