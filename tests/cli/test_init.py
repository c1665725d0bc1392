"""`drpruning init`: the recipe it writes trains, and wrong input is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from drpruning.cli import main
from drpruning.prepare.demo.synthetic import prepare_synthetic
from drpruning.recipes import load_recipe


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a random model ``big``, and a corpus ``text`` with its tokenizer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path / "cache"))
    manifest = prepare_synthetic("text", ["web", "code"])
    assert manifest.tokenizer is not None
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=manifest.tokenizer.vocab_size, max_position_embeddings=64, **shape)
    LlamaForCausalLM(config).save_pretrained("big")
    return tmp_path


def test_a_recipe_of_init_trains(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "big", "--params", "100k", "--corpus", "text", "--tokens", "60k"])
    printed = capsys.readouterr()
    assert "--miniature" not in printed.out  # the short run cuts at once: there are no masks to test
    path = given / "big-to-100k.yaml"
    assert printed.out.splitlines()[-1] == "  drpruning train big-to-100k.yaml"
    config = load_recipe(str(path))
    assert config.pruning.target.hidden is not None
    assert (given / "drpruning-recipe.schema.json").is_file()

    few = ["--set", "continue.steps=2", "--set", "training.threads=1", "--set", "training.final_eval_tokens=512"]
    main(["train", str(path), "--out", "run", *few])
    pruned = AutoModelForCausalLM.from_pretrained(given / "run" / "export")
    assert abs(pruned.num_parameters() / 1e5 - 1) <= 0.06
    assert pruned.config.hidden_size == config.pruning.target.hidden


def test_without_tokens_a_small_corpus_is_read_twice(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "big", "--params", "100k", "--corpus", "text"])
    assert capsys.readouterr().out
    assert ", 2.0 passes over the corpus" in (given / "big-to-100k.yaml").read_text(encoding="utf-8")


def test_the_path_of_a_config_means_its_folder(given: Path) -> None:
    main(["init", "big/config.json", "--params", "100k", "--corpus", "text", "--tokens", "60k"])
    assert load_recipe(str(given / "big-to-100k.yaml")).model.source == "big"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing", "--params", "1M", "--corpus", "text"], "no model 'missing'"),
        (["big", "--params", "100k", "--corpus", "nowhere"], "nowhere holds no corpus.json"),
        (["big", "--params", "1B", "--corpus", "text"], "--params 1B is more than the model's"),
        (["big", "--params", "100k", "--corpus", "text", "--tokens", "1B"], "more than 4 passes over the corpus"),
        (["big", "--params", "100k", "--corpus", "text", "--gpus", "9xABACUS"], "unknown accelerator"),
        (["big", "--params", "100k", "--corpus", "text", "--out", "big/config.json"], "exists already"),
    ],
)
def test_wrong_input(arguments: list[str], message: str, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(given.rglob("*.yaml"))
    with pytest.raises(SystemExit) as exit_:
        main(["init", *arguments])
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[0]
    assert len(lines) == 2
    assert sorted(given.rglob("*.yaml")) == before
