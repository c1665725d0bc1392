"""Checkpoints: exact, complete or absent, and never more than asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drpruning.errors import StateError
from drpruning.train.checkpoint import Checkpoints


def tensors(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {"weight": torch.randn(4, 3, generator=generator), "bias": torch.randn(3, generator=generator)},
        "optimizer": {"state": {"weight": {"step": torch.tensor(float(seed))}}},
    }


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save("prune", 5, tensors(5), {"numbers": [0.1, 2]})
    found, damaged = checkpoints.newest("prune")
    assert damaged == []
    assert found is not None
    assert (found.stage, found.step, found.state) == ("prune", 5, {"numbers": [0.1, 2]})
    filled = tensors(0)
    checkpoints.restore(found, filled)
    for name, tensor in tensors(5)["model"].items():
        assert torch.equal(filled["model"][name], tensor)
    assert filled["optimizer"]["state"]["weight"]["step"].item() == 5


def test_the_newest_of_the_stage_is_found_and_old_ones_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpoints.save("prune", step, tensors(step), {})
    checkpoints.save("continue", 3, tensors(3), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "continue-000000003",
        "prune-000000002",
        "prune-000000010",
    ]
    found, _ = checkpoints.newest("prune")
    assert found is not None
    assert found.step == 10
    checkpoints.drop("prune")
    assert checkpoints.newest("prune") == (None, [])


@pytest.mark.parametrize("victim", ["state.json", "tensors/.metadata", "tensors/__0_0.distcp"])
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(victim: str, harm: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save("prune", step, tensors(step), {})
    file = tmp_path / "prune-000000002" / victim
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-7])
    found, damaged = checkpoints.newest("prune")
    assert found is not None
    assert found.step == 1
    assert len(damaged) == 1
    assert "prune-000000002 is damaged" in damaged[0]


def test_what_was_never_finished_is_not_seen(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save("prune", 1, tensors(1), {})
    (tmp_path / "prune-000000001").rename(tmp_path / ".prune-000000002.partial")
    assert checkpoints.newest("prune") == (None, [])


def test_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save("prune", 1, tensors(1), {})
    found, _ = checkpoints.newest("prune")
    assert found is not None
    with pytest.raises(StateError, match="does not fit this model"):
        checkpoints.restore(
            found, {"model": nn.Linear(2, 2).state_dict(), "optimizer": {"state": {"other": torch.ones(1)}}}
        )
