"""`drpruning inspect` on runs, models, and what is neither; tests/prepare has the corpora."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from drpruning.cli import group
from drpruning.errors import ConfigError
from drpruning.prepare.tokenize.tokenizer import train_tokenizer
from drpruning.recipes import load_recipe
from drpruning.records import Evaluated, RunEnded, RunStarted, to_json
from tests.report.synthetic import BASE, DOMAINS, RATIO, SOURCE, synthetic

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["inspect", *map(str, arguments)], catch_exceptions=False)


def as_json(*arguments: object) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(run(*arguments, "--json").stdout)
    return body


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Write a run that was stopped in its last stage, with two complete checkpoints and one that is not."""
    folder = tmp_path / "runs" / "stopped"
    folder.mkdir(parents=True)
    records = [record for record in synthetic() if not isinstance(record, RunEnded)]
    records = records[: max(at for at, record in enumerate(records) if isinstance(record, Evaluated)) + 1]
    assert isinstance(records[0], RunStarted)
    records[0].environment["corpus"] = "ab" * 32
    (folder / "metrics.jsonl").write_text("".join(to_json(record, 0.0) + "\n" for record in records))
    (folder / "recipe.yaml").write_text(load_recipe("quickstart").to_yaml())
    for name in ("prune-000000200", "continue-000000150", "continue-000000200"):
        (folder / "checkpoints" / name).mkdir(parents=True)
        (folder / "checkpoints" / name / "state.json").write_text("{}")
    for name in ("prune-000000200", "continue-000000150"):
        (folder / "checkpoints" / name / "complete.json").write_text("{}")
    (folder / "pruned").mkdir()
    (folder / "compare" / "constant").mkdir(parents=True)
    (folder / "compare" / "constant" / "recipe.yaml").touch()
    return folder


def test_a_run_as_json(run_folder: Path) -> None:
    body = as_json(run_folder)
    assert (body["kind"], body["complete"]) == ("run", False)
    config = load_recipe("quickstart")
    assert body["recipe"]["name"] == "quickstart"
    assert body["recipe"]["strategy"] == config.mixture.strategy
    assert body["recipe"]["hash"] == config.hash()
    assert body["corpus"] == {"place": "demo", "fingerprint": "ab" * 32, "unchanged": None}
    last = next(record for record in reversed(synthetic()) if isinstance(record, Evaluated))
    assert body["stages"]["prune"]["complete"] is True
    assert body["stages"]["continue"]["complete"] is False
    assert body["stages"]["continue"]["steps"] == last.step
    assert list(body["domains"]) == [*config.domains, *(name for name in DOMAINS if name not in config.domains)]
    for name in DOMAINS:
        assert body["domains"][name]["base"] == BASE[name]
        assert body["domains"][name]["last_loss"] == last.losses[name]
        assert body["domains"][name]["weight"] == last.weights[name]
    assert body["models"]["base"]["shape"] == SOURCE
    assert body["checkpoints"] == [
        {"stage": "continue", "step": 150, "bytes": 4},
        {"stage": "prune", "step": 200, "bytes": 4},
    ]
    assert body["folders"] == ["pruned", "checkpoints"]
    assert body["compared"] == ["constant"]


def test_a_run_as_text(run_folder: Path) -> None:
    text = run(run_folder).stdout
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["run"].endswith("stopped, not complete")
    assert lines["corpus"].split()[1:] == ["demo,", "fingerprint", "abababababababab"]
    assert lines["prune"].split()[-1] == "complete"
    assert lines["continue"].split()[-2:] == ["not", "complete"]
    assert f"{BASE['cpp']:.3f}" in lines["cpp"]
    assert lines["checkpoints"] == "checkpoints  continue 150 (4 bytes), prune 200 (4 bytes)"
    assert f"drpruning train {run_folder / 'recipe.yaml'} --out {run_folder} --resume" in text


def test_a_run_of_another_corpus(run_folder: Path, make_corpus: Any) -> None:
    corpus = make_corpus({name: [40] for name in RATIO})
    (run_folder / "recipe.yaml").write_text(load_recipe("quickstart", [f"data.corpus={corpus}"]).to_yaml())
    assert as_json(run_folder)["corpus"]["unchanged"] is False
    assert "but that folder has another corpus now" in run(run_folder).stdout


def test_static_mixtures_of_a_corpus(make_corpus: Any) -> None:
    corpus = make_corpus({"web": [600, 300], "code": [100]})
    body = json.loads((corpus / "corpus.json").read_text())
    body["tokenizer"] |= {"file": None, "sha256": None}
    (corpus / "corpus.json").write_text(json.dumps(body))
    found = as_json(corpus, "--tokens", "800")["static_mixtures"]
    assert found["tokens"] == 800
    assert found["shares"]["unimax:4"] == {"web": 0.5, "code": 0.5}
    assert found["epochs"]["unimax:4"]["code"] == pytest.approx(4)
    text = run(corpus).stdout
    assert "share (epochs) in a run of 1k tokens" in text
    assert "0.900 (1)" in next(line for line in text.splitlines() if line.startswith("web") and "(" in line)
    assert as_json(corpus, "--recipe", "quickstart")["static_mixtures"]["tokens"] > 1000


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(load_recipe("quickstart").to_yaml())
    (tmp_path / "metrics.jsonl").touch()
    body = as_json(tmp_path)
    assert (body["stages"], body["models"], body["checkpoints"]) == ({}, {}, [])
    assert body["domains"]["cpp"]["last_loss"] is None
    assert "not known yet" in run(tmp_path).stdout
    (tmp_path / "recipe.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match=r"recipe\.yaml is damaged"):
        run(tmp_path)


def model_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    return folder


def test_a_model(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    body = as_json(folder)
    # 100 x 8 embedding, tied; a block of 4 x 8 x 8 attention, 3 x 8 x 12 MLP and two norms, twice; a last norm
    assert body["parameters"] == 100 * 8 + 2 * (4 * 64 + 3 * 96 + 16) + 8
    shape = {"layers": 2, "hidden": 8, "heads": 2, "kv_heads": 2, "head_dim": 4, "intermediate": 12}
    assert body["shape"] == shape
    assert (body["architecture"], body["class"]) == ("llama", "LlamaForCausalLM")
    assert (body["vocabulary"], body["positions"], body["tied_embeddings"]) == (100, 64, True)
    assert (body["supports_masks"], body["why_not"], body["tokenizer"], body["pruned"]) == (True, None, None, False)
    text = run(folder / "config.json").stdout
    assert "can be masked yes" in text
    assert "vocabulary    100, tied to the output" in text
    assert "none in the folder" in text


def test_parameters_and_types_come_from_the_tensors(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]},
        "b": {"dtype": "F32", "shape": [], "data_offsets": [24, 28]},
    }
    content = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + bytes(28))
    train_tokenizer(["some text", "more text"], 300).save(folder)
    (folder / "pruning.json").write_text("{}")
    body = as_json(folder)
    assert (body["parameters"], body["dtypes"]) == (13, {"BF16": 12, "F32": 1})
    assert "tokenizer.json" in body["tokenizer"]["files"]
    assert body["tokenizer"]["entries"] > 256
    assert body["pruned"] is True
    assert "parameters    13, BF16, F32" in run(folder).stdout


@pytest.mark.parametrize("content", [b"", b"12345678", struct.pack("<Q", 2**60), struct.pack("<Q", 9) + b'{"a": {}}'])
def test_a_damaged_tensor_file_is_named(tmp_path: Path, content: bytes) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors is damaged"):
        run(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"model_type": "phimoe", "num_local_experts": 8},
            "cannot mask a model of type 'phimoe' (mixture of experts",
        ),
        ({"model_type": "gpt2", "hidden_size": None}, "cannot mask a model of type 'gpt2'"),
        ({"quantization_config": {"bits": 4}}, "cannot mask a quantised model"),
        ({"num_key_value_heads": 3, "num_attention_heads": 4}, "do not share its 3 key/value heads evenly"),
        ({"hidden_size": None}, "hidden_size: expected a whole number of at least 1, got None"),
    ],
)
def test_why_a_model_cannot_be_masked(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    folder = model_folder(tmp_path / "model", **changes)
    body = as_json(folder)
    assert body["supports_masks"] is False
    assert reason in body["why_not"]
    assert f"can be masked no: {body['why_not']}" in run(folder).stdout


def test_a_known_model_needs_no_connection() -> None:
    body = as_json("meta-llama/Llama-2-7b-hf")
    assert (body["parameters"], body["supports_masks"], body["tokenizer"]) == (6_738_415_616, True, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no folder 'nowhere'"),
        (["/no/where"], "there is no folder '/no/where'"),
        (
            ["{empty}"],
            "is neither a corpus (corpus.json), a run (recipe.yaml) nor a model (config.json)\nFor token files",
        ),
        (
            ["{runs}"],
            "is neither a corpus (corpus.json), a run (recipe.yaml) nor a model (config.json)\nIt holds some: ",
        ),
        (["{run}", "--verify"], "--verify needs a corpus, and "),
        (["{run}", "--tokens", "1B"], "--tokens needs a corpus, and "),
        (["meta-llama/Llama-2-7b-hf", "--recipe", "quickstart"], "--recipe needs a corpus, and "),
    ],
)
def test_what_is_none_of_them(run_folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "runs": run_folder.parent, "run": run_folder}
    with pytest.raises(ConfigError) as refusal:
        run(*(word.format(**places) for word in arguments))
    assert message in str(refusal.value)
    assert len(str(refusal.value).splitlines()) <= 2
