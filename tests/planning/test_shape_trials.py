"""A search by short runs halves its candidates, resumes, and returns what whole runs of the same recipes reach."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, OlmoeConfig

from drpruning.cli import group
from drpruning.cli.render.plan import trials
from drpruning.config import RunConfig
from drpruning.planning.recipe import plan_recipe
from drpruning.planning.shape_trials import LATENCY, SCORES, Search, Trial, search_by_training
from drpruning.recipes import load_recipe
from drpruning.records import Evaluated, StageEnded, StepTaken, read_records
from drpruning.train.loop import Interrupted
from tests.train.conftest import cache, corpus_folder, recipe

__all__ = ["cache", "corpus_folder", "recipe"]

SHAPES = [
    {"layers": layers, "hidden": hidden, "heads": 2, "kv_heads": 1, "intermediate": intermediate}
    for layers, hidden, intermediate in ((2, 24, 32), (3, 32, 48), (1, 8, 8))
]
CALIBRATION = {"tokens": 512, "rows": "even", "combine": "even"}


@pytest.fixture
def config(recipe: Callable[..., RunConfig]) -> RunConfig:
    return recipe(
        pretrain={"steps": 8, "seed": 3},
        prune={"calibration": CALIBRATION, "repair": 0.01},
        **{"continue": {"eval_every": 1, "distill": {"weight": 0.9}}},
    )


def search(config: RunConfig, folder: Path, **changes: Any) -> Search:
    return replace(Search(config=config, shapes=SHAPES, folder=folder, steps=2, rungs=2, decode_tokens=2), **changes)


def never() -> bool:
    return False


def without_latency(trials: list[Trial]) -> list[Trial]:
    return [replace(trial, decode_seconds=None) for trial in trials]


def test_a_search_halves_its_candidates_and_resumes(config: RunConfig, tmp_path: Path) -> None:
    rungs: list[tuple[int, int]] = []
    found = search(config, tmp_path / "whole")
    result = search_by_training(found, on_trial=lambda rung, trial: rungs.append((rung, trial.steps)), stop=never)
    assert rungs == [(1, 2)] * 3 + [(2, 4)] * 2
    assert [trial.steps for trial in result.trials] == [4, 4, 2]
    assert result.trials[0].score("worst") <= result.trials[1].score("worst")
    assert all((trial.decode_seconds or 0) > 0 for trial in result.trials)

    # ---- a candidate that was stopped in between took the steps of one run, each once
    best = found.run_folder(result.trials[0].shape)
    records = list(read_records(best.metrics))
    steps = [each.step for each in records if isinstance(each, StepTaken) and each.stage == "continue"]
    assert steps == [1, 2, 3, 4]
    last = next(each for each in reversed(records) if isinstance(each, Evaluated))
    ended = next(each for each in records if isinstance(each, StageEnded) and each.stage == "continue")
    assert result.trials[0].losses == last.losses
    cut = plan_recipe(found.recipe(result.trials[0].shape)).stages[1].flops
    assert cut.repair > 0
    assert result.trials[0].charged_flops == cut.repair + ended.charged_flops
    assert result.charged_flops == result.importance_flops + sum(trial.charged_flops for trial in result.trials)
    assert result.importance_flops > 0

    # ---- finished candidates are read back
    scores, latency = found.folder / "base" / SCORES, best.path / LATENCY
    before = [file.stat().st_mtime_ns for file in (best.metrics, scores, latency)]
    again = search_by_training(search(config, tmp_path / "whole"), stop=never)
    assert again == result
    assert [file.stat().st_mtime_ns for file in (best.metrics, scores, latency)] == before

    # ---- an interrupted search ends with the same weights
    for number in (2, 4):  # during the cuts, then within a rung
        calls = count(1)
        with pytest.raises(Interrupted):
            search_by_training(
                search(config, tmp_path / "cut"), stop=lambda calls=calls, last=number: next(calls) >= last
            )
    resumed = search_by_training(search(config, tmp_path / "cut"), stop=never)
    assert without_latency(resumed.trials) == without_latency(result.trials)
    weights, other = (
        load_file(search(config, tmp_path / name).run_folder(result.trials[0].shape).export / "model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(weight, other[name]) for name, weight in weights.items())


def test_the_command_prints_and_writes_the_best_shape(config: RunConfig, tmp_path: Path) -> None:
    file, written = tmp_path / "tiny.yaml", tmp_path / "best.yaml"
    body = config.to_dict()
    body["model"]["architecture"]["vocabulary"] = 280
    file.write_text(yaml.safe_dump(body))
    command = ["plan", "search", str(file), "--params", "24k", "--round-to", "8", "--candidates", "2", "--steps", "1"]
    command += ["--rungs", "1", "--decode-tokens", "0", "--out", str(tmp_path / "out"), "--write", str(written)]
    result = CliRunner().invoke(group, [*command, "--json"])
    assert result.exit_code == 0, result.stderr
    body = json.loads(result.stdout)
    first, second = body["candidates"]
    assert first["worst_excess"] <= second["worst_excess"]
    assert load_recipe(str(written)).pruning.target.model_dump(exclude_none=True) == first["shape"]
    assert "exists already" in str(CliRunner().invoke(group, command).exception)


def test_the_command_trains_the_shapes_of_a_budget_of_memory(config: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    body = config.to_dict()
    body["model"]["architecture"]["vocabulary"] = 280
    file.write_text(yaml.safe_dump(body))
    budget = ["--max-memory", f"{60e3 / 2**30}", "--decode-context", "16", "--round-to", "8"]
    proposed = CliRunner().invoke(group, ["plan", "shape", str(file), *budget, "--json"])
    command = ["plan", "search", str(file), *budget, "--candidates", "1", "--steps", "1", "--rungs", "1", "--json"]
    trained = CliRunner().invoke(group, [*command, "--decode-tokens", "0", "--out", str(tmp_path / "out")])
    assert (proposed.exit_code, trained.exit_code) == (0, 0), proposed.stderr + trained.stderr
    best, [trial] = json.loads(proposed.stdout)["candidates"][0], json.loads(trained.stdout)["candidates"]
    assert {name: best[name] for name in trial["shape"]} == trial["shape"]
    assert best["parameters"] == trial["parameters"]
    assert best["memory_bytes"] <= 60e3


def test_shapes_with_fewer_experts_are_candidates(recipe: Callable[..., RunConfig], tmp_path: Path) -> None:
    source = OlmoeConfig(
        vocab_size=280, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=16, num_experts=6,
        num_experts_per_tok=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(source).save_pretrained(tmp_path / "source")
    shape = {"layers": 2, "hidden": 24, "heads": 3, "kv_heads": 3, "intermediate": 8}
    shapes = [{**shape, "experts": experts} for experts in (2, 4)]
    config = recipe(
        model={"source": str(tmp_path / "source"), "architecture": None},
        pretrain=None,
        prune={"target": shapes[0], "calibration": {"tokens": 512}},
    )
    found = Search(config=config, shapes=shapes, folder=tmp_path / "out", steps=1, rungs=1, decode_tokens=0)
    result = search_by_training(found, stop=never)
    assert {trial.shape["experts"] for trial in result.trials} == {2, 4}
    assert not any(trial.failure for trial in result.trials)
    output = io.StringIO()
    trials(found, result, None).write(Console(file=output, width=80))
    shown = output.getvalue()
    assert "Not shown: loss, ms per token, charged FLOPs. --json has all columns." in " ".join(shown.split())
    assert "…" not in shown  # every number is whole
    assert "    experts: " in shown
