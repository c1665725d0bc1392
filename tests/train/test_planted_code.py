"""Run folders, models, corpora and recipes full of payloads, which create a file if anything executes them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from drpruning.cli import group
from drpruning.config import RunConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, DrpruningError
from drpruning.evaluation.model_losses import NamedModel, default_length
from drpruning.hf.models import load, read_config
from drpruning.hf.tokenizers import corpus_tokenizer, model_tokenizer
from drpruning.prepare.tokenize.tokenizer import load_tokenizer
from drpruning.train.loop import Interrupted
from drpruning.train.run import train

Recipe = Callable[..., RunConfig]


@dataclass
class Planted:
    """An object whose unpickling creates a file."""

    file: Path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.file}'",)


def payloads(marker: Path, scratch: Path) -> dict[str, bytes]:
    """Return files that create ``marker`` when they are unpickled, imported or loaded."""
    planted = Planted(marker)
    torch.save({"weight": planted}, scratch / "torch")
    np.save(scratch / "array.npy", np.array([planted], dtype=object), allow_pickle=True)
    return {
        "pickle": pickle.dumps(planted),
        "torch": (scratch / "torch").read_bytes(),
        "numpy": (scratch / "array.npy").read_bytes(),
        "python": f"import os\nos.system(\"touch '{marker}'\")\n".encode(),
        "yaml": f"name: !!python/object/apply:os.system [\"touch '{marker}'\"]\n".encode(),
    }


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def test_the_payloads_work(marker: Path, tmp_path: Path) -> None:
    import yaml

    found = payloads(marker, tmp_path)
    loaders: dict[str, Callable[[bytes], object]] = {
        "pickle": pickle.loads,
        "torch": lambda _: torch.load(tmp_path / "torch", weights_only=False),
        "numpy": lambda _: np.load(tmp_path / "array.npy", allow_pickle=True),
        "python": lambda content: subprocess.run([sys.executable, "-c", content.decode()], check=True),
        "yaml": yaml.unsafe_load,
    }
    for name, content in found.items():
        loaders[name](content)
        assert marker.exists(), name
        marker.unlink()


def plant_model(folder: Path, marker: Path, *, model_type: str | None) -> None:
    """Write a model folder whose configuration names code in the folder, for all classes of transformers."""
    folder.mkdir()
    scratch = folder.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    found = payloads(marker, scratch)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    body = config.to_dict() | {
        "architectures": ["EvilForCausalLM"],
        "auto_map": {
            "AutoConfig": "evil.EvilConfig",
            "AutoModelForCausalLM": "evil.EvilForCausalLM",
            "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
        },
        "custom_generate": "evil",
    }
    body["model_type"] = model_type or "evil"
    (folder / "config.json").write_text(json.dumps(body))
    tokenizer = {"tokenizer_class": "EvilTokenizer", "auto_map": body["auto_map"], "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "evil.py").write_bytes(found["python"])
    (folder / "__init__.py").write_bytes(found["python"])
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_bytes(found["python"])
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        (folder / name).write_bytes(found["torch"])
    for name in ("tokenizer.model", "generation_config.json", "tokenizer.json"):
        (folder / name).write_bytes(found["pickle"])


@pytest.mark.parametrize("model_type", [None, "llama"])
def test_code_of_a_model_folder_is_not_executed(
    model_type: str | None, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    plant_model(folder, marker, model_type=model_type)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    calls: list[Callable[[], object]] = [
        lambda: load(folder),
        lambda: read_config(str(folder)),
        lambda: model_tokenizer(str(folder)),
        lambda: load_tokenizer(str(folder)),
        lambda: default_length([NamedModel("model", str(folder))]),
        lambda: CliRunner().invoke(group, ["inspect", str(folder)], input="y\n" * 9),
        lambda: CliRunner().invoke(group, ["eval", "loss", str(folder), "--corpus", str(folder)], input="y\n" * 9),
        lambda: CliRunner().invoke(group, ["export", "hf", str(folder), str(tmp_path / "out")], input="y\n" * 9),
    ]
    for number, call in enumerate(calls):
        with suppress(DrpruningError):
            call()
        assert not marker.exists(), number
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(folder)


def test_the_planted_model_would_be_executed_with_trust(marker: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    plant_model(folder, marker, model_type=None)
    with suppress(Exception):
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists()


def test_pickled_weights_are_read_without_their_code(marker: Path, tmp_path: Path) -> None:
    """Read the payload where a model has no safetensors: transformers' restricted reader refuses it."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(payloads(marker, tmp_path)["torch"])
    with pytest.raises(ConfigError):
        load(tmp_path / "model")
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_on_the_hub_is_not_loaded(key: str, tmp_path: Path) -> None:
    """Name a kernel in config.json: transformers would download and import it."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    body = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**body, key: "evil/kernel"}))
    assert load(tmp_path).config._attn_implementation in {"sdpa", "eager"}
    read = read_config(str(tmp_path))
    assert (read._attn_implementation, read._experts_implementation) == (None, None)


@pytest.mark.parametrize("kind", ["pickle", "numpy", "yaml"])
def test_a_corpus_of_payloads_is_not_executed(kind: str, corpus_folder: Path, marker: Path, tmp_path: Path) -> None:
    content = payloads(marker, tmp_path)[kind]
    folder = tmp_path / "corpus"
    names = [path.relative_to(corpus_folder) for path in sorted(corpus_folder.rglob("*")) if path.is_file()]
    for name in names:
        shutil.copytree(corpus_folder, folder)
        (folder / name).write_bytes(content)
        with suppress(DrpruningError):
            corpus = Corpus.open(folder)
            corpus_tokenizer(corpus)
            corpus.held_out_rows("sums", seq_len=8)
            corpus.verify()
        assert not marker.exists(), name
        shutil.rmtree(folder)


def test_a_recipe_of_payloads_is_not_executed(marker: Path, tmp_path: Path) -> None:
    for name, content in payloads(marker, tmp_path).items():
        (tmp_path / f"{name}.yaml").write_bytes(content)
        for arguments in (["train", "--dry-run"], ["plan", "cost"]):
            CliRunner().invoke(group, [*arguments, str(tmp_path / f"{name}.yaml")])
            assert not marker.exists(), (name, arguments)


def test_a_run_folder_of_payloads_is_not_executed(recipe: Recipe, marker: Path, tmp_path: Path) -> None:
    """Put payloads where runs are read, and where earlier formats were unpickled; then resume, inspect and report."""
    found = payloads(marker, tmp_path)
    config = recipe(training={"checkpoint_every": 1})
    whole = tmp_path / "whole"
    with pytest.raises(Interrupted):
        train(config, whole, stop=lambda: True)
    (checkpoint,) = [path.relative_to(whole) for path in (whole / "checkpoints").glob("pretrain-*")]
    files = [path.relative_to(whole) for path in sorted((whole / checkpoint).rglob("*")) if path.is_file()]
    assert len(files) == 4
    added = [checkpoint / name for name in ("tensors/.metadata", "tensors/__0_0.distcp", "x.pkl")]
    for names in ([*files, *added], [Path("metrics.jsonl")], [Path("recipe.yaml")]):
        run = tmp_path / f"run-{names[0].name}"
        shutil.copytree(whole, run)
        for name in names:
            (run / name).write_bytes(found["yaml"] if name.suffix == ".yaml" else found["pickle"])
        with suppress(DrpruningError, Interrupted):
            train(config, run, resume=True, stop=lambda: True)
        assert not marker.exists(), names
        for command in ("inspect", "report"):
            CliRunner().invoke(group, [command, str(run)], input="y\n")
            assert not marker.exists(), (names, command)
