"""``training.deterministic`` changes torch's state for a run, and on a CPU no bit of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils import deterministic as torch_deterministic

from drpruning.config import DataConfig, TrainingConfig
from drpruning.errors import ConfigError
from drpruning.train import loop
from drpruning.train.deterministic import WORKSPACE, deterministic
from drpruning.train.preflight import check_runtime
from drpruning.train.run import train
from tests.train.test_run import Recipe, weights

SHORT = {"steps": 2, "eval_every": 2}
STAGES: dict[str, Any] = {"pretrain": SHORT, "prune": {**SHORT, "steps": 4}, "continue": SHORT}


def state() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        torch_deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        os.environ.get(WORKSPACE),
    )


def test_the_state_is_set_within_and_as_before_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = state()

    def run() -> None:
        with deterministic(True):
            assert state() == (True, False, True, False, False, ":4096:8")
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert state() == before
    with deterministic(False):
        assert state() == before


def test_a_workspace_that_was_chosen_stays_and_one_of_other_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(corpus="x", seq_len=16, reference_ratio={"web": 1.0})
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"
    monkeypatch.setenv(WORKSPACE, ":4096:2")
    check_runtime(TrainingConfig(), data, None)
    with pytest.raises(ConfigError, match="':4096:2'"):
        check_runtime(TrainingConfig(deterministic=True), data, None)


@pytest.mark.parametrize(
    "setting", [{"attention": "flex_attention"}, {"attention": "flash_attention_2"}, {"cross_entropy": "liger"}]
)
def test_kernels_without_a_promise_are_refused(setting: dict[str, Any]) -> None:
    TrainingConfig(**setting)
    with pytest.raises(ValidationError, match=f"deterministic needs {next(iter(setting))} to be one of"):
        TrainingConfig(deterministic=True, **setting)


def test_a_run_has_the_same_bits_on_a_cpu_and_ends_as_it_began(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = loop.train_step, set()

    def step(*given: Any) -> bool:
        seen.add(torch.are_deterministic_algorithms_enabled())
        return real(*given)

    monkeypatch.setattr(loop, "train_step", step)
    before = state()
    for on in (False, True):
        train(recipe(**STAGES, training={"deterministic": on}), tmp_path / str(on))
        assert seen == {on}
        assert state() == before
        seen.clear()
        (tmp_path / "cache").rename(tmp_path / f"cache-{on}")  # each trains its own base
    assert weights(tmp_path / "False") == weights(tmp_path / "True")
