"""TensorBoard event files, as torch and tensorboard themselves write them, whole and damaged."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from drpruning import read_losses
from drpruning.errors import LossTableError, MissingExtraError
from drpruning.records import Evaluated, StepTaken
from drpruning.train.loggers import TensorBoardLogger


def write(folder: Path, tag: str = "eval/loss/{}", steps: range = range(100, 500, 100)) -> Path:
    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            writer.add_scalar("train/loss", 4.0, step)
            writer.add_scalar(tag.format("web"), 3 + 1 / (step or 1), step)
            writer.add_scalar(tag.format("code"), 2 + 1 / (step or 1), step)
        writer.add_text("notes", "begun")
        writer.add_histogram("weights", np.arange(10.0))
    (file,) = folder.glob("*tfevents*")
    return file


@pytest.mark.parametrize("whole_folder", [True, False])
def test_usual_tags(tmp_path: Path, whole_folder: bool) -> None:
    file = write(tmp_path)
    table = read_losses(tmp_path if whole_folder else file, tokens_per_step=1000)
    assert table.domains == ("web", "code")
    assert table.steps.tolist() == [100, 200, 300, 400]
    assert table.tokens.tolist() == [100_000, 200_000, 300_000, 400_000]
    np.testing.assert_allclose(table.losses[:, 0], 3 + 1 / table.steps, rtol=1e-7)


def test_tags_by_pattern(tmp_path: Path) -> None:
    write(tmp_path, "lm loss validation {}")
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("lm loss validation web vs samples", 3.0, 64_000)
    table = read_losses(tmp_path, columns="lm loss validation <domain>", domains=["code", "web"])
    assert table.domains == ("code", "web")
    assert table.steps.tolist() == [100, 200, 300, 400]


def test_a_run_that_was_rolled_back_and_resumed(tmp_path: Path) -> None:
    first = write(tmp_path)
    first.rename(tmp_path / "events.out.tfevents.1.first")
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (300, 400, 500):
            writer.add_scalar("eval/loss/web", 1.0, step)
    table = read_losses(tmp_path)
    assert table.steps.tolist() == [100, 200, 300, 400, 500]
    assert table.losses[2:, 0].tolist() == [1.0, 1.0, 1.0]
    assert table.losses[2, 1] == pytest.approx(2 + 1 / 300)
    assert math.isnan(table.losses[4, 1])


def test_a_subfolder_for_each_domain(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (1, 2):
            writer.add_scalars("eval/loss", {"web": 3.0, "code": 2.0}, step)
    table = read_losses(tmp_path, columns="eval_loss_<domain>/eval/loss")
    assert sorted(table.domains) == ["code", "web"]
    assert table.steps.tolist() == [1, 2]


def test_scalars_as_tensors(tmp_path: Path) -> None:
    writer = EventFileWriter(str(tmp_path))
    for step, loss in ((1, 3.0), (2, math.nan), (3, math.inf), (4, 2.0)):
        value = Summary.Value(tag="eval/loss/web", tensor=make_tensor_proto(loss, dtype=np.float32))
        writer.add_event(Event(step=step, summary=Summary(value=[value])))
    writer.close()
    table = read_losses(tmp_path)
    assert table.steps.tolist() == [1, 4]
    assert table.losses.tolist() == [[3.0], [2.0]]


def test_what_our_own_training_writes(tmp_path: Path) -> None:
    sink = TensorBoardLogger(tmp_path)
    for stage in ("prune", "continue"):
        for step in (1, 2):
            sink.write(
                StepTaken(
                    stage=stage,
                    step=step,
                    tokens=step,
                    loss=3.0,
                    learning_rate=0.1,
                    grad_norm=1.0,
                    tokens_per_second=1.0,
                )
            )
            losses = {"web": 3.0 - step, "code": 2.0}
            sink.write(
                Evaluated(
                    stage=stage, step=step, tokens=step, parameters=1.0, losses=losses, weights={}, reference_ratio={}
                )
            )
    sink.close()
    with pytest.raises(LossTableError) as caught:
        read_losses(tmp_path)
    assert "'prune/held_out_loss/web' and 'continue/held_out_loss/web' both hold domain 'web'" in caught.value.message
    assert caught.value.next_step is not None
    pattern = caught.value.next_step.split("'")[1]
    assert pattern == "prune/held_out_loss/<domain>"
    assert read_losses(tmp_path, columns=pattern).losses.tolist() == [[2.0, 2.0], [1.0, 2.0]]


def test_a_step_below_zero(tmp_path: Path) -> None:
    write(tmp_path, steps=range(-1, 3))
    with pytest.raises(LossTableError, match="tag 'eval/loss/web' is at -1 steps"):
        read_losses(tmp_path)


def test_no_such_tag(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(LossTableError, match=r"no scalar has a tag like 'test/<domain>'; the tags are .*train/loss"):
        read_losses(tmp_path, columns="test/<domain>")


def test_an_incomplete_last_record_is_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "whole")
    whole = read_losses(file)
    content = file.read_bytes()
    cut = tmp_path / "cut.tfevents"
    for size in range(len(content) - 1, 400, -97):
        cut.write_bytes(content[:size])
        table = read_losses(cut)
        np.testing.assert_array_equal(table.steps, whole.steps[: len(table.steps)])
        seen = np.isfinite(table.losses)
        np.testing.assert_array_equal(table.losses[seen], whole.losses[: len(table.steps)][seen])


def test_damage_is_an_error_and_never_another_loss(tmp_path: Path) -> None:
    file = write(tmp_path / "whole")
    whole = read_losses(file)
    content = file.read_bytes()
    damaged = tmp_path / "damaged.tfevents"
    refused = 0
    for place in range(0, len(content), 31):
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            table = read_losses(damaged)
        except LossTableError:
            refused += 1
            continue
        for row, step in enumerate(table.steps):
            same = whole.losses[whole.steps.tolist().index(step)]
            seen = np.isfinite(table.losses[row])
            np.testing.assert_array_equal(table.losses[row][seen], same[seen])
    assert refused > 0


@pytest.mark.parametrize("content", [b"", b"step,web\n1,2\n", b"\0" * 100])
def test_what_is_no_event_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tfevents.0"
    path.write_bytes(content)
    with pytest.raises(LossTableError):
        read_losses(path)


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install.*tensorboard"):
        read_losses(file)
