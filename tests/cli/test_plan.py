"""`drpruning plan`: what it prints, what it returns, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from drpruning.cli import group, main
from drpruning.pruning import Norm
from drpruning.pruning.architectures import ARCHITECTURES


def planned(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(group, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "\N{HORIZONTAL ELLIPSIS}" not in result.stdout
    return result.output


def test_a_recipe_as_json() -> None:
    body = json.loads(planned("cost", "llama2-7b-to-1.3b", "--json"))
    assert body["source_parameters"] == 6738415616
    assert body["target"] == {"layers": 24, "hidden": 2048, "heads": 16, "kv_heads": 16, "intermediate": 5504}


def test_the_shapes_between_cycles_prune_the_same_fraction_each() -> None:
    cycles = ("--set", "prune.cycles=4")
    body = json.loads(planned("cost", "llama2-7b-to-1.3b", *cycles, "--json"))
    assert body["cycles"][-1]["sizes"] == body["target"]
    assert body["cycles"][-1]["parameters"] == body["target_parameters"]
    assert 0.3 < min(cycle["pruned"] for cycle in body["cycles"]) < max(c["pruned"] for c in body["cycles"]) < 0.4
    heads = [cycle["sizes"]["heads"] for cycle in body["cycles"]]
    assert heads == sorted(heads, reverse=True)
    shown = planned("cost", "llama2-7b-to-1.3b", *cycles)
    assert "cycle 3" in shown
    assert "of the block parameters left" in " ".join(shown.split())


def test_no_table_is_cut_at_80_columns() -> None:
    shown = planned("cost", "llama2-7b-to-1.3b", "--gpus", "8xH100", "--gpu-hour-price", "2.50")
    assert {"price", "tokens/s", "share"} <= set(shown.split())
    assert "transformers" in planned("check", "llama2-7b-to-1.3b")


def test_a_target_given_by_name_replaces_the_recipes() -> None:
    body = json.loads(planned("cost", "llama2-7b-to-1.3b", "--target", "layers=16", "--json"))
    assert body["target"] == {"layers": 16, "hidden": 4096, "heads": 32, "kv_heads": 32, "intermediate": 11008}


def test_proposals_fit_on_a_terminal_and_lead_to_a_command_that_works() -> None:
    shown = planned("shape", "qwen2-7b-to-1.8b", "--params", "1.8B", "--accelerator", "l40s")
    table = [line for line in shown.splitlines() if line.startswith(("layers", "24", "21", "28"))]
    assert len(table) >= 3
    assert all(len(line) <= 80 and "…" not in line for line in table)
    command = next(line for line in shown.splitlines() if line.startswith("  drpruning plan"))
    assert "loads" in planned(*command.split()[2:])


def test_proposals_as_json() -> None:
    body = json.loads(
        planned("shape", "meta-llama/Llama-3.1-8B", "--max-kv-bytes", "64k", "--max-decode-ms", "3", "--json")
    )
    assert body["budget"] == {"cache_bytes": 64000, "decode_seconds": 0.003}
    assert len(body["candidates"]) == 5
    for candidate in body["candidates"]:
        assert candidate["cache_bytes_per_token"] <= 64000
        assert candidate["decode_ms"] <= 3
        assert candidate["training_hours"] > 0


def test_a_model_alone_is_described() -> None:
    shown = planned("shape", "meta-llama/Llama-3.1-8B", "--target", "layers=16")
    assert "8,030,261,248 parameters" in shown
    assert "target: layers 16, hidden 4,096" in shown


def test_a_check_that_fails_is_an_error_after_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "check", "llama2-7b-to-2.7b", "--tensor-parallel", "8", "--json"])
    assert exit_.value.code == 2
    message = capsys.readouterr()
    body = json.loads(message.out)
    assert [verdict["outcome"] for verdict in body["loaders"]] == ["loads", "loads", "refuses", "loads"]
    assert body["loaders"][2]["problems"][0] == {"field": "heads", "got": 20, "allowed": "a multiple of the 8 GPUs"}
    assert message.err.startswith("ConfigError: vLLM, 8 GPUs would refuse the target: heads is 20")
    assert "Nearest shape that all loaders accept: layers=32, hidden=2304, heads=24" in message.err


def test_a_class_is_verified_and_a_wrong_description_is_an_error_after_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.loads(planned("verify", "olmo2", "--json"))
    assert body["model_type"] == "olmo2"
    assert all(check["passed"] for check in body["checks"])
    monkeypatch.setitem(ARCHITECTURES, "olmo2", replace(ARCHITECTURES["olmo2"], norm=Norm(offset=1.0)))
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "verify", "olmo2"])
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert "masks at one = stock, untied" in printed.out
    assert printed.err.startswith("ArchitectureError: the description of architecture 'olmo2' is wrong: masks at one")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "gpt2/config.json"], "no model 'gpt2/config.json'"),
        (["shape", "quickstart", "--params", "many"], "--params is 'many'; expected a positive number"),
        (["shape", "quickstart", "--params", "0"], "--params is '0'; expected a positive number"),
        (["cost", "quickstart", "--target", "layer=3"], "--target has 'layer=3'; each part must be NAME=SIZE"),
        (["cost", "quickstart", "--target", "layers=x"], "--target layers must be a whole number, got 'x'"),
        (["cost", "quickstart", "--target", "layers=9"], "larger than the source's 6"),
        (["shape", "quickstart", "--params", "1M", "--target", "layers=3"], "--target names one shape"),
        (["cost", "quickstart", "--gpu-hour-price", "2"], "--gpu-hour-price needs --gpus"),
        (["cost", "meta-llama/Llama-3.1-8B"], "'meta-llama/Llama-3.1-8B' is a model; expected a recipe"),
        (["shape", "quickstart", "--params", "1M", "--accelerator", "H1000"], "unknown accelerator 'H1000'"),
        (["cost", "nowhere"], "no recipe 'nowhere'"),
        (["shape", "nowhere/config.json", "--params", "1B"], "no model 'nowhere/config.json'"),
        (["shape", "/nowhere", "--params", "1B"], "no model '/nowhere'"),  # one slash, as a name on the hub
        (["verify", "no--where/model"], "no model 'no--where/model'"),
    ],
)
def test_what_cannot_work_is_refused_in_two_lines(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as exit_:
        main(["plan", *arguments])
    assert exit_.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.strip().splitlines()) <= 2
