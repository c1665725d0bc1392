"""Planned against measured memory of a training step: what torch's CPU allocator gave out at its peak.

    python benches/memory.py

Each row is a small model in settings of its own. The measured step is the loop's: the same model, optimizer, losses,
micro-batches and clipping, in real tensors. The peak is the largest sum of torch's own record of allocations. Sharded
steps run in processes that talk over gloo, and a rank's figure is the largest; what gloo itself holds is not in it.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from functools import partial

import torch
from torch import distributed
from torch.profiler import ProfilerActivity, profile

from drpruning.planning.memory import Played, stage_memory
from drpruning.planning.model_shape import ModelShape
from drpruning.planning.recipe import find
from drpruning.pruning import MaskedModel, Target
from drpruning.train.execution import prepare
from drpruning.train.losses import token_losses
from drpruning.train.optim import make_optimizer, parameters_of
from drpruning.train.sharding import clip, shard, sharding_mesh

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
COMMON = [TARGET, "data.seq_len=256", "training.evaluation_batch_size=4", "training.loss=auto"]
SETTINGS = {
    "float32": [],
    "bfloat16": ["training.dtype=bfloat16"],
    "one micro-batch": ["training.micro_batch_size=8"],
    "full checkpointing": ["training.activation_checkpointing=full"],
    "selective checkpointing": ["training.activation_checkpointing=selective"],
    "plain loss": ["training.loss=plain"],
    "bfloat16 moments": ["training.moments=bfloat16"],
    "low16, bfloat16 moments": [
        "training.dtype=bfloat16",
        "training.weights=bfloat16+low16",
        "training.moments=bfloat16",
    ],
    "bfloat16 weights, int8 moments": [
        "training.dtype=bfloat16",
        "training.weights=bfloat16",
        "training.moments=int8",
    ],
}
SHARDED = ("float32", "low16, bfloat16 moments")
LOADED = ["drpruning.planning.memory", "drpruning.train.optim", "torch.distributed.fsdp", "torch.profiler"]
"""What takes seconds to load, once for the processes of all sharded steps."""


def overrides(settings: list[str]) -> list[str]:
    stages = [f"{stage}.batch_size=8" for stage in ("pretrain", "prune", "continue")]
    micro = [] if any("micro_batch_size" in item for item in settings) else ["training.micro_batch_size=4"]
    return [*COMMON, *stages, *micro, *settings]


def measured(settings: list[str], name: str, shape: ModelShape, ranks: int = 1, shards: int = 1) -> int:
    """Bytes at the peak of two real steps and an evaluation, in this process, which is one of ``ranks``."""
    config, _ = find("quickstart", overrides(settings))
    played = Played(config, name, shape, "cpu")
    stage, training, length = config.stage(name), played.training, config.data.seq_len
    sizes = Target.of(shape).sizes()  # type: ignore[arg-type] # has what is read
    if name == "continue":
        sizes = Target(**config.prune.target.model_dump()).resolve(shape).sizes()  # type: ignore[arg-type]
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.dtype == "bfloat16")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        model = played.model(sizes)
        if ranks > 1:
            shard(model, sharding_mesh("cpu", ranks, shards), training.dtype)
        prepare(model, training)
        optimizer = make_optimizer(model, stage, training)
        model.train()
        rows = training.micro_batch_size or stage.batch_size
        own = stage.batch_size // ranks
        for _ in range(2):
            if isinstance(model, MaskedModel):
                model.sample_masks()
            for tokens in torch.randint(shape.vocab_size, (own, length)).split(rows):
                with autocast:
                    total = token_losses(model, tokens).sum()
                (total / stage.batch_size / length).backward()
                del total
            if isinstance(model, MaskedModel):
                model.constraint(1).backward()
            clip(parameters_of(optimizer, "weights"), 1.0)
            optimizer.step()
            if isinstance(model, MaskedModel):
                model.clamp_gates()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad(), autocast:
            model.eval()
            token_losses(model, torch.zeros(training.evaluation_batch_size, length, dtype=torch.long))
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def planned(settings: list[str], name: str, shape: ModelShape, ranks: int = 1, shards: int | None = None) -> int:
    config, _ = find("quickstart", overrides(settings))
    return stage_memory(config, name, shape, device="cpu", ranks=ranks, shards=shards).total


def measured_sharded(settings: list[str], name: str, shape: ModelShape, ranks: int, shards: int) -> int:
    """The same in ``ranks`` processes: the largest of theirs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with context.Pool(ranks) as pool:
        return max(pool.map(partial(_on_rank, settings, name, shape, ranks, shards, port), range(ranks), chunksize=1))


def _on_rank(settings: list[str], name: str, shape: ModelShape, ranks: int, shards: int, port: int, rank: int) -> int:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    try:
        return measured(settings, name, shape, ranks, shards)
    finally:
        distributed.destroy_process_group()


def main() -> None:
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


if __name__ == "__main__":
    main()
