"""`drpruning export prune` keeps the most important units."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from drpruning.cli import group, main

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}


def model_folder(path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=20_000, **SIZES)).save_pretrained(path)
    return path


def without_tokenizer(corpus: Path) -> Path:
    """Remove the tokenizer, which is of no use here: ids are places."""
    (corpus / "tokenizer.json").unlink()
    described = json.loads((corpus / "corpus.json").read_text())
    described["tokenizer"]["file"] = None
    (corpus / "corpus.json").write_text(json.dumps(described))
    return corpus


def test_exports_the_target_shape(tmp_path, make_corpus):
    corpus, model = without_tokenizer(make_corpus({"web": [400], "code": [300]})), model_folder(tmp_path / "model")
    arguments = [
        "export",
        "prune",
        str(model),
        str(tmp_path / "small"),
        "--corpus",
        str(corpus),
        "--rows",
        "6",
        "--seq-len",
        "16",
    ]
    result = CliRunner().invoke(group, [*arguments, "--target", "layers=2,hidden=24,heads=2", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["target"] == {"layers": 2, "hidden": 24, "heads": 2, "kv_heads": 2, "intermediate": 48}
    assert set(report["before"]) == set(report["after"]) == {"web", "code"}
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert sum(p.numel() for p in small.parameters()) == report["parameters"] < report["source_parameters"]
    assert (small.config.num_hidden_layers, small.config.hidden_size) == (2, 24)


def test_losses_are_of_as_many_tokens_as_requested_or_omitted(tmp_path, make_corpus, monkeypatch):
    corpus, model = without_tokenizer(make_corpus({"web": [400], "code": [300]})), model_folder(tmp_path / "model")
    measured = []

    def losses(validator, model):
        measured.append(validator.tokens)
        return dict.fromkeys(validator.rows, 2.0)

    monkeypatch.setattr("drpruning.train.validation.Validator.losses", losses)
    for tokens in (32, 0):
        out = tmp_path / str(tokens)
        arguments = ["export", "prune", str(model), str(out), "--corpus", str(corpus), "--rows", "2", "--seq-len", "16"]
        result = CliRunner().invoke(group, [*arguments, "--target", "layers=2", "--eval-tokens", str(tokens)])
        assert result.exit_code == 0, result.output
        assert ("difference" in result.stdout) == (tokens > 0)
        assert "parameters" in result.stdout
        assert (out / "model.safetensors").exists()
    assert measured == [{"web": 32, "code": 32}] * 2 + [{}] * 2


def test_fewer_tokens_than_a_row_are_refused_before_any_work(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "prune", "nowhere", "out", "--corpus", "c", "--target", "layers=2", "--eval-tokens", "100"])
    assert stop.value.code == 2
    assert "--eval-tokens is 100; expected at least one row, 512 tokens" in capsys.readouterr().err


def test_combines_the_scores_of_domains_and_repairs(tmp_path, make_corpus):
    corpus, model = without_tokenizer(make_corpus({"web": [900], "code": [900]})), model_folder(tmp_path / "model")
    weights = []
    for name, options in (("cut", ()), ("repaired", ("--repair", "0.01"))):
        arguments = ["export", "prune", str(model), str(tmp_path / name), "--corpus", str(corpus), "--rows", "8"]
        arguments += ["--seq-len", "16", "--target", "layers=2,intermediate=24", "--depth-importance", "activation"]
        result = CliRunner().invoke(group, [*arguments, "--combine", "worst_case", *options])
        assert result.exit_code == 0, result.output
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        weights[-1] |= load_file(tmp_path / name / "masks.safetensors")
    cut, repaired = weights
    changed = {name for name, weight in cut.items() if not torch.equal(weight, repaired[name])}
    projections = {name for name in cut if name.endswith("_proj.weight")}
    assert "model.layers.1.mlp.down_proj.weight" in changed
    assert changed <= projections


def test_a_wrong_shard_size_is_refused_before_any_work(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", "hf", "nowhere", str(tmp_path / "out"), "--dtype", "bfloat16", "--max-shard-size", "5 bananas"])
    assert stop.value.code == 2
    assert "'5 bananas' is not a size" in capsys.readouterr().err


def test_wrong_sizes_and_models_are_refused(tmp_path, make_corpus, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no waiting for a connection
    corpus = make_corpus({"web": [400]})
    for model, target, message in (
        ("nowhere", "layers=2", "the model 'nowhere' cannot be loaded"),
        (str(model_folder(tmp_path / "model")), "depth=2", "--target has 'depth=2'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["export", "prune", model, str(tmp_path / "out"), "--corpus", str(corpus), "--target", target])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
