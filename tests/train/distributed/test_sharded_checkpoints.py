"""A checkpoint that some ranks write is read by any number of ranks, each its rows only, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from drpruning.train.checkpoint import Checkpoints
from drpruning.train.distributed.fsdp import device_mesh
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.tensor_files import write_tensors
from tests.train.processes import on_ranks

ROWS = (1, 2, 7, 8)
"""Rows of the sharded tensors: fewer than ranks, as many, and numbers that do not divide."""


def whole(fill: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(fill)
    sharded = {f"of {rows} rows": torch.randn(rows, 3, generator=generator) for rows in ROWS}
    codes = torch.randint(-128, 128, (7, 5), generator=generator, dtype=torch.int8)
    return {**sharded, "vector": torch.randn(5, generator=generator), "codes": codes}


def nested(fill: int, shards: int) -> dict[str, Any]:
    """Return tensors sharded over ``shards`` ranks, with replicas if there are more ranks, and two that are whole."""
    tensors = whole(fill)
    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    if ranks > 1:
        mesh = device_mesh("cpu", ranks, shards)
        placements = [Shard(0)] if shards == ranks else [Replicate(), Shard(0)]
        tensors = {name: distribute_tensor(tensor, mesh, placements) for name, tensor in tensors.items()}
    gate = torch.full((2, 2), float(fill))
    groups = [{"lr": fill / 7, "betas": (0.9, 0.99), "params": sorted(tensors)}]
    return {"model": {**tensors, "gate": gate}, "optimizer": {"state": {"gate": {"step": torch.tensor(float(fill))}}},
            "groups": {"param_groups": groups}}  # fmt: skip


def checkpoints_of(folder: str, *, background: bool) -> Checkpoints:
    if not distributed.is_initialized():
        return Checkpoints(Path(folder), keep=1, background=background)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    other: Any = distributed.new_group(backend="gloo")
    ranks = Ranks(rank=rank, world_size=size, control=distributed.group.WORLD, background=other)
    return Checkpoints(Path(folder), keep=1, ranks=ranks, background=background)


def save(folder: str, shards: int, background: bool) -> None:
    checkpoints = checkpoints_of(folder, background=background)
    checkpoints.save("prune", 4, nested(5, shards), {"a": 1})
    checkpoints.close()


def restore(folder: str, shards: int) -> None:
    checkpoints, filled, expected = checkpoints_of(folder, background=False), nested(0, shards), whole(5)
    found, damaged = checkpoints.newest("prune")
    assert found is not None, damaged
    checkpoints.restore(found, filled)
    for name, tensor in expected.items():
        own = filled["model"][name]
        assert torch.equal(own.full_tensor() if isinstance(own, DTensor) else own, tensor), name
    assert torch.equal(filled["model"]["gate"], torch.full((2, 2), 5.0))
    assert filled["optimizer"]["state"]["gate"]["step"] == 5
    assert filled["groups"]["param_groups"][0]["lr"] == 5 / 7
    assert found.state == {"a": 1}


@pytest.mark.parametrize(("ranks", "shards", "background"), [(1, 1, False), (3, 3, True), (4, 2, False)])
def test_any_number_of_ranks_reads_a_checkpoint(ranks: int, shards: int, background: bool, tmp_path: Path) -> None:
    folder = str(tmp_path)
    if ranks == 1:
        save(folder, shards, background)
    else:
        on_ranks(save, ranks, folder, shards, background)
    files = sorted((tmp_path / "prune-000000004" / "tensors").iterdir())
    assert [path.name for path in files] == [f"{rank:05d}.safetensors" for rank in range(ranks)]
    content = sum(tensor.nbytes for tensor in whole(5).values()) + 16 + 4
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in files)
    assert sum(path.stat().st_size for path in files) == content + headers  # each row once, also of replicas
    restore(folder, 1)
    on_ranks(restore, 2, folder, 2)
    if ranks < 4:
        on_ranks(restore, 4, folder, 2)


def fail_on_one(folder: str) -> str:
    import drpruning.train.checkpoint as module

    def full(path: Path, parts: Any) -> Any:
        if distributed.get_rank() == 1:
            raise OSError(28, "No space left on device")
        return write_tensors(path, parts)

    module.write_tensors = full
    try:
        save(folder, 2, background=False)
    except OSError as error:
        return str(error)
    finally:
        module.write_tensors = write_tensors
    return ""


def test_every_rank_raises_what_one_rank_cannot_write(tmp_path: Path) -> None:
    for message in on_ranks(fail_on_one, 2, str(tmp_path)):
        assert "rank 1: " in message
        assert "No space left on device" in message
    assert list(tmp_path.iterdir()) == []
