"""Schedules: what they replay, where they are read from, and what they are written as."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from drpruning.errors import ConfigError, WeightError
from drpruning.mixture import (
    Bounds,
    Observation,
    Schedule,
    ScheduleChange,
    ScheduleSpan,
    build,
    megatron_blends,
    merge_spans,
    parse_schedule,
    read_schedule,
    write_schedule,
)
from drpruning.records import Evaluated, JsonlSink

DOMAINS = ["web", "code"]
RATIO = {"web": 0.8, "code": 0.2}
EARLY, LATE = {"web": 0.7, "code": 0.3}, {"web": 0.25, "code": 0.75}


def observe(step: int) -> Observation:
    return Observation(step=step, tokens=1000 * step, params=1.0, losses={"web": 2.0})


def replay(schedule: Schedule, steps: list[int]) -> list[dict[str, float]]:
    state, seen = schedule.init(DOMAINS, RATIO), []
    for step in steps:
        if step < 0:
            state = schedule.next_stage(state)
            continue
        state, update = schedule.update(state, observe(step))
        assert update.status == "scheduled"
        seen.append(update.weights)
    return seen


def test_a_change_holds_from_its_moment_on() -> None:
    schedule = Schedule.of([(10, EARLY), (20, LATE)])
    assert replay(schedule, [0, 9, 10, 19, 20, 99]) == [RATIO, RATIO, EARLY, EARLY, LATE, LATE]
    tokens = Schedule.of([(10_000, EARLY), (20_000, LATE)], unit="tokens")
    assert replay(tokens, [9, 10, 20]) == [RATIO, EARLY, LATE]


def test_stages_have_separate_changes() -> None:
    schedule = Schedule(stages={"prune": [ScheduleChange(0, EARLY)], "continue": [ScheduleChange(5, LATE)]})
    assert replay(schedule, [0, -1, 0, 5, -1, 7]) == [EARLY, EARLY, LATE, LATE]


def test_without_changes_the_ratio_stays() -> None:
    assert replay(Schedule(), [0, 5]) == [RATIO, RATIO]


def record(stage: str, step: int, weights: dict[str, float]) -> Evaluated:
    return Evaluated(
        stage=stage,
        step=step,
        tokens=1000 * step,
        parameters=1.0,
        losses={},
        weights=weights,
        reference_ratio=RATIO,
    )


def test_a_run_is_read_without_its_pretraining_and_with_both_stages(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    third = {"web": 1 / 3, "code": 2 / 3}
    for each in (
        record("pretrain", 0, {"web": 0.5, "code": 0.5}),
        record("prune", 0, RATIO),
        record("prune", 50, third),
        record("prune", 50, third),  # message again after a resume
        record("continue", 0, LATE),
    ):
        sink.write(each)
    sink.close()
    expected = Schedule(
        stages={"prune": [ScheduleChange(0, RATIO), ScheduleChange(50, third)], "continue": [ScheduleChange(0, LATE)]},
    )
    for path in (tmp_path, tmp_path / "metrics.jsonl", str(tmp_path)):
        assert read_schedule(path) == expected
    assert [change.at for change in (read_schedule(tmp_path, "tokens").stages or {})["prune"]] == [0, 50_000]
    assert build("schedule", {"schedule": str(tmp_path)}) == expected


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    prune, later = (
        [ScheduleChange(0, {"web": 1 / 3, "code: odd": 2 / 3})],
        [ScheduleChange(0.5, {"web": 1.0, "code: odd": 0.0})],
    )
    schedule = Schedule(stages={"prune": prune, "continue": later}, unit="tokens")
    write_schedule(schedule, tmp_path / "mixture.yaml")
    assert read_schedule(tmp_path / "mixture.yaml") == schedule
    body = yaml.safe_load((tmp_path / "mixture.yaml").read_text())
    assert body["stages"]["continue"] == [{"at": 0.5, "weights": {"web": 1.0, "code: odd": 0.0}}]


def test_a_list_is_a_schedule_of_one_stage() -> None:
    assert parse_schedule([{"at": 3, "weights": EARLY}]).spans(9) == [ScheduleSpan(3, 9, EARLY)]


def test_plain_data_makes_the_same_schedule() -> None:
    schedule = Schedule(
        stages={"prune": [ScheduleChange(0, EARLY), ScheduleChange(5, LATE)]},
        unit="tokens",
        bounds=Bounds(max_share=0.9),
    )
    body = json.loads(json.dumps(asdict(schedule)))
    assert Schedule(**body | {"bounds": Bounds(**body["bounds"])}) == schedule


def test_spans_join_what_is_equal_and_end_with_the_stage() -> None:
    schedule = Schedule.of([(0, EARLY), (10, EARLY), (20, LATE), (90, RATIO)])
    assert schedule.spans(50) == [ScheduleSpan(0, 20, EARLY), ScheduleSpan(20, 50, LATE)]
    assert schedule.spans(50, stage=1) == []


def test_fewer_spans_draw_the_same_text() -> None:
    spans = Schedule.of([(10 * k, {"web": 0.1 * k, "code": 1 - 0.1 * k}) for k in range(7)]).spans(70)
    merged = merge_spans(spans, 3)
    assert [span.start for span in merged] == pytest.approx([0, 70 / 3, 140 / 3])
    assert [span.stop for span in merged] == pytest.approx([70 / 3, 140 / 3, 70])

    def drawn(some: list[ScheduleSpan], domain: str) -> float:
        return sum((span.stop - span.start) * span.weights[domain] for span in some)

    for domain in DOMAINS:
        assert drawn(merged, domain) == pytest.approx(drawn(spans, domain))
    assert merge_spans(spans, 99) == spans
    with pytest.raises(ConfigError, match="at least 1"):
        merge_spans(spans, 0)


def test_megatron_gets_positive_weights_before_prefixes() -> None:
    spans = [ScheduleSpan(0, 10, {"web": 0.6, "code": 0.4}), ScheduleSpan(10, 20, {"web": 1.0, "code": 0.0})]
    lines = megatron_blends(spans, {"web": ["w/a", "w/b"], "code": "c"})
    assert lines == ["0.3 w/a 0.3 w/b 0.4 c", "0.5 w/a 0.5 w/b"]
    with pytest.raises(ConfigError, match='domain "code" has no prefix'):
        megatron_blends(spans, {"web": "w"})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("stages: {}", "it needs `stages`"),
        ("- 3", "a change is"),
        ("stages: {prune: [{at: 1, weight: {web: 1}}]}", "a change is"),
        ("stages: {prune: [{at: soon, weights: {web: 1}}]}", "a change holds numbers"),
        ("stages: {prune: [{at: 0, weights: {web: much}}]}", "a change holds numbers"),
        ("{stages: {prune: []}, units: step}", "unknown key 'units'"),
        ("{stages: {prune: []}, unit: epoch}", "unit is 'epoch'"),
        ("stages: {prune: [{at: 5, weights: {web: 1}}, {at: 5, weights: {web: 1}}]}", "each must come after"),
        ("stages: {prune: [{at: -5, weights: {web: 1}}]}", "changes at -5"),
        ("stages: [", "is not YAML"),
    ],
)
def test_what_is_no_schedule_is_refused(body: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(body)
    with pytest.raises(ConfigError, match=message):
        read_schedule(tmp_path / "s.yaml")


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no schedule in"):
        read_schedule(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="holds no evaluation"):
        read_schedule(tmp_path)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"web": 0.5, "code": 0.4}, "sum to 0.9"),
        ({"web": 1.5, "code": -0.5}, 'weight of domain "code" at 7 is -0.5'),
        ({"web": float("nan"), "code": 1.0}, "is nan"),
        ({"web": 1.0}, 'at 7 of domain "code" is missing'),
        ({"web": 0.5, "maths": 0.5}, 'names domain "maths"'),
    ],
)
def test_weights_that_are_none_are_refused(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightError, match=message):
        Schedule.of([(7, weights)]).init(DOMAINS, RATIO)


def test_build_resolves_names_and_settings() -> None:
    with pytest.raises(ConfigError, match="there is no strategy 'best'"):
        build("best", {})
    with pytest.raises(ConfigError, match="strategy cvar has no setting 'rho'"):
        build("cvar", {"rho": 0.1})
    strategy = build("schedule", {"schedule": {"stages": {"prune": ({"at": 0, "weights": EARLY},)}}, "max_share": 0.5})
    assert strategy.bounds.max_share == 0.5
    assert replay(strategy, [0]) == [{"web": 0.5, "code": 0.5}]  # type: ignore[arg-type]


def test_a_strategy_at_work_in_one_stage_replays_the_changes_of_that_stage() -> None:
    both = {"prune": [ScheduleChange(0, EARLY)], "continue": [ScheduleChange(0, LATE)]}
    made = build("schedule", {"schedule": {"stages": both}}, stages=["continue"])
    assert isinstance(made, Schedule)
    assert [change.weights for change in (made.stages or {})["continue"]] == [LATE]
    assert list(made.stages or {}) == ["continue"]
    assert list(Schedule(stages=both).for_stages(["prune", "continue"]).stages or {}) == ["prune", "continue"]
    unnamed = Schedule.of([(0, EARLY)])
    assert unnamed.for_stages(["continue"]) == unnamed
    with pytest.raises(ConfigError, match="the schedule has the stages prune"):
        Schedule(stages={"prune": both["prune"]}).for_stages(["continue"])
