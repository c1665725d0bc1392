"""Target shapes: missing sizes, parameter counts, and errors with a suggestion."""

import subprocess
import sys

import pytest
from transformers import (
    DeepseekV3Config,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    PhimoeConfig,
    Qwen2Config,
    Qwen3MoeConfig,
    StableLmConfig,
)

from drpruning.errors import ConfigError
from drpruning.pruning import Target, parameter_count

from .conftest import CONFIGS, build

LLAMA_2_7B = LlamaConfig()
GROUPED = LlamaConfig(
    hidden_size=64, num_attention_heads=8, num_key_value_heads=2, intermediate_size=96, num_hidden_layers=3
)


def test_missing_sizes_are_kept():
    resolved = Target(intermediate=5504).resolve(LLAMA_2_7B)
    assert resolved == Target(layers=32, hidden=4096, heads=32, kv_heads=32, intermediate=5504)
    assert Target.of(LLAMA_2_7B) == Target().resolve(LLAMA_2_7B)


@pytest.mark.parametrize("target", [Target(heads=4), Target(kv_heads=1), Target(heads=4, kv_heads=1)])
def test_query_and_key_value_heads_follow_each_other(target):
    resolved = target.resolve(GROUPED)
    assert (resolved.heads, resolved.kv_heads) == (4, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_count_is_that_of_the_model(name):
    model = build(name)
    assert parameter_count(model.config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("target", "count"),
    [
        (Target(), 6_738_415_616),
        (Target(hidden=2560, heads=20, intermediate=6912), 2_701_560_320),
        (Target(layers=24, hidden=2048, heads=16, intermediate=5504), 1_345_423_360),
    ],
)
def test_parameter_counts_of_the_papers_targets(target, count):
    """Compare with Sheared-LLaMA-2.7B and -1.3B as published."""
    assert parameter_count(LLAMA_2_7B, target) == count


@pytest.mark.parametrize(
    ("target", "message", "suggestion"),
    [
        (Target(experts=4), "experts=4, but a model of type 'llama' has no experts", "Leave out experts"),
        (Target(layers=33), "layers=33 is larger than the source's 32", "between 1 and 32"),
        (Target(hidden=0), "hidden must be a whole number of at least 1, got 0", "between 1 and 4096"),
        (Target(intermediate=-5), "got -5", "between 1 and 11008"),
        (
            Target(hidden=2000, heads=17),
            "hidden=2000 is not a multiple of heads=17",
            "hidden=1989, hidden=2006, heads=16, heads=20",
        ),
        (
            Target(hidden=4090),
            "hidden=4090 is not a multiple of heads=32",
            "hidden=4064, hidden=4096, heads=10, heads=5",
        ),
        (Target(heads=16, kv_heads=8), "heads=16, kv_heads=8", "heads=16, kv_heads=16"),
    ],
)
def test_impossible_targets_are_rejected_with_a_suggestion(target, message, suggestion):
    with pytest.raises(ConfigError) as refused:
        target.resolve(LLAMA_2_7B)
    assert message in refused.value.message
    assert suggestion in refused.value.next_step


@pytest.mark.parametrize(
    ("target", "suggestion"),
    [
        (Target(heads=6), "heads=4, kv_heads=1 or heads=8, kv_heads=2"),
        (Target(heads=2), "heads=4, kv_heads=1 or heads=8, kv_heads=2"),
        (Target(heads=4, kv_heads=2), "heads=4, kv_heads=1 or heads=8, kv_heads=2"),
    ],
)
def test_groups_of_query_heads_stay_whole(target, suggestion):
    with pytest.raises(ConfigError, match="groups of 4 query heads") as refused:
        target.resolve(GROUPED)
    assert suggestion in refused.value.next_step


def test_only_llama_needs_a_width_that_its_heads_divide():
    config = Qwen2Config(hidden_size=64, num_attention_heads=8, num_key_value_heads=2)
    assert Target(hidden=50).resolve(config).hidden == 50
    with pytest.raises(ConfigError, match="not a multiple"):
        Target(hidden=50).resolve(GROUPED)


def test_every_suggested_width_is_valid():
    with pytest.raises(ConfigError) as refused:
        Target(hidden=50).resolve(GROUPED)
    assert refused.value.next_step == "Nearest valid: hidden=48, hidden=56."
    for hidden in (48, 56):
        Target(hidden=hidden).resolve(GROUPED)


def test_a_source_whose_heads_do_not_share_evenly_is_rejected():
    config = LlamaConfig(hidden_size=60, num_attention_heads=6, num_key_value_heads=4)
    with pytest.raises(ConfigError, match="6 query heads do not share its 4"):
        Target().resolve(config)


def test_other_model_types_are_rejected_by_name():
    with pytest.raises(ConfigError, match=r"'gpt2'; the nearest is gpt_neox; supported types: llama, mistral"):
        Target.of(GPT2Config())


def test_quantised_models_are_rejected():
    config = LlamaConfig()
    config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ConfigError, match="quantised"):
        Target.of(config)


def test_planning_shapes_loads_no_torch():
    program = "import sys, drpruning.pruning.target; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PhimoeConfig, r"'phimoe' \(mixture of experts: config.num_local_experts\); the nearest is mixtral;"),
        (
            lambda: GptOssConfig(quantization_config={"quant_method": "mxfp4"}),
            r"quantised model \(config.quantization_config: mxfp4\)(.|\n)*Mxfp4Config\(dequantize=True\)",
        ),
        (lambda: Qwen3MoeConfig(mlp_only_layers=[0]), r"'qwen3_moe': config.mlp_only_layers is \[0\]; .* dense MLP"),
        (
            lambda: Qwen3MoeConfig(decoder_sparse_step=2),
            "'qwen3_moe': config.decoder_sparse_step is 2, expected 1; .* dense MLP",
        ),
        (DeepseekV3Config, r"'deepseek_v3' \((mixture of experts|multi-head latent attention): config"),
        (lambda: StableLmConfig(qk_layernorm=True), r"'stablelm': config.qk_layernorm is True; .* qk_layernorm=false"),
    ],
)
def test_unsupported_features_are_rejected_by_name(config, message):
    with pytest.raises(ConfigError, match=message):
        Target(layers=2).resolve(config())
