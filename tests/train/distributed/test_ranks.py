"""Several processes, one run: the same data exactly, the same losses within rounding, on any number of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from drpruning.config import RunConfig, presets
from drpruning.errors import ConfigError
from drpruning.records import Evaluated, Incident, MixtureUpdated, ModelMeasured, StepTaken, read_records
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.preflight import check_ranks
from tests.train.processes import lines, start_ranks, until
from tests.train.test_online_mixture import STRATEGIES, scratch
from tests.train.test_run import Recipe, weights


@pytest.fixture
def short(recipe: Recipe) -> RunConfig:
    """Return a recipe with a few steps of all stages."""
    stage = {"steps": 4, "eval_every": 2}
    return recipe(
        pretrain=stage,
        prune=stage,
        training={"checkpoint_every": 2, "distributed_timeout_s": 60},
        **{"continue": stage},
    )


def run_with(world_size: int, config: RunConfig, run: Path, *more: str, expect: Sequence[int] = (0,)) -> str:
    """Run a recipe in several processes, with the run's own cache; return the output of rank 0."""
    (run.parent / "tiny.yaml").write_text(config.to_yaml())
    arguments = ["train", str(run.parent / "tiny.yaml"), "--out", str(run), *more]
    log = run.with_suffix(".log")
    processes = start_ranks(arguments, log, world_size, DRPRUNING_CACHE=str(run.with_suffix(".cache")))
    for process in processes:
        process.join(300)
    output = log.with_suffix(".0").read_text()
    assert {process.exitcode for process in processes} <= set(expect), output
    return output


def comparable_records(run: Path) -> list[object]:
    """Return the records without fields that depend on clock and machine, and losses."""
    return [
        record
        for record in read_records(run / "metrics.jsonl")
        if isinstance(record, StepTaken | Evaluated | ModelMeasured)
    ]


def assert_alike(run: Path, other: Path) -> None:
    """Check that two runs have the same rows in every step, and losses within rounding."""
    for one, two in zip(comparable_records(run), comparable_records(other), strict=True):
        match one, two:
            case StepTaken(), StepTaken():
                assert (one.stage, one.step, one.domain_tokens) == (two.stage, two.step, two.domain_tokens)
                assert one.loss == pytest.approx(two.loss, rel=2e-5)
                assert one.domain_losses == pytest.approx(two.domain_losses, rel=2e-5)
                assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-3)
                assert one.multipliers == two.multipliers or one.multipliers is not None
            case Evaluated(), Evaluated():
                assert one.losses == pytest.approx(two.losses, rel=2e-5)
                assert one.weights == pytest.approx(two.weights, abs=1e-4)
                assert one.standard_errors == pytest.approx(two.standard_errors, abs=1e-4)
            case ModelMeasured(), ModelMeasured():
                assert one.shape == two.shape
                assert one.losses == pytest.approx(two.losses, rel=1e-4)
            case _:
                pytest.fail(f"{one} and {two}")


def test_one_two_and_four_processes_do_the_same_and_resume_in_any_number(short: RunConfig, tmp_path: Path) -> None:
    run_with(1, short, tmp_path / "one")
    run_with(2, short, tmp_path / "two")
    assert_alike(tmp_path / "one", tmp_path / "two")
    hybrid = short.model_copy(update={"training": short.training.model_copy(update={"fsdp_shard": 2})})
    run_with(4, hybrid, tmp_path / "four")
    assert_alike(tmp_path / "one", tmp_path / "four")


def test_masks_as_in_the_public_code_are_the_same_in_two_processes(recipe: Recipe, tmp_path: Path) -> None:
    """Among them one clipped norm over sharded weights and whole gates, and noise at the start of the gates."""
    masks = {**presets.PRUNE, "log_alpha_init": 2.0, "gate_learning_rate": 0.1, "multiplier_learning_rate": 0.05}
    stage = {"steps": 4, "eval_every": 2}
    config = recipe(pretrain=stage, prune={**stage, **masks}, **{"continue": stage})
    run_with(1, config, tmp_path / "one")
    run_with(2, config, tmp_path / "two")
    assert_alike(tmp_path / "one", tmp_path / "two")


def test_a_stage_starts_from_importance_in_two_processes(recipe: Recipe, tmp_path: Path) -> None:
    """Check that the stage runs, and its repair, for which rank 0 collects the model.

    test_importance.py compares scores, whose order may depend on their last bit here.
    """
    stage = {"steps": 2, "eval_every": 2}
    narrow = {
        "dtype": "bfloat16",
        "weight_format": "bfloat16+low16",
        "activation_checkpointing": "full",
    }
    prune = {**stage, "gate_init": "taylor", "repair": 0.01, "calibration": {"tokens": 2048}}
    config = recipe(pretrain=stage, prune=prune, training=narrow, **{"continue": stage})
    run_with(2, config, tmp_path / "two")
    assert (tmp_path / "two" / "export").is_dir()


def test_distillation_is_the_same_in_two_processes(recipe: Recipe, tmp_path: Path) -> None:
    short, learning = {"steps": 2, "eval_every": 2}, {"weight": 0.7, "top_k": 16, "hidden_weight": 0.5}
    config = recipe(
        pretrain=short,
        prune={**short, "steps": 4, "distill": {**learning, "teacher": "self"}},
        **{"continue": {**short, "distill": {**learning, "teacher": "source"}}},
    )
    run_with(1, config, tmp_path / "one")
    run_with(2, config, tmp_path / "two")
    assert_alike(tmp_path / "one", tmp_path / "two")
    one, two = (
        [
            record.objective
            for record in comparable_records(run)
            if isinstance(record, StepTaken) and record.stage != "pretrain"
        ]
        for run in (tmp_path / "one", tmp_path / "two")
    )
    assert len(one) == 6
    assert one == pytest.approx(two, rel=2e-5)


def saved_in(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run."""
    return list((run / "checkpoints").glob("[a-z]*-*/complete.json"))


def kill_one(
    world_size: int, config: RunConfig, run: Path, *, records: int, number: int, saved: bool = False
) -> tuple[str, float]:
    """Send a signal to the last rank after some records, and a checkpoint if ``saved``.

    Returns:
        The output of rank 0, and the seconds until its end.
    """
    (run.parent / "tiny.yaml").write_text(config.to_yaml())
    arguments = ["train", str(run.parent / "tiny.yaml"), "--out", str(run)]
    log = run.with_suffix(".log")
    processes = start_ranks(arguments, log, world_size, DRPRUNING_CACHE=str(run.with_suffix(".cache")))
    until(lambda: lines(run) >= records and (not saved or saved_in(run)), processes[0])
    assert processes[-1].pid is not None
    os.kill(processes[-1].pid, number)
    began = time.monotonic()
    for process in processes[:-1]:
        process.join(120)
    took = time.monotonic() - began
    processes[-1].kill()
    assert [process.exitcode for process in processes[:-1]] == [4] * (world_size - 1)
    return log.with_suffix(".0").read_text(), took


def test_a_rank_that_dies_ends_the_others_and_the_run_resumes_bit_for_bit(short: RunConfig, tmp_path: Path) -> None:
    changes = {
        "dtype": "bfloat16",
        "weight_format": "bfloat16+low16",
        "optimizer_state_format": "bfloat16",
        "async_checkpoints": True,
    }
    narrow = short.model_copy(update={"training": short.training.model_copy(update=changes)})
    run_with(2, narrow, tmp_path / "whole")
    output, _ = kill_one(2, narrow, tmp_path / "run", records=8, number=signal.SIGKILL, saved=True)
    assert "RankError: rank 1 of 2 sends no heartbeat" in output
    assert "start all ranks again with --resume" in output
    run_with(2, narrow, tmp_path / "run", "--resume")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    resumed = [each for each in read_records(tmp_path / "run" / "metrics.jsonl") if isinstance(each, Incident)]
    assert [each.what for each in resumed] == ["resumed"]


def test_a_rank_that_hangs_is_an_error_after_the_timeout(short: RunConfig, tmp_path: Path) -> None:
    hasty = short.model_copy(update={"training": short.training.model_copy(update={"distributed_timeout_s": 4.0})})
    output, _ = kill_one(2, hasty, tmp_path / "run", records=8, number=signal.SIGSTOP)
    assert "RankError: rank 1 of 2 sends no heartbeat" in output
    assert "(limit: training.distributed_timeout_s, 4 s)" in output
    run_with(1, hasty, tmp_path / "run", "--resume")  # at another number of processes


def test_a_signal_to_one_rank_saves_and_stops_all(short: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "tiny.yaml").write_text(short.to_yaml())
    processes = start_ranks(["train", str(tmp_path / "tiny.yaml"), "--out", str(run)], tmp_path / "log", 2)
    until(lambda: lines(run) >= 12, processes[0])
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [75, 75]
    assert "Resume with" in (tmp_path / "log.0").read_text()
    assert "Resume with" not in (tmp_path / "log.1").read_text()
    run_with(1, short, run, "--resume")


def test_an_error_is_printed_once(short: RunConfig, tmp_path: Path) -> None:
    wrong = short.model_copy(update={"training": short.training.model_copy(update={"fsdp_shard": 3})})
    output = run_with(2, wrong, tmp_path / "run", expect=(2,))
    assert "ConfigError: training.fsdp_shard 3 does not divide the 2 processes" in output
    assert (tmp_path / "run.1").read_text() == ""
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"batch_size 8 is not a multiple of the 3 processes"):
        check_ranks(recipe(), Ranks(rank=0, world_size=3))


def test_torchrun_starts_it(short: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(short.to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "drpruning", "train", "tiny.yaml", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "recovered" in done.stdout
    config = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2


@pytest.mark.parametrize("name", ["odm", "aioli"])
def test_updates_from_training_losses_and_probes_are_the_same_in_two_processes(
    name: str, recipe: Recipe, tmp_path: Path
) -> None:
    config = scratch(recipe, STRATEGIES[name], steps=8)
    run_with(1, config, tmp_path / "one")
    run_with(2, config, tmp_path / "two")
    assert_alike(tmp_path / "one", tmp_path / "two")
    one, two = (
        [record for record in read_records(run / "metrics.jsonl") if isinstance(record, MixtureUpdated)]
        for run in (tmp_path / "one", tmp_path / "two")
    )
    assert bool(one) == (name == "odm")
    for first, second in zip(one, two, strict=True):
        assert (first.step, first.status) == (second.step, second.status)
        assert first.training_losses == pytest.approx(second.training_losses, rel=2e-5)
        assert first.weights == pytest.approx(second.weights, abs=1e-4)
