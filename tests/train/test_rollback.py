"""What ends badly for others: kills, signals, full disks, damaged files, numbers that are not finite."""

from __future__ import annotations

import os
import random
import signal
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from drpruning.config import RunConfig
from drpruning.errors import DiskError, SolverError
from drpruning.records import Incident, ModelMeasured, Record, StepTaken, read_records
from drpruning.train import loop
from drpruning.train.loop import Interrupted
from drpruning.train.run import train
from tests.train.processes import kill_at, lines, start, until
from tests.train.test_run import Recipe, stop_after, weights


def incidents(run: Path) -> list[Incident]:
    return [record for record in read_records(run / "metrics.jsonl") if isinstance(record, Incident)]


@pytest.mark.parametrize("background", [False, True])
def test_killed_outright_again_and_again_the_weights_are_the_same(
    background: bool, finished: Path, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(recipe(training={"async_checkpoints": background}).to_yaml())
    arguments = ["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run"), "--resume"]
    generator = random.Random(int(background))
    whole = lines(finished)
    at = sorted(generator.sample(range(2, whole - 1), 4))
    for records in at:
        kill_at(arguments, tmp_path / "run", tmp_path / "log", records=max(records, lines(tmp_path / "run") + 1))
    last = start(arguments, tmp_path / "log")
    last.join()
    assert last.exitcode == 0, (tmp_path / "log").read_text()
    assert weights(tmp_path / "run") == weights(finished)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 75)], ids=["INT", "USR1"])
def test_a_signal_leaves_a_checkpoint_and_prints_the_command_to_resume(
    number: signal.Signals, code: int, finished: Path, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(recipe().to_yaml())
    arguments = ["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    process = start(arguments, tmp_path / "log")
    until(lambda: lines(tmp_path / "run") >= 15, process)
    os.kill(process.pid, number)
    if code == 75:
        os.kill(process.pid, number)  # schedulers repeat their signals
    process.join()
    output = (tmp_path / "log").read_text()
    assert process.exitcode == code, output
    assert output.count("finishing this step and writing a checkpoint") == 1
    assert f"drpruning train {tmp_path}/tiny.yaml --out {tmp_path}/run --resume" in output
    assert "Traceback" not in output
    again = start([*arguments, "--resume"], tmp_path / "log")
    again.join()
    assert again.exitcode == 0
    output = (tmp_path / "log").read_text()
    assert "recovered" in output
    assert str(tmp_path / "run" / "report.html") in output
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "resumed: from step" in log
    assert "recovered:" in log
    assert weights(tmp_path / "run") == weights(finished)


def test_a_schedulers_signal_before_the_training_ends_it_with_a_message(recipe: Recipe, tmp_path: Path) -> None:
    """Check the time in which the command imports torch: the handlers are there first."""
    (tmp_path / "tiny.yaml").write_text(recipe().to_yaml())
    arguments = ["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    process = start(arguments, tmp_path / "log", before=partial(signal_while_loading, signal.SIGTERM))
    process.join()
    output = (tmp_path / "log").read_text()
    assert process.exitcode == 75, output
    assert f"drpruning train {tmp_path}/tiny.yaml --out {tmp_path}/run --resume" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "checkpoints").exists()


def signal_while_loading(number: int) -> None:
    """Make this process signal itself where the command loads its recipe."""
    from drpruning import recipes

    load = recipes.load_recipe

    def signalling(*arguments: Any) -> RunConfig:
        os.kill(os.getpid(), number)
        return load(*arguments)

    recipes.load_recipe = signalling


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    finished: Path, recipe: Recipe, tmp_path: Path
) -> None:
    config, run = recipe(), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config, run, stop=stop_after(15))  # step 7 of the prune stage: checkpoints at 6 and 7
    newest = run / "checkpoints" / "prune-000000007"
    victim = max((newest / "tensors").iterdir(), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-100])
    train(config, run, resume=True)
    assert any("prune-000000007 is damaged" in record.detail for record in incidents(run))
    assert weights(run) == weights(finished)


@pytest.fixture
def pruning(finished: Path, recipe: Recipe) -> RunConfig:
    """Return the recipe from the finished run's base on, with one step after the prune stage."""
    measured = next(record for record in read_records(finished / "metrics.jsonl") if isinstance(record, ModelMeasured))
    return recipe(
        model={"source": measured.path, "architecture": None},
        pretrain=None,
        training={"max_skipped_steps": 2},
        **{"continue": {"steps": 1, "eval_every": 1}},
    )


Fail = Callable[..., None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Make the gradient of batches of the prune stage not finite, always or once."""
    real = loop.forward_backward

    def make(*batches: int, times: int = 10**9) -> None:
        seen: dict[int, int] = {}

        def failing(stage, context, tokens):  # type: ignore[no-untyped-def]
            result = real(stage, context, tokens)
            number = stage.sampler.step - 1
            if stage.name == "prune" and number in batches and seen.get(number, 0) < times:
                seen[number] = seen.get(number, 0) + 1
                next(stage.model.model.parameters()).grad[0, 0] = torch.inf
            return result

        monkeypatch.setattr(loop, "forward_backward", failing)

    return make


def steps_of(run: Path) -> list[StepTaken]:
    records: list[Record] = list(read_records(run / "metrics.jsonl"))
    return [record for record in records if isinstance(record, StepTaken) and record.stage == "prune"]


def test_a_step_without_a_finite_gradient_changes_nothing_but_is_recorded(
    pruning: RunConfig, fail: Fail, tmp_path: Path
) -> None:
    fail(4)
    train(pruning, tmp_path / "run")
    assert [record.step for record in steps_of(tmp_path / "run")] == list(range(1, 9))
    assert [record.step for record in steps_of(tmp_path / "run") if record.skipped] == [5]
    assert [(each.what, each.step) for each in incidents(tmp_path / "run")] == [("skipped a step", 5)]
    with pytest.raises(Interrupted):
        train(pruning, tmp_path / "again", stop=stop_after(5))
    train(pruning, tmp_path / "again", resume=True)
    assert weights(tmp_path / "again") == weights(tmp_path / "run")


def test_consecutive_failures_roll_back_and_skip_the_batches(pruning: RunConfig, fail: Fail, tmp_path: Path) -> None:
    fail(4, 5)
    train(pruning, tmp_path / "run")
    steps = steps_of(tmp_path / "run")
    assert [record.step for record in steps] == list(range(1, 9))
    assert not any(record.skipped for record in steps)
    (back,) = incidents(tmp_path / "run")
    assert (back.what, back.step) == ("rolled back", 3)
    assert "not finite in 2 steps up to 6; batches 4 to 5 are skipped" in back.detail
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    with pytest.raises(Interrupted):  # 3 taken, 2 skipped, back, and 1 taken again
        train(pruning, tmp_path / "again", stop=stop_after(6))
    train(pruning, tmp_path / "again", resume=True)
    assert weights(tmp_path / "again") == weights(tmp_path / "run")
    assert [each.what for each in incidents(tmp_path / "again")].count("rolled back") == 1


def test_further_failures_skip_more_batches_and_then_raise(pruning: RunConfig, fail: Fail, tmp_path: Path) -> None:
    fail(*range(4, 10))
    with pytest.raises(SolverError, match="of the prune stage, after 2 rollbacks to step 3"):
        train(pruning, tmp_path / "run")
    passed = (tmp_path / "run" / "checkpoints" / "prune-skipped-batches.json").read_text()
    assert "batches 4 to 5 are" in passed
    assert "batches 3 to 7 are" in passed


def test_a_rollback_without_a_checkpoint_is_an_error(recipe: Recipe, tmp_path: Path) -> None:
    rising = recipe(
        pretrain={"learning_rate": 1e30, "warmup_fraction": 0.0},
        training={"max_skipped_steps": 2, "checkpoint_every": 8},
    )
    with pytest.raises(SolverError, match="of the pretrain stage, which has no checkpoint to roll back to"):
        train(rising, tmp_path / "run")


def test_a_small_disk_is_an_error_before_anything_is_written(recipe: Recipe, tmp_path: Path) -> None:
    large = {"layers": 3, "hidden": 2**18, "heads": 4, "kv_heads": 2, "intermediate": 2**18, "positions": 64}
    config = recipe(model={"source": "pretrain", "architecture": large})
    with pytest.raises(DiskError, match=r"needs up to .* TB in .*; .* are free"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_lack_of_permission_is_an_error_before_anything_is_written(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    if os.geteuid() == 0:  # to whom everything is permitted
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "closed")
    with pytest.raises(DiskError, match=r"no write permission in .*closed"):
        train(recipe(), tmp_path / "closed" / "run")
    assert list((tmp_path / "closed").iterdir()) == []
