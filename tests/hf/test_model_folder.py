"""Model folders are written one tensor at a time, with the bytes that transformers writes."""

import copy
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from transformers import AutoModelForCausalLM

from drpruning.errors import ConfigError, DiskError
from drpruning.hf import model_folder
from drpruning.hf.model_folder import write_model
from drpruning.hf.models import build_on_meta, disk_errors, load, saved_tensors
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.extract import rewrite
from drpruning.pruning.verification import tiny_config
from tests.pruning.conftest import build
from tests.pruning.families import family_config

FAMILIES = ("gemma2", "pythia", "phi3", "cohere2", "mixtral", "qwen2_moe", "olmoe", "gpt_oss")


def family_model(name: str) -> Any:
    torch.manual_seed(0)
    if name in FAMILIES:
        return AutoModelForCausalLM.from_config(tiny_config(family_config(name), tied=False))
    return build(name)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-biases", *FAMILIES])
def test_a_folder_has_the_bytes_of_transformers(name, tmp_path):
    model = family_model(name)
    for dtype in (torch.float32, torch.bfloat16):
        ours, expected = tmp_path / f"ours-{dtype}", tmp_path / f"transformers-{dtype}"
        ours.mkdir()
        write_model(model, ours, dtype=dtype)
        assert model.dtype == torch.float32
        copy.deepcopy(model).to(dtype).save_pretrained(expected)
        assert files(ours) == files(expected)


@pytest.mark.parametrize("name", ["llama-tied", "gemma2", "olmoe"])
def test_several_files_are_those_of_transformers(name, tmp_path):
    """Compare bytes; of experts the tensors, as transformers keeps those of a block in one file."""
    model = family_model(name)
    (tmp_path / "ours").mkdir()
    write_model(model, tmp_path / "ours", max_shard_size="30KB")
    model.save_pretrained(tmp_path / "expected", max_shard_size="30KB")
    ours, expected = files(tmp_path / "ours"), files(tmp_path / "expected")
    assert len([file for file in ours if file.endswith(".safetensors")]) > 4
    assert name == "olmoe" or ours == expected
    assert max(len(content) for file, content in ours.items() if file.endswith(".safetensors")) < 40_000
    loaded = load(tmp_path / "ours")
    for key, tensor in load(tmp_path / "expected").state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["llama-tied", "olmoe"])
def test_each_tensor_is_read_once(name, tmp_path):
    model = family_model(name)
    tensors, read = saved_tensors(model), []

    def zeros(key: str) -> Tensor:
        read.append(key)
        return torch.zeros(tensors[key].shape)

    write_model(build_on_meta(model.config), tmp_path, zeros)
    assert sorted(read) == sorted(tensors)
    assert not any(parameter.any() for parameter in load(tmp_path).parameters())


@pytest.mark.parametrize("name", ["llama-tied", "olmoe"])
def test_a_folder_is_rewritten_in_another_dtype(name, tmp_path):
    model = family_model(name)
    model.save_pretrained(tmp_path / "float32", max_shard_size="30KB")
    rewrite(tmp_path / "float32", tmp_path / "bfloat16", dtype="bfloat16", max_shard_size="30KB")
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path / "expected", max_shard_size="30KB")
    ours, expected = (load(tmp_path / folder, "auto").state_dict() for folder in ("bfloat16", "expected"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_a_full_disk_is_a_disk_error_and_leaves_nothing(tmp_path, monkeypatch):
    def write(path, tensors, **more):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(model_folder, "write_safetensors", write)
    masked = MaskedModel(build("llama"), Target(intermediate=17)).eval()
    for export in (masked.export, masked.write_extracted):
        with pytest.raises(DiskError, match=r"cannot write the model .*No space left on device"):
            export(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_cannot_be_written_is_a_disk_error(tmp_path):
    # tokenizers raises Exception itself for errors of the operating system
    with pytest.raises(DiskError, match=r"cannot write the model .*os error"), disk_errors(tmp_path):
        Tokenizer(BPE()).save(str(tmp_path / "missing" / "tokenizer.json"))
    with pytest.raises(ValueError, match="another"), disk_errors(tmp_path):
        raise ValueError("another")


def test_files_of_a_tokenizer_in_any_format_are_copied(tmp_path):
    family_model("llama-tied").save_pretrained(tmp_path / "model")
    for name in ("vocab.json", "merges.txt", "spiece.model", "vocab.txt"):
        (tmp_path / "model" / name).write_text(name)
    rewrite(tmp_path / "model", tmp_path / "out", dtype="float32")
    for name in ("vocab.json", "merges.txt", "spiece.model", "vocab.txt"):
        assert (tmp_path / "out" / name).read_text() == name


def test_a_value_beyond_float16_is_an_error(tmp_path):
    model = family_model("llama-tied")
    with torch.no_grad():
        model.model.norm.weight[0] = 1e5
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"model.norm.weight has a value of 100000; expected at most 65504"):
        rewrite(tmp_path / "model", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    rewrite(tmp_path / "model", tmp_path / "out", dtype="bfloat16")
