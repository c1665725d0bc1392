"""Measure the memory of training: a step against its plan, and a rank that loads its shard of a model.

    python benches/memory.py
    python benches/memory.py --read [FOLDER] [--ranks 4]
    python benches/memory.py --export [FOLDER] [--ranks 2]

The first command has a row for each of several settings of a small model. The measured step is that of the training
loop: the same model, optimizer, losses, micro-batches and clipping, in real tensors. The peak is the largest sum of
torch's record of allocations. Sharded steps run in processes that communicate over gloo; the result is the largest of
the ranks, without gloo's buffers.

The plan of a step is the largest of its phases load, step and evaluation, which are the measured ones.

The second command loads a model in several processes; by default a random Llama of 1.1 billion float32 parameters
(4.4 GB on disk). The third one also puts it under masks and exports it twice, whole and cut to about a half. The peak
is that of anonymous memory (``RssAnon``, sampled each millisecond) less that after the
imports: pages of the files are in the kernel's page cache, which it reclaims.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig

from drpruning.config import TrainingConfig
from drpruning.hf.model_folder import write_model
from drpruning.hf.models import build_on_meta, saved_tensors
from drpruning.hf.tensor_stream import ReadTensor
from drpruning.planning.memory import SimulatedStage, phases_of
from drpruning.planning.model_shape import ModelShape
from drpruning.planning.recipe import find_recipe_or_model
from drpruning.pruning import MaskedModel, Target
from drpruning.train.distributed.fsdp import clip_grad_norm, device_mesh, load_model, set_replica_sync, shard_model
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.distributed.whole_tensors import read_on_first
from drpruning.train.losses import token_losses
from drpruning.train.model_runtime import prepare
from drpruning.train.optimizers.build import group_parameters, make_optimizer

SHAPE = ModelShape(
    model_type="llama",
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
TARGET = "prune.target={layers: 4, hidden: 192, heads: 2, kv_heads: 1, intermediate: 512}"
COMMON = [TARGET, "data.seq_len=256", "training.eval_batch_size=4", "training.cross_entropy=auto"]
SETTINGS = {
    "float32": [],
    "bfloat16": ["training.dtype=bfloat16"],
    "one micro-batch": ["training.micro_batch_size=8"],
    "full checkpointing": ["training.activation_checkpointing=full"],
    "selective checkpointing": ["training.activation_checkpointing=selective"],
    "plain loss": ["training.cross_entropy=plain"],
    "bfloat16 moments": ["training.optimizer_state_format=bfloat16"],
    "low16, bfloat16 moments": [
        "training.dtype=bfloat16",
        "training.weight_format=bfloat16+low16",
        "training.optimizer_state_format=bfloat16",
    ],
    "bfloat16 weights, int8 moments": [
        "training.dtype=bfloat16",
        "training.weight_format=bfloat16",
        "training.optimizer_state_format=int8",
    ],
}
SHARDED = ("float32", "low16, bfloat16 moments")
BILLION = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
"""TinyLlama's shape: 1.1 billion parameters."""
HALF = Target(layers=16, hidden=1536, heads=24, kv_heads=3, intermediate=4096)
"""Target of the exports."""
FILE_BYTES = 2**30
LOADED = [
    "drpruning.planning.memory",
    "drpruning.train.optimizers.build",
    "drpruning.train.distributed.fsdp",
    "torch.distributed.fsdp",
    "torch.profiler",
]
"""Modules that take seconds to load; loaded once for the processes of all sharded steps."""


def overrides(settings: list[str]) -> list[str]:
    stages = [f"{stage}.batch_size=8" for stage in ("pretrain", "prune", "continue")]
    micro = [] if any("micro_batch_size" in item for item in settings) else ["training.micro_batch_size=4"]
    return [*COMMON, *stages, *micro, *settings]


def measured(settings: list[str], name: str, shape: ModelShape, ranks: int = 1, shards: int = 1) -> int:
    """Return the peak bytes of two real steps and an evaluation in this process, one of ``ranks``."""
    config, _ = find_recipe_or_model("quickstart", overrides(settings))
    simulated = SimulatedStage(config, name, shape, "cpu")
    stage, training, length = config.stage(name), simulated.training, config.data.seq_len
    sizes = Target.of(shape).sizes()  # type: ignore[arg-type] # has the fields that are read
    if name == "continue":
        sizes = Target(**config.prune.target.model_dump()).resolve(shape).sizes()  # type: ignore[arg-type]
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.dtype == "bfloat16")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        model = simulated.model(sizes)
        if ranks > 1:
            shard_model(model, device_mesh("cpu", ranks, shards), training.dtype)
        prepare(model, training)
        optimizer = make_optimizer(model, stage, training)
        model.train()
        rows = training.micro_batch_size or stage.batch_size
        own = stage.batch_size // ranks
        for _ in range(2):
            if isinstance(model, MaskedModel):
                model.sample_masks()
            parts = torch.randint(shape.vocab_size, (own, length)).split(rows)
            for number, tokens in enumerate(parts, 1):
                set_replica_sync(model, number == len(parts))
                with autocast:
                    total = token_losses(model, tokens).sum()
                (total / stage.batch_size / length).backward()
                del total
            if isinstance(model, MaskedModel):
                model.constraint(1).backward()
            clip_grad_norm(group_parameters(optimizer, "weights"), 1.0)
            optimizer.step()
            if isinstance(model, MaskedModel):
                model.clamp_gates()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad(), autocast:
            model.eval()
            token_losses(model, torch.zeros(training.eval_batch_size, length, dtype=torch.long))
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def planned(settings: list[str], name: str, shape: ModelShape, ranks: int = 1, shards: int | None = None) -> int:
    """Return the planned peak bytes of the phases that :func:`measured` runs."""
    config, _ = find_recipe_or_model("quickstart", overrides(settings))
    phases = phases_of(config, name, shape, device="cpu", ranks=ranks, shards=shards)
    return max(memory.total for memory in phases if memory.phase in ("load", "step", "evaluation"))


def measured_sharded(settings: list[str], name: str, shape: ModelShape, ranks: int, shards: int) -> int:
    """Return the largest peak of ``ranks`` processes."""
    return max(on_ranks(partial(measured, settings, name, shape, ranks, shards), ranks))


T = TypeVar("T")


def on_ranks(work: Callable[[], T], ranks: int) -> list[T]:
    """Return the results of ``work`` in each of ``ranks`` processes that communicate over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with context.Pool(ranks) as pool:
        return pool.map(partial(_on_rank, work, ranks, port), range(ranks), chunksize=1)


def _on_rank(work: Callable[[], T], ranks: int, port: int, rank: int) -> T:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    try:
        return work()
    finally:
        distributed.destroy_process_group()


@dataclass(frozen=True)
class Reading:
    """Bytes of one rank that read its part of a model.

    Attributes:
        peak: Anonymous memory at its peak, less that before.
        part: The rank's part of the model.
        largest: The largest tensor, whole.
    """

    peak: int
    part: int
    largest: int

    @property
    def ratio(self) -> float:
        """The peak by part and largest tensor together."""
        return self.peak / (self.part + self.largest)


def reading(folder: Path, warm: Path | None = None) -> Reading:
    """Read this rank's part of a model; ``warm`` is read before, so that modules loaded on first use do not count."""
    ranks = Ranks(rank=distributed.get_rank(), world_size=distributed.get_world_size())
    device, training = torch.device("cpu"), TrainingConfig()
    if warm is not None:
        load_model(warm, device, ranks, training)
    gc.collect()
    with anonymous_peak() as peaks:
        model = load_model(folder, device, ranks, training)
    parts = [parameter.to_local() for parameter in model.parameters() if isinstance(parameter, DTensor)]
    return Reading(
        peak=peaks[-1] - peaks[0],
        part=sum(part.nbytes for part in parts),
        largest=max(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
    )


def exporting(folder: Path, out: Path, target: Target, warm: Path | None = None) -> Reading:
    """Load this rank's part of a model under masks and export it, whole and cut; the peak is of both together."""
    ranks = Ranks(rank=distributed.get_rank(), world_size=distributed.get_world_size())
    if warm is not None:
        _export(_load_masked(warm, ranks, Target()), ranks, out / "warm")
    gc.collect()
    with anonymous_peak() as peaks:
        masked = _load_masked(folder, ranks, target)
        _export(masked, ranks, out / "exported")
    parts = [parameter.to_local() for parameter in masked.parameters() if isinstance(parameter, DTensor)]
    return Reading(
        peak=peaks[-1] - peaks[0],
        part=sum(part.nbytes for part in parts),
        largest=max(parameter.numel() * parameter.element_size() for parameter in masked.parameters()),
    )


def _load_masked(folder: Path, ranks: Ranks, target: Target) -> MaskedModel:
    masked: MaskedModel = load_model(
        folder, torch.device("cpu"), ranks, TrainingConfig(), wrap=lambda plain: MaskedModel(plain, target)
    )
    return masked


def _export(masked: MaskedModel, ranks: Ranks, out: Path) -> None:
    def write(read: ReadTensor) -> None:
        whole = out / "whole"
        whole.mkdir(parents=True)
        write_model(masked.model, whole, read)
        masked.write_extracted(out / "cut", read=read)

    read_on_first(saved_tensors(masked.model), ranks, write)


@contextmanager
def anonymous_peak() -> Iterator[list[int]]:
    """Yield a list with the anonymous memory of this process now and, once the context is over, at its peak."""
    peaks = [_anonymous()] * 2
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1e-3):
            peaks[1] = max(peaks[1], _anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peaks
    finally:
        over.set()
        watching.join()
        peaks[1] = max(peaks[1], _anonymous())


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def write_random(folder: Path, shape: dict[str, int]) -> None:
    """Write a Llama with random float32 weights, one file at a time, so that it needs no memory for the whole."""
    config = LlamaConfig(**shape, architectures=["LlamaForCausalLM"], dtype="float32")
    files: list[dict[str, torch.Size]] = [{}]
    size = 0
    for name, parameter in build_on_meta(config, torch.float32).named_parameters():
        size += 4 * parameter.numel()
        if size > FILE_BYTES:
            files.append({})
            size = 4 * parameter.numel()
        files[-1][name] = parameter.shape
    generator, weight_map = torch.Generator().manual_seed(0), {}
    for number, shapes in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = {
            key: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02
            for key, shape in shapes.items()
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.save_pretrained(folder)


def compare_ranks(work: Callable[..., Reading], folder: Path | None, ranks: int) -> None:
    """Print the memory of each rank that reads a model, or that exports it."""
    with tempfile.TemporaryDirectory() as aside:
        warm = Path(aside) / "small"
        warm.mkdir()
        write_random(warm, {**BILLION, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1})
        if folder is None:
            folder = Path(aside) / "billion"
            folder.mkdir()
            write_random(folder, BILLION)
        given = (Path(aside) / "out", HALF) if work is exporting else ()
        print("| rank | part MiB | largest tensor MiB | peak MiB | peak / (part + largest) |\n|---|---|---|---|---|")
        for rank, found in enumerate(on_ranks(partial(work, folder, *given, warm), ranks)):
            sizes = " | ".join(f"{size / 2**20:.1f}" for size in (found.part, found.largest, found.peak))
            print(f"| {rank} | {sizes} | {found.ratio:.3f} |")


def compare_steps() -> None:
    """Print planned and measured memory of steps."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("| settings | stage | planned MiB | measured MiB | ratio |\n|---|---|---|---|---|")
    ratios = []

    def row(title: str, name: str, plan: int, real: int) -> None:
        ratios.append(plan / real)
        print(f"| {title} | {name} | {plan / 2**20:.1f} | {real / 2**20:.1f} | {ratios[-1]:.3f} |", flush=True)

    for title, settings in SETTINGS.items():
        for name in ("prune", "continue"):
            row(title, name, planned(settings, name, SHAPE), measured(settings, name, SHAPE))
    for title, settings in ((title, SETTINGS[title]) for title in SHARDED):
        for name in ("prune", "continue"):
            real = measured_sharded(settings, name, SHAPE, 2, 2)
            row(f"2 ranks, {title}", name, planned(settings, name, SHAPE, 2), real)
    real = measured_sharded([], "prune", SHAPE, 4, 2)
    row("4 ranks, 2 copies of 2 shards, float32", "prune", planned([], "prune", SHAPE, 4, 2), real)
    print(f"ratios {min(ratios):.3f} to {max(ratios):.3f}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Memory of training steps, or of reading and exporting a model in parts."
    )
    parser.add_argument("--read", nargs="?", const="", metavar="FOLDER", help="measure reading a model")
    parser.add_argument("--export", nargs="?", const="", metavar="FOLDER", help="measure reading and exporting it")
    parser.add_argument("--ranks", type=int, help="processes  [default: 4; 2 for --export]")
    given = parser.parse_args()
    if given.read is not None:
        compare_ranks(reading, Path(given.read) if given.read else None, given.ranks or 4)
    elif given.export is not None:
        compare_ranks(exporting, Path(given.export) if given.export else None, given.ranks or 2)
    else:
        compare_steps()


if __name__ == "__main__":
    main()
