"""A run folder of ours: its last stage, the mixture it began with, and where it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from drpruning import LearningRates, read_losses
from drpruning.errors import ConfigError, LossTableError
from drpruning.records import Evaluated, JsonlSink, Record, RunStarted, StageStarted


def run_folder(folder: Path) -> Path:
    records: list[Record] = [
        RunStarted(
            name="mine",
            recipe_hash="0",
            strategy="drpruning",
            seed=0,
            domains=["web", "code"],
            reference_ratio={"web": 0.8, "code": 0.2},
        )
    ]
    for stage, steps in (("prune", 20), ("continue", 40)):
        rates = {"tokens": [0.0, 10.0 * steps], "rates": [3e-4, 0.0]} if stage == "continue" else None
        records.append(
            StageStarted(stage=stage, steps=steps, tokens_per_step=10, parameters=500, shape={}, learning_rates=rates)
        )
        for step in range(0, steps + 1, 10):
            losses = {"web": 3.0 - step / 100, "code": float("nan") if step == 10 else 2.0}
            records.append(
                Evaluated(
                    stage=stage,
                    step=step,
                    tokens=10 * step,
                    parameters=500.0 - step,
                    losses=losses,
                    weights={"web": 0.8, "code": 0.2},
                    reference_ratio={"web": 0.8, "code": 0.2},
                )
            )
    folder.mkdir()
    sink = JsonlSink(folder / "metrics.jsonl")
    for record in records:
        sink.write(record)
    sink.close()
    return folder


def test_the_last_stage(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    for source in (folder, folder / "metrics.jsonl"):
        table = read_losses(source)
        assert table.domains == ("web", "code")
        assert table.counts_tokens
        assert table.steps.tolist() == [0, 10, 20, 30, 40]
        assert table.tokens.tolist() == [0, 100, 200, 300, 400]
        assert table.params.tolist() == [500, 490, 480, 470, 460]
        assert table.final_tokens == 400
        assert table.reference_ratio == {"web": 0.8, "code": 0.2}
        assert [seen.final_tokens for seen in table.observations()] == [400] * 5
        assert [sorted(seen.losses) for seen in table.observations()][1] == ["web"]
        assert table.learning_rates == LearningRates([0, 400], [3e-4, 0])
        assert all(seen.learning_rates == table.learning_rates for seen in table.observations())
        assert read_losses(source, stage="prune").learning_rates is None


def test_another_stage(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    assert read_losses(folder, stage="prune").steps.tolist() == [0, 10, 20]
    with pytest.raises(LossTableError, match="no evaluation in stage 'pretrain'; its stages: prune, continue"):
        read_losses(folder, stage="pretrain")


def test_arguments_without_use(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    with pytest.raises(ConfigError, match="a pattern of columns has no effect"):
        read_losses(folder, columns="eval/<domain>")
    with pytest.raises(LossTableError, match="has tokens, so tokens per step have no effect"):
        read_losses(folder, tokens_per_step=10)


def test_lines_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text(
        "\n".join([lines[0], '{"kind":"evaluated"}', '{"kind":"later","x":1}', *lines[1:], lines[-1][:40]])
    )
    assert read_losses(folder).steps.tolist() == [0, 10, 20, 30, 40]


def test_a_run_without_evaluations(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines()[0] + "\n")
    with pytest.raises(LossTableError, match="holds no evaluation yet"):
        read_losses(folder)
