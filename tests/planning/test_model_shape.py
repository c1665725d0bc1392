"""Models are found by name, folder, config.json or recipe, offline and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, Qwen3Config

from drpruning.errors import ConfigError
from drpruning.planning import KNOWN, read_shape
from drpruning.planning.recipe import find_recipe_or_model, source_shape
from drpruning.pruning import Target, parameter_count
from drpruning.recipes import load_recipe, shipped_recipes

PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "Qwen/Qwen2-7B": 7_615_616_512,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "Qwen/Qwen3-4B-Base": 4_022_468_096,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
}
"""Parameters as published on the models' pages on the hub."""


def test_known_models_have_as_many_parameters_as_published() -> None:
    assert {name: parameter_count(shape) for name, shape in KNOWN.items()} == PUBLISHED  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=3, intermediate_size=200, mlp_bias=True),
        Qwen3Config(hidden_size=96, num_attention_heads=6, num_key_value_heads=3, head_dim=20, attention_bias=True),
    ],
)
def test_a_folder_and_its_config_json_agree_with_transformers(config: LlamaConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    for given in (tmp_path, tmp_path / "config.json"):
        shape = read_shape(str(given))
        assert Target.of(shape) == Target.of(config)  # type: ignore[arg-type]
        assert parameter_count(shape) == parameter_count(config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected a JSON object, got list"),
        ("{", "cannot read JSON"),
        ("{}", "vocab_size: expected a whole number of at least 1, got None"),
        (
            json.dumps(LlamaConfig().to_dict() | {"hidden_size": 0}),
            "hidden_size: expected a whole number of at least 1, got 0",
        ),
        (
            json.dumps(LlamaConfig().to_dict() | {"head_dim": "wide"}),
            "head_dim: expected a whole number of at least 1, got 'wide'",
        ),
        (
            json.dumps(LlamaConfig().to_dict() | {"model_type": "gpt2"}),
            "'gpt2'; the nearest is gpt_neox; supported types",
        ),
        (json.dumps(LlamaConfig().to_dict() | {"quantization_config": {"bits": 4}}), "quantised"),
    ],
)
def test_a_config_that_cannot_be_pruned_is_rejected(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_shape(str(path))


def test_a_folder_without_config_json_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        read_shape(str(tmp_path))


def test_an_unknown_name_gets_the_nearest_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", offline)
    with pytest.raises(ConfigError, match="no model") as refused:
        read_shape("meta-llama/Llama-3.1-9B")
    assert refused.value.next_step == "Did you mean meta-llama/Llama-3.1-8B?"
    with pytest.raises(ConfigError, match="no model"):
        read_shape("just-a-word")


def test_every_shipped_recipe_describes_its_model() -> None:
    for name in shipped_recipes():
        config, shape = find_recipe_or_model(name)
        assert config is not None
        source = config.model.source
        assert shape == source_shape(load_recipe(name))
        if source in KNOWN:
            assert shape == KNOWN[source]


def test_settings_are_for_recipes() -> None:
    with pytest.raises(ConfigError, match="changes a recipe"):
        find_recipe_or_model("meta-llama/Llama-2-7b-hf", ["prune.steps=1"])


def test_planning_loads_no_torch() -> None:
    program = (
        "import sys; from drpruning.planning.recipe import find_recipe_or_model, plan_recipe\n"
        "plan_recipe(*find_recipe_or_model('quickstart')); plan_recipe(*find_recipe_or_model('llama2-7b-to-1.3b'))\n"
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
