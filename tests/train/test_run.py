"""A whole run, small: what it leaves behind, and that stopping it anywhere changes nothing."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from drpruning.config import RunConfig, presets
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, CorpusError, StateError
from drpruning.files import MARK, locked
from drpruning.hf.models import load
from drpruning.loss_table import read_losses
from drpruning.mixture import build
from drpruning.prepare.recipe_corpus import open_corpus
from drpruning.prepare.tokenize.tokenizer import train_tokenizer
from drpruning.records import (
    Evaluated,
    Incident,
    Kept,
    ModelMeasured,
    RunEnded,
    RunStarted,
    StageEnded,
    StepTaken,
    read_records,
)
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.loop import Interrupted
from drpruning.train.optimizers.build import learning_rates
from drpruning.train.run import train
from drpruning.train.stages import enter_phase
from drpruning.train.validation import HeldOutLosses, Validator

Recipe = Callable[..., RunConfig]


def weights(run: Path) -> str:
    """Return a digest of the exported tensors."""
    return hashlib.sha256((run / "export" / "model.safetensors").read_bytes()).hexdigest()


def test_a_replay_of_a_stage_with_its_learning_rates_predicts_the_same(recipe: Recipe, tmp_path: Path) -> None:
    early = {"predict_after_fraction": 0.1, "collect_after_fraction": 0.0, "max_band": 9.0}
    config = recipe(mixture=early, **{"continue": {"steps": 16, "eval_every": 1}})
    folder = tmp_path / "run"
    train(config, folder)
    table = read_losses(folder)
    assert table.learning_rates == learning_rates(config.stage("continue"), tokens_per_step=8 * 32)
    records = [each for each in read_records(folder / "metrics.jsonl") if isinstance(each, Evaluated)]
    recorded = [each.predicted_loss for each in records if each.stage == "continue"]
    strategy = build("drpruning", config.mixture.settings())
    state = strategy.init(config.domains, config.data.reference_ratio)
    replayed = []
    for seen in table.observations():
        state, update = strategy.update(state, seen)
        replayed.append(update.predicted_loss)
    assert replayed == recorded
    assert any(recorded)


@pytest.mark.parametrize("stage", ["prune", "continue"])
def test_a_strategy_in_one_stage_leaves_the_ratio_alone_in_the_other(
    recipe: Recipe, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setenv("DRPRUNING_CACHE", str(finished.parent / "cache"))  # the base is there
    config = recipe(mixture={"stages": [stage]})
    train(config, tmp_path / "run")
    records = [each for each in read_records(tmp_path / "run" / "metrics.jsonl") if isinstance(each, Evaluated)]
    for name in ("prune", "continue"):
        weights = [each.weights for each in records if each.stage == name]
        still = [each == pytest.approx(config.data.reference_ratio) for each in weights]
        assert all(still) == (name != stage)


def test_the_files_of_a_run_folder(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"recipe.yaml", "metrics.jsonl", "checkpoints", "pruned", "export", "compare"}
    assert {path.name for path in (finished / "compare").iterdir()} == {"constant"}
    assert list((finished / "checkpoints").iterdir()) == []


def test_the_target_is_met_exactly(finished: Path) -> None:
    for name in ("pruned", "export"):
        config = json.loads((finished / name / "config.json").read_text())
        assert config["num_hidden_layers"] == 2
        assert config["hidden_size"] == 24
        assert config["num_attention_heads"] == 2
        assert config["num_key_value_heads"] == 1
        assert config["intermediate_size"] == 32
        assert config["head_dim"] == 8


def test_the_export_is_an_ordinary_model_with_the_losses_of_the_table(finished: Path, corpus_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "export")
    measured = [record for record in read_records(finished / "metrics.jsonl") if isinstance(record, ModelMeasured)]
    table = {record.model: record.losses for record in measured}["recovered"]
    corpus = Corpus.open(corpus_folder)
    for domain, loss in table.items():
        rows = torch.from_numpy(corpus.held_out_rows(domain, seq_len=32, max_tokens=512))
        assert model(input_ids=rows, labels=rows).loss.item() == pytest.approx(loss, abs=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(finished / "export")
    prompt = tokenizer("1 + 2 =", return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] == prompt["input_ids"].shape[1] + 4


def test_records_of_a_whole_run(finished: Path) -> None:
    records = list(read_records(finished / "metrics.jsonl"))
    assert [record.model for record in records if isinstance(record, ModelMeasured)] == ["base", "pruned", "recovered"]
    assert [record.stage for record in records if isinstance(record, StageEnded)] == ["pretrain", "prune", "continue"]
    for stage in ("pretrain", "prune", "continue"):
        steps = [record.step for record in records if isinstance(record, StepTaken) and record.stage == stage]
        assert steps == list(range(1, 9))
    evaluated = [record for record in records if isinstance(record, Evaluated)]
    assert [record.step for record in evaluated if record.stage == "prune"] == [0, 2, 4, 6, 8]
    for record in evaluated:
        assert sum(record.weights.values()) == pytest.approx(1)
        assert all(weight >= 0 for weight in record.weights.values())
    kept = next(record for record in records if isinstance(record, Kept))
    assert len(kept.layers) == 2
    assert len(kept.hidden) == 24
    assert [len(row) for row in kept.intermediate] == [32, 32]
    assert isinstance(records[-1], RunEnded)


def test_the_comparison_starts_from_the_same_base_and_has_constant_weights(finished: Path) -> None:
    compared = list(read_records(finished / "compare" / "constant" / "metrics.jsonl"))
    here = list(read_records(finished / "metrics.jsonl"))

    def base(records: list[object]) -> dict[str, float]:
        return next(record.losses for record in records if isinstance(record, ModelMeasured) and record.model == "base")

    assert base(compared) == base(here)
    for record in compared:
        if isinstance(record, Evaluated) and record.stage != "pretrain":
            assert record.weights == {"sums": 0.7, "words": 0.2, "records": 0.1}


def test_a_finished_run_is_unchanged(finished: Path, recipe: Recipe) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    train(recipe(also_run=["constant"]), finished, resume=True)
    assert (finished / "metrics.jsonl").read_bytes() == before


def stop_after(calls: int) -> Callable[[], bool]:
    """Return a function that is True from the given call on, which stops a run after that many steps."""
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count >= calls

    return stop


@pytest.mark.parametrize("reference", [None, "base"])
def test_stopped_after_every_step_and_resumed_the_weights_are_the_same(
    reference: str | None, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop 12 times, in stages of 4 steps with as many evaluations as the other runs: the law has its points."""
    short = {"steps": 4, "eval_every": 1}
    config = recipe(mixture={"reference_loss": reference}, pretrain=short, prune=short, **{"continue": short})
    finished, run = tmp_path / "finished", tmp_path / "run"
    train(config, finished)
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path / "another-cache"))  # so that the base is trained again
    for _ in range(12):
        with pytest.raises(Interrupted):
            train(config, run, resume=True, stop=stop_after(1))
    train(config, run, resume=True)
    assert weights(run) == weights(finished)
    records = [record for record in read_records(run / "metrics.jsonl") if not isinstance(record, Incident)]
    whole = [record for record in read_records(finished / "metrics.jsonl") if not isinstance(record, Incident)]
    assert [losses(record) for record in records] == [losses(record) for record in whole]


def test_a_stage_with_the_settings_of_the_public_code_resumes_with_the_same_weights(
    recipe: Recipe, tmp_path: Path
) -> None:
    """Check the weights; the steps also assert that no active unit is missed, at a rate that changes with each step."""
    config, whole, parts = recipe(prune=presets.PRUNE), tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    for calls in (9, 2, 3):  # after the base and 1, 3 and 6 steps of the prune stage
        with pytest.raises(Interrupted):
            train(config, parts, resume=True, stop=stop_after(calls))
    train(config, parts, resume=True)
    assert weights(parts) == weights(whole)
    stored = load_file(parts / "pruned" / "masks.safetensors")
    assert all(((mask > 0) & (mask < 1)).any() for name, mask in stored.items() if name.startswith("mask."))


def test_cycles_of_deterministic_gates_resume_with_the_same_weights_and_meet_the_target(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop after 1, 4 and 6 of 8 steps: also right before the units are scored again, at the second cycle."""
    cycles = {"gates": "deterministic", "gate_init": "taylor", "cycles": 2, "rescore_cycles": True}
    config, whole, parts = recipe(prune=cycles), tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path / "another-cache"))  # so that the base is trained again
    for calls in (9, 3, 2):  # the first 8 steps are the base's
        with pytest.raises(Interrupted):
            train(config, parts, resume=True, stop=stop_after(calls))
    train(config, parts, resume=True)
    assert weights(parts) == weights(whole)
    for run in (whole, parts):
        history = list(read_records(run / "metrics.jsonl"))
        (kept,) = [record for record in history if isinstance(record, Kept)]
        assert all(kept.target_met.values())
        assert kept.steps_at_target == 2  # the second rise takes two of four steps
        first = next(record for record in history if isinstance(record, Evaluated) and record.stage == "prune")
        (base,) = [record for record in history if isinstance(record, ModelMeasured) and record.model == "base"]
        assert first.losses == base.evaluation_losses
        assert first.parameters == base.parameters


def losses(record: object) -> object:
    """Return a record without fields that depend on the clock and the folder."""
    match record:
        case StepTaken():
            return record.stage, record.step, record.loss, record.grad_norm
        case Evaluated():
            return record.stage, record.step, record.losses, record.weights, record.standard_errors
        case ModelMeasured():
            return record.model, record.losses, record.evaluation_losses
        case _:
            return type(record)


def test_a_folder_in_use_is_refused(finished: Path, recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        train(recipe(), finished)


def test_a_folder_that_another_process_uses_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe(), run, stop=stop_after(1))
    with locked(run), pytest.raises(StateError, match="another process uses"):
        train(recipe(), run, resume=True)


def test_another_recipe_is_refused_with_the_differing_settings(finished: Path, recipe: Recipe) -> None:
    with pytest.raises(StateError, match=r"different: seed"):
        train(recipe(seed=1), finished, resume=True)


@pytest.mark.parametrize("over", [False, True])
def test_a_run_is_not_resumed_on_another_corpus(
    over: bool, recipe: Recipe, corpus_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    config, run = recipe(data={"corpus": str(folder)}), tmp_path / "run"
    if over:
        train(config, run)
    else:
        with pytest.raises(Interrupted):
            train(config, run, stop=stop_after(2))
    before, recorded = (run / "metrics.jsonl").read_bytes(), Corpus.open(folder).fingerprint
    described = json.loads((folder / "corpus.json").read_text())
    described["domains"] = dict(reversed(described["domains"].items()))
    (folder / "corpus.json").write_text(json.dumps(described))
    other = Corpus.open(folder).fingerprint
    assert other != recorded
    with pytest.raises(CorpusError, match=f"fingerprint is {recorded[:16]}, that of .* is {other[:16]}") as caught:
        train(config, run, resume=True)
    assert "another --out" in str(caught.value.next_step)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_is_no_run_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    for resume in (False, True):
        with pytest.raises(StateError, match="not a run folder"):
            train(recipe(), tmp_path / "thesis", resume=resume)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune": {"target": {"layers": 9}}}, "layers=9 is larger than the source's 3"),
        ({"prune": {"target": {"heads": 3}}}, "query heads"),
        ({"data": {"reference_ratio": {"sums": 0.5, "word": 0.5}}}, "the domain 'word'"),
        ({"data": {"seq_len": 128}}, "longer than the model's 64 positions"),
        ({"model": {"source": "nowhere/at/all"}}, "the model 'nowhere/at/all' cannot be loaded"),
    ],
)
def test_recipes_that_cannot_work_are_errors_before_anything_is_written(
    changes: dict[str, object], message: str, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(recipe(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_folder_is_pruned_like_a_base_of_our_own(
    finished: Path, recipe: Recipe, corpus_folder: Path, tmp_path: Path
) -> None:
    measured = [record for record in read_records(finished / "metrics.jsonl") if isinstance(record, ModelMeasured)]
    base = measured[0].path
    assert base is not None
    train(recipe(model={"source": base, "architecture": None}, pretrain=None), tmp_path / "run")
    assert weights(tmp_path / "run") == weights(finished)


def test_a_corpus_of_another_tokenizer_is_refused(finished: Path, recipe: Recipe, tmp_path: Path) -> None:
    measured = [record for record in read_records(finished / "metrics.jsonl") if isinstance(record, ModelMeasured)]
    model = tmp_path / "model"
    shutil.copytree(str(measured[0].path), model)
    train_tokenizer(["quite other text " * 50], 270, name="other").save(model)
    with pytest.raises(ConfigError, match="has another"):
        train(recipe(model={"source": str(model), "architecture": None}, pretrain=None), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_replayed_run_ends_with_the_same_weights(finished: Path, recipe: Recipe, tmp_path: Path) -> None:
    train(recipe(mixture={"strategy": "schedule", "schedule": str(finished)}), tmp_path / "run")
    assert weights(tmp_path / "run") == weights(finished)


@pytest.mark.parametrize("strategy", ["group_dro", "cvar", "chi_square", "ado", "doremi"])
def test_bounds_hold_in_a_run_whatever_the_strategy(strategy: str, recipe: Recipe, tmp_path: Path) -> None:
    bounds = {"min_share": 0.05, "max_share": {"sums": 0.6}, "max_epochs": {"records": 0.02}}
    config = recipe(mixture={"strategy": strategy, **bounds})
    train(config, tmp_path / "run")
    one_row = 1 / open_corpus(config).num_rows(config.data.seq_len)["records"]
    evaluated = [each for each in read_records(tmp_path / "run" / "metrics.jsonl") if isinstance(each, Evaluated)]
    mixed = [record for record in evaluated if record.stage != "pretrain"]
    assert len(mixed) == 10
    for record in mixed:
        assert record.weights["sums"] <= 0.6 + 1e-12
        assert min(record.weights.values()) >= 0.05 - 1e-12
        assert "sums" in record.at_bound or record.weights["sums"] < 0.6
        assert record.epochs["records"] <= 0.02 + one_row  # a draw is a whole row
    assert any(record.at_bound for record in mixed)
    assert (mixed[-1].average_weights is not None) == (strategy == "doremi")


def test_bounds_that_cannot_be_kept_are_refused_before_anything_is_written(recipe: Recipe, tmp_path: Path) -> None:
    for bounds, message in (
        ({"max_epochs": 0.01}, "max_epochs sum to"),
        ({"strategy": "schedule", "schedule": str(tmp_path / "nowhere")}, "there is no schedule in"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(recipe(mixture=bounds), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strategy", ["constant", "sheared"])
def test_other_strategies_and_bfloat16_run_to_the_end(strategy: str, recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(mixture={"strategy": strategy}, training={"dtype": "bfloat16", "logger": "tensorboard"})
    train(config, tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.*"))
    last = [record for record in read_records(tmp_path / "run" / "metrics.jsonl") if isinstance(record, Evaluated)][-1]
    moved = last.weights != config.data.reference_ratio
    assert moved == (strategy == "sheared")
    assert last.excess_loss is not None


def test_micro_batches_do_not_change_the_result(recipe: Recipe, tmp_path: Path) -> None:
    models = []
    for micro in (2, 8):
        run = tmp_path / f"micro-{micro}"
        train(recipe(training={"micro_batch_size": micro}), run)
        models.append(AutoModelForCausalLM.from_pretrained(run / "export"))
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_the_validator_restores_the_model(finished: Path, corpus_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "export").train()
    validator = Validator.from_corpus(
        Corpus.open(corpus_folder), ["sums"], seq_len=32, tokens=256, batch_size=3, split="test"
    )
    first = validator.losses(model)
    assert model.training
    assert validator.losses(model) == first


@torch.no_grad()
def test_losses_by_row_are_those_of_each_row_alone_and_standard_errors_follow(
    finished: Path, corpus_folder: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "export").eval()
    corpus = Corpus.open(corpus_folder)
    validator = Validator.from_corpus(
        corpus, ["sums", "words"], seq_len=32, tokens=256, batch_size=3, split="validation"
    )
    found = validator.validate(model)
    for domain, rows in validator.rows.items():
        alone = np.array([model(input_ids=row[None], labels=row[None]).loss.item() for row in rows])
        np.testing.assert_allclose(found.rows[domain].numpy(), alone, rtol=1e-4)  # float32, sums of 31 in another order
        assert found.means()[domain] == pytest.approx(alone.mean(), rel=1e-4)
        assert found.standard_errors()[domain] == pytest.approx(alone.std(ddof=1) / math.sqrt(8), rel=1e-2)
    shifted = HeldOutLosses({domain: rows + 1 for domain, rows in found.rows.items()})
    assert shifted.standard_errors(found) == pytest.approx({"sums": 0.0, "words": 0.0}, abs=1e-12)
    assert math.isnan(HeldOutLosses({"sums": torch.ones(1)}).standard_errors()["sums"])
    parts = found.part_means(2)
    assert [len(parts[domain]) for domain in parts] == [2, 2]
    assert {domain: sum(each) / 2 for domain, each in parts.items()} == pytest.approx(found.means(), abs=1e-6)


@pytest.mark.parametrize("reference", ["base", None, {"sums": 1.0, "words": 2.0, "records": 1.5}])
def test_recorded_standard_errors_are_of_the_excess(reference: object, recipe: Recipe, tmp_path: Path) -> None:
    config, run = recipe(mixture={"reference_loss": reference}), tmp_path / "run"
    train(config, run)
    records = list(read_records(run / "metrics.jsonl"))
    validator = Validator.from_corpus(
        open_corpus(config),
        config.domains,
        seq_len=32,
        tokens=config.training.eval_tokens,
        batch_size=8,
        split="validation",
    )
    started = next(record for record in records if isinstance(record, RunStarted))
    assert started.eval_tokens == validator.tokens
    assert set(started.final_eval_tokens.values()) == {512}
    paths = {record.model: record.path for record in records if isinstance(record, ModelMeasured)}
    final = validator.validate(load(paths["recovered"]))
    last = [record for record in records if isinstance(record, Evaluated)][-1]
    prune = [record for record in records if isinstance(record, Evaluated) and record.stage == "prune"]
    assert last.standard_errors is not None
    if isinstance(reference, dict):
        expected = final.standard_errors()
    elif reference == "base":
        expected = final.standard_errors(validator.validate(load(paths["base"])))
    else:  # against the first evaluation of the prune stage, under masks that are still nearly open
        assert prune[0].standard_errors == dict.fromkeys(config.domains, 0.0)
        expected = last.standard_errors
        assert all(0 < error < 1 for error in expected.values())
    assert last.standard_errors == pytest.approx(expected, rel=1e-2)
    for record in records:
        if isinstance(record, ModelMeasured):
            assert record.evaluation_losses == pytest.approx(validator.losses(load(record.path)), rel=1e-4)


def test_a_phase_frees_the_models_of_earlier_ones_that_cycles_hold() -> None:
    model = torch.nn.Linear(2, 2)
    model.hold = [model]  # as FSDP does
    left = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert left() is not None
        enter_phase(Ranks(), "the start of the prune stage")
        assert left() is None
    finally:
        gc.enable()


def test_what_a_run_left_that_was_killed_as_it_published_its_base_is_removed(
    recipe: Recipe, cache: Path, tmp_path: Path
) -> None:
    config = recipe()
    train(config, tmp_path / "run")
    [base] = (cache / "bases").iterdir()
    leftover = base.with_name(f".{base.name}.partial")
    leftover.mkdir()
    (leftover / MARK).touch()
    train(config, tmp_path / "again")
    assert list((cache / "bases").iterdir()) == [base]
