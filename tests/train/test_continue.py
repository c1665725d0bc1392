"""Continued pretraining without a stage prune: any causal model, any strategy, and what such a recipe refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, Gemma2Config, OlmoConfig

from drpruning.cli import group
from drpruning.comparison.methods import choose_methods
from drpruning.comparison.results import collect
from drpruning.comparison.runs import Comparison
from drpruning.comparison.scheduler import run_jobs
from drpruning.comparison.tables import make_tables
from drpruning.config import RunConfig
from drpruning.errors import ConfigError
from drpruning.hf.models import build_on_meta
from drpruning.recipes import load_recipe, parse_recipe
from drpruning.records import Evaluated, Kept, ModelMeasured, RunStarted, StageEnded, StepTaken, read_records
from drpruning.report import open_run, write_report
from drpruning.train.loop import Interrupted
from drpruning.train.losses import token_losses
from drpruning.train.model_structure import decoder_blocks, has_plain_head, products_of_model
from drpruning.train.run import train
from tests.train.processes import kill_at

CONFIGS: dict[str, Any] = {
    "olmo": OlmoConfig(
        vocab_size=280, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, attention_dropout=0.1,
    ),
    "gemma2": Gemma2Config(
        vocab_size=280, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=64, max_position_embeddings=64, sliding_window=32,
    ),
}  # fmt: skip

Recipe = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of random models by model type; masks do not support the first."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return folder


@pytest.fixture
def continued(recipe: Recipe, models: Path) -> Recipe:
    """Return the tiny recipe without a prune stage, for a model type; other arguments are sections to merge in."""

    def make(name: str = "olmo", **changes: Any) -> RunConfig:
        alone = {"source": str(models / name), "architecture": None}
        return recipe(**{"model": alone, "pretrain": None, "prune": None, **changes})

    return make


def last_losses(run: Path) -> dict[str, dict[str, float]]:
    records = read_records(run / "metrics.jsonl")
    return {record.model: record.losses for record in records if isinstance(record, ModelMeasured)}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_that_masks_refuse_is_pretrained_further_and_reported(
    continued: Recipe, models: Path, tmp_path: Path, name: str
) -> None:
    config = continued(name)
    train(config, tmp_path / "run")
    records = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    assert [record.model for record in records if isinstance(record, ModelMeasured)] == ["base", "recovered"]
    assert not any(isinstance(record, Kept) for record in records)
    assert {record.stage for record in records if isinstance(record, StepTaken)} == {"continue"}
    assert not (tmp_path / "run" / "pruned").exists()
    first = next(record for record in records if isinstance(record, Evaluated))
    assert first.reference_loss == pytest.approx(first.losses)  # `base`: the source on the same rows
    losses = last_losses(tmp_path / "run")
    assert all(losses["recovered"][domain] < losses["base"][domain] for domain in config.domains)
    before = AutoModelForCausalLM.from_pretrained(models / name)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")
    assert {key: value.shape for key, value in before.state_dict().items()} == {
        key: value.shape for key, value in after.state_dict().items()
    }
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert '<section id="kept" hidden>' in page
    assert '<section id="sparsity" hidden>' in page
    table = page.split('data-part="outcome"')[1].split("</table>")[0]
    assert ">recovered<" in table
    assert ">pruned<" not in table
    assert "after pruning" not in table


def test_a_killed_run_resumes_to_the_same_bits(continued: Recipe, tmp_path: Path) -> None:
    config = continued()
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    train(config, tmp_path / "whole")
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "killed")]
    kill_at(arguments, tmp_path / "killed", tmp_path / "log", records=11)
    train(config, tmp_path / "killed", resume=True)
    assert [(tmp_path / run / "export" / "model.safetensors").read_bytes() for run in ("whole", "killed")].count(
        (tmp_path / "whole" / "export" / "model.safetensors").read_bytes()
    ) == 2
    evaluations = [
        [record for record in read_records(tmp_path / run / "metrics.jsonl") if isinstance(record, Evaluated)]
        for run in ("whole", "killed")
    ]
    assert [item.weights for item in evaluations[0]] == [item.weights for item in evaluations[1]]


@pytest.mark.parametrize("source", ["pretrain", "scratch"])
def test_a_base_trained_on_the_spot_and_new_weights_are_continued(recipe: Recipe, tmp_path: Path, source: str) -> None:
    config = recipe(model={"source": source}, prune=None)
    assert config.stages == (["pretrain", "continue"] if source == "pretrain" else ["continue"])
    train(config, tmp_path / "run")
    assert set(last_losses(tmp_path / "run")) == ({"base", "recovered"} if source == "pretrain" else {"recovered"})
    assert json.loads((tmp_path / "run" / "export" / "config.json").read_text())["hidden_size"] == 32
    write_report(tmp_path / "run")


def test_an_interrupted_scratch_run_resumes_to_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(model={"source": "scratch"}, prune=None)
    train(config, tmp_path / "whole")
    calls = iter(range(100))
    with pytest.raises(Interrupted):
        train(config, tmp_path / "stopped", stop=lambda: next(calls) >= 4)
    train(config, tmp_path / "stopped", resume=True)
    files = [(tmp_path / run / "export" / "model.safetensors").read_bytes() for run in ("whole", "stopped")]
    assert files[0] == files[1]


def test_a_run_with_a_budget_that_is_killed_before_its_export_resumes_to_the_same_bits(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that the stage's own FLOPs, which are in the records already, are not deducted from its budget."""
    config = recipe(model={"source": "scratch"}, prune=None, **{"continue": {"charged_flops": 3e8}})
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("drpruning.train.stages.save_model", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "killed")
    train(config, tmp_path / "killed", resume=True)
    files = [(tmp_path / run / "export" / "model.safetensors").read_bytes() for run in ("whole", "killed")]
    assert files[0] == files[1]
    whole, killed = (
        [each for each in read_records(tmp_path / run / "metrics.jsonl") if isinstance(each, StageEnded)]
        for run in ("whole", "killed")
    )
    assert [(each.steps, each.flops) for each in whole] == [(each.steps, each.flops) for each in killed]
    assert whole[0].steps != config.continue_.steps
    assert whole[0].charged_flops == pytest.approx(config.continue_.charged_flops, rel=0.5 / whole[0].steps)


@pytest.mark.parametrize("strategy", ["constant", "sheared", "cvar", "ado"])
def test_other_strategies(continued: Recipe, tmp_path: Path, strategy: str) -> None:
    train(continued(mixture={"strategy": strategy, "min_points": None}), tmp_path / "run")
    started = next(record for record in read_records(tmp_path / "run" / "metrics.jsonl"))
    assert isinstance(started, RunStarted)
    assert started.stages == ["continue"]
    assert started.strategy == strategy


def test_a_schedule_of_the_stage_continue_is_replayed(continued: Recipe, tmp_path: Path) -> None:
    early, late = {"sums": 0.5, "words": 0.3, "records": 0.2}, {"sums": 0.1, "words": 0.1, "records": 0.8}
    before = {"at": 0, "weights": dict.fromkeys(early, 1 / 3)}
    changes = [{"at": 0, "weights": early}, {"at": 4, "weights": late}]
    weights = []
    for stages in ({"continue": changes}, {"prune": [before], "continue": changes}):
        folder = tmp_path / str(len(stages))
        train(continued(mixture={"strategy": "schedule", "min_points": None, "schedule": {"stages": stages}}), folder)
        found = [record.weights for record in read_records(folder / "metrics.jsonl") if isinstance(record, Evaluated)]
        weights.append(found)
    assert weights[0] == weights[1] == [early, early, late, late, late]


def test_a_schedule_without_the_stage_continue_is_refused(continued: Recipe, tmp_path: Path) -> None:
    stages = {"prune": [{"at": 0, "weights": {"sums": 0.5, "words": 0.3, "records": 0.2}}]}
    config = continued(mixture={"strategy": "schedule", "min_points": None, "schedule": {"stages": stages}})
    with pytest.raises(ConfigError, match="the schedule has the stages prune; the strategy works in continue"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_source_model_is_the_teacher(continued: Recipe, tmp_path: Path, name: str) -> None:
    settings = {"weight": 0.5, "hidden_weight": 1.0}
    train(continued(name, **{"continue": {"distill": settings, "steps": 2}}), tmp_path / "run")
    assert set(last_losses(tmp_path / "run")) == {"base", "recovered"}


def test_a_student_that_is_its_teacher_has_nothing_to_learn(continued: Recipe, models: Path) -> None:
    from drpruning.config import DistillConfig
    from drpruning.train.distill import Distiller

    student, teacher = (AutoModelForCausalLM.from_pretrained(models / "gemma2").eval() for _ in range(2))
    tokens = torch.arange(40).view(2, 20)
    distilled = Distiller(DistillConfig(weight=1.0, hidden_weight=1.0), teacher).losses(student, tokens)
    assert distilled.objective.abs().max() < 1e-5  # float32: sums of 280 probabilities, 280 * 6e-8 = 2e-5 at the worst


def test_losses_in_chunks_only_where_the_logits_are_the_heads(models: Path) -> None:
    found = {name: has_plain_head(build_on_meta(config)) for name, config in CONFIGS.items()}
    assert found == {"olmo": True, "gemma2": False}  # Gemma 2 caps its logits
    tokens = torch.arange(40).view(2, 20)
    for name in CONFIGS:
        model = AutoModelForCausalLM.from_pretrained(models / name).eval()
        assert len(decoder_blocks(model)) == 2
        expected = model(input_ids=tokens, labels=tokens).loss.item()
        assert token_losses(model, tokens).mean().item() == pytest.approx(expected, abs=1e-5)


def test_operations_of_another_architecture_are_counted_from_its_weights() -> None:
    model = build_on_meta(CONFIGS["olmo"])
    matrices = 2 * (4 * 32 * 32 + 3 * 32 * 64) + 32 * 280
    assert products_of_model(model, 16) == matrices + 2 * 32 * 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": {"stages": ["prune", "continue"]}}, "mixture.stages names the stage prune"),
        ({"prune": {"target": {"layers": 1}}}, "settings prune.steps, prune.batch_size, .* are missing"),
        ({"continue": {"distill": {"teacher": "self"}}}, "distill.teacher `self` is for the prune stage"),
    ],
)
def test_recipes_that_are_refused(continued: Recipe, changes: dict[str, Any], message: str) -> None:
    body = continued().to_dict()
    for section, change in changes.items():
        body[section] = {**(body[section] or {}), **change}
    with pytest.raises(ConfigError, match=message):
        parse_recipe(body)


def test_models_and_settings_that_are_refused_before_anything_is_written(
    continued: Recipe, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="needs logits that are the output layer's output"):
        train(continued("gemma2", training={"cross_entropy": "chunked"}), tmp_path / "run")
    quantised = tmp_path / "quantised"
    shutil.copytree(models / "olmo", quantised)
    body = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps({**body, "quantization_config": {"bits": 4}}))
    with pytest.raises(ConfigError, match="the model is quantised"):
        train(continued(model={"source": str(quantised), "architecture": None}), tmp_path / "run")
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 280, "num_layers": 2}))
    with pytest.raises(ConfigError, match="builds no causal language model from a configuration of type 't5'"):
        train(continued(model={"source": str(encoder), "architecture": None}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_default_of_the_stages_follows_the_recipe(continued: Recipe, recipe: Recipe) -> None:
    assert continued().mixture.stages == ("continue",)
    assert recipe().mixture.stages == ("prune", "continue")
    again = parse_recipe(continued().to_dict())
    assert again == continued()
    assert again.with_strategy("constant").mixture.stages == ("continue",)


def test_plans_of_other_architectures(continued: Recipe, models: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(continued().to_yaml())

    def planned(*arguments: str, command: str = "cost") -> str:
        result = CliRunner().invoke(group, ["plan", command, str(file), *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    body = json.loads(planned("--json"))
    model = AutoModelForCausalLM.from_pretrained(models / "olmo")
    assert body["source_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert body["target"] is None
    assert [(stage["name"], stage["tokens"]) for stage in body["stages"]] == [("continue", 8 * 8 * 32)]
    assert body["stages"][0]["flops"]["training"] == 8 * 8 * 32 * 6 * products_of_model(model, 32)
    assert "target" not in planned()
    costs = json.loads(planned("--gpus", "H100", "--json"))
    assert costs["fits"]
    states = [costs["stages"][0]["memory"]["parts"][part] for part in ("weights", "moments")]
    assert states[0] == pytest.approx(4 * body["source_parameters"], rel=0.02)  # buffers of the rotary embedding too
    assert states[1] == pytest.approx(8 * body["source_parameters"], rel=0.02)  # and a step counter a parameter
    with pytest.raises(ConfigError, match="has no stage prune"):
        planned("--target", "layers=1")
    with pytest.raises(ConfigError, match="has no stage prune"):
        planned(command="check")


def test_two_strategies_are_compared(continued: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(continued(training={"final_eval_tokens": 2048}, **{"continue": {"steps": 4}}).to_yaml())
    comparison = Comparison(str(file), [], choose_methods(["constant", "drpruning"], []), [17], tmp_path / "out")
    comparison.check()
    progress = run_jobs(comparison, parallel=1, on_end=lambda *_: None, stop=lambda: False)
    assert not progress.failed
    results = collect(comparison, progress.failed)
    assert [run.method for run in results.runs] == ["constant", "drpruning"]
    assert results.base[17]
    titles = [table.title for table in make_tables(results, ["constant"])]
    assert titles[0] == "Held-out loss, nats per token"
    assert titles[1] == "Excess over the base model, nats per token"
    assert not any("prune" in title for title in titles)


def test_a_method_that_prunes_is_refused(continued: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(continued().to_yaml())
    (tmp_path / "methods.yaml").write_text("methods: {later: {strategy: sheared, set: {prune.eval_every: 1}}}")
    methods = choose_methods(["later"], [str(tmp_path / "methods.yaml")])
    comparison = Comparison(str(tmp_path / "recipe.yaml"), [], methods, [17], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"method 'later' sets prune.eval_every, and the recipe 'tiny' has no"):
        comparison.check()


def test_a_run_folder_shows_its_table_without_columns_of_pruning(continued: Recipe, tmp_path: Path) -> None:
    train(continued(**{"continue": {"steps": 2}}), tmp_path / "run")
    summary = CliRunner().invoke(group, ["report", str(tmp_path / "run"), "--json"], catch_exceptions=False)
    assert json.loads(summary.output)["facts"]["Parameters"] == "38.4k → 38.4k"
    assert open_run(tmp_path / "run").started.stages == ["continue"]  # type: ignore[union-attr]


def test_the_shipped_recipe_continues(models: Path) -> None:
    config = load_recipe("continue")
    assert config.prune is None
    assert config.stages == ["continue"]
