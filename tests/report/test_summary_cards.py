"""The cards: what they claim of the training speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from drpruning.records import Record, StageStarted, StepTaken
from drpruning.report.page.summary_cards import facts_of
from drpruning.report.read.run import open_run
from tests.report.synthetic import write_run


def stage(name: str, speeds: list[float], tokens_per_step: int = 100) -> list[Record]:
    started = StageStarted(stage=name, steps=len(speeds), tokens_per_step=tokens_per_step, parameters=1, shape={})
    steps = [
        StepTaken(stage=name, step=at, tokens=100 * at, loss=2.0, learning_rate=1e-3, grad_norm=1.0,
                  tokens_per_second=speed)
        for at, speed in enumerate(speeds, 1)
    ]  # fmt: skip
    return [started, *steps]


@pytest.mark.parametrize(
    ("records", "value", "detail"),
    [
        (stage("pretrain", [90, 100, 110]) + stage("continue", [190, 200, 210]), "100 → 200 tokens/s", "2.00 times"),
        (stage("pretrain", [90, 100, 110]) + stage("continue", [70, 88, 104]), "88 tokens/s", "within the scatter"),
        (stage("pretrain", [90] * 3) + stage("continue", [200] * 3, 300), "200 tokens/s", "median of continue"),
        (stage("continue", [90, 100, 110]), "100 tokens/s", "median of continue"),
        (stage("pretrain", [90, 100, 110]), None, None),
    ],
)
def test_a_speed_up_is_claimed_only_beyond_the_scatter(
    tmp_path: Path, records: list[Record], value: str | None, detail: str | None
) -> None:
    run = open_run(write_run(tmp_path / "run", records))
    found = [fact for fact in facts_of(run) if fact.name.startswith("Training speed")]
    assert [fact.value for fact in found] == ([] if value is None else [value])
    assert all(detail in fact.detail and ("times" in fact.detail) == ("times" in detail) for fact in found if detail)
