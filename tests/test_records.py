"""Records: what is written comes back, what cannot be read is refused or skipped."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.records import (
    RECORDS,
    Evaluated,
    Incident,
    JsonlSink,
    Kept,
    MixtureUpdated,
    ModelMeasured,
    Record,
    RunEnded,
    RunStarted,
    StageEnded,
    StageStarted,
    StepTaken,
    TaskMeasured,
    from_json,
    read_records,
    to_json,
    truncate,
)

STEP = StepTaken(
    stage="prune",
    step=3,
    tokens=6144,
    loss=2.5,
    learning_rate=1e-4,
    grad_norm=0.7,
    tokens_per_second=6000.0,
    expected={"layer": 0.25},
    scheduled={"layer": 0.3},
    multipliers={"layer": [0.1, 10.0]},
    domain_losses={"a": 2.5},
    domain_tokens={"a": 2048},
    utilisation=0.4,
    loader_wait=0.001,
    memory=2**30,
)
EXAMPLES: list[Record] = [
    RunStarted(
        name="q", recipe_hash="ab", strategy="drpruning", seed=1, domains=["a"], reference_ratio={"a": 1.0}, rho=0.1
    ),
    StageStarted(
        stage="prune", steps=10, tokens_per_step=2048, parameters=7, shape={"layers": 2}, target={"layers": 1}
    ),
    STEP,
    Evaluated(
        stage="prune",
        step=3,
        tokens=6144,
        parameters=6.5,
        losses={"a": 2.0},
        weights={"a": 1.0},
        reference_ratio={"a": 1.0},
        excess_loss={"a": 0.1},
        divergence=0.0,
    ),
    MixtureUpdated(stage="prune", step=4, tokens=8192, weights={"a": 1.0}, training_losses={"a": 2.4}, status="bandit"),
    ModelMeasured(model="base", parameters=7, shape={"layers": 2}, losses={"a": 1.5}, path="export"),
    TaskMeasured(model="recovered", task="a", metrics={"acc": 0.5}, errors={"acc": 0.1}, samples=25, step=3),
    Kept(
        source={"layers": 2},
        target={"layers": 1},
        layers=[1],
        hidden=[0, 2],
        heads=[[0]],
        intermediate=[[1, 2]],
        target_met={"layers": True},
    ),
    Incident(what="resumed", detail="at step 3"),
    StageEnded(stage="prune", steps=10, tokens=20480, seconds=3.5, charged_flops=2e9, flops={"training": 2e9}),
    RunEnded(seconds=4.0, charged_flops=2e9, flops={"training": 2e9, "evaluation": 1e8}),
]


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: record.kind)
def test_every_kind_comes_back_unchanged(record: Record) -> None:
    assert from_json(to_json(record, now=0.0)) == record


def test_examples_cover_every_kind() -> None:
    assert {record.kind for record in EXAMPLES} == set(RECORDS)


@given(st.floats(), st.dictionaries(st.text(), st.floats()))
def test_numbers_that_are_not_finite_are_null_in_the_file_and_nan_after(
    loss: float, expected: dict[str, float]
) -> None:
    line = to_json(replace(STEP, loss=loss, expected=expected), now=0.0)
    assert "\n" not in line
    assert not {"NaN", "Infinity"} & set(line.replace(",", ":").split(":"))
    back = from_json(line)
    assert isinstance(back, StepTaken)
    assert back.loss == loss if math.isfinite(loss) else math.isnan(back.loss)
    assert back.expected is not None
    assert set(back.expected) == set(expected)
    assert all(math.isfinite(back.expected[key]) == math.isfinite(value) for key, value in expected.items())


def test_whole_numbers_are_good_floats() -> None:
    body = json.loads(to_json(STEP, now=0.0)) | {"loss": 2}
    back = from_json(json.dumps(body))
    assert isinstance(back, StepTaken)
    assert back.loss == 2.0
    assert type(back.loss) is float


@pytest.mark.parametrize("kind", ["from_the_future", "", 7, ["step"], None])
def test_unknown_kinds_are_none(kind: object) -> None:
    assert from_json(json.dumps({"kind": kind})) is None


def test_unknown_fields_are_left_out() -> None:
    body = json.loads(to_json(STEP, now=0.0)) | {"colour": "red"}
    assert from_json(json.dumps(body)) == STEP


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "low"}, "expected a number, got str"),
        ({"loss": True}, "expected a number, got bool"),
        ({"loss": 10**400}, "too large"),
        ({"step": 1.5}, "int"),
        ({"step": True}, "int"),
        ({"tokens": 10**30}, "64 bits"),
        ({"step": None}, "int"),
        ({"stage": ["prune"]}, "str"),
        ({"expected": {"layer": "half"}}, "expected a number"),
        ({"expected": [0.5]}, "dict"),
        ({"multipliers": {"layer": 1.0}}, "list"),
    ],
)
def test_fields_of_another_type_are_refused(change: dict[str, object], message: str) -> None:
    body = json.loads(to_json(STEP, now=0.0)) | change
    with pytest.raises(ValueError, match=message):
        from_json(json.dumps(body))


@pytest.mark.parametrize("line", ["", "{", "[]", "3", '"step"', '{"kind": "step"}', "[" * 100_000])
def test_lines_that_are_no_records_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_json(line)


@given(st.text())
def test_any_text_is_read_or_refused(line: str) -> None:
    try:
        record = from_json(line)
    except ValueError:
        return
    assert record is None


def test_reader_skips_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    for record in EXAMPLES:
        sink.write(record)
    sink.close()
    path.write_bytes(b"\xff\xfe\x00\n{}\n" + path.read_bytes() + b'{"kind": "run_ended", "sec')
    assert list(read_records(path)) == EXAMPLES


def test_a_resume_truncates_to_the_size_in_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write(EXAMPLES[0])
    known = sink.size
    sink.write(STEP)
    sink.close()
    truncate(path, known)
    assert list(read_records(path)) == EXAMPLES[:1]
    sink = JsonlSink(path)
    sink.write(EXAMPLES[-1])
    sink.close()
    assert list(read_records(path)) == [EXAMPLES[0], EXAMPLES[-1]]
    truncate(path, 10**9)
    truncate(tmp_path / "absent.jsonl", 0)
    assert list(read_records(path)) == [EXAMPLES[0], EXAMPLES[-1]]


@pytest.mark.parametrize("content", ["", "whole\n", "incomplete"])
def test_records_are_not_appended_to_the_target_of_a_link(content: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text(content)
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="is a symbolic link"):
        JsonlSink(tmp_path / "metrics.jsonl")
    assert (tmp_path / "mine").read_text() == content
