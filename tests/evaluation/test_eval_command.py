"""`drpruning eval loss`: one model, several side by side, run folders, other tokenizers, and what it refuses."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from drpruning.cli import group, main
from drpruning.corpus import Corpus
from drpruning.hf.models import load
from drpruning.intervals import student_quantile
from drpruning.prepare.tokenize.tokenizer import train_tokenizer
from drpruning.records import JsonlSink, ModelMeasured, RunStarted, to_json
from drpruning.train.device import default_dtype
from tests.train.conftest import tiny

Saved = Callable[..., Path]


def evaluated(*arguments: object) -> dict[str, object]:
    result = CliRunner().invoke(group, ["eval", "loss", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    body: dict[str, object] = json.loads(result.stdout)
    return body


def test_models_side_by_side(saved: Saved, corpus_folder: Path) -> None:
    first, other = saved("first"), saved("other", family="gpt_neox", seed=1)
    common = (first, other, "--corpus", corpus_folder, "--max-tokens", 1500, "--seq-len", 24)
    body = evaluated(*common)
    one, two = body["models"]
    assert (one["model"], two["model"]) == ("first", "other")
    (difference,) = body["differences"]
    losses = {name: two["domains"][name]["loss"] - item["loss"] for name, item in one["domains"].items()}
    for name, expected in losses.items():
        assert difference["loss"]["domains"][name]["value"] == pytest.approx(expected)
        assert difference["loss"]["domains"][name]["standard_error"] >= 0
    assert difference["loss"]["average"]["value"] == pytest.approx(sum(losses.values()) / 3)
    for name, found in difference["loss"]["domains"].items():
        half = student_quantile(one["domains"][name]["groups"] - 1) * found["standard_error"]
        assert found["high"] - found["value"] == pytest.approx(found["value"] - found["low"])
        assert found["high"] - found["value"] >= half * (1 - 1e-9)
    worst = difference["loss"]["worst"]
    assert worst["high"] > difference["loss"]["domains"][worst["domain"]]["high"]
    assert difference["loss"]["worst"]["domain"] == max(losses, key=losses.__getitem__)
    assert one["average"]["loss"] == pytest.approx(sum(item["loss"] for item in one["domains"].values()) / 3)
    shown = CliRunner().invoke(group, ["eval", "loss", *map(str, common)]).stdout
    assert "Held-out loss, nats per token" in shown
    assert "Held-out bits per byte" in shown
    assert f"may be too narrow: {one['domains']['sums']['groups']} groups of documents in sums" in " ".join(
        shown.split()
    )
    assert f"{losses['sums']:+.3f}".replace("-", "\N{MINUS SIGN}") in shown


def test_a_model_is_gone_before_the_next_one_is_loaded(
    saved: Saved, corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[object]] = []

    def load_alone(path: str, dtype: torch.dtype) -> object:
        gc.collect()
        assert [item for item in loaded if item() is not None] == []
        model = load(path, dtype)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr("drpruning.evaluation.model_losses.load", load_alone)
    evaluated(saved("first"), saved("other", seed=1), "--corpus", corpus_folder, "--max-tokens", 300)
    assert len(loaded) == 2


def test_the_type_follows_the_device_and_is_in_the_output(saved: Saved, corpus_folder: Path) -> None:
    common = (saved("first"), "--corpus", corpus_folder, "--max-tokens", 300, "--device", "cpu")
    body, other = evaluated(*common), evaluated(*common, "--dtype", "bfloat16")
    assert (body["dtype"], body["device"], other["dtype"]) == ("float32", "cpu", "bfloat16")
    shown = CliRunner().invoke(group, ["eval", "loss", *map(str, common)]).stdout
    assert "weights and computation in float32 on cpu" in shown


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_computes_in_bfloat16_where_it_has_units_for_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
    assert default_dtype(torch.device("cuda", 0)) is (torch.bfloat16 if native else torch.float32)
    assert default_dtype(torch.device("cpu")) is torch.float32


def test_a_model_with_another_tokenizer_compares_in_bits_per_byte(saved: Saved, corpus_folder: Path) -> None:
    own, other = saved("own"), saved("other", vocabulary=264)
    train_tokenizer(["sums of numbers 1 + 2 = 3\n"] * 9, 264, name="other").save(other)
    body = evaluated(own, other, "--corpus", corpus_folder, "--max-tokens", 600, "--domain", "sums")
    assert [item["ids"] for item in body["models"]] == ["unchecked", "own"]
    assert list(body["differences"][0]) == ["model", "minus", "bits_per_byte"]
    assert body["seq_len"] == 64  # what the models have positions for
    shown = CliRunner().invoke(group, ["eval", "loss", str(own), str(other), "--corpus", str(corpus_folder)]).stdout
    assert "other reads the text with its own tokenizer" in shown
    assert "nats per token" not in shown


def test_a_run_gives_its_models_and_its_corpus(saved: Saved, corpus_folder: Path, tmp_path: Path) -> None:
    base, run = saved("base"), tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(tiny(corpus_folder, {}).to_yaml())
    shutil.copytree(base, run / "export")
    sink = JsonlSink(run / "metrics.jsonl")
    sink.write(ModelMeasured(model="base", parameters=1, shape={}, losses={}, path=str(base)))
    sink.write(ModelMeasured(model="pruned", parameters=1, shape={}, losses={}, path="moved/pruned"))
    sink.close()
    body = evaluated(run, "--max-tokens", 600)
    assert [item["model"] for item in body["models"]] == ["base", "recovered"]
    assert body["seq_len"] == 32
    assert body["differences"][0]["loss"]["average"]["value"] == 0
    assert [item["model"] for item in evaluated(run / "export", "--max-tokens", 600)["models"]] == ["export"]


def test_a_run_is_measured_on_its_own_corpus_by_default(
    saved: Saved, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guard against a corpus named `demo` that differs between environments, without an error."""
    corpus, run = Corpus.open(corpus_folder), tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(tiny(corpus_folder, {}).to_yaml())
    shutil.copytree(saved("base"), run / "export")

    def record(fingerprint: str) -> None:
        environment = {"corpus": fingerprint, "corpus_folder": "/its/corpus"}
        started = RunStarted(
            name="x",
            recipe_hash="",
            strategy="constant",
            seed=1,
            domains=[],
            reference_ratio={},
            environment=environment,
        )
        (run / "metrics.jsonl").write_text(to_json(started) + "\n")

    record(corpus.fingerprint)
    assert evaluated(run, "--max-tokens", 600)["corpus_fingerprint"] == corpus.fingerprint
    record("0" * 64)
    for arguments in ([run], [run / "export"], [run, "--corpus", corpus_folder]):
        with pytest.raises(SystemExit, match="2"):
            main(["eval", "loss", *map(str, arguments), "--max-tokens", "600"])
        message = capsys.readouterr().err
        assert f"its fingerprint is {'0' * 16}, that of {corpus_folder} is {corpus.fingerprint[:16]}" in message
        assert "--corpus (it was /its/corpus), or measure on this one with --other-corpus" in message
        assert len(message.strip().splitlines()) == 2
    assert evaluated(run, "--max-tokens", 600, "--other-corpus")["models"]


def test_what_cannot_work_is_an_error_of_two_lines(
    saved: Saved,
    make_corpus: Callable[..., Path],
    corpus_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, places = saved("model"), make_corpus({"web": [400]})
    (places / "tokenizer.json").unlink()
    described = json.loads((places / "corpus.json").read_text())
    described["tokenizer"]["file"] = None
    (places / "corpus.json").write_text(json.dumps(described))
    short = saved("short")
    weights = short / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ([model], "--corpus is missing; only a run folder names the corpus"),
        ([tmp_path / "nowhere", "--corpus", corpus_folder], f"the model '{tmp_path / 'nowhere'}' cannot be loaded"),
        ([short, "--corpus", corpus_folder], f"the model '{short}' cannot be loaded"),
        ([tmp_path / "empty", "--corpus", corpus_folder], "holds neither a model (config.json) nor a run"),
        ([model, "--corpus", places], "the corpus has 10000 token ids, the model 'model' an embedding of 280"),
        ([model, "--corpus", corpus_folder, "--domain", "sum"], "there is no domain 'sum'"),
        ([model, "--corpus", corpus_folder, "--seq-len", 65], "the model 'model' has 64 positions"),
        ([model, "--corpus", corpus_folder, "--stride", 65], "stride is 65; expected 1 to seq_len (64)"),
        ([model, "--corpus", corpus_folder, "--packed", "--stride", 3], "--packed rows do not overlap"),
        (
            [model, "--corpus", corpus_folder, "--device", "abacus"],
            "device is 'abacus'; torch has no such device\nUse auto",
        ),
    ]:
        with pytest.raises(SystemExit) as stop:
            main(["eval", "loss", *map(str, arguments)])
        error = capsys.readouterr().err
        assert stop.value.code == 2, error
        assert message in error
        assert len(error.strip().splitlines()) <= 2, error
