"""A sharded model is exported from rank 0, which reads one whole tensor at a time."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from benches.memory import BILLION, Reading, exporting, write_random
from torch import Tensor, distributed
from transformers import AutoModelForCausalLM, LlamaConfig, OlmoeConfig

from drpruning.config import TrainingConfig
from drpruning.errors import DiskError
from drpruning.hf.model_folder import write_model
from drpruning.hf.models import load, saved_tensors
from drpruning.hf.tensor_stream import ReadTensor
from drpruning.pruning import MaskedModel, Target
from drpruning.train.distributed.fsdp import load_model
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.distributed.whole_tensors import read_on_first
from tests.train.distributed.test_fsdp import DENSE, EXPERTS, SHAPE
from tests.train.processes import on_ranks

M_MMAP_THRESHOLD = -3
"""Number of an option of glibc's mallopt."""
PARTLY = Target(layers=2, hidden=16, kv_heads=1, intermediate=32, experts=3)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def export_on_rank(folder: str, shards: int, target: Target, out: str) -> None:
    """Write the sharded model, whole and cut, after a forward pass, which leaves some weights gathered."""
    ranks = Ranks(rank=distributed.get_rank(), world_size=distributed.get_world_size())
    masked: MaskedModel = load_model(
        folder,
        torch.device("cpu"),
        ranks,
        TrainingConfig(fsdp_shard=shards),
        wrap=lambda plain: MaskedModel(plain, target),
    )
    with torch.no_grad():
        masked.eval()(torch.arange(16)[None])

    def write(read: ReadTensor) -> None:
        (Path(out) / "whole").mkdir()
        write_model(masked.model, Path(out) / "whole", read)
        masked.write_extracted(Path(out) / "cut", read=read)

    read_on_first(saved_tensors(masked.model), ranks, write)


@pytest.mark.parametrize(("ranks", "shards", "tied"), [(2, 2, False), (4, 2, True)])
def test_a_sharded_model_is_written_as_one_process_writes_it(
    ranks: int, shards: int, tied: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "vocab_size": 65}, tie_word_embeddings=tied)  # 65: parts of two sizes
    compare(AutoModelForCausalLM.from_config(config, dtype=torch.float32), ranks, shards, DENSE, tmp_path)


def test_sharded_experts_are_written_as_one_process_writes_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(OlmoeConfig(**EXPERTS, num_experts=5), dtype=torch.float32)
    compare(model, 2, 2, PARTLY, tmp_path)


def compare(model: torch.nn.Module, ranks: int, shards: int, target: Target, folder: Path) -> None:
    source = folder / "source"
    model.save_pretrained(source)  # type: ignore[operator]
    on_ranks(export_on_rank, ranks, str(source), shards, target, str(folder))
    loaded = load(source)
    loaded.save_pretrained(folder / "expected")
    MaskedModel(loaded, target).eval().export(folder / "extracted")
    assert files(folder / "whole") == files(folder / "expected")
    assert files(folder / "cut") == files(folder / "extracted")


def fail_on_rank() -> tuple[str, bool]:
    """Return the error of an export whose disk is full after the first tensor, and whether the ranks still agree."""
    ranks = Ranks(rank=distributed.get_rank(), world_size=distributed.get_world_size())
    torch.manual_seed(0)
    plain: Tensor = torch.randn(4, 2)

    def write(read: ReadTensor) -> None:
        assert torch.equal(read("gate"), plain)
        raise DiskError("the disk is full")

    try:
        read_on_first({"gate": plain}, ranks, write)
    except DiskError as error:
        return str(error), ranks.agree(lambda: True)
    return "", False


def test_every_rank_raises_what_rank_0_cannot_write() -> None:
    assert on_ranks(fail_on_rank, 2) == [("the disk is full", True)] * 2


def exporting_without_a_heap(*arguments: Any) -> Reading:
    """Map each tensor from 1 MiB on, which glibc returns when it is freed: free memory of the heap would count.

    Otherwise glibc raises its threshold, and the order of the threads decides what the heap keeps.
    """
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20) == 1
    return exporting(*arguments)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, and Linux's /proc")
def test_rank_0_exports_with_one_tensor_in_memory(tmp_path: Path) -> None:
    """Load and export a model of 128 MB, whole and cut: rank 0 would hold 1.6 times its half and the largest tensor."""
    shape = {**BILLION, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 8192}
    for name, changes in {"small": {"num_hidden_layers": 1, "vocab_size": 64}, "large": {}}.items():
        (tmp_path / name).mkdir()
        write_random(tmp_path / name, {**shape, **changes})
    arguments = (
        tmp_path / "large",
        tmp_path / "out",
        Target(layers=6, hidden=384, intermediate=1024),
        tmp_path / "small",
    )
    found: list[Reading] = on_ranks(exporting_without_a_heap, 2, *arguments)
    assert sum(each.part for each in found) > 120e6
    assert max(each.ratio for each in found) < 1.2, found
