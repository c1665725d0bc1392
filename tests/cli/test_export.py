"""`drpruning export prune` keeps the most important units."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from drpruning.cli import group, main

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}


def model_folder(path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=20_000, **SIZES)).save_pretrained(path)
    return path


def test_exports_the_target_shape(tmp_path, make_corpus):
    corpus, model = make_corpus({"web": [400], "code": [300]}), model_folder(tmp_path / "model")
    (corpus / "tokenizer.json").unlink()  # of no use here: ids are places
    described = json.loads((corpus / "corpus.json").read_text())
    described["tokenizer"]["file"] = None
    (corpus / "corpus.json").write_text(json.dumps(described))
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
