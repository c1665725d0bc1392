"""Following a file: lines as they come, half lines, cuts, restarts, rotations."""

import json
from pathlib import Path
from typing import Any

import pytest

from drpruning.records import Incident, RunStarted, to_json
from drpruning.report.read.tail import MOST_INCIDENTS, MetricsTail, read_series

STARTED = to_json(RunStarted(name="x", recipe_hash="", strategy="constant", seed=1, domains=["a"], reference_ratio={}))


def step(at: int, **fields: Any) -> str:
    return json.dumps({"kind": "step", "stage": "prune", "step": at, "tokens": 10 * at, "time": 1e9 + at} | fields)


def steps(follower: MetricsTail) -> list[float]:
    bins = follower.series.steps.get("prune")
    return [] if bins is None else bins.mean(("step", "")).tolist()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_lines_are_taken_in_as_they_come_and_half_a_line_waits(path: Path) -> None:
    follower = MetricsTail(path)
    assert not follower.read()  # not there yet
    append(path, STARTED + "\n" + step(1) + "\n" + step(2)[:20])
    assert follower.read()
    assert steps(follower) == [1]
    assert not follower.read()
    append(path, step(2)[20:] + "\n")
    assert follower.read()
    assert steps(follower) == [1, 2]
    assert follower.series.unreadable == 0


def test_a_resumed_run_that_cut_its_file_back_is_read_afresh(path: Path) -> None:
    append(path, "\n".join([STARTED, step(1), step(2), step(3)]) + "\n")
    follower = MetricsTail(path)
    follower.read()
    path.write_text("\n".join([STARTED, step(1), step(2, loss=5.0)]) + "\n")
    assert follower.read()
    assert steps(follower) == [1, 2]
    # cut back and grown past where we were before we looked again
    path.write_text("\n".join([STARTED, *(step(at, loss=7.0) for at in range(1, 9))]) + "\n")
    assert follower.read()
    assert steps(follower) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert follower.series.steps["prune"].mean(("loss", "")).tolist() == [7.0] * 8


def test_a_rotated_file_continues_and_a_restarted_run_begins_again(path: Path, tmp_path: Path) -> None:
    append(path, "\n".join([STARTED, step(1), step(2)]) + "\n")
    follower = MetricsTail(path)
    follower.read()
    path.rename(tmp_path / "metrics.jsonl.1")
    assert not follower.read()
    assert steps(follower) == [1, 2]
    append(path, step(3)[:10])
    assert not follower.read()  # no saying yet what it is
    append(path, step(3)[10:] + "\n")
    follower.read()
    assert steps(follower) == [1, 2, 3]
    path.unlink()
    append(path, STARTED + "\n" + step(1) + "\n")
    assert follower.read()
    assert steps(follower) == [1]


def test_many_incidents_are_counted_but_not_all_kept(path: Path) -> None:
    line = to_json(Incident(what="skipped", detail="loss is not finite")) + "\n"
    append(path, line * (MOST_INCIDENTS + 5))
    seen = read_series(path)
    assert (len(seen.records), seen.incidents) == (MOST_INCIDENTS, MOST_INCIDENTS + 5)


def test_a_line_without_an_end_does_not_fill_the_memory(path: Path) -> None:
    append(path, STARTED + "\n" + "x" * (5 << 20) + "\n" + step(1) + "\n")
    seen = read_series(path)
    assert len(seen.steps["prune"]) == 1


@pytest.mark.parametrize("field", ["stage", "step", "tokens"])
@pytest.mark.parametrize("value", [None, -1, "x", 1e400, [], 2**70, True])
def test_a_row_without_a_place_is_left_out(path: Path, field: str, value: object) -> None:
    append(path, step(1) + "\n" + step(2, **{field: value}) + "\n" + step(3) + "\n")
    seen = read_series(path)
    valid = field == "stage" and value == "x"
    assert seen.steps["prune"].mean(("step", "")).tolist() == [1, 3]
    assert seen.unreadable == (0 if valid else 1)
