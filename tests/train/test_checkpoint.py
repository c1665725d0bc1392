"""Checkpoints: exact, complete or absent, at most ``keep`` of them, and damage to any byte is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from drpruning.errors import DiskError, StateError
from drpruning.train.checkpoint import Checkpoints
from drpruning.train.cpu_staging import CpuStaging

SIZES = [(25, torch.float32), (5, torch.bfloat16), (300, torch.int8), (3, torch.int16), (40, torch.float32)]
"""Tensors of 100, 10, 300, 6 and 160 bytes."""


def tensors(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {"weight": torch.randn(4, 3, generator=generator), "bias": torch.randn(3, generator=generator)},
        "optimizer": {"state": {"weight": {"step": torch.tensor(float(seed))}}},
    }


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_restores_every_bit(background: bool, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, recipe="a", background=background)
    given = tensors(5)
    checkpoints.save("prune", 5, given, {"numbers": [0.1, 2]})
    given["model"]["weight"].zero_()  # training continues
    found, damaged = checkpoints.newest("prune")
    checkpoints.close()
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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("victim", ["state.json", "complete.json", "tensors/.metadata", "tensors/__0_0.distcp"])
@pytest.mark.parametrize("harm", [cut, flip, empty, Path.unlink])
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(victim: str, harm: Any, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save("prune", step, tensors(step), {})
    newest = tmp_path / "prune-000000002"
    assert {str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file()} == {
        "state.json",
        "complete.json",
        "tensors/.metadata",
        "tensors/__0_0.distcp",
    }
    harm(newest / victim)
    found, damaged = checkpoints.newest("prune")
    assert found is not None
    assert found.step == 1
    assert len(damaged) == 1
    assert "prune-000000002 is damaged" in damaged[0]


@pytest.mark.parametrize("background", [False, True])
def test_a_damaged_one_is_replaced_and_costs_no_other_its_place(background: bool, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, background=background)
    checkpoints.save("prune", 3, tensors(3), {})
    checkpoints.wait()
    empty(tmp_path / "prune-000000003" / "state.json")
    checkpoints.save("prune", 3, tensors(4), {})
    found, damaged = checkpoints.newest("prune")
    assert (found is not None, damaged) == (True, [])
    empty(tmp_path / "prune-000000003" / "state.json")
    checkpoints.save("prune", 2, tensors(2), {})  # an older one, from which the run continued
    found, damaged = checkpoints.newest("prune")
    checkpoints.close()
    assert found is not None
    assert (found.step, damaged) == (2, [])


def test_every_bit_of_the_mark_counts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save("prune", 1, tensors(1), {})
    mark = tmp_path / "prune-000000001" / "complete.json"
    content = mark.read_bytes()
    for place in range(len(content)):
        for bit in (1, 16):
            mark.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            try:
                same = json.loads(mark.read_bytes()) == json.loads(content)
            except ValueError:
                same = False
            assert (checkpoints.newest("prune")[0] is not None) == same


def test_an_incomplete_checkpoint_is_ignored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save("prune", 1, tensors(1), {})
    (tmp_path / "prune-000000001").rename(tmp_path / ".prune-000000002.partial")
    assert checkpoints.newest("prune") == (None, [])


def test_a_checkpoint_of_another_recipe_is_skipped(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=1, recipe="one").save("prune", 1, tensors(1), {})
    found, passed = Checkpoints(tmp_path, keep=1, recipe="other").newest("prune")
    assert found is None
    assert passed == [f"checkpoint {tmp_path / 'prune-000000001'} belongs to another recipe"]


def test_a_checkpoint_of_an_older_format_is_skipped(tmp_path: Path) -> None:
    """Skip a checkpoint whose format number is older: its state lacks fields that this version reads."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save("prune", 1, tensors(1), {})
    mark = tmp_path / "prune-000000001" / "complete.json"
    body = json.loads(mark.read_text())
    mark.write_text(json.dumps({**body, "format": body["format"] - 1}))
    found, damaged = checkpoints.newest("prune")
    assert found is None
    assert f"format {body['format'] - 1}; this version reads {body['format']}" in damaged[0]


def test_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save("prune", 1, tensors(1), {})
    found, _ = checkpoints.newest("prune")
    assert found is not None
    with pytest.raises(StateError, match="does not fit this model"):
        checkpoints.restore(
            found, {"model": nn.Linear(2, 2).state_dict(), "optimizer": {"state": {"other": torch.ones(1)}}}
        )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_full_disk_leaves_the_last_checkpoint_intact(background: bool, room: int, small_disk: Path) -> None:
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=2, background=background)
    numbers = {"model": {"weight": torch.arange(60_000.0)}}
    checkpoints.save("prune", 1, numbers, {})
    checkpoints.wait()
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(small_disk).free == 0
    os.truncate(filler, filler.stat().st_size - room)

    def save() -> None:
        checkpoints.save("prune", 2, numbers, {})
        checkpoints.wait()

    with pytest.raises(DiskError, match=r"the last one, prune-000000001, is intact") as raised:
        save()
    assert "240 kB" in str(raised.value) or "No space left" in str(raised.value)
    filler.unlink()
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["prune-000000001"]
    assert checkpoints.newest("prune")[1] == []
    save()
    found, damaged = checkpoints.newest("prune")
    checkpoints.close()
    assert found is not None
    assert (found.step, damaged) == (2, [])


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()  # a file of that name
    with pytest.raises(DiskError, match="could not be written"):
        Checkpoints(tmp_path / "checkpoints", keep=1).save("prune", 1, tensors(1), {})


def test_copies_are_made_in_the_same_memory_each_time() -> None:
    staging = CpuStaging()
    first = staging.copy(tensors(1))
    second = staging.copy({**tensors(2), "more": [torch.ones(2), 5]})
    assert first["model"]["weight"] is second["model"]["weight"]
    assert torch.equal(second["model"]["weight"], tensors(2)["model"]["weight"])
    assert second["more"][1] == 5
    other = staging.copy({"model": {"weight": torch.ones(2, 3, dtype=torch.bfloat16)}})
    assert torch.equal(other["model"]["weight"], torch.ones(2, 3, dtype=torch.bfloat16))
    kept = weakref.ref(second["model"]["bias"])
    del second, first
    assert kept() is not None
    staging.release()
    assert kept() is None


def test_memory_for_a_gpu_is_pinned_in_blocks_that_tensors_share(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    empty = torch.empty

    def pretend(*size: Any, pin_memory: bool = False, **named: Any) -> torch.Tensor:
        if pin_memory:
            pinned.append(size)
        return empty(*size, **named)

    monkeypatch.setattr("drpruning.train.cpu_staging.torch.empty", pretend)
    monkeypatch.setattr("drpruning.train.cpu_staging.BLOCK", 256)
    with FakeTensorMode():
        given = [empty(size, dtype=dtype, device="cuda") for size, dtype in SIZES]
        copied = CpuStaging().copy(given)
    assert [(len(each), each.dtype, each.device.type) for each in copied] == [(*pair, "cpu") for pair in SIZES]
    assert [each.storage_offset() * each.element_size() for each in copied] == [0, 128, 0, 0, 64]
    assert pinned == [(256,), (300,), (256,)]
