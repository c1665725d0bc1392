"""Models are loaded as transformers loads them; an error names the file and the tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoXConfig, LlamaConfig, Olmo2Config

from drpruning.errors import ConfigError
from drpruning.hf.models import load, load_on_meta
from tests.pruning.conftest import CONFIGS, SHAPE, build

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 32},
    "longrope": {
        "factor": 2.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
}


def assert_same(model: Any, other: Any) -> None:
    """Check that parameters, buffers, configurations and logits are equal."""
    for found, expected in (
        (dict(model.named_parameters()), dict(other.named_parameters())),
        (dict(model.named_buffers()), dict(other.named_buffers())),
    ):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
    assert model.config.to_dict() == other.config.to_dict()
    assert model.generation_config.to_dict() == other.generation_config.to_dict()
    assert not model.training
    tokens = torch.arange(48)[None]
    assert torch.equal(model(tokens).logits, other(tokens).logits)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize(("max_shard_size", "dtype"), [("5GB", torch.bfloat16), ("20KB", torch.float32)])
def test_a_model_is_what_transformers_reads(name: str, max_shard_size: str, dtype: torch.dtype, tmp_path: Path) -> None:
    build(name).to(dtype).save_pretrained(tmp_path, max_shard_size=max_shard_size)
    state = torch.random.get_rng_state()
    model = load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(model, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    assert_same(load(tmp_path, "auto"), AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto"))
    assert model.get_input_embeddings().weight.requires_grad
    tied = model.config.tie_word_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("rope", list(ROPES))
def test_rotary_angles_are_computed_from_the_configuration(rope: str, tmp_path: Path) -> None:
    parameters = {"rope_type": rope, "rope_theta": 10000.0, **ROPES[rope]}
    AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, rope_parameters=parameters)).save_pretrained(tmp_path)
    assert load_on_meta(tmp_path) is not None
    assert_same(load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


def test_other_architectures_are_read_here_only_if_their_files_fill_them(tmp_path: Path) -> None:
    shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape["intermediate_size"] = 48
    models = {
        "olmo2": (Olmo2Config(**shape), True),
        "neox": (GPTNeoXConfig(**shape), False),  # the files have older names
        "gemma2": (Gemma2Config(**shape, num_key_value_heads=2, head_dim=8), False),  # the scale is in no file
    }
    for name, (config, here) in models.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        assert (load_on_meta(tmp_path / name) is not None) == here
        assert_same(load(tmp_path / name), AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32))


def test_rotary_angles_in_files_of_old_releases_are_ignored(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    save_file({**state, **old}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same(load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))


def test_pickled_weights_are_left_to_transformers(tmp_path: Path) -> None:
    model = build("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert load_on_meta(tmp_path) is None
    for name, tensor in load(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def remove(state: dict[str, torch.Tensor]) -> None:
    del state["model.layers.1.mlp.up_proj.weight"]


def add(state: dict[str, torch.Tensor]) -> None:
    state["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)


def cut(state: dict[str, torch.Tensor]) -> None:
    state["model.norm.weight"] = torch.zeros(31)


def code(state: dict[str, torch.Tensor]) -> None:
    state["model.norm.weight"] = torch.zeros(32, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, r"model\.safetensors has no tensor 'model\.layers\.1\.mlp\.up_proj\.weight', which its config\.json"),
        (add, r"model\.safetensors has the tensor 'model\.layers\.9\.mlp\.up_proj\.weight', which its config\.json"),
        (cut, r"model\.safetensors has 'model\.norm\.weight' of shape \(31,\); its config\.json requires \(32,\)"),
        (code, r"model\.safetensors has 'model\.norm\.weight' of type I8; expected F64, F32, F16, BF16"),
    ],
)
def test_errors_name_file_and_tensor(change: Any, message: str, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_missing_or_misshapen_tensors_are_errors_if_transformers_loads(tmp_path: Path) -> None:
    config = Gemma2Config(**SHAPE, head_dim=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    norm = state.pop("model.norm.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"has no tensor 'model\.norm\.weight'"):
        load(tmp_path)
    save_file({**state, "model.norm.weight": norm[1:]}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(tmp_path)


def test_a_truncated_or_missing_file_is_named(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    file = tmp_path / "model-00002-of-00008.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ConfigError, match=r"model-00002-of-00008\.safetensors cannot be read"):
        load(tmp_path)
    file.unlink()
    with pytest.raises(ConfigError, match=r"names the file model-00002-of-00008\.safetensors, which does not exist"):
        load(tmp_path)
    file.write_bytes(whole)
    index = tmp_path / "model.safetensors.index.json"
    body = json.loads(index.read_text())
    body["weight_map"]["model.norm.weight"] = "model-00002-of-00008.safetensors"
    index.write_text(json.dumps(body))
    with pytest.raises(ConfigError, match=r"model-00002-of-00008\.safetensors has no tensor 'model\.norm\.weight'"):
        load(tmp_path)
    body["weight_map"]["model.norm.weight"] = "../outside.safetensors"
    index.write_text(json.dumps(body))
    with pytest.raises(ConfigError, match=r"names '\.\./outside\.safetensors'; expected the name of a file"):
        load(tmp_path)


def test_a_head_that_differs_from_the_embeddings_it_is_tied_to_is_an_error(tmp_path: Path) -> None:
    model = build("llama-tied")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    load(tmp_path)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"'lm_head.weight' with other values than 'model.embed_tokens.weight'"):
        load(tmp_path)
